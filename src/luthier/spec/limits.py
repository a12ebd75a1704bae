"""Targets and limits such as '>= 0.80' or '<= 1.05x' (relative to the base model)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from luthier.errors import RecipeError
from luthier.spec.plugins import METRICS

_LIMIT = re.compile(r"\s*(>=|<=)\s*([0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*(x?)\s*")


@dataclass(frozen=True)
class Limit:
    """One line of the objective: `subject.metric op value`, relative to the base where `relative`."""

    subject: str
    """Name of a data entry, or 'general'."""
    metric: str
    op: Literal[">=", "<="]
    value: float
    relative: bool

    @property
    def key(self) -> str:
        return f"{self.subject}.{self.metric}"

    @property
    def text(self) -> str:
        return f"{self.key} {self.op} {self.value:g}{'x' if self.relative else ''}"

    def holds(self, value: float) -> bool:
        """Whether `value` (a bound, never a point) satisfies the limit; NaN never does."""
        return value >= self.value if self.op == ">=" else value <= self.value


def parse_limit(key: str, text: str, *, section: str) -> Limit:
    """Read one line of `objective.targets` or `objective.non_regression`.

    Raises:
        RecipeError: key is not `name.metric`, the metric is unknown, or the text is not an operator and a number.
    """
    where = f"objective.{section}.{key}"
    subject, dot, metric = key.rpartition(".")
    if not dot:
        raise RecipeError(f"{where}: the key must be NAME.METRIC", way_out=f"write e.g. 'general.{key}'")
    try:
        facts = METRICS.get(metric)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error.what}", way_out=error.way_out) from error
    match = _LIMIT.fullmatch(text)
    if match is None or math.isinf(float(match[2])):
        raise RecipeError(f"{where}: {text!r} is not a limit", way_out="write e.g. '>= 0.80' or '<= 1.05x'")
    op: Literal[">=", "<="] = ">=" if match[1] == ">=" else "<="
    if (op == ">=") != facts.higher_is_better:
        better = "higher" if facts.higher_is_better else "lower"
        raise RecipeError(
            f"{where}: {text!r} limits {metric} on the wrong side, {better} is better for it",
            way_out=f"use {'>=' if facts.higher_is_better else '<='}",
        )
    relative = bool(match[3])
    if facts.is_proportion and float(match[2]) > 1:
        raise RecipeError(f"{where}: {text!r}: {metric} is a share between 0 and 1", way_out="write e.g. 0.80 for 80 %")
    if section == "targets" and relative:
        raise RecipeError(
            f"{where}: {text!r}: a target is an absolute value",
            way_out="drop the x, or move the line to objective.non_regression",
        )
    if section == "non_regression" and not relative:
        raise RecipeError(
            f"{where}: {text!r}: a non-regression limit is relative to the base model",
            way_out="write a factor of the base's value, e.g. '<= 1.05x'",
        )
    kept = key == "general.perplexity" or (subject != "general" and metric == "term_accuracy")
    if not kept if section == "non_regression" else subject == "general":
        of_base = "general.perplexity, NAME.term_accuracy of a data entry"
        known = of_base if section == "non_regression" else "NAME.METRIC of a data entry"
        raise RecipeError(f"{where} cannot be measured", way_out=f"known here: {known}")
    return Limit(subject, metric, op, float(match[2]), relative)
