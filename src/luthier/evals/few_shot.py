"""Few-shot prompting: the base model sees answered training rows like the question before it answers.

Brown et al. 2020 (arXiv 2005.14165, section 2) put examples into the prompt; Liu et al. 2022 (arXiv 2101.06804, section
2) take those that are nearest to the question. Here near is the cosine of TF-IDF over words, no second model is needed,
and the nearest stands last, next to the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from luthier.data.contract import Renderer
from luthier.data.shards import Example
from luthier.engines.ask import Asker
from luthier.records import Message

_DIGITS = 9
"""Of a cosine that count, so that the order of a sum decides nothing between equals."""


class Neighbours:
    """Training rows by likeness to a text: cosine of TF-IDF of words, idf = ln((1 + N) / (1 + df)) + 1."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self._rows = tuple(rows)

    @cached_property
    def _fitted(self) -> tuple[TfidfVectorizer, object]:
        vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]")
        return vectorizer, vectorizer.fit_transform([row.text for row in self._rows])

    def of(self, item: Example, *, count: int) -> list[Example]:
        """At most `count` rows of other groups than the item's, the nearest first, of equals the earlier one."""
        if not self._rows:
            return []
        vectorizer, rows_nv = self._fitted  # [N rows, V words], sparse
        likeness_n = np.asarray((rows_nv @ vectorizer.transform([item.text]).T).todense()).ravel()
        order = np.argsort(-np.round(likeness_n, _DIGITS), kind="stable")
        found: list[Example] = []
        for place in order.tolist():
            if len(found) == count:
                break
            row = self._rows[place]
            if not (item.group and row.group == item.group):
                found.append(row)
        return found


@dataclass(frozen=True)
class Shown:
    """What each item is asked after."""

    turns: tuple[tuple[Message, ...], ...]
    """Of each item: user, assistant, user, assistant, the nearest example last."""
    mean_examples: float
    """Examples an item, over the items that count."""


def show(asker: Asker, train: Sequence[Example], items: Sequence[Example], *, count: int) -> Shown:
    """Choose examples for each item from the training rows.

    A conversation of several turns is no example, and is asked without one: a row keeps only its last question.

    Args:
        asker: the model that will be asked; its contract says how much room a prompt has.
        train: rows that may be shown; never those of another split.
        items: rows that are asked.
        count: most examples an item; the nearest `count` are tried, each is taken if it still fits.
    """
    neighbours = Neighbours([row for row in train if _is_plain(asker.renderer, row)])
    turns = tuple(_fitting(asker, neighbours.of(item, count=count), item) for item in items)
    counted = [len(one) // 2 for one, item in zip(turns, items, strict=True) if not item.contaminated]
    return Shown(turns, float(np.mean(counted)))


def _is_plain(renderer: Renderer, row: Example) -> bool:
    """Whether its text is all that the row asks."""
    return bool(renderer.contract.input) or row.prompt_ids == renderer.prompt_ids(renderer.messages(row.text))


def _fitting(asker: Asker, nearest: Sequence[Example], item: Example) -> tuple[Message, ...]:
    """Turns of the examples for which there is room; the answer keeps all the room that it has without examples."""
    renderer, contract = asker.renderer, asker.contract
    if not _is_plain(renderer, item):
        return ()
    answer = max(contract.max_new_tokens, len(item.input_ids) - item.prompt_tokens)
    room = min(asker.prompt_room, contract.max_length - answer)
    turns: tuple[Message, ...] = ()
    for row in nearest:
        more = (Message(role="user", content=row.text), Message(role="assistant", content=row.answer), *turns)
        if len(renderer.prompt_ids(renderer.messages(item.text, after=more))) <= room:
            turns = more
    return turns
