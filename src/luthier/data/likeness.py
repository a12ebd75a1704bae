"""What rows are compared by, and their signatures, which are made once and serve every comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np

from luthier.data.crew import Crew
from luthier.data.dedupe import text_key, without_wording
from luthier.data.items import Item, digest_of, said_in
from luthier.data.near import Int64s, NearPairs, Signatures, joined, sign
from luthier.records import RequestContract
from luthier.spec.resolve import ResolvedRecipe


@dataclass(frozen=True, slots=True)
class Comparison:
    """One way in which rows are compared."""

    template: str
    """The input template, whose own words do not count; '' for conversations."""
    threshold: float
    with_answers: bool
    """Whether rows that ask the same and answer something else are different."""

    def text(self, item: Item) -> str:
        """What of a row is compared."""
        asked = compared_text(item, self.template)
        return f"{asked}\n{text_key(said_in(item))}" if self.with_answers else asked


def leak_comparison(resolved: ResolvedRecipe, contract: RequestContract) -> Comparison | None:
    """How rows are compared that may give each other away; None where only equal ones may."""
    threshold = resolved.recipe.data.leakage.threshold
    return None if threshold is None else Comparison(contract.input, threshold, with_answers=False)


def compared_text(item: Item, template: str) -> str:
    """What a row asks, without the template's own words."""
    return item.key if item.turns else without_wording(item.key, template)


def sign_all(items: Sequence[Item], comparisons: Sequence[Comparison]) -> dict[Comparison, Signatures]:
    """The signatures of N items for each comparison."""
    return {one: sign([one.text(item) for item in items], one.threshold) for one in comparisons}


class Seen(NamedTuple):
    """What learned rows give away of others."""

    rows: set[int]
    """Identities of the items."""
    crowded: int
    """Items with so many candidates that only the likeliest were compared."""


class Likeness:
    """The rows under way that are alike; each comparison is made once, and asked for any of its rows."""

    def __init__(self, rows: Sequence[int], parts: Sequence[Mapping[Comparison, Signatures]], crew: Crew) -> None:
        """Args:
        rows: running numbers of the items, ascending.
        parts: their signatures, in order.
        crew: compares.
        """
        self._crew = crew
        self._rows = np.asarray(rows, dtype=np.int64)
        names = dict.fromkeys(one for part in parts for one in part)
        self._signatures = {one: joined([part[one] for part in parts], one.threshold) for one in names}
        self._pairs: dict[Comparison, tuple[Int64s, NearPairs]] = {}

    def pairs(self, items: Sequence[Item], comparison: Comparison) -> NearPairs:
        """The pairs of `items` that are alike. Rows of an earlier call for the comparison hold those of a later one."""
        texts = _Texts(items, comparison)
        if not items:
            return NearPairs(texts, comparison.threshold)
        asked = np.fromiter((item.row for item in items), dtype=np.int64, count=len(items))
        if comparison in self._pairs:
            known, pairs = self._pairs[comparison]
            return pairs.among(_places(known, asked), texts)
        signatures = self._signatures[comparison].of(_places(self._rows, asked))
        found = NearPairs(texts, comparison.threshold, signatures=signatures, crew=self._crew)
        self._pairs[comparison] = (asked, found)
        return found

    def seen(
        self, learned: Sequence[Item], asked: Sequence[Item], comparison: Comparison, *, same_answer: bool
    ) -> Seen:
        """Those of `asked` that nearly say what a row of `learned` says.

        Looked for anew between the two: among the pairs of all rows, those of a crowd may be left out.

        Args:
            learned: rows that give others away.
            asked: rows that are not to be given away.
            comparison: how they are compared.
            same_answer: whether a row gives only those of its own answer away.
        """
        if not learned or not asked:
            return Seen(set(), 0)
        both = [*learned, *asked]
        rows = np.fromiter((item.row for item in both), dtype=np.int64, count=len(both))
        signatures = self._signatures[comparison].of(_places(self._rows, rows))
        if same_answer:  # rows of different answers get different keys
            answers = {item.answer for item in both}
            salts = {answer: int.from_bytes(digest_of(answer)[:8]) for answer in answers}
            salt = np.array([salts[item.answer] for item in both], dtype=np.uint64)
            signatures = Signatures(signatures.keys ^ salt[:, None], signatures.sketches)
        found = NearPairs(
            _Texts(both, comparison), comparison.threshold, signatures=signatures, left=len(learned), crew=self._crew
        )
        return Seen({id(both[place]) for place in found.later.tolist()}, found.crowded)


def _places(known: Int64s, asked: Int64s) -> Int64s:
    places = np.searchsorted(known, asked)
    assert np.array_equal(known[np.minimum(places, len(known) - 1)], asked), "an item was not compared"
    return places


class _Texts(Sequence[str]):
    """The compared texts, made when they are asked for: few are."""

    def __init__(self, items: Sequence[Item], comparison: Comparison) -> None:
        self._items = items
        self._comparison = comparison

    def __len__(self) -> int:
        return len(self._items)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self._comparison.text(item) for item in self._items[index]]
        return self._comparison.text(self._items[index])
