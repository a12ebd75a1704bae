"""What was measured of this machine, kept for plans to come."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from luthier.errors import RunError
from luthier.plan.measured import Probed
from luthier.plan.predict import key_of
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_json, write_atomic
from luthier.store.home import home, place_of


def machine_of(resolved: ResolvedRecipe) -> str:
    """Where and on how many threads a recipe computes."""
    train = resolved.recipe.train
    where = "an accelerator" if train.device == "cuda" else _processor()
    return ", ".join([where, f"{train.threads} threads", f"bf16 {train.bf16}", *resolved.recipe.model.held])


def _processor(info: Path = Path("/proc/cpuinfo")) -> str:
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def kept_probe(resolved: ResolvedRecipe, environment: Mapping[str, str] = os.environ) -> Probed | None:
    """What was probed on a machine like this with the same base: this very training, else the newest; else None."""
    files = (place_of(environment) / "probes").glob("*.json")
    found = []
    for file in sorted(files, key=lambda file: -file.stat().st_mtime_ns):
        try:
            one = Probed.read(file)
        except RunError:  # of another version
            continue
        if (one.machine, one.model_sha256) == (machine_of(resolved), resolved.model_sha256):
            found.append(one)
    return next((one for one in found if one.key == key_of(resolved)), found[0] if found else None)


def keep_probe(probed: Probed) -> None:
    """Where `kept_probe` finds it.

    Raises:
        RunError, DiskFull: it cannot be written.
    """
    name = sha256_json([probed.machine, probed.model_sha256, probed.technique, probed.key])[:16]
    write_atomic(home() / "probes" / f"{name}.json", probed.to_json())
