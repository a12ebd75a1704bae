"""Files behind URLs: object stores (s3, gs, az), the web, the Hugging Face hub. Credentials come from the environment,
as each service's own tools take them; no message shows more of an error than its name.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import IO, Any, cast

from luthier.data.copies import Copy, Write, keep_file, keep_folder, known_copy, remember, safe_name
from luthier.data.readers.folder import is_data_file, splits_of
from luthier.errors import DataError, MissingExtra
from luthier.store.files import sha256_json


@dataclass(frozen=True)
class _Store:
    """How files behind a scheme are reached."""

    driver: str = ""
    """The package that fsspec needs; '' where none is."""
    faults: tuple[str, ...] = ()
    """What goes wrong there other than an OSError or ValueError, as 'module:class'."""
    credentials: str = ""
    """Where the user puts them."""

    @property
    def is_remote(self) -> bool:
        return bool(self.driver)


_S3 = _Store(
    "s3fs", ("botocore.exceptions:BotoCoreError", "botocore.exceptions:ClientError", "aiohttp:ClientError"),
    "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL for another server; "
    "FSSPEC_S3_ANON=true for a public bucket",
)  # fmt: skip
_GS = _Store(
    "gcsfs", ("google.auth.exceptions:GoogleAuthError", "gcsfs.retry:HttpError", "aiohttp:ClientError"),
    "GOOGLE_APPLICATION_CREDENTIALS; FSSPEC_GS_TOKEN=anon for a public bucket",
)  # fmt: skip
_AZ = _Store(
    "adlfs", ("azure.core.exceptions:AzureError", "aiohttp:ClientError"),
    "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
)  # fmt: skip
_WEB = _Store("aiohttp", ("aiohttp:ClientError",), "none are sent; a page behind a login is none")
_HUB = _Store("huggingface_hub", ("httpx:HTTPError",), "HF_TOKEN for private data sets; HF_ENDPOINT for another hub")

STORES: dict[str, _Store] = {
    "s3": _S3, "gs": _GS, "gcs": _GS, "az": _AZ, "abfs": _AZ, "abfss": _AZ, "https": _WEB, "http": _WEB, "hf": _HUB,
    "memory": _Store(), "file": _Store(),
}  # fmt: skip
"""Scheme -> how it is reached."""

_CHUNK = 1 << 20
_MOST_FILES = 10_000
_PATTERN = frozenset("*?[")
_CARD = "README.md"


class CutShort(OSError):
    """A file came with fewer or more bytes than its store says that it has."""


@dataclass(frozen=True)
class _Place:
    """What a URL stands for in its store."""

    store: Any
    path: str
    version: str = ""
    """Of everything below it, where the store has such a thing."""


def on_another_machine(named: str) -> DataError:
    """The refusal of what is out of reach while offline."""
    return DataError(f"offline: {named} is on another machine", way_out="drop --offline, or give a local copy")


def fetch_files(named: str, url: str, *, offline: bool) -> Copy:
    """A local copy of a file, or of the data files of a folder or pattern.

    Args:
        named: as the user has it, for messages.
        url: the same with what the environment holds.
        offline: whether other machines may be reached.

    Raises:
        DataError: it cannot be reached, or there is nothing to read.
        MissingExtra: what reaches it is not installed.
    """
    scheme = url.partition("://")[0]
    try:
        import fsspec
    except ImportError as error:
        raise MissingExtra("fsspec", extra="cloud", purpose=f"reading {scheme}:// files") from error
    if offline and STORES[scheme].is_remote:
        raise on_another_machine(named)
    with _as_data_errors(named, scheme):
        if scheme == "hf":
            return _fetch_from_hub(named, url)
        store, path = cast(tuple[Any, str], fsspec.url_to_fs(url))
        store.invalidate_cache()
        place = _Place(store, path)
        if _PATTERN & set(path) and scheme not in ("http", "https"):
            return _copied_folder(named, url, place, _matching(place))
        if scheme not in ("http", "https") and store.info(path)["type"] == "directory":
            return _copied_folder(named, url, place, _below(place))
        return _copied_file(named, url, place)


@contextmanager
def _as_data_errors(named: str, scheme: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MissingExtra(STORES[scheme].driver, extra="cloud", purpose=f"reading {scheme}:// files") from error
    except _faults(scheme) as error:
        credentials = STORES[scheme].credentials
        asked = f", and the credentials in the environment: {credentials}" if credentials else ""
        raise DataError(
            f"{named} cannot be fetched: {type(error).__name__}", way_out=f"check the name{asked}"
        ) from error


def _faults(scheme: str) -> tuple[type[Exception], ...]:
    found: list[type[Exception]] = [OSError, ValueError]
    for place in STORES[scheme].faults:
        module, _, name = place.partition(":")
        try:
            found.append(cast(type[Exception], getattr(importlib.import_module(module), name)))
        except ImportError:  # then nothing can have raised it
            continue
    return tuple(found)


# --- what is there ----------------------------------------------------------------------------------------------------


def _below(place: _Place) -> dict[str, Any]:
    """Path in the folder -> facts, of every file below it."""
    base = place.path.rstrip("/")
    found = cast(dict[str, Any], place.store.find(base, detail=True))
    return {path.removeprefix(base).removeprefix("/"): facts for path, facts in found.items()}


def _matching(place: _Place) -> dict[str, Any]:
    """Path -> facts, of every file that a pattern matches; paths begin below the last folder without one."""
    whole = place.path.split("/")
    first = next(number for number, part in enumerate(whole) if _PATTERN & set(part))
    base = "/".join(whole[:first])
    found = cast(dict[str, Any], place.store.glob(place.path, detail=True))
    return {
        path.removeprefix(base).removeprefix("/"): facts
        for path, facts in found.items()
        if facts.get("type") != "directory"
    }


def _version(facts: Mapping[str, Any]) -> str:
    """What the store calls this content of a file: its entity tag; '' where it has none."""
    return next((str(facts[name]) for name in ("ETag", "etag", "blob_id") if facts.get(name)), "")


# --- the copies -------------------------------------------------------------------------------------------------------


def _copied_file(named: str, url: str, place: _Place) -> Copy:
    version = str(place.store.ukey(place.path))  # the entity tag, or size and time where the store has none
    if (known := known_copy(url, version)) is not None:
        return Copy(known, _version(place.store.info(place.path)))
    facts = place.store.info(place.path)
    name = safe_name(named, place.path.partition("?")[0].rstrip("/").rpartition("/")[2])
    local = keep_file(name, _writer(place.store, place.path, facts))
    remember(url, version, local)
    return Copy(local, _version(facts))


def _copied_folder(named: str, url: str, place: _Place, files: Mapping[str, Any]) -> Copy:
    """Copy the files that are data, and the card that says what they are."""
    wanted = {
        safe_name(named, relative): facts
        for relative, facts in sorted(files.items())
        if is_data_file(relative) or relative == _CARD
    }
    if not any(relative != _CARD for relative in wanted):
        raise DataError(
            f"{named} holds no data files", way_out="give a file, a folder of data files, or a pattern such as *.jsonl"
        )
    if len(wanted) > _MOST_FILES:
        raise DataError(f"{named} holds {len(wanted):,} files", way_out=f"give a folder of at most {_MOST_FILES:,}")
    _refuse_several_splits(named, list(wanted))
    version = place.version or sha256_json({one: str(place.store.ukey(at["name"])) for one, at in wanted.items()})
    known = known_copy(url, version)
    if known is None:
        name = next((part for part in reversed(place.path.split("/")[:-1]) if part.strip(".*?[]")), "data")
        name = place.path.rstrip("/").rpartition("/")[2] if not _PATTERN & set(place.path) else name
        writers = {relative: _writer(place.store, at["name"], at) for relative, at in wanted.items()}
        known = keep_folder(safe_name(named, name), writers)
        remember(url, version, known)
    return Copy(known, place.version)


def _refuse_several_splits(named: str, names: list[str]) -> None:
    """Before anything is copied; a pattern names the files of one."""
    splits = splits_of(names)
    if len(splits) > 1:
        split, first = next(iter(splits.items()))
        folder = first.rpartition("/")[0]
        pattern = "/".join(
            part for part in (named.rstrip("/"), folder, f"{split}-*{''.join(PurePosixPath(first).suffixes)}") if part
        )
        raise DataError(
            f"{named} holds several splits: {', '.join(sorted(splits))}",
            way_out=f"give each by itself, by its folder, file or a pattern, e.g. data.train[0].path: {pattern}, "
            "and the others as data.validation and data.test",
        )


def _writer(store: Any, path: str, facts: Mapping[str, Any]) -> Write:
    def write(out: IO[bytes]) -> None:
        size = 0
        with store.open(path, "rb") as remote:
            while chunk := remote.read(_CHUNK):
                size += out.write(chunk)
        if facts.get("size") not in (None, size):
            raise CutShort

    return write


# --- the hub ----------------------------------------------------------------------------------------------------------


def _fetch_from_hub(named: str, url: str) -> Copy:
    """Data of a hub's data set, at the commit that its revision stands for now."""
    from huggingface_hub import HfApi, HfFileSystem

    if not url.startswith("hf://datasets/"):
        raise DataError(
            f"{named} is no data set of the hub", way_out="write hf://datasets/OWNER/NAME[@REVISION][/FILE OR FOLDER]"
        )
    store: Any = HfFileSystem(skip_instance_cache=True)
    found = store.resolve_path(url)
    commit = HfApi().repo_info(found.repo_id, repo_type="dataset", revision=found.revision).sha
    pinned: Any = replace(found, revision=commit, _raw_revision=None)
    place = _Place(store, pinned.unresolve(), f"commit {commit}")
    if _PATTERN & set(place.path):
        files = _matching(place)
    elif found.path_in_repo and store.info(place.path)["type"] == "file":
        return _copied_hub_file(named, url, place)
    else:
        files = _below(place)
    card = f"datasets/{found.repo_id}@{commit}/{_CARD}"
    if _CARD not in files and store.exists(card):
        files |= {_CARD: store.info(card)}
    return _copied_folder(named, url, place, files)


def _copied_hub_file(named: str, url: str, place: _Place) -> Copy:
    """A file with the card of its data set beside it, which says under what license it stands."""
    known = known_copy(url, place.version)
    if known is None:
        name = safe_name(named, place.path.rpartition("/")[2])
        root = "/".join(place.path.split("/")[:3])
        paths = {name: place.path, **({_CARD: f"{root}/{_CARD}"} if place.store.exists(f"{root}/{_CARD}") else {})}
        writers = {one: _writer(place.store, path, place.store.info(path)) for one, path in paths.items()}
        known = keep_folder(root.rpartition("/")[2].partition("@")[0], writers) / name
        remember(url, place.version, known)
    return Copy(known, place.version)
