"""The training loop. One step: rows -> micro-batches -> sums -> one division by the step's count -> clip -> AdamW.

Exactness: loss = sum over the step's supervised tokens of -log p, divided once by their number N over all
micro-batches: grad = sum_m grad(L_m) / N. So the cut into micro-batches cannot change it beyond rounding, and a mean of
means never appears. What a step does follows from (seed, step, weights, optimizer state) alone, so a resumed run is the
same run. Ranks (train/dist.py) share a step's micro-batches and sum gradients and losses once, so their number cannot
change it beyond rounding either; each holds the whole state, and the first alone writes.

Where rows have weights w (train.class_weight), which are 1 on average over all rows, loss = sum over rows r of w_r sum
over its tokens of -log p, divided by the same N: dividing by the step's own weights instead would take the weight away
again from a step whose rows are all of one label.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from luthier.data.imbalance import row_weights
from luthier.data.shards import Example
from luthier.errors import NonFinite, RunError, Stopped
from luthier.models.adapters import adapter_state, save_adapter
from luthier.models.forward import is_noisy
from luthier.records import LossSpike, StepEvent, TrainResult
from luthier.spec.recipe import Train
from luthier.store.files import sha256_file, write_atomic_dir
from luthier.train import checkpoint
from luthier.train.batches import MicroBatch, Step, dealt, micro_batches, steps_of
from luthier.train.checkpoint import LoopState, Writer
from luthier.train.dist import Ranks, present
from luthier.train.memory import device_peak_gib
from luthier.train.methods import Method
from luthier.train.optim import learning_rate, make_optimizer
from luthier.train.shard import clip, is_sharded, sum_on_backward, whole
from luthier.train.spikes import find_spike


class Watcher(Protocol):
    """Told of every step, validation and spike; what it does must not touch the model."""

    def __call__(self, event: StepEvent | LossSpike, *, total_steps: int) -> None: ...


@dataclass(frozen=True)
class Validation:
    """How the task's metric is measured while training (wired by the pipeline with the evaluation's own code)."""

    measure: Callable[[Any], dict[str, float]]
    metric: str
    higher_is_better: bool
    tiebreak: str
    """A loss-like metric of `measure` (lower is better) that decides between equal values."""


@dataclass(frozen=True)
class Inputs:
    """What is trained on, and what it was made from."""

    examples: Sequence[Example]
    model_sha256: str
    data_sha256: str
    recipe_sha256: str

    @property
    def key(self) -> str:
        return f"{self.recipe_sha256}:{self.data_sha256}:{self.model_sha256}"


def train(
    model: Any,
    method: Method,
    inputs: Inputs,
    *,
    settings: Train,
    method_name: str,
    validation: Validation | None,
    out: Path,
    watch: Watcher,
    stop_asked: Callable[[], bool],
) -> TrainResult:
    """Train the adapter of `model`; resume from the newest checkpoint in `out`. Every rank calls it with the same.

    Writes out/checkpoints/step-N and, at the end, out/adapter (the best by the task's metric; the last without
    validation rows). The best weights travel in the checkpoints, so that the adapter follows from the newest one alone.

    Raises:
        NonFinite: loss or gradient norm is not finite; named with the rows of the step, before the optimizer moved.
        RankLost: another rank has ended.
        RunError: train.max_tokens does not suffice for one step, or a checkpoint is of another run.
        Stopped: `stop_asked` said so on some rank; a checkpoint was written.
    """
    ranks = present()
    _refuse_strangers(inputs, ranks)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(parameters.values(), settings)
    state, best = checkpoint.load_latest(
        out / "checkpoints", key=inputs.key, parameters=parameters, optimizer=optimizer, ranks=ranks
    )
    ranks.same_weights(parameters.values())
    steps = steps_of(inputs.examples, settings)
    loop = _Loop(model, method, inputs.examples, settings, parameters, optimizer, len(steps), watch)
    validate_after = _validation_steps(len(steps), settings.validations or 1) if validation else frozenset()
    with Writer(out / "checkpoints", keep=settings.save_total_limit or 1, ranks=ranks) as writer:
        save = partial(writer.save, parameters=parameters, optimizer=optimizer)
        while state.step < len(steps) and not state.stopped_early:
            state = loop.step(state, steps[state.step])
            if validation and state.step in validate_after:
                state = _validate(model, state, validation, settings, watch, len(steps), ranks)
                if state.best_step == state.step:
                    best = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            if ranks.any(stop_asked()):
                save(state, best=best)
                writer.wait()
                raise Stopped(
                    f"stopped after step {state.step} of {len(steps)}; a checkpoint is kept",
                    way_out="run the same command again to go on",
                )
            if state.step % (settings.save_steps or len(steps)) == 0 or state.step == len(steps) or state.stopped_early:
                save(state, best=best)
    _keep(model, parameters, best, out, ranks)
    if not validation:
        state = state.model_copy(update={"best_step": state.step, "best_value": float("nan")})
    return _result(
        state,
        inputs,
        settings,
        method_name=method_name,
        parameters=parameters,
        out=out,
        metric=validation.metric if validation else "",
    )


def _refuse_strangers(inputs: Inputs, ranks: Ranks) -> None:
    """Ranks that learn different things would each do so, and none would notice."""
    told = ranks.told(inputs.key)
    if ranks.any(told != inputs.key):
        what = ("recipe", "data", "base model")
        pairs = zip(what, inputs.key.split(":"), told.split(":"), strict=True)
        other = [name for name, here, first in pairs if here != first]
        raise RunError(
            f"rank {ranks.rank} and the first one differ in: {', '.join(other)}"
            if other
            else "another rank was given another recipe, data or base model than this one",
            way_out="give all machines the same run folder, and the same --set, train.threads and train.device",
        )


class _Loop:
    """One optimizer step at a time."""

    def __init__(
        self,
        model: Any,
        method: Method,
        examples: Sequence[Example],
        settings: Train,
        parameters: Mapping[str, Parameter],
        optimizer: torch.optim.Optimizer,
        total: int,
        watch: Watcher,
    ) -> None:
        self.model, self.method, self.examples, self.settings = model, method, examples, settings
        self.parameters, self.optimizer, self.total, self.watch = parameters, optimizer, total, watch
        self.lengths = [example.num_tokens for example in examples]
        self.ranks = present()
        self.weights = row_weights([example.answer for example in examples], settings)

    def step(self, state: LoopState, step: Step) -> LoopState:
        began = time.monotonic()
        count = sum(self.method.count(self.examples[row]) for row in step.rows)
        assert self.settings.micro_batch_tokens is not None
        self.model.train()
        _seed(self.settings.seed, state.step, self.ranks.rank)
        tokens = [self.method.computed(self.examples[row]) for row in step.rows]
        budget, share = self.settings.micro_batch_tokens, not is_noisy(self.model)
        parts = micro_batches(step.rows, tokens, max_tokens=budget, share=share, ranks=self.ranks.size)
        losses = []
        for loss in self._losses(parts):
            (loss / count).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())  # read at the end, so that no accelerator is waited for in between
        self.ranks.sum_gradients(self.parameters.values())
        total_loss, memory = self.ranks.sum_numbers(sum(map(float, losses)), device_peak_gib())
        norm = clip(self.parameters.values(), self.settings.max_grad_norm or 1.0, self.ranks)
        self._refuse_non_finite(total_loss, norm, state.step + 1, step)
        rate = learning_rate(state.step, total=self.total, settings=self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        num_tokens = sum(self.lengths[row] for row in step.rows)
        supervised = sum(self.examples[row].num_supervised for row in step.rows)
        seconds = time.monotonic() - began
        event = StepEvent(
            kind="step",
            step=state.step + 1,
            epoch=step.epoch,
            loss=total_loss / count,
            learning_rate=rate,
            grad_norm=norm,
            num_tokens=num_tokens,
            computed_tokens=sum(part.num_tokens for part in parts),
            supervised_tokens=supervised,
            seconds=seconds,
            memory_gib=memory,
        )
        self.watch(event, total_steps=self.total)
        spike = find_spike(event, state.history, [self.examples[row].line for row in step.rows])
        if spike is not None:
            self.watch(spike, total_steps=self.total)
        return state.model_copy(
            update={
                "step": state.step + 1,
                "trained_tokens": state.trained_tokens + num_tokens,
                "supervised_tokens": state.supervised_tokens + supervised,
                "seconds": state.seconds + seconds,
                "peak_memory_gib": max(state.peak_memory_gib, memory),
                "history": (*state.history, event),
                "spikes": (*state.spikes, spike) if spike is not None else state.spikes,
            }
        )

    def _losses(self, parts: Sequence[MicroBatch]) -> Iterator[Tensor]:
        """Of each micro-batch of this rank, as it is asked for; of what counts nothing where others have more."""
        hands = dealt(parts, self.ranks.size)
        turns = max(map(len, hands)) if is_sharded(self.model) else len(hands[self.ranks.rank])
        for turn in range(turns):
            rows: Sequence[int] = parts[0].rows[:1]
            weights: list[float] | None = [0.0]
            if turn < len(hands[self.ranks.rank]):
                rows = hands[self.ranks.rank][turn].rows
                weights = None if self.weights is None else [self.weights[row] for row in rows]
            sum_on_backward(self.model, last=turn == turns - 1)
            yield self.method.loss_sum(self.model, [self.examples[row] for row in rows], weights)

    def _refuse_non_finite(self, loss: float, norm: float, number: int, step: Step) -> None:
        if loss - loss == 0.0 and norm - norm == 0.0:  # false for infinities and NaN
            return
        lines = ", ".join(str(self.examples[row].line) for row in step.rows)
        raise NonFinite(
            f"step {number}: loss {loss}, gradient norm {norm}; the step's rows stand on lines {lines}",
            way_out="lower train.learning_rate or look at these rows; weights before this step are kept",
        )


def _seed(*numbers: int) -> None:
    """Of dropout: what a step draws follows from the run's seed, its own number and the rank, whatever came before."""
    torch.manual_seed(int(np.random.default_rng(numbers).integers(2**63)))


