"""Plain transformers folder: W + (alpha / r) B A in float32 safetensors."""

from __future__ import annotations

from pathlib import Path

from luthier.engines.protocol import LogitsEngine
from luthier.engines.transformers import TransformersEngine
from luthier.models.adapters import load_adapter, merge, safetensors_disk_errors
from luthier.models.base import load_base


def write(*, base: Path, adapter: Path, out: Path) -> None:
    """Merge and save."""
    merged = merge(load_adapter(load_base(base), adapter))
    with safetensors_disk_errors(out):
        merged.save_pretrained(out, safe_serialization=True)


def reopen(*, base: Path, folder: Path) -> LogitsEngine:
    """The folder alone, without PEFT and without the base."""
    return TransformersEngine.open(folder)
