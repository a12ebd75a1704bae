"""The stage that makes the base smaller before it is trained; and the pruned model as a system of the evaluation."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.shards import Shard
from luthier.errors import DataError
from luthier.pipeline.context import Context, set_up_device
from luthier.prune_records import PRUNED, PrunedLayers, PrunedUnits, PruneResult, UnitsOfLayer
from luthier.spec.prune import Prune, UnitMeasure, kept_channels, kept_groups
from luthier.store.files import sha256_file, write_atomic, write_atomic_dir
from luthier.store.runs import WEIGHTS, weights_file

if TYPE_CHECKING:
    from luthier.compress.prune.depth import Depth
    from luthier.compress.prune.rows import Rows
    from luthier.compress.prune.width import Part, Scores
    from luthier.compress.prune.write import Kept
    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.evaluate import Beside

SCORES = "scores.safetensors"
"""Of every channel and head, 'mlp.scores.LAYER', and which of them stay, 'mlp.kept.LAYER'."""

_FLOAT_BYTES = 4


def pruned_beside(context: Context, tuned: TransformersEngine, *, device: str) -> list[Beside]:
    """The pruned base before it was trained, asked as the base is; none where nothing was pruned.

    It is not loaded a second time where it stands under an adapter.
    """
    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.evaluate import Beside
    from luthier.models.tuned import can_switch_off

    if context.resolved.recipe.prune is None:
        return []
    base = context.base

    def engine() -> TransformersEngine:
        under = can_switch_off(tuned.whole)
        return tuned.without_adapter() if under else TransformersEngine.open(base, device=device)

    return [Beside(PRUNED, lambda: context.base_asker(engine()))]


def prune(context: Context) -> None:
    """Measure on training rows what each part of the base does, leave out what does least, and write what stays."""
    from luthier.compress.prune.write import refuse_family, write_smaller
    from luthier.models.base import load_base

    started = time.monotonic()
    settings = context.resolved.recipe.prune
    assert settings is not None, "the recipe prunes nothing"
    device = set_up_device(context.resolved.recipe.train)
    model: Any = load_base(context.original).to(device)
    refuse_family(model)
    work = _Work(context, settings, model)
    kept = work.choose()
    with write_atomic_dir(context.run.pruned) as fresh:
        place = fresh / WEIGHTS
        place.mkdir()
        smaller = write_smaller(model, kept, base=context.original, out=place).to(device)
        scores = work.write_scores(fresh / SCORES, kept)
        before, after = (sum(one.numel() for one in each.parameters()) for each in (model, smaller))
        result = PruneResult(
            **work.found(kept),
            loss_before=work.loss(model),
            loss_after=work.loss(smaller),
            num_layers_before=model.config.num_hidden_layers,
            num_layers_after=smaller.config.num_hidden_layers,
            parameters_before=before,
            parameters_after=after,
            bytes_before=_FLOAT_BYTES * before,
            bytes_after=_FLOAT_BYTES * after,
            seconds=time.monotonic() - started,
            peak_memory_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            / (2**30 if sys.platform == "darwin" else 2**20),
            weights_sha256=sha256_file(weights_file(place)),
            scores_sha256=scores,
            model_sha256=context.shape.sha256,
            data_sha256=context.data_sha256,
        )
        write_atomic(fresh / context.run.pruned_result.name, result.to_json())


class _Work:
    """One pruning under way."""

    def __init__(self, context: Context, settings: Prune, model: Any) -> None:
        self.context, self.settings, self.model = context, settings, model
        self.rows, self.batches = self._read() if settings.asks_rows else (0, [])
        self.depth: Depth | None = None
        self.scores: dict[Part, Scores] = {}

    def _read(self) -> tuple[int, list[Rows]]:
        """Training rows of every task, as many tokens of each; no offspring and no canaries.

        Raises:
            DataError: they hold nothing that is learned.
        """
        from luthier.compress.prune.rows import counted, drawn, packed

        number = 0
        batches: list[Rows] = []
        tasks, seed = self.context.tasks, self.context.resolved.recipe.train.seed
        for task in tasks:
            examples = Shard(task.run.data / "train.arrow").originals()
            found = drawn(examples, (self.settings.tokens or 0) // len(tasks), seed=seed)
            number += len(found)
            batches += packed(found, whole=task.contract.answered_by == "head")
        if not batches or not counted(batches):
            raise DataError(
                "prune measures what each part of the base does on training rows, and there are none that are learned",
                way_out="give more rows, or prune by magnitude, which looks at weights alone",
            )
        return number, batches

    def choose(self) -> Kept:
        """Layers first; channels and heads are then scored without those that go."""
        from luthier.compress.prune.depth import choose_layers, left_out
        from luthier.compress.prune.width import kept_units, unit_scores
        from luthier.compress.prune.write import Kept

        settings, progress = self.settings, self.context.progress
        every = range(self.model.config.num_hidden_layers)
        if settings.layers is not None:
            self.depth = choose_layers(
                self.model,
                self.batches,
                by=settings.layers.by,
                remove=settings.layers.remove,
                contiguous=bool(settings.layers.contiguous),
                tick=lambda done, total: progress("scoring layers", done, total),
            )
        gone = self.depth.removed if self.depth is not None else ()
        layers = [layer for layer in every if layer not in gone]
        asked = {"mlp": settings.mlp, "heads": settings.heads}
        by: dict[Part, UnitMeasure] = {part: one.by for part, one in asked.items() if one is not None}  # type: ignore[misc]
        with left_out(self.model, gone):
            self.scores = unit_scores(
                self.model,
                self.batches,
                by=by,
                layers=layers,
                tick=lambda done, total: progress("scoring channels and heads", done, total),
            )
        counts = {"mlp": kept_channels(settings, self.context.shape), "heads": kept_groups(settings, self.context.shape)}
        kept = {
            part: {layer: kept_units(one, counts[part]) for layer, one in scores.items()}
            for part, scores in self.scores.items()
        }
        return Kept(layers, kept.get("mlp", {}), kept.get("heads", {}))

    def loss(self, model: Any) -> float | None:
        """On the rows that were read."""
        from luthier.compress.prune.depth import mean_loss

        return mean_loss(model, self.batches) if self.batches else None

    def write_scores(self, path: Path, kept: Kept) -> str:
        """Score and choice of every channel and head; returns the file's hash."""
        import torch
        from safetensors.torch import save_file

        tensors = {}
        for part, chosen in (("mlp", kept.channels), ("heads", kept.groups)):
            for layer, places in chosen.items():
                tensors[f"{part}.scores.{layer}"] = self.scores[part][layer]  # type: ignore[index]
                tensors[f"{part}.kept.{layer}"] = torch.tensor(places, dtype=torch.int32)
        save_file(tensors, path)
        return sha256_file(path)

    def found(self, kept: Kept) -> dict[str, Any]:
        """What the record says of the choice."""
        settings, depth = self.settings, self.depth
        layers = None
        if settings.layers is not None and depth is not None:
            layers = PrunedLayers(
                by=settings.layers.by,
                contiguous=bool(settings.layers.contiguous),
                scores=depth.scores,
                removed=depth.removed,
            )
        return {
            "layers": layers,
            "mlp": self._units("mlp", kept.channels),
            "heads": self._units("heads", kept.groups),
            "rows": self.rows,
            "tokens": sum(rows.tokens for rows in self.batches),
        }

    def _units(self, part: Part, kept: Mapping[int, Sequence[int]]) -> PrunedUnits | None:
        settings = self.settings.mlp if part == "mlp" else self.settings.heads
        if settings is None:
            return None
        layers, scores = [], self.scores[part]
        for layer, places in kept.items():
            whole = float(scores[layer].sum())
            stays = float(scores[layer][list(places)].sum())
            layers.append(UnitsOfLayer(layer=layer, share=1.0 - stays / whole if whole else 0.0))
        first = next(iter(kept))
        return PrunedUnits(
            by=settings.by, before=len(scores[first]), after=len(kept[first]), layers=tuple(layers)
        )
