"""Where the model stood before it learned: log-probabilities of both answers of each pair, computed once, kept on disk.

One raw file of float64 [P, 2] in a folder that is named by a hash over everything that it follows from. The folder is
complete or absent, and read only where its content has the hash that was written beside it: a run that is taken up
again finds the same numbers, and no second model is ever held.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from luthier.data.shards import Example
from luthier.errors import Stopped
from luthier.models.forward import in_evaluation
from luthier.records import Record
from luthier.spec.recipe import Train
from luthier.store.files import sha256_file, sha256_json, write_atomic, write_atomic_dir
from luthier.train.batches import micro_batches, steps_of
from luthier.train.inputs import Inputs, TaskRows
from luthier.train.methods import Method
from luthier.train.pairs import pair_scores

FORMAT = 1
"""Of the file; a folder of another one is never read."""

_FLOAT = np.dtype("<f8")
_FILE, _ABOUT = "logprobs.f64", "about.json"


class About(Record):
    """Beside the numbers, written after them."""

    num_pairs: int
    sha256: str
    seconds: float


@dataclass(frozen=True)
class Reference:
    """The numbers, by the tokens of the pair that they belong to."""

    logprobs: Mapping[bytes, tuple[float, float]]
    about: About
    reused: bool
    """Whether they were there already."""

    def of(self, examples: Sequence[Example]) -> Tensor:
        """Sums over the tokens of each answer, the preferred one first; float64 [P, 2]."""
        return torch.tensor([self.logprobs[_digest(one)] for one in examples], dtype=torch.float64)


@runtime_checkable
class Referring(Protocol):
    """A method that measures from where the model stood."""

    def beside(self, reference: Reference) -> Method:
        """The same method, ready to learn."""
        ...


@runtime_checkable
class Stepping(Protocol):
    """A method that measures each step's rows, with answers of others, before it learns from them."""

    def strange(self, rows: Sequence[Example], place: int) -> Example:
        """The prompt of a row with the answers of another one."""
        ...

    def at_step(self, model: Any, strange: Sequence[Example], *, max_tokens: int) -> Method:
        """The same method, ready for a step whose rows have these strange answers."""
        ...


def measured(model: Any, inputs: Inputs, rows: Sequence[int], *, max_tokens: int) -> Inputs:
    """The inputs with methods that have measured the rows of a step; the same object where none does.

    Every rank measures all of them, so that all learn from the same.
    """
    if not any(isinstance(task.method, Stepping) for task in inputs.tasks):
        return inputs
    tasks = list(inputs.tasks)
    for place, task in enumerate(tasks):
        own = [row - inputs.starts[place] for row in sorted(rows) if inputs.task_of(row) == place]
        if isinstance(task.method, Stepping) and own:
            strange = [task.method.strange(task.examples, row) for row in own]
            with in_evaluation(model):
                tasks[place] = replace(task, method=task.method.at_step(model, strange, max_tokens=max_tokens))
    return replace(inputs, tasks=tuple(tasks))


def on_trial(inputs: Inputs) -> Inputs:
    """For a trial of what a micro-batch takes, whose loss nobody reads, before the reference is there."""
    return replace(inputs, tasks=tuple(map(_on_trial, inputs.tasks)))


def _on_trial(task: TaskRows) -> TaskRows:
    if not isinstance(task.method, Referring):
        return task
    pairs = list(task.examples)
    if isinstance(task.method, Stepping):
        pairs += [task.method.strange(task.examples, place) for place in range(len(task.examples))]
    unknown = {_digest(one): (0.0, 0.0) for one in pairs}
    nothing = Reference(unknown, About(num_pairs=len(unknown), sha256="", seconds=0.0), reused=False)
    return replace(task, method=task.method.beside(nothing))


