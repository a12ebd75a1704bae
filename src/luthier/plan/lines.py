"""The plan in lines of text."""

from __future__ import annotations

import math

from luthier.plan.words import count, duration, millions, points, price
from luthier.plan.words import memory as gib
from luthier.plan_records import Candidate, Detectable, Expected, Plan


def lines(plan: Plan) -> list[str]:
    """The plan for a terminal, at most 120 characters a line where words allow it."""
    prediction, budget, proof = plan.prediction, plan.budget, plan.detectable
    of_memory = f" of {gib(budget['ram_gib'])}" if "ram_gib" in budget else ""
    costs = next((one.money for one in plan.candidates if one.technique == plan.chosen), None)
    of_money = f" of {price(budget['money'], plan.currency)}" if "money" in budget else ""
    of_time = f" of {duration(budget['hours'] * 3600)}" if "hours" in budget else ""
    rest = prediction.total_seconds - prediction.train_seconds - prediction.evaluate_seconds
    verdict = "fits the budget" if plan.fits else "DOES NOT FIT the budget"
    text = [
        f"method    {plan.chosen}: {verdict if set(budget) - {'price_per_hour'} else 'no budget stated'}",
        f"memory    {gib(prediction.peak_memory_gib)}{of_memory} at the peak",
        f"time      {duration(prediction.total_seconds)}{of_time}: training {duration(prediction.train_seconds)}, "
        f"evaluation {duration(prediction.evaluate_seconds)}, the rest {duration(rest)}",
        "          (the rest: preparing, starting stages, exporting; "
        + (
            f"estimated from the rate of a product, {prediction.matmul_gflops:.0f} GFLOP/s now)"
            if prediction.rates == "product"
            else "at rates measured with this base on this machine)"
        ),
        *([f"money     {price(costs, plan.currency)}{of_money}"] if costs is not None else []),
        f"tokens    {count(prediction.trained_tokens)} to train on",
        *_proof_lines(proof),
    ]
    if proof.target and proof.must_observe is not None:
        seen = f"about {proof.must_observe:.3f} or better must be seen for the bound to clear it"
        text += [
            f"target    {proof.target}: {seen}",
            f"          if it behaved like a share of {count(proof.num_test)} independent items",
        ]
    elif proof.target:
        text.append(f"target    {proof.target}")
    text += ["ranking", *_matrix(plan)]
    for place, candidate in enumerate(plan.candidates, start=1):
        text += [
            f"  {place}. {candidate.technique}{': ' + candidate.why if candidate.why else ''}",
            *([f"     expected {_expected(candidate.expected)}"] if candidate.expected is not None else []),
            f"     for      {candidate.speaks_for}",
            f"     against  {candidate.speaks_against}",
        ]
    return text + (["notes", *(f"  - {note}" for note in plan.notes)] if plan.notes else [])


def _proof_lines(proof: Detectable) -> list[str]:
    if math.isnan(proof.smallest_difference):
        return [f"proof     {count(proof.num_test)} test rows; {proof.assumption}"]
    return [
        f"proof     {count(proof.num_test)} test rows show a difference of {points(proof.smallest_difference)} "
        "(80 % power, McNemar at 5 %)",
        f"          if {proof.assumption}",
    ]


def _expected(expected: Expected) -> str:
    interval = f" [{expected.low:.3f}, {expected.high:.3f}]" if None not in (expected.low, expected.high) else ""
    return f"{expected.metric} {expected.point:.3f}{interval}, {expected.source}"


def _matrix(plan: Plan) -> list[str]:
    """One line a candidate, under a head."""
    rows = [["", "trains", "parameters", "memory", "training", "whole run", "money", "expected", "budget"]]
    rows += [_row(place, candidate, plan) for place, candidate in enumerate(plan.candidates, start=1)]
    if "price_per_hour" not in plan.budget:
        rows = [row[:6] + row[7:] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _row(place: int, candidate: Candidate, plan: Plan) -> list[str]:
    expected = candidate.expected
    stated = set(plan.budget) - {"price_per_hour"}
    return [
        f"{place}. {candidate.technique}",
        candidate.trains,
        millions(candidate.trainable_parameters) if candidate.trainable_parameters else "-",
        gib(candidate.peak_memory_gib) if candidate.peak_memory_gib else "-",
        duration(candidate.train_seconds) if candidate.train_seconds else "-",
        duration(candidate.total_seconds) if candidate.total_seconds else "-",
        "-" if candidate.money is None else price(candidate.money, plan.currency),
        "unknown" if expected is None else f"{expected.metric} {expected.point:.2f}",
        ("fits" if candidate.fits else "DOES NOT FIT") if stated else "none stated",
    ]
