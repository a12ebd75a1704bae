"""Checkpoints: everything that the next step depends on, in safetensors and JSON, complete or absent.

The sampler and the schedule follow from the seed and the number of the step, so they need no state of their own. Ranks
hold the same state after every step, so the first one's checkpoint is that of all, whatever their number. Where they
hold parts of the weights, each writes its part (torch.distributed.checkpoint with its safetensors writer, since the
usual one pickles), and any number of ranks reads the parts again as it needs them.
"""

from __future__ import annotations

import math
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.checkpoint.state_dict_saver import save as save_parts
from torch.nn import Parameter

from luthier.errors import LuthierError, RunError
from luthier.models.adapters import safetensors_disk_errors
from luthier.records import Record
from luthier.store.files import recover, write_atomic, write_atomic_dir
from luthier.train.dist import Ranks, lost_ranks
from luthier.train.shard import is_part
from luthier.train_records import LossSpike, StepEvent

_NAME = re.compile(r"step-(\d{6})")
_WHOLE = "tensors.safetensors"


class LoopState(Record):
    """Where the loop is. JSON beside the tensors."""

    step: int = 0
    trained_tokens: int = 0
    supervised_tokens: int = 0
    best_step: int = 0
    best_value: float = float("-inf")
    best_tiebreak: float = float("-inf")
    reached: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="Task -> its own best value and tiebreak, higher is better for both."
    )
    worse_in_a_row: dict[str, int] = Field(
        default_factory=dict, description="Task -> validations since it was last better."
    )
    stopped_tasks: tuple[str, ...] = Field((), description="Whose rows are no longer learned.")
    stopped_early: bool = False
    seconds: float = 0.0
    peak_memory_gib: float = 0.0
    resumed_from: tuple[int, ...] = ()
    history: tuple[StepEvent, ...] = ()
    spikes: tuple[LossSpike, ...] = ()
    key: str = Field(description="Hash of recipe, data and base; a checkpoint of something else is refused.")


class Writer:
    """Writes checkpoints while training goes on, one at a time; who uses it waits for it at the end.

    What is written is copied when it is given, so training may change it at once.
    """

    def __init__(self, folder: Path, *, keep: int, ranks: Ranks) -> None:
        """Into `folder`, where the newest `keep` are left."""
        self._folder, self._keep, self._ranks = folder, keep, ranks
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._apart: Ranks | None = None

    def save(
        self,
        state: LoopState,
        *,
        parameters: Mapping[str, Parameter],
        optimizer: torch.optim.Optimizer,
        best: Mapping[str, Tensor],
    ) -> None:
        """Begin to write `folder`/step-NNNNNN; it is there, whole, some time after this returns, or never.

        `best` are the best weights so far, which nobody changes; where they are those of this step they are not
        written twice.

        Raises:
            DiskFull, RunError: the checkpoint before it could not be written.
        """
        parts = any(map(is_part, parameters.values()))
        if not parts and not self._ranks.is_first:
            return
        self._wait()
        tensors: dict[str, Tensor] = {"random.torch": torch.get_rng_state()}
        if state.best_step != state.step:
            tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
        for name, parameter in parameters.items():
            tensors[f"parameter.{name}"] = parameter.detach().clone()
            for field, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{field}.{name}"] = value.clone()
        if parts:
            self._apart = self._apart or self._ranks.apart()
            how = partial(write_parts, ranks=self._apart)
        else:
            how = partial(write)
        self._under_way = self._thread.submit(how, self._folder, state, tensors, keep=self._keep)

    def wait(self) -> None:
        """Until what was begun is on the disk; the ranks wait for the one that writes.

        Raises:
            DiskFull, RunError: it could not be written; what was there before still is.
        """
        self._wait()
        self._ranks.meet()

    def _wait(self) -> None:
        begun, self._under_way = self._under_way, None
        if begun is not None:
            begun.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._wait()
        except LuthierError as failed:
            if not isinstance(error, LuthierError):
                raise
            # What ended the training is said first; it is the news.
            raise type(error)(f"{error.what}; besides, {failed.what}", way_out=error.way_out) from error
        finally:
            self._thread.shutdown()


def write(folder: Path, state: LoopState, tensors: Mapping[str, Tensor], *, keep: int) -> None:
    """Write `folder`/step-NNNNNN atomically, then remove all but the newest `keep`."""
    with write_atomic_dir(folder / f"step-{state.step:06d}") as place, safetensors_disk_errors(place):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / _WHOLE)
        write_atomic(place / "state.json", state.to_json())
    for old in _found(folder)[:-keep]:
        shutil.rmtree(old)


