"""Rows whose answers are scored: one answer, or both of a pair, and which of them wins."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from luthier.data.features import input_columns
from luthier.data.inputs import as_text
from luthier.engines.ask import Asker
from luthier.errors import UserError
from luthier.records import Answer, RequestContract

ANSWER = "answer"
"""Column of an answer that stands alone."""


class Scored(NamedTuple):
    """What is said of a row."""

    answers: tuple[Answer, ...]
    """One for each answer; its `value` is the score."""
    said: dict[str, object]
    """As it is written: `score`, or of a pair `scores` by column and `preferred`, None where both score alike."""


def answer_columns(contract: RequestContract, given: Collection[str]) -> tuple[str, ...]:
    """Columns of `given` that hold what is scored: both answers of a pair, as the training rows name them, else one.

    Raises:
        UserError: there is none of them.
    """
    pair = contract.answer_columns
    if pair and set(pair) <= set(given):
        return pair
    alone = ANSWER if ANSWER not in question_columns(contract) else ""
    if alone and alone in given:
        return (alone,)
    ways = [
        *([f"the answer as {alone!r}"] if alone else []),
        *([f"both {' and '.join(map(repr, pair))}"] if pair else []),
    ]
    raise UserError(
        f"this version scores answers, and there is none: found {', '.join(sorted(given)) or 'nothing'}",
        way_out=f"give {', or '.join(ways)}"
        if contract.input
        else "send a conversation that ends with the answer, as messages",
    )


def question_columns(contract: RequestContract) -> tuple[str, ...]:
    """Of a row that is asked; none where conversations are."""
    return tuple(input_columns(contract.input, contract.features)) if contract.input else ()


def score_values(asker: Asker, values: Mapping[str, object], columns: tuple[str, ...]) -> Scored:
    """Score what stands in these columns of a row, behind what the row asks.

    Raises:
        UserError: an answer is empty, or see `Asker.score_values`.
    """
    answers = tuple(asker.score_values(values, as_text(values.get(column))) for column in columns)
    return Scored(answers, said_of(columns, answers))


def said_of(columns: tuple[str, ...], answers: tuple[Answer, ...]) -> dict[str, object]:
    """See `Scored.said`; a score that is no finite number is None."""
    values = [answer.value if answer.value is not None and math.isfinite(answer.value) else None for answer in answers]
    if len(columns) == 1:
        return {"score": values[0]}
    one, other = values
    wins = None if one is None or other is None or one == other else columns[0 if one > other else 1]
    return {"scores": dict(zip(columns, values, strict=True)), "preferred": wins}
