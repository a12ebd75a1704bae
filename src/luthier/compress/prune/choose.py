"""What of a model goes: layers first; channels and heads are then scored without those."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from luthier.compress.prune.depth import Depth, choose_layers, left_out
from luthier.compress.prune.rows import Rows
from luthier.compress.prune.width import Part, Scores, kept_units, unit_scores
from luthier.compress.prune.write import Kept
from luthier.prune_records import PrunedLayers, PrunedUnits, UnitsOfLayer
from luthier.records import ModelShape
from luthier.spec.prune import Prune, PruneUnits, UnitMeasure, kept_channels, kept_groups

Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Chosen:
    """What was measured, and what stays by it."""

    settings: Prune
    kept: Kept
    depth: Depth | None
    scores: Mapping[Part, Scores]

    @property
    def layers(self) -> PrunedLayers | None:
        """What is told of the layers."""
        if self.settings.layers is None or self.depth is None:
            return None
        return PrunedLayers(
            by=self.settings.layers.by,
            contiguous=bool(self.settings.layers.contiguous),
            scores=self.depth.scores,
            removed=self.depth.removed,
        )

    @property
    def mlp(self) -> PrunedUnits | None:
        """What is told of the channels."""
        return self._units("mlp", self.settings.mlp, self.kept.channels)

    @property
    def heads(self) -> PrunedUnits | None:
        """What is told of the key-value heads."""
        return self._units("heads", self.settings.heads, self.kept.groups)

    def _units(self, part: Part, asked: PruneUnits | None, kept: Mapping[int, Sequence[int]]) -> PrunedUnits | None:
        if asked is None:
            return None
        scores = self.scores[part]
        first = next(iter(kept))
        return PrunedUnits(
            by=asked.by,
            before=len(scores[first]),
            after=len(kept[first]),
            layers=tuple(
                UnitsOfLayer(layer=layer, share=_share_gone(scores[layer], places)) for layer, places in kept.items()
            ),
        )


def _share_gone(scores: Tensor, kept: Sequence[int]) -> float:
    whole = float(scores.sum())
    return 1.0 - float(scores[list(kept)].sum()) / whole if whole else 0.0


def choose(model: Any, batches: Sequence[Rows], settings: Prune, shape: ModelShape, tick: Tick) -> Chosen:
    """Score what could go, and keep what does most.

    Args:
        model: the whole model in evaluation mode, its parameters frozen; unchanged afterwards.
        batches: rows; none are read where weights alone are looked at.
        settings: resolved.
        shape: of the model.
        tick: told of (what is being done, done, all).
    """
    depth = None
    if settings.layers is not None:
        depth = choose_layers(
            model,
            batches,
            by=settings.layers.by,
            remove=settings.layers.remove,
            contiguous=bool(settings.layers.contiguous),
            tick=lambda done, total: tick("scoring layers", done, total),
        )
    gone = depth.removed if depth is not None else ()
    layers = [layer for layer in range(shape.num_layers) if layer not in gone]
    by: dict[Part, UnitMeasure] = {}
    if settings.mlp is not None:
        by["mlp"] = settings.mlp.by
    if settings.heads is not None:
        by["heads"] = settings.heads.by
    with left_out(model, gone):
        scores = unit_scores(
            model,
            batches,
            by=by,
            layers=layers,
            tick=lambda done, total: tick("scoring channels and heads", done, total),
        )
    channels, groups = kept_channels(settings, shape), kept_groups(settings, shape)
    kept = Kept(
        layers,
        {layer: kept_units(one, channels) for layer, one in scores.get("mlp", {}).items()},
        {layer: kept_units(one, groups) for layer, one in scores.get("heads", {}).items()},
    )
    return Chosen(settings, kept, depth, scores)
