"""Term accuracy: of the terms that a text to be translated or answered holds, those that the answer keeps.

The share of matched terms over all of them as in Anastasopoulos et al., On the Evaluation of Machine Translation for
Terminology Consistency (2021, arXiv 2106.11891, section 3, exact-match accuracy), with several accepted targets a term.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from luthier.data.shards import Example
from luthier.errors import DataError
from luthier.eval_records import GlossaryTerm, GlossaryUse
from luthier.evals.glossary import without_remark
from luthier.evals.intervals import Bootstrap
from luthier.evals.metrics import term_accuracy
from luthier.evals.observed import Floats
from luthier.records import Interval

SHOWN = 40
"""Terms that the report lists, the most missed first."""

_UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x3FFFF),
)  # fmt: skip
"""Blocks of scripts that put no blank between words: Thai, Lao, Burmese, Khmer, Kana, Han."""

_JOINERS = "\u200c\u200d"
_FLOOR = 1e-30
"""So little that a sum of counts does not change by it."""
_ENDLESS = 1e9
"""Ratios beyond it come of a base that keeps no term."""


@dataclass(frozen=True)
class Glossary:
    """Terms, and what may stand for each in an answer; all of it folded."""

    source: str
    """Name of the file."""
    accepted: dict[str, tuple[str, ...]]
    """Of a file without pairs the term itself."""
    pairs: bool
    """Whether it is of two languages."""

    @cached_property
    def _lengths(self) -> list[int]:
        return sorted({len(term) for term in self.accepted}, reverse=True)

    def find(self, text: str) -> tuple[str, ...]:
        """The terms that stand in a text, in their order: whole words, the longest first, none within another."""
        text = fold(text)
        places = [place for place in range(len(text) + 1) if _is_cut(text, place)]
        cuts, taken, found = set(places), bytearray(len(text)), list[tuple[int, str]]()
        for length in self._lengths:
            for start in places:
                end = start + length
                if end in cuts and text[start:end] in self.accepted and not any(taken[start:end]):
                    taken[start:end] = b"\1" * length
                    found.append((start, text[start:end]))
        return tuple(term for _, term in sorted(found))

    def met(self, example: Example) -> tuple[str, ...]:
        """The terms that an answer has to keep.

        Of a glossary of pairs each that the text holds, as often as it does. Else each that the question or the
        expected answer holds, once.
        """
        asked = self.find(example.text)
        return asked if self.pairs else tuple(dict.fromkeys((*asked, *self.find(example.answer))))

    def kept(self, terms: Collection[str], answer: str) -> frozenset[str]:
        """Those of the terms for which something accepted stands in the answer, as whole words."""
        answer = fold(answer)
        return frozenset(
            term for term in set(terms) if any(_stands_in(answer, target) for target in self.accepted[term])
        )

    def statistics(self, met: Sequence[Sequence[str]], answers: Sequence[str]) -> Floats:
        """(kept, met) occurrences of each item; shape [N, 2]."""
        rows = []
        for terms, answer in zip(met, answers, strict=True):
            kept = self.kept(terms, answer)
            rows.append((sum(term in kept for term in terms), len(terms)))
        return np.array(rows, dtype=np.float64).reshape(-1, 2)


def fold(text: str) -> str:
    """Letter case, ways to encode a letter and kinds of white space aside; soft hyphens left out.

    Source: canonical caseless matching, The Unicode Standard, section 3.13, D145, composed again.
    """
    folded = unicodedata.normalize("NFD", text.replace("\u00ad", "")).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def _is_cut(text: str, place: int) -> bool:
    """Whether a word may begin or end between two characters."""
    if place in (0, len(text)):
        return True
    before, after = text[place - 1], text[place]
    if unicodedata.category(after).startswith("M") or before in _JOINERS or after in _JOINERS:
        return False  # both are of one letter
    return not (_is_of_word(before) and _is_of_word(after)) or _is_unspaced(before) or _is_unspaced(after)


def _is_of_word(char: str) -> bool:
    return char == "_" or unicodedata.category(char)[0] in "LMN"


def _is_unspaced(char: str) -> bool:
    return any(low <= ord(char) <= high for low, high in _UNSPACED)


def _stands_in(text: str, term: str) -> bool:
    start = text.find(term)
    while start >= 0:
        if _is_cut(text, start) and _is_cut(text, start + len(term)):
            return True
        start = text.find(term, start + 1)
    return False


def read_terminology(text: str, *, name: str, task: str) -> Glossary:
    """A glossary file: of a translation task a term and its accepted targets a line, else a term a line.

    Columns stand apart by tabs, or by commas where the name ends with .csv. Empty cells at the end of a line are none.

    Args:
        text: what the file says.
        name: of the file, for errors.
        task: 'translation' or 'generation'.

    Raises:
        DataError: with the line: a term is empty, has no target, or stands twice with different targets; or the file
            holds no term; or pairs where the task has one language, or none where it has two.
    """
    rows = [(line, cells) for line, cells in _rows(text, name) if cells]
    where, pairs = f"evaluate.glossary: {name}", task == "translation"
    if not rows:
        raise DataError(f"{where} holds no term", way_out="write one term a line")
    paired = [line for line, cells in rows if len(cells) > 1]
    if pairs and not paired:
        raise DataError(
            f"{where} holds terms without targets, and {task} needs pairs",
            way_out="write TERM<tab>TARGET a line, more targets after further tabs, or commas in a file named .csv",
        )
    if not pairs and paired:
        raise DataError(
            f"{where}:{paired[0]}: a term with a target, and {task} is of one language",
            way_out="write one term a line, or set task: translation",
        )
    accepted, lines = dict[str, tuple[str, ...]](), dict[str, int]()
    for line, cells in rows:
        term, *targets = (fold(cell) for cell in cells)
        if not term or not all(targets):
            raise DataError(
                f"{where}:{line}: an empty {'target' if term else 'term'}", way_out="fill it in, or remove the line"
            )
        if pairs and not targets:
            raise DataError(f"{where}:{line}: {term!r} has no target", way_out="add one, or remove the line")
        said = tuple(dict.fromkeys(targets)) or (term,)
        if term in accepted and set(accepted[term]) != set(said):
            raise DataError(
                f"{where}:{line}: {term!r} stands in line {lines[term]} with other targets",
                way_out="write all accepted targets into one line",
            )
        accepted.setdefault(term, said)
        lines.setdefault(term, line)
    return Glossary(name, accepted, pairs)


def _rows(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Line and cells; empty ones at the end are dropped, those of an empty line all, and so are remarks."""
    if name.casefold().endswith(".csv"):
        reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
        try:
            for cells in reader:
                yield reader.line_num, [] if cells and cells[0].lstrip().startswith("#") else _trimmed(cells)
        except csv.Error as error:
            raise DataError(
                f"evaluate.glossary: {name}:{reader.line_num}: no CSV: {error}",
                way_out="close every quotation mark, and write one within a cell twice",
            ) from error
        return
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        yield number, _trimmed(without_remark(line).split("\t"))