def _validation_steps(total: int, times: int) -> frozenset[int]:
    """Step numbers (1-based) after which to validate: `times` of them, evenly spread, the last step included."""
    return frozenset(round(total * part / times) for part in range(1, times + 1)) - {0}


def _validate(
    model: Any, state: LoopState, validation: Validation, settings: Train, watch: Watcher, total: int, ranks: Ranks
) -> LoopState:
    """The first rank measures, and what it finds holds for all; where weights are divided, all have to compute."""
    began = time.monotonic()
    model.eval()
    found = validation.measure(model) if ranks.is_first or is_sharded(model) else {}
    metrics: dict[str, float] = json.loads(ranks.told(json.dumps(found)))
    (memory,) = ranks.sum_numbers(device_peak_gib())
    value = metrics[validation.metric] * (1.0 if validation.higher_is_better else -1.0)
    tiebreak = -metrics[validation.tiebreak]
    better = (value, tiebreak) > (state.best_value, state.best_tiebreak)
    last = state.history[-1]
    event = last.model_copy(
        update={
            "kind": "validation",
            "metrics": metrics,
            "seconds": time.monotonic() - began,
            "memory_gib": memory,
        }
    )
    watch(event, total_steps=total)
    worse = 0 if better else state.worse_in_a_row + 1
    best = {"best_step": state.step, "best_value": value, "best_tiebreak": tiebreak} if better else {}
    return state.model_copy(
        update={
            **best,
            "worse_in_a_row": worse,
            "stopped_early": worse >= (settings.patience or total),
            "seconds": state.seconds + event.seconds,
            "peak_memory_gib": max(state.peak_memory_gib, event.memory_gib),
            "history": (*state.history, event),
        }
    )


