"""How good a technique may be expected to be: what was measured on this data or on like data, else nothing."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier.plan.measured import Known
from luthier.plan_records import Expected
from luthier.records import Interval, ModelShape
from luthier.spec.plugins import METRICS

TABLE = Path(__file__).parent / "qualities.csv"
"""What was measured for this project, a row a technique and metric, with its conditions."""

ALIKE = 3.0
"""Factor within which rows a label (rows, of an open task), labels and the base's parameters are taken for alike."""


def expected_of(technique: str, metric: str, known: Sequence[Known]) -> Expected | None:
    """The nearest measurement of a technique; None where there is none."""
    for one in known:
        if one.technique == technique and metric in one.metrics:
            seen = one.metrics[metric]
            return Expected(
                metric=metric, point=seen.point, low=seen.low, high=seen.high, source=one.source, data=one.data
            )
    return None


def outdone(one: Expected | None, *, by: Expected | None) -> bool:
    """Whether two measurements on the same data show the other one to be better: each point lies outside the other's
    interval.
    """
    if one is None or by is None or one.data != by.data or one.metric != by.metric:
        return False
    if None in (one.low, one.high, by.low, by.high):
        return False
    worse, better = (one, by) if METRICS.get(one.metric).higher_is_better else (by, one)
    assert worse.high is not None
    assert better.low is not None
    return worse.high < better.point and worse.point < better.low


def majority(labels: Mapping[str, int], metric: str) -> Expected | None:
    """What always answering the most frequent label scores, from the labels alone.

    Of C labels, one with the share p: accuracy p; its F1 is 2 p / (1 + p), the others' 0, so macro-F1 is that over C.
    """
    if not labels:
        return None
    share = max(labels.values()) / sum(labels.values())
    points = {"accuracy": share, "macro_f1": 2 * share / (1 + share) / len(labels)}
    if metric not in points:
        return None
    return Expected(metric=metric, point=points[metric], source="follows from the labels' shares", data="labels")


def measured_alike(
    task: str, *, num_labels: int, train_rows: float, shape: ModelShape, table: Path = TABLE
) -> tuple[Known, ...]:
    """What was measured for this project on data most like this: the same task, and all that counts alike.

    Everything comes from one data set, so that techniques can be compared.
    """
    found: dict[str, list[dict[str, str]]] = {}
    near: dict[str, float] = {}
    with table.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            labels, rows = int(row["num_labels"]), float(row["train_rows"])
            pairs = [(rows / max(1, labels), train_rows / max(1, num_labels))]
            pairs += [(labels, num_labels)] if labels and num_labels else []
            far = [abs(math.log(a / b)) for a, b in pairs]
            size = abs(math.log(float(row["base_parameters"]) / shape.num_parameters))
            alike = row["task"] == task and bool(labels) is bool(num_labels)
            if alike and max(*far, size) <= math.log(ALIKE):
                found.setdefault(row["data"], []).append(row)
                near[row["data"]] = sum(far) + size
    if not found:
        return ()
    data = min(near, key=lambda name: (near[name], name))
    return _known(data, found[data])


def _known(data: str, rows: Sequence[Mapping[str, str]]) -> tuple[Known, ...]:
    metrics: dict[str, dict[str, Interval]] = {}
    for row in rows:
        low, high, n = float(row["low"]), float(row["high"]), int(row["n_test"])
        seen = Interval(point=float(row["point"]), low=low, high=high, n=n)
        metrics.setdefault(row["technique"], {})[row["metric"]] = seen
    first = rows[0]
    labels = f"{first['num_labels']} labels, " if int(first["num_labels"]) else ""
    where = f"measured on {data}, not on this data: {labels}{int(first['train_rows']):,} rows, {first['base']}"
    return tuple(
        Known(technique=technique, metrics=seen, source=where, data=data) for technique, seen in metrics.items()
    )