def _trimmed(cells: list[str]) -> list[str]:
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def glossary_use(
    glossary: Glossary,
    met: Sequence[Sequence[str]],
    base: Sequence[str],
    tuned: Sequence[str],
    *,
    bootstrap: Bootstrap,
) -> GlossaryUse:
    """What both models made of the terms, and which are missed most.

    Args:
        glossary: the terms.
        met: of each of N items.
        base: N answers of the base model.
        tuned: of the tuned one.
        bootstrap: over the N items.
    """
    times = Counter(term for terms in met for term in terms)
    said = {name: _times_kept(glossary, met, answers) for name, answers in (("base", base), ("tuned", tuned))}
    missed = sorted(
        (term for term in times if said["tuned"][term] < times[term]),
        key=lambda term: (said["tuned"][term] - times[term], term),
    )
    return GlossaryUse(
        source=glossary.source,
        num_terms=len(glossary.accepted),
        met=len(times),
        occurrences=times.total(),
        num_items=sum(bool(terms) for terms in met),
        ratio=_ratio(glossary.statistics(met, tuned), glossary.statistics(met, base), bootstrap),
        num_missed=len(missed),
        missed=tuple(
            GlossaryTerm(
                term=term,
                accepted=glossary.accepted[term],
                occurrences=times[term],
                base=said["base"][term],
                tuned=said["tuned"][term],
            )
            for term in missed[:SHOWN]
        ),
    )


def _times_kept(glossary: Glossary, met: Sequence[Sequence[str]], answers: Sequence[str]) -> Counter[str]:
    found = Counter[str]()
    for terms, answer in zip(met, answers, strict=True):
        kept = glossary.kept(terms, answer)
        found.update(term for term in terms if term in kept)
    return found


def _ratio(tuned: Floats, base: Floats, bootstrap: Bootstrap) -> Interval | None:
    """Tuned / base over the items with terms, paired; None where no term is met or the base keeps none.

    In a resample in which the base keeps none there is nothing to lose; it counts as endless, or as 0 where the tuned
    model keeps none either, so that the lower end is never too high.
    """
    if not base[:, 0].any():
        return None
    asked = base[:, 1] > 0
    floored = np.stack([np.maximum(base[asked, 0], _FLOOR), base[asked, 1]], axis=1)
    found = bootstrap.only(asked).ratio(tuned[asked], floored, term_accuracy.value)
    return found.model_copy(update={"high": found.high if found.high < _ENDLESS else float("inf")})
