"""Perplexity on a general text that has nothing to do with the task: what tuning made the model forget."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from luthier.engines.ask import Asker
from luthier.errors import DataError
from luthier.eval_records import GeneralText
from luthier.evals.intervals import FEWEST_GROUPS, Bootstrap
from luthier.evals.metrics import perplexity
from luthier.evals.observed import Floats


def paragraphs(text: str) -> list[str]:
    """The parts of a text between empty lines."""
    return [part.strip() for part in re.split(r"\n\s*\n", text.replace("\r\n", "\n")) if part.strip()]


def paragraph_losses(asker: Asker, text: str, tick: Callable[[int, int], None]) -> Floats:
    """(nats, tokens) of each paragraph, tokenised on its own; shape [paragraphs, 2].

    The first token of a paragraph has nothing before it and is not counted. A paragraph longer than the contract's
    `max_length` is read in windows of that length.
    """
    parts = paragraphs(text)
    rows = []
    for row in asker.engine.each(lambda part: _losses(asker, part), parts):
        rows.append(row)
        tick(len(rows), len(parts))
    return np.array([row for row in rows if row[1] > 0], dtype=np.float64).reshape(-1, 2)


def _losses(asker: Asker, part: str) -> tuple[float, float]:
    """(nats, tokens) of one paragraph."""
    ids = _text_ids(asker, part)
    length = asker.contract.max_length
    windows = [ids[start : start + length] for start in range(0, len(ids), length)]
    nats = sum(-float(asker.engine.logprobs(window).sum()) for window in windows if len(window) > 1)
    return nats, float(sum(asker.renderer.base_tokens(window[1:]) for window in windows))


def compare_general(base: Floats, tuned: Floats, *, source: str, bootstrap: Bootstrap) -> GeneralText:
    """Perplexity of both models and their ratio tuned / base, paired by paragraph.

    Args:
        base: result of `paragraph_losses` for the base model.
        tuned: the same for the tuned model, on the same text.
        source: what the report calls the text.
        bootstrap: over the paragraphs.
    """
    return GeneralText(
        source=source,
        num_tokens=int(base[:, 1].sum()),
        base=bootstrap.interval(base, perplexity.value),
        tuned=bootstrap.interval(tuned, perplexity.value),
        ratio=bootstrap.ratio(tuned, base, perplexity.value),
    )


def refuse_short_text(asker: Asker, text: str, *, source: str) -> None:
    """Check the general text before any model is asked.

    Raises:
        DataError: it has fewer than `FEWEST_GROUPS` paragraphs of two tokens or more, so no interval can be given.
    """
    found = sum(len(_text_ids(asker, part)) > 1 for part in paragraphs(text))
    if found < FEWEST_GROUPS:
        raise DataError(
            f"general text {source!r}: {found} usable paragraphs found, an interval needs at least {FEWEST_GROUPS}",
            way_out="separate paragraphs by empty lines, or give a longer text",
        )


def _text_ids(asker: Asker, text: str) -> list[int]:
    ids = asker.renderer.answer_ids(text)
    return ids[: len(ids) - len(asker.contract.end_of_turn_ids)]
