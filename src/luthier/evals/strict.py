"""Bounds that grow stricter with every look at the same test rows; the intervals of the report stay as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping

from luthier.eval_records import Bounds, GeneralText, GlossaryUse, Look
from luthier.evals.compare import metrics_of
from luthier.evals.intervals import Bootstrap
from luthier.evals.observed import Observed
from luthier.plan.looks import level_of
from luthier.records import Interval


def stricter(bootstrap: Bootstrap, look: Look) -> Bootstrap:
    """The same draws at the level of this look."""
    return bootstrap.at(level_of(look.number, bootstrap.level))


def bounds_of(
    tuned: Observed,
    bootstrap: Bootstrap,
    *,
    usual: Mapping[str, Interval],
    general: tuple[GeneralText, GeneralText],
    glossary: tuple[GlossaryUse | None, GlossaryUse | None],
) -> Bounds:
    """What the gate holds the lines of a later look to.

    Args:
        tuned: what the tuned model said.
        bootstrap: at the level of the look, see `stricter`.
        usual: metrics of the tuned model as the report gives them.
        general: as the report gives it, and at the level of the look.
        glossary: the same of terms.
    """
    ratios = [use.ratio if use is not None else None for use in glossary]
    return Bounds(
        metrics={name: outer(usual[name], found) for name, found in metrics_of(tuned, bootstrap).items()},
        general=outer(general[0].ratio, general[1].ratio),
        glossary=outer(ratios[0], ratios[1]) if ratios[0] is not None and ratios[1] is not None else None,
    )


def outer(usual: Interval, strict: Interval) -> Interval:
    """`strict`, nowhere narrower than `usual`; what is not known of one is not known."""
    if any(math.isnan(end) for end in (usual.low, usual.high, strict.low, strict.high)):
        return strict.model_copy(update={"low": math.nan, "high": math.nan})
    return strict.model_copy(update={"low": min(usual.low, strict.low), "high": max(usual.high, strict.high)})
