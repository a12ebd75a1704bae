"""A small tagger that learns from the user's annotated texts, beside what the other detectors find in them.

It is a conditional random field (`crf`) over hashed features (`features`), so that no word of the sample can be read
from the file. Tags are B-, I- and O. Shapes: T tokens, F features a token, K tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from luthier.data.privacy import crf
from luthier.data.privacy.features import BUCKETS, Places, Word, featurise
from luthier.data.privacy.spans import OPEN_ENDED, Span, placeholders
from luthier.errors import RunError
from luthier.store.files import write_atomic

NAME = "tagger/3"
CUT_AS_THE_SAMPLE = "address"
"""The kind that some annotate whole and others in pieces."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Example:
    """An annotated text.

    Attributes:
        right: what is personal in it, as the user says.
        known: what the other detectors find.
        words: what the small language model says of it.
    """

    text: str
    right: Sequence[Span]
    known: Sequence[Span] = ()
    words: Sequence[Word] = ()


class Said(NamedTuple):
    """A find of the tagger, and how likely it is."""

    span: Span
    chance: float


class Tagger:
    """Finds what the sample marked.

    Attributes:
        kinds: what it can find.
    """

    def __init__(self, kinds: Sequence[str], emit: Floats, move: Floats) -> None:
        self.kinds = tuple(kinds)
        self._emit = emit
        """(buckets, K)"""
        self._move = move
        """(K, K): from tag, to tag"""
        self._paths = move + crf.allowed(len(self.kinds))

    def __call__(self, text: str, known: Sequence[Span] = (), words: Sequence[Word] = ()) -> Iterator[Said]:
        """Finds in `text`, of which the other detectors know `known` already.

        Nothing is found where a pattern or redaction has been, and all letters and digits of a known address are found.
        """
        places, features = featurise(text, known, words)
        if places and self.kinds:
            scores_TK = self._emit[features].sum(1, dtype=np.float64)
            _bind(scores_TK, text, places, known)
            path = crf.decode(scores_TK, self._paths)
            yield from _said(places, path, crf.marginals(scores_TK, self._paths), self.kinds)

    def save(self, path: Path) -> None:
        """Write the weights, only rows that are not all zero; one metadata key, as the order of several varies."""
        rows = np.flatnonzero(np.abs(self._emit).sum(1)).astype(np.int32)
        tensors = {"rows": rows, "emit": self._emit[rows], "move": self._move}
        write_atomic(path, save(tensors, metadata={NAME: " ".join(self.kinds)}))

    @classmethod
    def open(cls, path: Path) -> Tagger:
        """Read back what `save` wrote.

        Raises:
            RunError: the file is missing or damaged, or another version learned it.
        """
        way_out = "run `luthier prepare` again"
        if not path.is_file():
            raise RunError(f"{path} is missing", way_out=way_out)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if NAME not in metadata:
                    raise RunError(f"{path} is not of {NAME}: another version learned it", way_out=way_out)
                kinds = metadata[NAME].split()
                emit = np.zeros((BUCKETS, 2 * len(kinds) + 1), np.float32)
                emit[file.get_tensor("rows")] = file.get_tensor("emit")
                return cls(kinds, emit, file.get_tensor("move"))
        except (SafetensorError, KeyError, ValueError, IndexError) as error:
            raise RunError(f"{path} is damaged: {error}", way_out=way_out) from error


def train(sample: Sequence[Example]) -> Tagger:
    """Learn from annotated texts; the same sample gives the same weights on the same machine."""
    kinds = sorted({span.kind for one in sample for span in one.right})
    rows = []
    for one in sample:
        places, features = featurise(one.text, one.known, one.words)
        if places:
            rows.append((features, _tags(places, one.right, kinds)))
    emit, move = crf.fit(rows, num_kinds=len(kinds), num_features=BUCKETS)
    return Tagger(kinds, emit.astype(np.float32), move.astype(np.float32))


def _bind(scores_TK: NDArray[np.float64], text: str, places: Places, known: Sequence[Span]) -> None:
    """Take away the tags that a token may not have."""
    shut = [(span.start, span.end) for span in known if span.kind not in OPEN_ENDED] + placeholders(text)
    whole = [(span.start, span.end) for span in known if span.kind == CUT_AS_THE_SAMPLE]
    for index, (start, end) in enumerate(places):
        if any(start < high and end > low for low, high in shut):
            scores_TK[index, 1:] += _NEVER
        elif text[start].isalnum() and any(start < high and end > low for low, high in whole):
            scores_TK[index, 0] += _NEVER


_NEVER = -1e3


def _tags(places: Places, spans: Sequence[Span], kinds: Sequence[str]) -> NDArray[np.intp]:
    """The tag of each token; of two spans in one token the earlier has it, so that no I- stands without B-."""
    tags = np.zeros(len(places), np.intp)
    for span in sorted(spans, key=lambda span: span.start):
        inside = [
            index
            for index, (start, end) in enumerate(places)
            if start < span.end and end > span.start and not tags[index]
        ]
        for order, index in enumerate(inside):
            tags[index] = 2 * kinds.index(span.kind) + (1 if order == 0 else 2)
    return tags


def _said(
    places: Places, path: NDArray[np.intp], chances_TK: NDArray[np.float64], kinds: Sequence[str]
) -> Iterator[Said]:
    """The finds of a path of tags; a find is as likely as the least likely of its tokens is of its kind."""
    index = 0
    while index < len(places):
        tag, last = int(path[index]), index
        if tag % 2:
            while last + 1 < len(places) and path[last + 1] == tag + 1:
                last += 1
            chance = float(chances_TK[index : last + 1, tag : tag + 2].sum(1).min())
            yield Said(Span(places[index][0], places[last][1], kinds[(tag - 1) // 2], NAME), chance)
        index = last + 1
