"""Read a GGUF header without the weights and without torch, in well under a second.

Source: the GGUF specification, version 3 (ggml, docs/gguf.md): magic, version, counts, key-value pairs, tensor infos.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from luthier.errors import ModelError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_KEEP_ARRAY_ITEMS = 64  # longer arrays are vocabularies; only their length is kept


@dataclass(frozen=True)
class GGUFHeader:
    """Key-value pairs (long arrays as their length) and the shapes of the tensors."""

    values: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]
    types: dict[str, int]
    """Tensor name -> ggml type number."""
    offsets: dict[str, int]
    """Tensor name -> where its data begins, in bytes from the start of the data."""
    data_start: int
    """Where the data of all tensors begins in the file."""

    @property
    def num_parameters(self) -> int:
        return sum(prod(shape) for shape in self.tensors.values())


class _Reader:
    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        self.at = 0

    def scalar(self, layout: str) -> Any:
        value = struct.unpack_from(layout, self.buffer, self.at)[0]
        self.at += struct.calcsize(layout)
        return value

    def string(self) -> str:
        length = self.scalar("<Q")
        if length > len(self.buffer) - self.at:
            raise ValueError(f"a string of {length} bytes passes the end of the file")
        value = self.buffer[self.at : self.at + length].decode("utf-8", "replace")
        self.at += length
        return value

    def skip_string(self) -> None:
        self.at += 8 + _LENGTH.unpack_from(self.buffer, self.at)[0]

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        item, count = self.scalar("<I"), self.scalar("<Q")
        if count > len(self.buffer):
            raise ValueError(f"an array of {count} items passes the end of the file")
        if item in _SCALARS and count > _KEEP_ARRAY_ITEMS:
            self.at += struct.calcsize(_SCALARS[item]) * count
            return count
        if item == _STRING and count > _KEEP_ARRAY_ITEMS:
            for _ in range(count):
                self.skip_string()
            return count
        items = [self.value(item) for _ in range(count)]
        return items if count <= _KEEP_ARRAY_ITEMS else count


def read_header(path: Path) -> GGUFHeader:
    """Read the header of the GGUF file at `path`.

    Raises:
        ModelError: the file is not GGUF version 2 or 3, or is cut short, be it among the weights.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
            header = _parse(_Reader(buffer))
            _refuse_missing_weights(header, len(buffer))
            return header
    except (ValueError, TypeError, OverflowError, struct.error, KeyError, MemoryError, RecursionError) as error:
        raise ModelError(f"{path} is not a readable GGUF file: {error}", way_out="fetch the file again") from error


def _parse(reader: _Reader) -> GGUFHeader:
    if bytes(reader.buffer[:4]) != b"GGUF":
        raise ValueError(f"it begins with {bytes(reader.buffer[:4])!r}, not b'GGUF'")
    reader.at = 4
    version = reader.scalar("<I")
    if version not in (2, 3):
        raise ValueError(f"version {version}, readable are 2 and 3")
    num_tensors, num_values = reader.scalar("<Q"), reader.scalar("<Q")
    values = {}
    for _ in range(num_values):
        key = reader.string()
        values[key] = reader.value(reader.scalar("<I"))
    tensors, types, offsets = {}, {}, {}
    for _ in range(num_tensors):
        name = reader.string()
        tensors[name] = tuple(reader.scalar("<Q") for _ in range(reader.scalar("<I")))
        types[name] = reader.scalar("<I")
        offsets[name] = reader.scalar("<Q")
    alignment = max(1, int(values.get("general.alignment", 32)))
    return GGUFHeader(values, tensors, types, offsets, -(-reader.at // alignment) * alignment)


def _refuse_missing_weights(header: GGUFHeader, num_bytes: int) -> None:
    """A download that was cut short has its whole header; the size of each tensor tells."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for name, shape in header.tensors.items():
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(header.types[name])]
        end = header.data_start + header.offsets[name] + prod(shape) // block * block_bytes
        if end > num_bytes:
            raise ValueError(f"the weights of {name!r} end at byte {end}, the file at {num_bytes}")