def seen_pairs(inputs: Inputs, place: int, settings: Train) -> list[Example]:
    """The pairs of a task that some step of the run sees, in the order of the rows; with strange answers too where its
    method asks for them.

    Raises:
        RunError: see `steps_of`.
    """
    seen = sorted({row for step in steps_of(inputs, settings) for row in step.rows})
    own, task = [row for row in seen if inputs.task_of(row) == place], inputs.tasks[place]
    pairs = [inputs.example(row) for row in own]
    if isinstance(task.method, Stepping):
        pairs += [task.method.strange(task.examples, row - inputs.starts[place]) for row in own]
    return pairs


def open_reference(
    model: Any,
    pairs: Sequence[Example],
    *,
    method: Method,
    base_sha256: str,
    folder: Path,
    max_tokens: int,
    tell: tuple[Callable[[int, int], None], Callable[[], bool]],
) -> Reference:
    """The numbers of `pairs`: taken from `folder` where they are whole there, else computed and written.

    Args:
        model: as it is before the first step. A fresh adapter adds nothing, so this is the base.
        pairs: rows of a preference task.
        method: that will learn from them.
        base_sha256: hash of what decides the model's numbers.
        folder: for one folder a hash.
        max_tokens: computed at once.
        tell: told of pairs done, and of how many there are; and asked whether to stop after the micro-batch at work.

    Raises:
        Stopped: it was to stop; nothing is kept.
    """
    digests = [_digest(one) for one in pairs]
    final = folder / sha256_json([FORMAT, base_sha256, hashlib.sha256(b"".join(digests)).hexdigest()])
    found = _whole(final, len(pairs))
    if found is not None:
        return Reference(_by_pair(digests, found[1]), found[0], reused=True)
    began = time.monotonic()
    made = _computed(model, pairs, method, max_tokens, tell)
    folder.mkdir(parents=True, exist_ok=True)
    with write_atomic_dir(final) as partial:
        (partial / _FILE).write_bytes(made.astype(_FLOAT).tobytes())
        about = About(num_pairs=len(pairs), sha256=sha256_file(partial / _FILE), seconds=time.monotonic() - began)
        write_atomic(partial / _ABOUT, about.to_json())
    return Reference(_by_pair(digests, made), about, reused=False)


def _computed(
    model: Any,
    pairs: Sequence[Example],
    method: Method,
    max_tokens: int,
    tell: tuple[Callable[[int, int], None], Callable[[], bool]],
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[P, 2], in micro-batches of pairs that share the most."""
    progress, stop_asked = tell
    made = np.zeros((len(pairs), 2))
    done = 0
    with in_evaluation(model):
        for part in micro_batches(range(len(pairs)), [method.computed(one) for one in pairs], max_tokens=max_tokens):
            if stop_asked():
                raise Stopped(
                    f"stopped after {done} of {len(pairs)} pairs had been read by the model as it is",
                    way_out="run the same command again, which begins with them anew",
                )
            rows = list(part.rows)
            made[rows] = pair_scores(model, [pairs[row] for row in rows]).logprobs_P2.cpu().numpy()
            done += len(rows)
            progress(done, len(pairs))
    return made


def _by_pair(digests: Sequence[bytes], numbers: np.ndarray[Any, Any]) -> dict[bytes, tuple[float, float]]:
    return {digest: (float(one), float(other)) for digest, (one, other) in zip(digests, numbers, strict=True)}


def _digest(example: Example) -> bytes:
    """Of all tokens of a pair and of which of them are learned."""
    digest = hashlib.sha256(np.asarray([example.prompt_tokens, len(example.input_ids)], dtype="<i8").tobytes())
    for part in (example.input_ids, example.supervised, example.rejected_ids):
        digest.update(np.asarray(part, dtype="<i8").tobytes())
    return digest.digest()


def _whole(folder: Path, num_pairs: int) -> tuple[About, np.ndarray[Any, Any]] | None:
    """What was kept; None where it is missing or damaged, so that it is computed again."""
    try:
        about = About.model_validate_json((folder / _ABOUT).read_bytes())
        fits = about.num_pairs == num_pairs and sha256_file(folder / _FILE) == about.sha256
    except (FileNotFoundError, ValidationError):
        return None
    return (about, np.fromfile(folder / _FILE, dtype=_FLOAT).reshape(-1, 2)) if fits else None
