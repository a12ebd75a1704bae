"""The training loop. One step: rows -> micro-batches -> sums -> one division by the step's count -> clip -> AdamW.

Exactness: loss = sum over the step's supervised tokens of -log p, divided once by their number N over all
micro-batches: grad = sum_m grad(L_m) / N. So the cut into micro-batches cannot change it beyond rounding, and a mean of
means never appears. What a step does follows from (seed, step, weights, optimizer state) alone, so a resumed run is the
same run. Ranks (train/dist.py) share a step's micro-batches and sum gradients and losses once, so their number cannot
change it beyond rounding either; each holds the whole state, and the first alone writes.

Where rows have weights w (train.class_weight), which are 1 on average over all rows, loss = sum over rows r of w_r sum
over its tokens of -log p, divided by the same N: dividing by the step's own weights instead would take the weight away
again from a step whose rows are all of one label.

Of several tasks (train/mixing.py, train/weighting.py) each has sum and count of its own, divided once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from luthier.data.imbalance import row_weights
from luthier.errors import NonFinite, RunError, Stopped
from luthier.models.forward import is_noisy
from luthier.models.tuned import kind_of, save_tuned, tuned_state
from luthier.spec.recipe import Train
from luthier.store.files import write_atomic_dir
from luthier.store.runs import tuned_in, weights_sha256
from luthier.train import checkpoint
from luthier.train.batches import MicroBatch, Step, Turn, dealt, steps_of, turns_of
from luthier.train.checkpoint import LoopState, Writer
from luthier.train.dist import Ranks, present
from luthier.train.inputs import Inputs
from luthier.train.memory import device_peak_gib
from luthier.train.optim import learning_rate, make_optimizer
from luthier.train.own import rewards_of_step, with_own_answers
from luthier.train.reference import measured
from luthier.train.shard import clip, is_sharded, sum_on_backward, whole
from luthier.train.spikes import find_spike
from luthier.train.validation import Validation
from luthier.train.weighting import Apart, Weighting
from luthier.train_records import Calibration, LossSpike, StepEvent, TrainResult


class Watcher(Protocol):
    """Told of every step, validation and spike; what it does must not touch the model."""

    def __call__(self, event: StepEvent | LossSpike, *, total_steps: int) -> None: ...


def train(
    model: Any,
    inputs: Inputs,
    *,
    settings: Train,
    method_name: str,
    validation: Validation | None,
    out: Path,
    watch: Watcher,
    stop_asked: Callable[[], bool],
) -> TrainResult:
    """Train what learns of `model`; resume from the newest checkpoint in `out`. Every rank calls it with the same.

    Writes out/checkpoints/step-N and, at the end, out/adapter or out/model (the best by the task's metric; the
    last without validation rows). The best weights travel in the checkpoints, so that it follows from the newest one.

    Raises:
        NonFinite: loss or gradient norm is not finite; named with the rows of the step, before the optimizer moved.
        RankLost: another rank has ended.
        RunError: train.max_tokens does not suffice for one step, or a checkpoint is of another run.
        Stopped: `stop_asked` said so on some rank; a checkpoint was written.
    """
    ranks = present()
    _refuse_strangers(inputs, ranks)
    weighting = Weighting(inputs)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad} | weighting.parameters()
    optimizer = make_optimizer(parameters, settings)
    state, best = checkpoint.load_latest(
        out / "checkpoints", key=inputs.key, parameters=parameters, optimizer=optimizer, ranks=ranks
    )
    ranks.same_weights(parameters.values())
    steps = steps_of(inputs, settings)
    loop = _Loop(model, inputs, settings, parameters, optimizer, weighting, total=len(steps), watch=watch)
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
    found = _keep(model, parameters, best, out, ranks, validation)
    if not validation:
        state = state.model_copy(update={"best_step": state.step, "best_value": float("nan")})
    return _result(
        state,
        inputs,
        settings,
        method_name=method_name,
        parameters=parameters,
        out=out,
        validation=validation,
    ).model_copy(
        update={"calibrations": found} if len(inputs.tasks) > 1 else {"calibration": found.get(inputs.tasks[0].name)}
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
        inputs: Inputs,
        settings: Train,
        parameters: Mapping[str, Parameter],
        optimizer: torch.optim.Optimizer,
        weighting: Weighting,
        *,
        total: int,
        watch: Watcher,
    ) -> None:
        self.model, self.inputs, self.settings = model, inputs, settings
        self.seen = inputs
        """As the step at work sees them."""
        self.parameters, self.optimizer, self.weighting = parameters, optimizer, weighting
        self.total, self.watch = total, watch
        self.ranks = present()
        model.train()  # PEFT's wrapper says that it trains though what it wraps was opened to evaluate
        self.weights = [row_weights([example.answer for example in task.examples], settings) for task in inputs.tasks]

    def step(self, state: LoopState, step: Step) -> LoopState:
        began = time.monotonic()
        assert self.settings.micro_batch_tokens is not None
        if not self.model.training:  # after a validation; a walk over a thousand modules costs a small step a tenth
            self.model.train()
        _seed(self.settings.seed, state.step, self.ranks.rank)
        rows = [row for row in step.rows if self.inputs.tasks[self.inputs.task_of(row)].name not in state.stopped_tasks]
        budget, share = self.settings.micro_batch_tokens, not is_noisy(self.model)
        self.seen = with_own_answers(self.model, self.inputs, rows, seed=self.settings.seed, step=state.step)
        self.seen = measured(self.model, self.seen, rows, max_tokens=budget)
        turns = turns_of(rows, self.seen, max_tokens=budget, share=share, ranks=self.ranks.size)
        if not turns:  # of tasks alone that have stopped
            return state.model_copy(update={"step": state.step + 1})
        sums = self._backward(turns, state.step)
        *totals, memory = self.ranks.sum_numbers(*(sum(map(float, own)) for own in sums), device_peak_gib())
        losses = {turn.task: total / turn.count for turn, total in zip(turns, totals, strict=True)}
        self.weighting.set_gradient(turns, losses)
        shares = self.weighting.shares(turns)
        loss = sum(shares[task] * mean for task, mean in losses.items()) + self.weighting.penalty(turns)
        norm = clip(self.parameters.values(), self.settings.max_grad_norm or 1.0, self.ranks)
        self._refuse_non_finite(loss, norm, state.step + 1, rows)
        rate = learning_rate(state.step, total=self.total, settings=self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        event = StepEvent(
            kind="step",
            step=state.step + 1,
            epoch=step.epoch,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            num_tokens=sum(self.seen.example(row).num_tokens for row in rows),
            computed_tokens=sum(part.num_tokens for turn in turns for part in turn.parts),
            supervised_tokens=sum(map(self.seen.learned, rows)),
            seconds=time.monotonic() - began,
            memory_gib=memory,
            metrics=(self._told(losses) if len(self.inputs.tasks) > 1 else {}) | rewards_of_step(self.seen),
        )
        return self._advanced(state, event, rows)

    def _advanced(self, state: LoopState, event: StepEvent, rows: Sequence[int]) -> LoopState:
        """Tell of the step, and count it."""
        self.watch(event, total_steps=self.total)
        spike = find_spike(event, state.history, [example.line for example in self.inputs.examples(rows)])
        if spike is not None:
            self.watch(spike, total_steps=self.total)
        return state.model_copy(
            update={
                "step": event.step,
                "trained_tokens": state.trained_tokens + event.num_tokens,
                "supervised_tokens": state.supervised_tokens + event.supervised_tokens,
                "seconds": state.seconds + event.seconds,
                "peak_memory_gib": max(state.peak_memory_gib, event.memory_gib),
                "history": (*state.history, event),
                "spikes": (*state.spikes, spike) if spike is not None else state.spikes,
            }
        )

    def _told(self, losses: Mapping[int, float]) -> dict[str, float]:
        """Of several tasks, the mean loss of each in this step, and what it has learned to count."""
        names = [task.name for task in self.inputs.tasks]
        counts = {f"{names[task]}.weight": factor for task, factor in self.weighting.factors().items()}
        return {f"{names[task]}.loss": loss for task, loss in losses.items()} | counts

    def _backward(self, turns: Sequence[Turn], step: int) -> list[list[Tensor]]:
        """Leave the gradient of the step, summed over ranks, in the parameters.

        Returns:
            Of each turn its losses on this rank; read later, so that no accelerator is waited for here.
        """
        shares = self.weighting.shares(turns)
        apart = Apart(self.parameters.values()) if self.inputs.mix.loss == "pcgrad" and len(turns) > 1 else None
        sums = []
        hands = dealt([part for turn in turns for part in turn.parts], self.ranks.size)
        for turn in turns:
            losses = []
            for loss in self._losses(turn, hands, is_last=turn is turns[-1]):
                (loss * shares[turn.task] / turn.count).backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
            sums.append(losses)
            if apart is not None:
                self.ranks.sum_gradients(self.parameters.values())
                apart.take()
        if apart is None:
            self.ranks.sum_gradients(self.parameters.values())
        else:
            apart.add(seed=(self.settings.seed, 3, step))
        return sums

    def _losses(self, turn: Turn, hands: Sequence[Sequence[MicroBatch]], *, is_last: bool) -> Iterator[Tensor]:
        """Of each micro-batch of this rank, as it is asked for; of what counts nothing where others have more."""
        task, weights_of = self.seen.tasks[turn.task], self.weights[turn.task]
        own = [[part for part in hand if part in turn.parts] for hand in hands]
        mine = own[self.ranks.rank]
        times = max(map(len, own)) if is_sharded(self.model) else len(mine)
        for number in range(times):
            rows: Sequence[int] = turn.rows[:1]
            weights: list[float] | None = [0.0]
            if number < len(mine):
                rows = mine[number].rows
                first = self.inputs.starts[turn.task]
                weights = None if weights_of is None else [weights_of[row - first] for row in rows]
            sum_on_backward(self.model, last=is_last and number == times - 1)
            yield task.method.loss_sum(self.model, self.seen.examples(rows), weights)

    def _refuse_non_finite(self, loss: float, norm: float, number: int, rows: Sequence[int]) -> None:
        if loss - loss == 0.0 and norm - norm == 0.0:  # false for infinities and NaN
            return
        lines = ", ".join(str(example.line) for example in self.inputs.examples(rows))
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
    last = state.history[-1]
    event = last.model_copy(
        update={
            "kind": "validation",
            "step": state.step,
            "metrics": metrics,
            "seconds": time.monotonic() - began,
            "memory_gib": memory,
        }
    )
    watch(event, total_steps=total)
    state = validation.judge(state, metrics, patience=settings.patience or total)
    return state.model_copy(
        update={
            "seconds": state.seconds + event.seconds,
            "peak_memory_gib": max(state.peak_memory_gib, event.memory_gib),
            "history": (*state.history, event),
        }
    )


def _keep(
    model: Any,
    parameters: Mapping[str, Parameter],
    best: Mapping[str, Tensor],
    out: Path,
    ranks: Ranks,
    validation: Validation | None,
) -> dict[str, Calibration]:
    """Write the best weights, or where none were ever better than nothing (a metric that stays NaN) the last."""
    with torch.no_grad():
        for name, tensor in best.items():
            parameters[name].copy_(tensor)
    model.eval()
    settle = validation.settle if validation is not None and (ranks.is_first or is_sharded(model)) else None
    found = settle(model) if settle is not None else {}
    state = whole(tuned_state(model))
    if ranks.is_first:
        with write_atomic_dir(out / kind_of(model)) as folder:
            save_tuned(model, folder, state)
    ranks.meet()
    return found


def _result(
    state: LoopState,
    inputs: Inputs,
    settings: Train,
    *,
    method_name: str,
    parameters: Mapping[str, Parameter],
    out: Path,
    validation: Validation | None,
) -> TrainResult:
    return TrainResult(
        method=method_name,
        steps=state.step,
        best_step=state.best_step,
        best_metric=validation.metric if validation else "",
        best_value=validation.sign * state.best_value if validation else float("nan"),
        stopped_tasks=state.stopped_tasks,
        stopped_early=state.stopped_early,
        trained_tokens=state.trained_tokens,
        supervised_tokens=state.supervised_tokens,
        trainable_parameters=sum(p.numel() for p in parameters.values()),
        seconds=state.seconds,
        peak_memory_gib=state.peak_memory_gib,
        resumed_from=state.resumed_from,
        history=state.history,
        spikes=state.spikes,
        weights_sha256=weights_sha256(tuned_in(out)),
        data_sha256=inputs.data_sha256,
        model_sha256=inputs.model_sha256,
        threads=settings.threads or 0,
        ranks=present().size,
    )
