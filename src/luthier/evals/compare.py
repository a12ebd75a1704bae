"""From predictions to the tables of the report: scores, paired differences, classes, confusion, mistakes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from luthier.data.shards import Example
from luthier.eval_records import ClassScore, Coverage, Difference, Mistake
from luthier.evals.intervals import Bootstrap, holm
from luthier.evals.metric import load_metric, worst_of
from luthier.evals.metrics import exact_match
from luthier.evals.observed import Observed
from luthier.records import Interval
from luthier.spec.plugins import METRICS

MISTAKES_KEPT = 200
"""Mistakes that a report carries; all predictions stand in predictions.jsonl."""


def metrics_of(observed: Observed, bootstrap: Bootstrap) -> dict[str, Interval]:
    """Every metric that can be computed from what was observed, with its interval."""
    metrics = {}
    for name in measurable(observed):
        metric = load_metric(name)
        if name == "answered_accuracy":
            share = sum(observed.answered) / len(observed.answered)
            metrics[name] = bootstrap.proportion(metric.statistics(observed), metric.value, share_of=share)
            continue
        items, drawn = counted(name, observed, bootstrap)
        if METRICS.get(name).is_proportion:
            metrics[name] = drawn.proportion(metric.statistics(items), metric.value)
        else:
            worst = worst_of(name, items)
            metrics[name] = drawn.interval(metric.statistics(items), metric.value, worst=worst)
    if observed.probabilities and observed.free_text:
        agreement = dataclasses.replace(observed, expected=observed.predicted)
        metrics["free_text_agreement"] = bootstrap.proportion(exact_match.statistics(agreement), exact_match.value)
    return metrics


def points_of(observed: Observed) -> dict[str, float]:
    """The same metrics without intervals, of which a second set would only invite to choose."""
    metrics = {}
    for name in measurable(observed):
        metric = load_metric(name)
        metrics[name] = float(metric.value(metric.statistics(observed).sum(axis=0)))
    return metrics


def differences(systems: Mapping[str, Observed], bootstrap: Bootstrap) -> tuple[Difference, ...]:
    """Paired differences tuned - other for every other system and every metric that both have; the base comes first."""
    tuned = systems["tuned"]
    others = sorted((name for name in systems if name != "tuned"), key=lambda name: name != "base")
    found = []
    for metric_name in measurable(tuned):
        metric = load_metric(metric_name)
        against = [name for name in others if metric_name in measurable(systems[name])]
        p_values = [math.nan] * len(against)
        if metric_name == _correctness_metric(tuned):
            p_values = holm([bootstrap.p_value(tuned.correct, systems[name].correct) for name in against])
        for name, p_value in zip(against, p_values, strict=True):
            one, drawn = counted(metric_name, tuned, bootstrap)
            other, _ = counted(metric_name, systems[name], bootstrap)
            interval = drawn.difference(metric.statistics(one), metric.statistics(other), metric.value)
            found.append(
                Difference(system="tuned", against=name, metric=metric_name, interval=interval, p_value=p_value)
            )
    return tuple(found)


def class_scores(observed: Observed, labels: Sequence[str]) -> tuple[ClassScore, ...]:
    """Precision, recall and F1 of each label, 0 where the denominator is; labels in the order given.

    Where a text may have several, these are the first columns of the marks.
    """
    if observed.marks.size:
        expected, given = observed.marks[:, : len(labels), 0], observed.marks[:, : len(labels), 1]
        counted = np.stack([(expected * given).sum(axis=0), given.sum(axis=0), expected.sum(axis=0)], axis=1)
    else:
        counts = np.array(confusion(observed, labels)).reshape(len(labels), len(labels))
        counted = np.stack([np.diagonal(counts), counts.sum(axis=0), counts.sum(axis=1)], axis=1)
    scores = []
    for label, numbers in zip(labels, counted, strict=True):
        right, said, asked = map(int, numbers)
        scores.append(
            ClassScore(
                label=label,
                support=asked,
                precision=right / said if said else 0.0,
                recall=right / asked if asked else 0.0,
                f1=2 * right / (said + asked) if said + asked else 0.0,
            )
        )
    return tuple(scores)


def confusion(observed: Observed, labels: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Counts [expected][predicted] in the order of `labels`; empty where there is no closed set."""
    place = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(labels), len(labels)), dtype=int)
    if labels:
        for expected, predicted in zip(observed.expected, observed.predicted, strict=True):
            counts[place[expected], place[predicted]] += 1
    return tuple(tuple(int(count) for count in row) for row in counts)


