"""The stage that merges trained runs, in the place of training; and what their rows and weights mean elsewhere."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.shards import Shard
from luthier.errors import DataError
from luthier.pipeline.context import Context, set_up_device
from luthier.pipeline.heads import calibrate_head, calibrates
from luthier.pipeline.parents import tuned_of
from luthier.pipeline.training import open_validation
from luthier.spec.merge import Merge, Parent
from luthier.store.files import write_atomic
from luthier.store.runs import ADAPTER, WEIGHTS, weights_sha256
from luthier.systems import PARENT
from luthier.train_records import Calibration, MergedRun, MergeResult, TrainResult

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.compress.merge.arithmetic import Mix
    from luthier.compress.merge.greedy import Tried
    from luthier.compress.merge.vectors import Merged, TaskVector
    from luthier.evals.evaluate import Beside


def parents_beside(context: Context, *, device: str) -> list[Beside]:
    """The merged runs as systems of the evaluation, each behind this run's contract, loaded when it is asked."""
    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.evaluate import Beside

    def beside(parent: Parent) -> Beside:
        tuned = tuned_of(parent)
        return Beside(
            f"{PARENT}{parent.run}",
            lambda: context.asker(TransformersEngine.open(context.base, tuned, device=device)),
        )

    return [beside(parent) for parent in context.resolved.parents]


def merge(context: Context) -> None:
    """Merge the runs that the recipe names, and write what a training would leave."""
    started = time.monotonic()
    settings, parents = context.resolved.recipe.merge, context.resolved.parents
    assert settings is not None, "a recipe without `merge` trains"
    set_up_device(context.resolved.recipe.train)
    context.run.train.mkdir(exist_ok=True)
    work = _Work(context, settings, [tuned_of(parent) for parent in parents])
    tried = work.choose() if settings.method == "greedy" else ()
    merged = work.merge([one.place for one in tried if one.weight] or range(len(parents)))
    number = work.write(merged)
    calibration = work.calibrate(merged)
    best = [one for one in tried if one.weight]
    result = TrainResult(
        method=f"merge {settings.method}",
        steps=0,
        best_step=0,
        best_metric=work.metric if tried else "",
        best_value=best[-1].value if best else float("nan"),
        stopped_early=False,
        trained_tokens=0,
        supervised_tokens=0,
        trainable_parameters=number,
        seconds=time.monotonic() - started,
        peak_memory_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**30 if sys.platform == "darwin" else 2**20),
        resumed_from=(),
        history=(),
        weights_sha256=weights_sha256(work.out),
        data_sha256=context.data_sha256,
        model_sha256=context.shape.sha256,
        threads=context.resolved.recipe.train.threads or 0,
        calibration=calibration,
        merge=MergeResult(
            method=settings.method,
            runs=_told(parents, settings, tried),
            into=settings.into or "weights",
            density=settings.density,
            seed=settings.seed,
            rank=settings.rank,
            kept=merged.kept,
        ),
    )
    write_atomic(context.run.train_result, result.to_json())


def _told(parents: Sequence[Parent], settings: Merge, tried: Sequence[Tried]) -> tuple[MergedRun, ...]:
    """Every run with its weight; of a greedy soup in the order in which they were tried."""
    plain = [(place, weight, None) for place, weight in enumerate(settings.weights or ())]
    rows: list[tuple[int, float, float | None]] = [(one.place, one.weight, one.value) for one in tried] or [*plain]
    return tuple(
        MergedRun(
            run=parents[place].run,
            weights_sha256=parents[place].weights_sha256,
            recipe_sha256=parents[place].recipe_sha256,
            weight=weight,
            validation=value,
        )
        for place, weight, value in rows
    )


def mix_of(settings: Merge, count: int) -> Mix:
    """How `count` task vectors are added up; what a greedy soup has chosen counts alike."""
    from luthier.compress.merge.arithmetic import Mix

    method = "linear" if settings.method == "greedy" else settings.method
    weights = settings.weights or (1.0 / count,) * count
    return Mix(method, weights, settings.density or 1.0, settings.seed or 0)


