"""What the frozen layers say of the training tokens, computed once, kept on disk until training has ended.

One raw file of float32 [T, hidden], T tokens: what rows begin with alike stands there once for all rows, as in a packed
row (models/packing.py). Its folder is named by a hash over everything that it follows from, is complete or absent, and
is read only where its content has the hash that was written beside it.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from luthier.data.shards import Example
from luthier.errors import DiskFull, Stopped
from luthier.models.packing import Layout, lay_out_rows, share
from luthier.models.trunk import starting_at, states_below
from luthier.plan.words import size
from luthier.records import Record
from luthier.spec.recipe import Train
from luthier.store.files import sha256_file, sha256_json, write_atomic, write_atomic_dir
from luthier.train.batches import micro_batches, steps_of
from luthier.train.inputs import Inputs
from luthier.train.methods import Method
from luthier.train.over_prompts import learns_by_head

FORMAT = 1
"""Of the file; a folder of another one is never read."""

_FLOAT = np.dtype("<f4")

Run = tuple[int, int]
"""First token and number of tokens that stand one after another in the file."""


class About(Record):
    """Beside the states, written after them."""

    num_tokens: int
    hidden_size: int
    sha256: str
    seconds: float


@dataclass(frozen=True)
class Trunk:
    """The states, and where each row's are."""

    first: int
    """The lowest layer that learns, which the states enter."""
    folder: Path
    about: About
    runs: Mapping[bytes, tuple[Run, ...]]
    """Hash of a row's tokens -> where its states are, from its first token on."""
    reused: bool
    """Whether a run that was interrupted had computed them."""

    @property
    def num_bytes(self) -> int:
        return self.about.num_tokens * self.about.hidden_size * _FLOAT.itemsize

    @contextmanager
    def under(
        self, model: Any, layout: Layout, rows: Sequence[Sequence[int]], places: Sequence[Tensor]
    ) -> Iterator[None]:
        """Within, the model computes the packed row from `first` on.

        Args:
            model: whose layers below are those that the states were computed with.
            layout: of the packed row.
            rows: tokens of each row.
            places: of each row's tokens in the packed row, see `lay_out_rows`.
        """
        source = np.zeros(layout.input_ids.numel(), dtype=np.int64)  # [T of the packed row]
        for row, place in zip(rows, places, strict=True):
            source[place.numpy()] = np.concatenate(
                [np.arange(start, start + length) for start, length in self.runs[_digest(row)]]
            )
        # Mapped anew each time, so that pages which were read are not held as this process's memory.
        kept = np.memmap(
            self.folder / "states.f32", _FLOAT, mode="r", shape=(self.about.num_tokens, self.about.hidden_size)
        )
        with starting_at(model, self.first, torch.from_numpy(np.asarray(kept[source]))):
            yield


@dataclass(frozen=True)
class OnTrunk:
    """A method whose rows start at the states of a trunk."""

    method: Method
    trunk: Trunk

    @property
    def by_head(self) -> bool:
        return learns_by_head(self.method)

    def count(self, example: Example) -> int:
        return self.method.count(example)

    def computed(self, example: Example) -> Sequence[Sequence[int]]:
        return self.method.computed(example)

    def loss_sum(
        self,
        model: Any,
        examples: Sequence[Example],
        weights: Sequence[float] | None = None,
        trunk: Trunk | None = None,
    ) -> Tensor:
        assert trunk is None, "this method has its trunk"
        return self.method.loss_sum(model, examples, weights, self.trunk)


def on_trunk(inputs: Inputs, trunk: Trunk) -> Inputs:
    """The same inputs, whose methods start at the states of the trunk."""
    return replace(inputs, tasks=tuple(replace(task, method=OnTrunk(task.method, trunk)) for task in inputs.tasks))


def learned_rows(inputs: Inputs, settings: Train) -> list[tuple[int, ...]]:
    """The tokens that are computed of every row that some step of the run sees, each once, in the order of the rows.

    Raises:
        RunError: see `steps_of`.
    """
    seen = sorted({row for step in steps_of(inputs, settings) for row in step.rows})
    computed = (inputs.tasks[inputs.task_of(row)].method.computed(inputs.example(row)) for row in seen)
    return list(dict.fromkeys(tuple(ids) for sequences in computed for ids in sequences))