def _keep(model: Any, parameters: Mapping[str, Parameter], best: Mapping[str, Tensor], out: Path, ranks: Ranks) -> None:
    """Write the best weights, or where none were ever better than nothing (a metric that stays NaN) the last."""
    with torch.no_grad():
        for name, tensor in best.items():
            parameters[name].copy_(tensor)
    state = whole(adapter_state(model))
    if ranks.is_first:
        with write_atomic_dir(out / "adapter") as folder:
            save_adapter(model, folder, state)
    ranks.meet()


def _result(
    state: LoopState,
    inputs: Inputs,
    settings: Train,
    *,
    method_name: str,
    parameters: Mapping[str, Parameter],
    out: Path,
    metric: str,
) -> TrainResult:
    sign = -1.0 if metric == "perplexity" else 1.0
    return TrainResult(
        method=method_name,
        steps=state.step,
        best_step=state.best_step,
        best_metric=metric,
        best_value=sign * state.best_value,
        stopped_early=state.stopped_early,
        trained_tokens=state.trained_tokens,
        supervised_tokens=state.supervised_tokens,
        trainable_parameters=sum(p.numel() for p in parameters.values()),
        seconds=state.seconds,
        peak_memory_gib=state.peak_memory_gib,
        resumed_from=state.resumed_from,
        history=state.history,
        spikes=state.spikes,
        weights_sha256=sha256_file(out / "adapter" / "adapter_model.safetensors"),
        data_sha256=inputs.data_sha256,
        model_sha256=inputs.model_sha256,
        threads=settings.threads or 0,
        ranks=present().size,
    )