class _Work:
    """One merge under way."""

    def __init__(self, context: Context, settings: Merge, folders: Sequence[Path]) -> None:
        from luthier.compress.merge.vectors import parameters_of, read_dense, read_low_rank

        self.context, self.settings, self.folders = context, settings, folders
        self.out = context.run.train / (ADAPTER if settings.into == "adapter" else WEIGHTS)
        self.metric = ""
        needs_base = settings.into == "weights" or settings.method == "greedy"
        self.before: dict[str, Tensor] = parameters_of(context.base) if needs_base else {}
        self.vectors: list[TaskVector] = []
        for done, (parent, folder) in enumerate(zip(context.resolved.parents, folders, strict=True)):
            context.progress("reading runs", done, len(folders))
            low = parent.rank is not None
            self.vectors.append(read_low_rank(folder) if low else read_dense(context.base, folder, self.before))
        context.progress("reading runs", len(folders), len(folders))

    def choose(self) -> tuple[Tried, ...]:
        """Of a greedy soup: what was tried, each mean measured on the validation rows with the evaluation's own code.

        Raises:
            DataError: there are no validation rows.
        """
        from torch import Tensor

        from luthier.compress.merge.greedy import greedy_soup
        from luthier.compress.merge.vectors import HEAD_WEIGHT, add_to, mean_of
        from luthier.models.base import load_base
        from luthier.models.classifier import put_head

        model: Any = load_base(self.context.base)
        validation = open_validation(self.context, model)
        if validation is None:
            raise DataError(
                "merge.method: greedy chooses by validation rows, and there are none that the runs have not learned",
                way_out="raise data.split.validation, give data.validation, or take method: linear",
            )
        head = self.vectors[0].get(HEAD_WEIGHT)
        if isinstance(head, Tensor):
            put_head(model, len(head)).requires_grad_(False)
        model.to(self.context.resolved.recipe.train.device or "cpu")
        self.metric = validation.metric

        def judge(places: Sequence[int]) -> tuple[float, float]:
            add_to(model, self.before, mean_of([self.vectors[place] for place in places]))
            self.context.progress.say(f"asking the validation rows of {len(places)} merged")
            value: tuple[float, float] = validation.value(validation.measure(model))
            return value

        return greedy_soup(len(self.vectors), judge, sign=validation.sign)

    def merge(self, places: Sequence[int]) -> Merged:
        from luthier.compress.merge.vectors import merge_dense, merge_low_rank

        settings, vectors = self.settings, [self.vectors[place] for place in places]
        mix = mix_of(settings, len(places))

        def tick(done: int, total: int) -> None:
            self.context.progress("merging", done, total)

        if settings.into == "weights":
            return merge_dense(vectors, mix, tick)
        assert settings.rank is not None, "merge.rank is resolved"
        return merge_low_rank(vectors, mix, rank=settings.rank, tick=tick)

    def write(self, merged: Merged) -> int:
        """Write what a training would leave; returns the number of parameters that differ from the base."""
        from luthier.compress.merge.write import write_adapter, write_weights

        if self.settings.into == "weights":
            return write_weights(merged.vector, self.context.base, self.before, self.out)
        configs = [json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")) for folder in self.folders]
        assert self.settings.rank is not None, "merge.rank is resolved"
        return write_adapter(merged.vector, self.out, rank=self.settings.rank, configs=configs)

    def calibrate(self, merged: Merged) -> Calibration | None:
        """Fit a head's temperature anew, and write the weights again with it; None where there is nothing to fit."""
        from luthier.compress.merge.vectors import HEAD_WEIGHT
        from luthier.models.classifier import head_of
        from luthier.models.tuned import load_tuned

        context = self.context
        if len(context.tasks) > 1 or not calibrates(context.resolved.recipe, context.contract):
            return None
        model = load_tuned(context.base, self.out).to(context.resolved.recipe.train.device or "cpu")
        found = calibrate_head(model, context.contract, Shard(context.run.data / "validation.arrow"))
        if found is not None:
            head = head_of(model)
            assert head is not None, "what was calibrated is a head"
            merged.vector[HEAD_WEIGHT] = head.weight.detach().cpu()
            self.write(merged)
        return found
