"""PEFT adapter folder, as trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from luthier.engines.protocol import LogitsEngine
from luthier.engines.transformers import TransformersEngine


def write(*, base: Path, adapter: Path, out: Path) -> None:
    """Copy the trained adapter."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, out / name)


def reopen(*, base: Path, folder: Path) -> LogitsEngine:
    """Base and adapter through PEFT."""
    return TransformersEngine.open(base, folder)
