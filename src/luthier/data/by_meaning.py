"""Rows under way, compared by meaning: repetitions, chains that are drawn as one, leaks, benchmarks.

Nothing here runs, and no model is opened, where the recipe asks for none of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from threadpoolctl import threadpool_limits

from luthier.data.dedupe import text_key
from luthier.data.encoder import Embedder, Encoder, Floats, locate
from luthier.data.firewall import MOST_JOINED
from luthier.data.items import Item, Ledger, Verdict, item_text, place_beside, said_in
from luthier.data.likeness import compared_text
from luthier.data.meaning import Like, likest, linked, repeated_by_meaning
from luthier.data_report import MeaningPair, MeaningReport, PairKind
from luthier.errors import DataError, ModelError
from luthier.records import RequestContract, SplitName, is_closed
from luthier.spec.recipe import Data, Embeddings
from luthier.spec.resolve import ResolvedRecipe

SHOWN_PAIRS = 8
"""Of each kind, in the report."""
_SHOWN_CHARS = 240
_TIMED_TEXTS = 64


class _Seen(NamedTuple):
    """A pair that was found; nothing in it is masked yet."""

    kind: PairKind
    cosine: float
    place: str
    of_place: str
    text: str
    of_text: str


def open_meanings(
    resolved: ResolvedRecipe, contract: RequestContract, ledger: Ledger, embedder: Embedder | None = None
) -> Meanings | None:
    """What compares the rows by meaning, or None where the recipe does not ask for it.

    Args:
        resolved: asks for it, and names the model.
        contract: how a row is asked.
        ledger: learns of rows that are set aside.
        embedder: instead of the model that the recipe names.

    Raises:
        MissingExtra, ModelError: the model is not there, cannot be used, or is another one than the run was made with.
    """
    data = resolved.recipe.data
    if not data.by_meaning:
        return None
    assert data.embeddings is not None and data.embeddings.model is not None  # noqa: PT018 (resolved)
    threads = resolved.recipe.train.threads or 1
    if embedder is None:
        name = data.embeddings.model
        place = locate(name, folder=Path(resolved.folder))
        embedder = Encoder(place, name=name, threads=threads)
        known = resolved.data_sha256.get("data.embeddings.model", embedder.sha256)
        if known != embedder.sha256:
            raise ModelError(
                f"data.embeddings.model: {place} has changed since this run was made: its hash was {known[:12]} and is "
                f"{embedder.sha256[:12]}",
                way_out="run the recipe again, which makes a new run",
            )
    return Meanings(embedder, data, contract, ledger, threads=threads)


class Meanings:
    """Compares rows by the embeddings of what they ask; each different text is embedded once."""

    def __init__(
        self,
        embedder: Embedder,
        data: Data,
        contract: RequestContract,
        ledger: Ledger,
        *,
        threads: int = 1,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._embedder = embedder
        self._dedupe = data.dedupe.meaning if data.dedupe else None
        self._leakage = data.leakage.meaning
        self._most_rows = (data.embeddings or Embeddings()).max_rows
        self._contract = contract
        self._ledger = ledger
        self._threads = threads
        self._clock = clock
        self._places: dict[str, int] = {}
        self._units_ND: Floats | None = None
        self._too_long = 0
        self._num_conflicts = 0
        self._rows_left_apart = 0
        self._seen: list[_Seen] = []

    def set_aside(self, items: Sequence[Item]) -> list[Item]:
        """Set aside rows that mean what a kept row of the same label means, file by file.

        A free answer is compared together with its question.
        """
        if self._dedupe is None:
            return list(items)
        parts: dict[SplitName | None, list[Item]] = {}
        for item in items:
            parts.setdefault(item.origin, []).append(item)
        verdicts: dict[int, Verdict] = {}
        for own in parts.values():
            texts = [self._text(item) for item in own]
            if not is_closed(self._contract.task):
                answers = (text_key(said_in(item)) for item in own)
                texts = [f"{text}\n{answer}" for text, answer in zip(texts, answers, strict=True)]
            units_ND = self._units(texts)
            with threadpool_limits(limits=self._threads, user_api="blas"):
                found = repeated_by_meaning(units_ND, self._labels(own), threshold=self._dedupe)
            for item, like in zip(own, found.first, strict=True):
                if like is not None:
                    first = own[like.index]
                    detail = f"of {place_beside(item, first)}, likeness {like.cosine:.2f} by meaning"
                    verdicts[id(item)] = ("duplicate_meaning", detail)
                    self._note("duplicate", like.cosine, item, first)
            for row, like in found.conflicts:
                self._note("conflict", like.cosine, own[row], own[like.index])
            self._num_conflicts += len(found.conflicts)
        return self._ledger.sift("duplicates by meaning", items, [verdicts.get(id(item)) for item in items])

    def joined_groups(self, items: Sequence[Item], groups: Sequence[str]) -> list[str]:
        """A group for each item to be drawn by: groups that rows of like meaning and one label link are one.

        Where a chain would hold more than `MOST_JOINED` of the rows of a label, its groups stay as they were, and the
        check after the draw marks what leaks; the whole label would be drawn into one split else.
        """
        if self._leakage is None:
            return list(groups)
        labels = self._labels(items)
        units_ND = self._units([self._text(item) for item in items])
        with threadpool_limits(limits=self._threads, user_api="blas"):
            chains = linked(units_ND, labels, threshold=self._leakage).tolist()
        parent = {group: group for group in groups}

        def root(group: str) -> str:
            while parent[group] != group:
                parent[group] = group = parent[parent[group]]
            return group

        group_of_chain: dict[int, str] = {}
        for chain, group in zip(chains, groups, strict=True):
            one, other = sorted((root(group), root(group_of_chain.setdefault(chain, group))))
            parent[other] = one  # the name does not depend on the order of the rows
        of_label = Counter(labels)
        sizes = Counter((root(group), label) for group, label in zip(groups, labels, strict=True))
        members = Counter(root(group) for group in parent)
        apart = {
            name
            for (name, label), size in sizes.items()
            if members[name] > 1 and size > max(2, MOST_JOINED * of_label[label])
        }
        self._rows_left_apart = sum(root(group) in apart for group in groups)
        return [group if root(group) in apart else root(group) for group in groups]

    def seen(self, items: Sequence[Item], learned: Sequence[Item]) -> set[int]:
        """Identities of the items that mean what a learned row means, of the same label where there are labels."""
        if self._leakage is None:
            return set()
        found: set[int] = set()
        known_of = self._by_label(learned)
        for label, asked in self._by_label(items).items():
            known = known_of.get(label, [])
            for item, like in zip(asked, self._likest(asked, list(map(self._text, known))), strict=True):
                if like is not None:
                    found.add(id(item))
                    self._note("leak", like.cosine, item, known[like.index])
        return found

    def in_benchmark(
        self, items: Sequence[Item], texts: Sequence[str], lines: Sequence[int], file: str, shown: Sequence[str]
    ) -> dict[int, Like]:
        """Identity of each item that means what a text of a benchmark means -> that text's place in `texts`.

        `shown` are the texts as they are written.
        """
        found: dict[int, Like] = {}
        if self._leakage is None:
            return found
        for item, like in zip(items, self._likest(items, texts), strict=True):
            if like is not None:
                found[id(item)] = like
                place = f"{file}:{lines[like.index]}"
                own = f"{item.file}:{item.line}"
                self._seen.append(_Seen("benchmark", like.cosine, own, place, item_text(item), shown[like.index]))
        return found

    def report(self) -> MeaningReport:
        """What was compared, and the pairs nearest to the threshold, which tell whether it is too low."""
        shown: list[_Seen] = []
        for kind in get_args(PairKind):
            own = [one for one in self._seen if one.kind == kind]
            shown += sorted(own, key=lambda one: one.cosine)[:SHOWN_PAIRS]
        return MeaningReport(
            model=self._embedder.name,
            model_sha256=self._embedder.sha256,
            dedupe=self._dedupe,
            leakage=self._leakage,
            texts=len(self._places),
            too_long=self._too_long,
            num_conflicts=self._num_conflicts,
            rows_left_apart=self._rows_left_apart,
            pairs=tuple(
                MeaningPair(
                    kind=one.kind, place=one.place, of_place=one.of_place, likeness=one.cosine,
                    text=self._masked(one.text), of_text=self._masked(one.of_text),
                )
                for one in shown
            ),
        )  # fmt: skip

    def _likest(self, items: Sequence[Item], texts: Sequence[str]) -> list[Like | None]:
        assert self._leakage is not None
        asked, known = self._units([self._text(item) for item in items]), self._units(texts)
        with threadpool_limits(limits=self._threads, user_api="blas"):
            return likest(asked, known, threshold=self._leakage)

    def _units(self, texts: Sequence[str]) -> Floats:
        """[N, D] of the texts; those that are new are embedded first."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._places]
        if len(self._places) + len(fresh) > self._most_rows:
            raise self._too_many(fresh)
        if fresh or self._units_ND is None:
            units_ND, is_read = self._embedder.embed(fresh)
            self._too_long += int((~is_read).sum())
            self._places |= {text: place for place, text in enumerate(fresh, start=len(self._places))}
            self._units_ND = units_ND if self._units_ND is None else np.concatenate([self._units_ND, units_ND])
        return self._units_ND[[self._places[text] for text in texts]]

    def _too_many(self, fresh: Sequence[str]) -> DataError:
        """How long it would have taken, measured on a few of the texts."""
        some = fresh[:: max(1, len(fresh) // _TIMED_TEXTS)][:_TIMED_TEXTS]
        began = self._clock()
        self._embedder.embed(some)
        minutes = (self._clock() - began) / len(some) * len(fresh) / 60
        return DataError(
            f"{len(self._places) + len(fresh):,} different texts are to be compared by meaning, and "
            f"data.embeddings.max_rows is {self._most_rows:,}; embedding them takes about {minutes:,.1f} minutes here, "
            "and the time of comparing grows with their square",
            way_out="set data.embeddings.max_rows higher, or take data.dedupe.near and data.leakage.near alone, whose "
            "time grows with the rows",
        )

    def _text(self, item: Item) -> str:
        return compared_text(item, self._contract.input)

    def _labels(self, items: Sequence[Item]) -> list[str]:
        return [item.answer if is_closed(self._contract.task) else "" for item in items]

    def _by_label(self, items: Sequence[Item]) -> dict[str, list[Item]]:
        parts: dict[str, list[Item]] = {}
        for item, label in zip(items, self._labels(items), strict=True):
            parts.setdefault(label, []).append(item)
        return parts

    def _note(self, kind: PairKind, cosine: float, item: Item, other: Item) -> None:
        place, of_place = (f"{one.file}:{one.line}" for one in (item, other))
        self._seen.append(_Seen(kind, cosine, place, of_place, item_text(item), item_text(other)))

    def _masked(self, text: str) -> str:
        """Cut after masking, so that no half of an address is left over."""
        masked = self._ledger.shown(text)
        return masked if len(masked) <= _SHOWN_CHARS else masked[: _SHOWN_CHARS - 1] + "…"
