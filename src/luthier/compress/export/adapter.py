"""PEFT adapter folder, as trained; of one of several heads the adapter of its sequence classification."""

from __future__ import annotations

import shutil
from pathlib import Path

from luthier.engines.classifier import ClassifierEngine
from luthier.engines.protocol import HeadEngine, LogitsEngine
from luthier.engines.transformers import TransformersEngine
from luthier.models.head_files import CONFIG, TENSORS, write_head_adapter
from luthier.records import RequestContract
from luthier.store.runs import HEADS


def write(*, base: Path, adapter: Path, out: Path, head: RequestContract | None) -> None:
    """Copy the trained adapter with all its heads, or make that of one of several."""
    if head is not None and (adapter / HEADS).is_file():
        write_head_adapter(adapter, head.name, out)
        return
    for name in (CONFIG, TENSORS, HEADS):
        if name != HEADS or (adapter / name).is_file():
            shutil.copyfile(adapter / name, out / name)


def reopen(*, base: Path, folder: Path, head: RequestContract | None) -> LogitsEngine | HeadEngine:
    """Base and adapter through PEFT."""
    if head is not None:
        return ClassifierEngine.open(base, folder, num_labels=len(head.head_rows))
    return TransformersEngine.open(base, folder)
