"""A small tagger that learns from the user's annotated texts: an averaged structured perceptron over hashed features.

M. Collins, "Discriminative Training Methods for Hidden Markov Models", EMNLP 2002: decode a sentence with the present
weights, add the features of the right tags, take away those of the decoded ones, and use the mean over all updates.
Tags are B-, I- and O; features are hashed into a table, so that no word of the sample can be read from the file.
Shapes: T tokens, F features a token, K tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from luthier.data.privacy.spans import Span
from luthier.errors import RunError
from luthier.store.files import write_atomic

NAME = "tagger/2"
_TOKEN = re.compile(r"\n+|\w+|[^\w\s]")
_BUCKETS = 1 << 16
_EPOCHS = 5
_DROPPED = 0.2
"""Share of the features of a text that training hides each time, so that no single word decides (Srivastava 2014)."""
_FORBIDDEN = np.float32(-1e9)

Floats = NDArray[np.float32]
Places = list[tuple[int, int]]


class Tagger:
    """Finds what the sample marked; the same sample gives the same weights, whatever the machine.

    Attributes:
        kinds: what it can find.
    """

    def __init__(self, kinds: Sequence[str], emit: Floats, move: Floats) -> None:
        self.kinds = tuple(kinds)
        self._emit = emit
        """(buckets, K)"""
        self._move = move + _forbidden(len(self.kinds))
        """(K, K): from tag, to tag"""

    def __call__(self, text: str, known: Sequence[Span] = ()) -> Iterator[Span]:
        """Finds in `text`, of which the other detectors know `known` already."""
        places, features = featurise(text, known)
        if places:
            yield from _spans(text, places, _decode(self._emit[features].sum(1), self._move), self.kinds)

    def save(self, path: Path) -> None:
        """Write the weights, only rows that are not all zero; one metadata key, as the order of several varies."""
        rows = np.flatnonzero(np.abs(self._emit).sum(1)).astype(np.int32)
        tensors = {"rows": rows, "emit": self._emit[rows], "move": np.maximum(self._move, _FORBIDDEN / 2)}
        write_atomic(path, save(tensors, metadata={"kinds": " ".join(self.kinds)}))

    @classmethod
    def open(cls, path: Path) -> Tagger:
        """Read back what `save` wrote.

        Raises:
            RunError: the file is missing or damaged.
        """
        way_out = "run `luthier prepare` again"
        if not path.is_file():
            raise RunError(f"{path} is missing", way_out=way_out)
        try:
            with safe_open(path, framework="numpy") as file:
                kinds = file.metadata()["kinds"].split()
                emit = np.zeros((_BUCKETS, 2 * len(kinds) + 1), np.float32)
                emit[file.get_tensor("rows")] = file.get_tensor("emit")
                return cls(kinds, emit, file.get_tensor("move"))
        except (SafetensorError, KeyError, ValueError, IndexError) as error:
            raise RunError(f"{path} is damaged: {error}", way_out=way_out) from error


def train(sample: Sequence[tuple[str, Sequence[Span], Sequence[Span]]], *, seed: int = 0) -> Tagger:
    """Learn from texts, each with the spans that are right and with those that the other detectors found."""
    kinds = sorted({span.kind for _, right, _ in sample for span in right})
    size = 2 * len(kinds) + 1
    emit, move = np.zeros((_BUCKETS + 1, size), np.float32), np.zeros((size, size), np.float32)
    # The mean over all updates, without summing the whole table each time: w_mean = w - u / c (Daumé 2006, p. 19).
    emit_sum, move_sum, count = np.zeros_like(emit), np.zeros_like(move), 1
    rows = [(features, _tags(places, right, kinds)) for text, right, known in sample
            for places, features in [featurise(text, known)] if places]  # fmt: skip
    allowed = _forbidden(len(kinds))
    generator = np.random.Generator(np.random.PCG64(seed))
    for _ in range(_EPOCHS):
        for index in generator.permutation(len(rows)):
            features, gold = rows[index]
            features = np.where(generator.random(features.shape) < _DROPPED, _BUCKETS, features)
            guess = _decode(emit[features].sum(1), move + allowed)
            for place in np.flatnonzero(guess != gold):
                for tag, sign in ((gold[place], 1.0), (guess[place], -1.0)):
                    np.add.at(emit, (features[place], tag), sign)
                    np.add.at(emit_sum, (features[place], tag), sign * count)
            for tags, sign in ((gold, 1.0), (guess, -1.0)):
                np.add.at(move, (tags[:-1], tags[1:]), sign)
                np.add.at(move_sum, (tags[:-1], tags[1:]), sign * count)
            emit[_BUCKETS] = emit_sum[_BUCKETS] = 0
            count += 1
    scale = np.float32(1 / count)
    emit = (emit - emit_sum * scale) * np.float32(1 - _DROPPED)
    return Tagger(kinds, emit[:_BUCKETS], move - move_sum * scale)


def _forbidden(num_kinds: int) -> Floats:
    """I-x may follow only B-x and I-x; tags are O, B-0, I-0, B-1, ..."""
    size = 2 * num_kinds + 1
    wall = np.zeros((size, size), np.float32)
    for inside in range(2, size, 2):
        wall[:, inside] = _FORBIDDEN
        wall[[inside - 1, inside], inside] = 0
    return wall


def _decode(scores_TK: Floats, move_KK: Floats) -> NDArray[np.intp]:
    """The best path (Viterbi); a text does not begin inside a find."""
    length, size = scores_TK.shape
    best_K = scores_TK[0].copy()
    best_K[2::2] += _FORBIDDEN
    back = np.zeros((length, size), np.intp)
    for place in range(1, length):
        through_KK = best_K[:, None] + move_KK
        back[place] = through_KK.argmax(0)
        best_K = through_KK[back[place], np.arange(size)] + scores_TK[place]
    path = np.zeros(length, np.intp)
    path[-1] = best_K.argmax()
    for place in range(length - 1, 0, -1):
        path[place - 1] = back[place, path[place]]
    return path


def _tags(places: Places, spans: Sequence[Span], kinds: Sequence[str]) -> NDArray[np.intp]:
    tags = np.zeros(len(places), np.intp)
    for span in spans:
        inside = [index for index, (start, end) in enumerate(places) if start < span.end and end > span.start]
        for order, index in enumerate(inside):
            tags[index] = 2 * kinds.index(span.kind) + (1 if order == 0 else 2)
    return tags


def _spans(text: str, places: Places, path: NDArray[np.intp], kinds: Sequence[str]) -> Iterator[Span]:
    index = 0
    while index < len(places):
        tag, last = int(path[index]), index
        if tag % 2:
            while last + 1 < len(places) and path[last + 1] == tag + 1:
                last += 1
            yield Span(places[index][0], places[last][1], kinds[(tag - 1) // 2], NAME)
        index = last + 1


def featurise(text: str, known: Sequence[Span]) -> tuple[Places, NDArray[np.int64]]:
    """Places of the tokens, and the hashed features of each, (T, F)."""
    places = [match.span() for match in _TOKEN.finditer(text)]
    words = [text[start:end] for start, end in places]
    lower = [word.lower() for word in words]
    shapes = [_shape(word) for word in words]
    marks = ["-"] * len(words)
    for span in known:
        for index, (start, end) in enumerate(places):
            if start < span.end and end > span.start:
                marks[index] = span.kind
    rows = []
    for index in range(len(words)):
        around = {offset: index + offset for offset in (-3, -2, -1, 1, 2, 3)}
        word, shape = lower[index], shapes[index]
        left, right = (_at(lower, around[-1]), _at(lower, around[1]))
        features = [
            "w" + word, "s" + shape, "p" + word[:3], "e" + word[-3:], "E" + word[-2:], "k" + marks[index],
            f"ks{marks[index]}|{shape}", f"l{left}", f"r{right}", f"ll{_at(lower, around[-2])}|{left}",
            f"rr{right}|{_at(lower, around[2])}", f"ls{_at(shapes, around[-1])}|{shape}",
            f"rs{shape}|{_at(shapes, around[1])}", f"3{_at(shapes, around[-1])}|{shape}|{_at(shapes, around[1])}",
            f"lk{_at(marks, around[-1])}|{marks[index]}", f"rk{marks[index]}|{_at(marks, around[1])}",
            f"lw{left}|{shape}", f"rw{shape}|{right}", f"L2{_at(lower, around[-2])}", f"R2{_at(lower, around[2])}",
            f"L3{_at(lower, around[-3])}|{shape}", "b",
            f"S2{_at(shapes, around[-2])}|{_at(shapes, around[-1])}|{shape}",
        ]  # fmt: skip
        rows.append([crc32(feature.encode(errors="surrogatepass")) % _BUCKETS for feature in features])
    return places, np.asarray(rows, dtype=np.int64)


def _at(values: Sequence[str], index: int) -> str:
    return values[index] if 0 <= index < len(values) else "^"


def _shape(word: str) -> str:
    """'Xx' for 'Anna', 'XX' for 'USA', 'd4' for '1984', 'd3d' for '12b'; signs and line ends stand for themselves."""
    if word.isdigit():
        return f"d{min(len(word), 7)}"
    if not word.isalnum():
        return word[:2]
    if any(char.isdigit() for char in word):
        return "xd"
    if word.isupper():
        return "X" if len(word) == 1 else "XX"
    return "Xx" if word[:1].isupper() else "x"