def mistakes(observed: Observed, examples: Sequence[Example]) -> tuple[Mistake, ...]:
    """Wrong answers, the most confident first and then by line; at most `MISTAKES_KEPT`.

    The probability is that of the predicted label; NaN for free text, which has no closed set to share it. Of numbers
    those that are farthest off come first.
    """
    found = []
    for index in _wrong(observed):
        predicted = observed.predicted[index]
        probability = observed.probabilities[index][predicted] if observed.probabilities else math.nan
        found.append(
            Mistake(
                line=examples[index].line,
                text=examples[index].text,
                expected=observed.expected[index],
                predicted=predicted,
                probability=probability,
            )
        )
    if not observed.numbers.size:
        found.sort(key=lambda mistake: (0.0 if math.isnan(mistake.probability) else -mistake.probability, mistake.line))
    return tuple(found[:MISTAKES_KEPT])


def _wrong(observed: Observed) -> list[int]:
    """Places of the items with a wrong answer; of numbers the farthest off first."""
    if not observed.numbers.size:
        return [int(place) for place in np.flatnonzero(~observed.correct)]
    off = np.abs(observed.numbers[:, 0] - observed.numbers[:, 1])
    return [int(place) for place in np.argsort(-off, kind="stable") if off[place] > 0]


THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def coverage(observed: Observed) -> tuple[Coverage, ...]:
    """What would be answered, and how well, at some thresholds of the chosen label's probability.

    The curve of Geifman & El-Yaniv (2017, arXiv 1705.08500, section 2), by thresholds instead of ranks.
    """
    pairs = zip(observed.probabilities, observed.predicted, strict=True)
    sure = np.array([probabilities[label] for probabilities, label in pairs])
    found = []
    for threshold in THRESHOLDS if sure.size else ():
        given = sure >= threshold
        accuracy = float(observed.correct[given].mean()) if given.any() else None
        found.append(Coverage(threshold=threshold, coverage=float(given.mean()), accuracy=accuracy))
    return tuple(found)


def measurable(observed: Observed) -> list[str]:
    """Names of the metrics for which the needed fields were observed; the main metric of the task first."""
    if observed.prefers:
        named = {"preference_margin": observed.leads, "perplexity": observed.answer_tokens}
        return ["preference_accuracy", *(name for name, part in named.items() if part.size)]
    if observed.answer_bytes.size:
        return ["bits_per_byte", *(["perplexity"] if observed.answer_tokens.size else [])]
    written = ["perplexity"] if observed.answer_tokens.size else []
    if observed.marks.size:
        chances = ["binary_log_loss"] if observed.chances.size else []
        return ["micro_f1", "macro_f1", "accuracy", "hamming_loss", *chances, *written]
    if observed.numbers.size:
        return ["mae", "rmse", "r_squared", *written]
    names = []
    if not observed.free_text or observed.probabilities:  # labels were chosen, by a baseline or by score
        names += ["macro_f1", "accuracy", *(("quadratic_kappa", "mae") if observed.order else ())]
    if observed.rewards.size:
        names.append("reward")
    if observed.free_text and not observed.probabilities and observed.translates:
        names += ["chrf", "bleu"]
    if observed.free_text:
        names.append("exact_match")
    if observed.free_text and not observed.probabilities and not observed.translates:
        names += ["token_f1", "rouge_l"]
    if observed.terms.any():
        names.append("term_accuracy")
    if observed.answer_tokens.size:
        names.append("perplexity")
    if observed.probabilities:
        names += ["log_loss", "calibration_error"]
    if observed.answered:
        names += ["coverage", "answered_accuracy"]
    return names


def counted(name: str, observed: Observed, bootstrap: Bootstrap) -> tuple[Observed, Bootstrap]:
    """The items that a metric is about, and draws of these: of terms, those that hold any, in every system the same."""
    if name != "term_accuracy":
        return observed, bootstrap
    asked = observed.terms[:, 1] > 0
    return observed.only(np.flatnonzero(asked).tolist()), bootstrap.only(asked)


def _correctness_metric(tuned: Observed) -> str:
    """The metric that counts right answers, which the paired test compares."""
    if tuned.prefers:
        return "preference_accuracy"
    if tuned.numbers.size:  # which are near, or not
        return ""
    return "accuracy" if tuned.probabilities or tuned.marks.size else "exact_match"
