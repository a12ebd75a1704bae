"""What a metric is: additive numbers for each item, and a function of their sums.

Every metric here is a function of sums over items: accuracy of (right, all), macro-F1 of counts by class, perplexity of
(nats, tokens). A resample is then a matrix product, so that one bootstrap serves all metrics and stays exactly paired.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from luthier.evals.observed import Floats, Observed
from luthier.spec.plugins import METRICS


class Metric(Protocol):
    """One module of `luthier.evals.metrics`."""

    def statistics(self, observed: Observed) -> Floats:
        """Numbers of each item that may be added up; shape [N, K]."""
        ...

    def value(self, sums: Floats) -> Floats:
        """The metric of summed statistics; shape [..., K] -> [...]."""
        ...


def worst_of(name: str, observed: Observed) -> Floats | None:
    """Statistics of an item that is as wrong as can be, [K], of a metric that says so; None of others."""
    worst = getattr(importlib.import_module(f"luthier.evals.metrics.{name}"), "worst", None)
    return None if worst is None else worst(observed)


def load_metric(name: str) -> Metric:
    """The implementation of a metric.

    Raises:
        RecipeError: the name is not in the table of metrics.
    """
    METRICS.get(name)
    return cast(Metric, importlib.import_module(f"luthier.evals.metrics.{name}"))
