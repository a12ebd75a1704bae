"""Terms of a domain: those of a glossary, or those that its documents use and the tokenizer does not know as words."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from luthier.data.contract import Renderer
from luthier.data.shards import Example
from luthier.errors import DataError

PIECES = 3
"""Tokens from which on a word is one that the tokenizer does not know."""
DOCUMENTS = 3
"""Documents that a word must stand in, so that it is no name of one of them."""
SHORTEST = 4
MOST_FOUND = 500
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")


@dataclass(frozen=True)
class Places:
    """Where terms stand among the learned tokens of N pieces."""

    source: str
    spans: tuple[tuple[tuple[str, int, int], ...], ...]
    """Of each piece: term, first token, and the one after its last, counted from the piece's beginning."""
    unmatched: int

    def only(self, kept: Sequence[int]) -> Places:
        """Of the pieces at these places."""
        return replace(self, spans=tuple(self.spans[place] for place in kept))


def read_glossary(text: str, *, name: str) -> tuple[str, ...]:
    """The terms of a file: one a line, see `without_remark`; each once, letter case aside.

    Raises:
        DataError: there is none, or a line has several columns.
    """
    lines = [without_remark(line) for line in text.lstrip("\ufeff").splitlines()]
    for number, line in enumerate(lines, start=1):
        if "\t" in line.strip():
            raise DataError(
                f"evaluate.glossary: {name}:{number}: a term with a target, and documents are of one language",
                way_out="write one term a line",
            )
    terms = tuple({" ".join(line.split()).casefold(): None for line in lines if line})
    if not terms:
        raise DataError(f"evaluate.glossary: {name} holds no term", way_out="write one term a line")
    return terms


def without_remark(line: str) -> str:
    """A line up to a '#' at its beginning or after white space, its end trimmed; the '#' of 'C#' is none of these."""
    return re.split(r"(?:^|\s)#", line, maxsplit=1)[0].rstrip()


def find_terms(train: Sequence[Example], renderer: Renderer) -> tuple[str, ...]:
    """Words of the training documents that the base cuts into `PIECES` tokens or more, the commonest first.

    Replayed texts are none of the domain's, so they do not count.
    """
    counts, where = Counter[str](), defaultdict[str, set[str]](set)
    for text, group in _documents(train):
        # The first token of a document is not in its text, so the first word may be a part of one.
        words = [word[0].casefold() for word in _WORD.finditer(text) if word.start() and len(word[0]) >= SHORTEST]
        counts.update(words)
        for word in set(words):
            where[word].add(group)
    common = [word for word, _ in counts.most_common() if len(where[word]) >= DOCUMENTS]
    lengths = renderer.encode_all([f" {word}" for word in common])
    known = [word for word, ids in zip(common, lengths, strict=True) if renderer.base_tokens(ids) >= PIECES]
    return tuple(sorted(known[:MOST_FOUND]))


def _documents(pieces: Sequence[Example]) -> Iterator[tuple[str, str]]:
    """Text and group of each document, its pieces, which stand one after the other, joined."""
    texts, group = list[str](), ""
    for piece in pieces:
        if piece.made_by:
            continue
        if not piece.prompt_tokens and texts:
            yield "".join(texts), group
            texts = []
        texts.append(piece.text)
        group = piece.group
    if texts:
        yield "".join(texts), group


def find_places(examples: Sequence[Example], terms: Sequence[str], renderer: Renderer, *, source: str) -> Places:
    """Where whole terms stand, letter case and kind of white space aside; of terms within each other the longest.

    What stands at the cut of a document may be a part of a word, and is left out. The tokens of a piece are found again
    by encoding its text; those that the cut makes others are left out too.
    """
    if not terms:
        return Places(source, ((),) * len(examples), 0)
    longest_first = sorted(terms, key=lambda term: (-len(term), term))
    words = ("\\s+".join(map(re.escape, term.split())) for term in longest_first)
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(words)})(?!\w)", re.IGNORECASE)
    spans, unmatched = [], 0
    for piece in examples:
        found, whole = _in_piece(piece, pattern, renderer)
        spans.append(found)
        unmatched += not whole
    return Places(source, tuple(spans), unmatched)


def _in_piece(
    piece: Example, pattern: re.Pattern[str], renderer: Renderer
) -> tuple[tuple[tuple[str, int, int], ...], bool]:
    """The terms of a piece, and whether all of its tokens could be told apart."""
    first = piece.supervised.index(True)
    learned = piece.input_ids[first:]
    ids, starts = renderer.document(piece.text)
    around = bool(renderer.contract.bos_token)
    ids, starts = ids[around:], starts[around:]
    end = list(renderer.contract.end_of_turn_ids)
    body = len(ids) - len(end)
    mine = ids if learned[-len(end) :] == end else ids[:body]
    shift = len(learned) - len(mine)
    head = min(_alike(mine, learned), body)
    tail = max(head, len(mine) - _alike(mine[::-1], learned[::-1]))
    known = [(starts[number], first + number) for number in range(head)]
    known += [(starts[number], first + number + shift) for number in range(tail, body)]
    places = [start for start, _ in known]
    found = []
    for match in pattern.finditer(piece.text):
        if not match.start() or (match.end() == len(piece.text) and learned[-len(end) :] != end):
            continue  # it may go on beyond the cut
        begin = bisect_left(places, match.start())
        blank = match.start() > 0 and piece.text[match.start() - 1].isspace()
        if places[begin : begin + 1] != [match.start()] and blank:  # a token may bring the blank before its word
            begin = bisect_left(places, match.start() - 1)
        inside = known[begin : bisect_left(places, match.end())]
        if not inside or inside[0][0] not in (match.start(), match.start() - blank):
            continue  # it begins within a token
        span = (inside[0][1], inside[-1][1] + 1)
        if span[1] - span[0] == len(inside):
            found.append((" ".join(match[0].split()).casefold(), *span))
    return tuple(found), mine == learned


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