def write_parts(folder: Path, state: LoopState, tensors: Mapping[str, Tensor], *, keep: int, ranks: Ranks) -> None:
    """The same where each rank holds a part of the tensors; all ranks have to call it, in the same order."""
    with ExitStack() as stack:
        if ranks.is_first:
            place = stack.enter_context(write_atomic_dir(folder / f"step-{state.step:06d}"))
        place = Path(ranks.told(str(place) if ranks.is_first else ""))
        writer = HuggingFaceStorageWriter(str(place), save_distributed=True)
        with lost_ranks(ranks), _errors_of_ranks():
            save_parts(dict(tensors), storage_writer=writer, process_group=ranks.group)
        if ranks.is_first:
            write_atomic(place / "state.json", state.to_json())
    if ranks.is_first:
        for old in _found(folder)[:-keep]:
            shutil.rmtree(old)


@contextmanager
def _errors_of_ranks() -> Iterator[None]:
    """What torch gathers of all ranks, as the first error that it holds."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


def _read_parts(place: Path, parameters: Mapping[str, Parameter]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, of each as much as this rank holds of its parameter; all ranks have to ask.

    Raises:
        SafetensorError, FileNotFoundError, ValueError: a part is damaged or missing.
    """
    with _errors_of_ranks(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        reader = HuggingFaceStorageReader(str(place))
        tensors: dict[str, Tensor] = {}
        for name, stored in reader.read_metadata().state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            owner = parameters.get(name.split(".", 2 if name.startswith("optimizer.") else 1)[-1])
            held = sum(math.prod(chunk.sizes) for chunk in stored.chunks)
            if held != math.prod(stored.size) or (stored.size and owner is not None and stored.size != owner.shape):
                raise ValueError(f"a part of {name} is missing")
            like = owner if owner is not None and stored.size == owner.shape else torch.empty(stored.size)
            tensors[name] = torch.empty_like(like, dtype=stored.properties.dtype)
        load_parts(tensors, storage_reader=reader)
    return tensors


def load_latest(
    folder: Path,
    *,
    key: str,
    parameters: Mapping[str, Parameter],
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
) -> tuple[LoopState, dict[str, Tensor]]:
    """Put the newest checkpoint back into parameters, optimizer and random state; a fresh state where there is none.

    Returns:
        The state, and the best weights so far by the names of `parameters` (empty where nothing was validated yet).

    Raises:
        RunError: the checkpoint is damaged, belongs to another recipe, data or base, or its tensors do not fit.
    """
    if ranks.is_first:
        recover(folder)  # a rank that was killed and started again finds what it left half written
    newest = ranks.told("".join(path.name for path in _found(folder)[-1:]))
    if not newest:
        return LoopState(key=key), {}
    place = folder / newest
    state = LoopState.read(place / "state.json")
    if state.key != key:
        raise RunError(
            f"{place} was written for another recipe, data or base model",
            way_out="remove the folder train/ of this run, or run again with --out elsewhere",
        )
    try:
        parts = any(map(is_part, parameters.values())) or not (place / _WHOLE).is_file()
        tensors = _read_parts(place, parameters) if parts else load_file(place / _WHOLE)
    except (SafetensorError, FileNotFoundError, ValueError) as error:
        raise RunError(
            f"{place} is damaged: {error}",
            way_out="remove that folder; training goes on from the checkpoint before it",
        ) from error
    torch.set_rng_state(tensors.pop("random.torch"))
    expected = {f"parameter.{name}" for name in parameters}
    stored = {name for name in tensors if name.startswith("parameter.")}
    if expected != stored:
        raise RunError(
            f"{place}: {len(expected ^ stored)} tensors do not fit the model",
            way_out="remove the folder train/ of this run",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors.pop(f"parameter.{name}"))
    best = {name: tensors.pop(f"best.{name}") for name in parameters if f"best.{name}" in tensors}
    if state.best_step == state.step:
        best = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, tensor in tensors.items():
        _, field, owner = name.split(".", 2)
        parameter = parameters[owner]
        # AdamW counts its steps on the processor, unless its fused kernel on an accelerator counts them.
        counted_here = field == "step" and not optimizer.defaults["fused"]
        place_of = tensor.device if counted_here else parameter.device
        optimizer.state[parameter][field] = tensor.to(place_of, copy=True)  # aligned, as in a run without a stop
    return state.model_copy(update={"resumed_from": (*state.resumed_from, state.step)}), best


def _found(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first (an incomplete one never has this name)."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))
