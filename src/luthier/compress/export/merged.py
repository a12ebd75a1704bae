"""Plain transformers folder: W + (alpha / r) B A, or what was learned in its place, in float32 safetensors."""

from __future__ import annotations

from pathlib import Path

from luthier.engines.protocol import LogitsEngine
from luthier.engines.transformers import TransformersEngine
from luthier.models.adapters import merge, safetensors_disk_errors
from luthier.models.tuned import is_adapted, load_tuned


def write(*, base: Path, adapter: Path, out: Path) -> None:
    """Merge and save; weights that were trained themselves are saved as they are."""
    tuned = load_tuned(base, adapter)
    merged = merge(tuned) if is_adapted(tuned) else tuned
    with safetensors_disk_errors(out):
        merged.save_pretrained(out, safe_serialization=True)


def reopen(*, base: Path, folder: Path) -> LogitsEngine:
    """The folder alone, without PEFT and without the base."""
    return TransformersEngine.open(folder)
