"""PEFT adapter folder, as trained."""

from __future__ import annotations

import shutil
from pathlib import Path

from luthier.engines.classifier import ClassifierEngine
from luthier.engines.protocol import HeadEngine, LogitsEngine
from luthier.engines.transformers import TransformersEngine
from luthier.records import RequestContract


def write(*, base: Path, adapter: Path, out: Path, contract: RequestContract) -> None:
    """Copy the trained adapter."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, out / name)


def reopen(*, base: Path, folder: Path, contract: RequestContract) -> LogitsEngine | HeadEngine:
    """Base and adapter through PEFT."""
    if contract.answered_by == "head":
        return ClassifierEngine.open(base, folder, num_labels=len(contract.labels))
    return TransformersEngine.open(base, folder)