def open_trunk(
    model: Any,
    rows: Sequence[Sequence[int]],
    *,
    first: int,
    base_sha256: str,
    folder: Path,
    max_tokens: int,
    progress: Callable[[int, int], None],
    stop_asked: Callable[[], bool],
) -> Trunk:
    """What enters layer `first` of `rows`: taken from `folder` where it is whole there, else computed and written.

    Args:
        model: with its adapter, see `check_trunk`.
        rows: tokens, no row twice.
        first: the lowest layer that learns.
        base_sha256: hash of the base's weights.
        folder: for one folder a hash.
        max_tokens: computed at once.
        progress: told of rows done, and of how many there are.
        stop_asked: whether to stop after the micro-batch that is at work.

    Raises:
        DiskFull: the disk cannot hold them.
        Stopped: `stop_asked` said so; nothing is kept.
    """
    segments, lines = share(rows)
    lengths = [len(segment.ids) for segment in segments]
    starts = list(accumulate(lengths, initial=0))
    runs = {
        _digest(row): tuple((starts[segment], lengths[segment]) for segment in line)
        for row, line in zip(rows, lines, strict=True)
    }
    hidden_size = model.config.get_text_config().hidden_size
    final = folder / _key(rows, first=first, base_sha256=base_sha256, hidden_size=hidden_size)
    about = _whole(final, num_tokens=starts[-1], hidden_size=hidden_size)
    if about is not None:
        return Trunk(first, final, about, runs, reused=True)
    _refuse_small_disk(folder, starts[-1] * hidden_size * _FLOAT.itemsize)
    began = time.monotonic()
    with write_atomic_dir(final) as partial:
        with (partial / "states.f32").open("wb") as file:
            _write(file, model, rows, runs, first=first, max_tokens=max_tokens, tell=(progress, stop_asked))
        about = About(
            num_tokens=starts[-1],
            hidden_size=hidden_size,
            sha256=sha256_file(partial / "states.f32"),
            seconds=time.monotonic() - began,
        )
        write_atomic(partial / "about.json", about.to_json())
    return Trunk(first, final, about, runs, reused=False)


def _write(
    file: BinaryIO,
    model: Any,
    rows: Sequence[Sequence[int]],
    runs: Mapping[bytes, tuple[Run, ...]],
    *,
    first: int,
    max_tokens: int,
    tell: tuple[Callable[[int, int], None], Callable[[], bool]],
) -> None:
    """Compute the rows in micro-batches, those that share together; each run is written by the first that has it."""
    progress, stop_asked = tell
    written: set[Run] = set()
    done = 0
    for part in micro_batches(range(len(rows)), [[row] for row in rows], max_tokens=max_tokens):
        if stop_asked():
            raise Stopped(
                f"stopped after {done} of {len(rows)} rows had gone through the frozen layers",
                way_out="run the same command again, which begins with them anew",
            )
        layout, places = lay_out_rows([rows[row] for row in part.rows])
        states = states_below(model, layout, first).float().cpu()
        for row, place in zip(part.rows, places, strict=True):
            depth = 0
            for start, length in runs[_digest(rows[row])]:
                if (start, length) not in written:
                    file.seek(start * states.shape[1] * _FLOAT.itemsize)
                    file.write(states[place[depth : depth + length]].numpy().astype(_FLOAT).tobytes())
                    written.add((start, length))
                depth += length
        done += len(part.rows)
        progress(done, len(rows))


def _key(rows: Sequence[Sequence[int]], *, first: int, base_sha256: str, hidden_size: int) -> str:
    """Hash over all that the states follow from."""
    digest = hashlib.sha256(sha256_json([FORMAT, base_sha256, first, hidden_size, len(rows)]).encode())
    for row in rows:
        digest.update(_digest(row))
    return digest.hexdigest()


def _digest(row: Sequence[int]) -> bytes:
    return hashlib.sha256(np.asarray(row, dtype="<i8").tobytes()).digest()


def _whole(folder: Path, *, num_tokens: int, hidden_size: int) -> About | None:
    """What stands beside the states; None where either is missing or damaged, so that they are computed again."""
    try:
        about = About.model_validate_json((folder / "about.json").read_bytes())
        found = sha256_file(folder / "states.f32")
    except (FileNotFoundError, ValidationError):
        return None
    fits = (about.num_tokens, about.hidden_size) == (num_tokens, hidden_size)
    return about if fits and found == about.sha256 else None


def _refuse_small_disk(folder: Path, num_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise DiskFull(
            f"{folder}: the states of the frozen layers take {size(num_bytes)}, {size(free)} are free",
            way_out="free some space, or set train.cache_trunk: false, which computes them in every epoch",
        )
