"""A GGUF file whose weight matrices are float32; see `luthier.compress.export.gguf`."""

from __future__ import annotations

from pathlib import Path

from luthier.compress.export.gguf import reopen_file, write_file
from luthier.engines.next_token import NextTokenEngine
from luthier.records import RequestContract


def write(*, base: Path, adapter: Path, out: Path, head: RequestContract | None) -> None:
    """One file; see `write_file`."""
    write_file(base=base, adapter=adapter, out=out, float_type="f32")


def reopen(*, base: Path, folder: Path, head: RequestContract | None) -> NextTokenEngine:
    """The file alone, in llama.cpp."""
    return reopen_file(folder, float_type="f32")
