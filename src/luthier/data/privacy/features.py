"""What the tagger sees of each token: words, shapes, what the other detectors found there, and lines.

Features are hashed, so that no word of the sample can be read from the file of weights. '^' stands for what lies
outside the text, '-' for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from luthier.data.privacy.spans import Span

BUCKETS = 1 << 17
Places = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Word:
    """What the small language model says of one of its words, which need not be one of our tokens."""

    start: int
    end: int
    part: str
    """Of speech, such as PROPN."""
    tag: str
    """The same, finer: NNP."""
    entity: str
    """Such as B-PERSON; '' for none."""


_TOKEN = re.compile(r"\n+|\w+|[^\w\s]")


def featurise(text: str, known: Sequence[Span], words: Sequence[Word]) -> tuple[Places, NDArray[np.int64]]:
    """Places of the tokens, and the hashed features of each, (T, F)."""
    view = _View(text, known, words)
    rows = [
        [crc32(feature.encode(errors="surrogatepass")) % BUCKETS for feature in _features(view, index)]
        for index in range(len(view.places))
    ]
    return view.places, np.asarray(rows, dtype=np.int64)


class _View:
    """A text as sequences of one entry a token."""

    def __init__(self, text: str, known: Sequence[Span], words: Sequence[Word]) -> None:
        self.text = text
        self.places = [match.span() for match in _TOKEN.finditer(text)]
        tokens = [text[start:end] for start, end in self.places]
        self.lower = [token.lower() for token in tokens]
        self.shapes = [_shape(token) for token in tokens]
        self.marks, self.ends, self.finds = self._found(known)
        self.parts, self.tags, self.entities = self._read(words)
        self.from_line_start, self.to_line_end = _in_lines(tokens)
        self.cased = "x" if text == text.lower() else "X"
        self.lines = ("n" if "\n" in text else "") + ("q" if _QUOTED.search(text) else "")
        """'n' where there are several, 'q' where one is marked as quoted."""
        self.styles = {span: _style(span, text) for span in known}

    def _found(self, known: Sequence[Span]) -> tuple[list[str], list[str], list[Span | None]]:
        """What the other detectors found: the kind, the kind with B or I, and the find."""
        marks, ends = ["-"] * len(self.places), ["-"] * len(self.places)
        finds: list[Span | None] = [None] * len(self.places)
        for span in known:
            begin = "B"
            for index, (start, end) in enumerate(self.places):
                if start < span.end and end > span.start:
                    marks[index], ends[index], finds[index], begin = span.kind, begin + span.kind, span, "I"
        return marks, ends, finds

    def _read(self, words: Sequence[Word]) -> tuple[list[str], list[str], list[str]]:
        """What the language model says of the word in which a token begins."""
        nothing = Word(0, 0, "-", "-", "")
        read, next_word = [], 0
        for start, end in self.places:
            while next_word < len(words) and words[next_word].end <= start:
                next_word += 1
            reaches = next_word < len(words) and words[next_word].start < end
            read.append(words[next_word] if reaches else nothing)
        return [one.part for one in read], [one.tag for one in read], [one.entity or "O" for one in read]


_QUOTED = re.compile(r"^[>?|]", re.MULTILINE)


def _in_lines(tokens: Sequence[str]) -> tuple[list[int], list[int]]:
    """How many tokens of its line stand before each token, and after it."""
    before, count = [], 0
    for token in tokens:
        before.append(count)
        count = 0 if token[0] == "\n" else count + 1
    after, count = [0] * len(tokens), 0
    for index in range(len(tokens) - 1, -1, -1):
        after[index], count = (0, 0) if tokens[index][0] == "\n" else (count, count + 1)
    return before, after


def _features(view: _View, here: int) -> Iterator[str]:
    yield from _of_words(view, here)
    yield from _of_finds(view, here)
    yield from _of_the_model(view, here)
    yield from _of_lines(view, here)
    yield from _of_the_find(view, here)


def _of_words(view: _View, here: int) -> Iterator[str]:
    word, shape = view.lower[here], view.shapes[here]
    w3, w2, w1, v1, v2 = (_at(view.lower, here + offset) for offset in (-3, -2, -1, 1, 2))
    s3, s2, s1, t1, t2, t3 = (_at(view.shapes, here + offset) for offset in (-3, -2, -1, 1, 2, 3))
    yield from (
        "b", "w" + word, "s" + shape, "p" + word[:3], "e" + word[-3:], "E" + word[-2:], "l" + w1, "r" + v1,
        f"ll{w2}|{w1}", f"rr{v1}|{v2}", f"ls{s1}|{shape}", f"rs{shape}|{t1}", f"3{s1}|{shape}|{t1}",
        f"lw{w1}|{shape}", f"rw{shape}|{v1}", "L2" + w2, "R2" + v2, f"L3{w3}|{shape}", f"S2{s2}|{s1}|{shape}",
        "p2" + word[:2], "p4" + word[:4], "e4" + word[-4:], f"len{min(len(word), 10)}|{shape}",
        f"sl{s3}|{s2}|{s1}|{shape}", f"sr{shape}|{t1}|{t2}|{t3}",
    )  # fmt: skip


def _of_finds(view: _View, here: int) -> Iterator[str]:
    shape, mark, end = view.shapes[here], view.marks[here], view.ends[here]
    m2, m1, n1, n2 = (_at(view.marks, here + offset) for offset in (-2, -1, 1, 2))
    s1, t1 = _at(view.shapes, here - 1), _at(view.shapes, here + 1)
    yield from (
        "k" + mark, f"ks{mark}|{shape}", f"lk{m1}|{mark}", f"rk{mark}|{n1}", "K" + end,
        f"Kl{_at(view.ends, here - 1)}|{end}", f"Kr{end}|{_at(view.ends, here + 1)}", f"Ks{end}|{shape}|{s1}",
        f"Kw{end}|{view.lower[here]}", f"Krs{end}|{shape}|{t1}", f"K2{m2}|{m1}|{mark}", f"K3{mark}|{n1}|{n2}",
    )  # fmt: skip


def _of_the_model(view: _View, here: int) -> Iterator[str]:
    part, entity = view.parts[here], view.entities[here]
    p2, p1, q1, q2 = (_at(view.parts, here + offset) for offset in (-2, -1, 1, 2))
    yield from (
        "P" + part, "T" + view.tags[here], "N" + entity, f"Ns{entity}|{view.shapes[here]}", f"Pl{p1}|{part}",
        f"Pr{part}|{q1}", f"Pll{p2}|{p1}|{part}", f"Prr{part}|{q1}|{q2}", f"Nl{_at(view.entities, here - 1)}|{entity}",
        f"Nr{entity}|{_at(view.entities, here + 1)}", f"Nk{entity}|{view.ends[here]}",
    )  # fmt: skip


def _of_lines(view: _View, here: int) -> Iterator[str]:
    shape, mark = view.shapes[here], view.marks[here]
    before, after = view.from_line_start[here], view.to_line_end[here]
    yield from (
        f"Ls{min(before, 4)}|{shape}", f"Le{min(after, 4)}|{shape}", f"Lm{view.lines}|{mark}|{shape}",
        f"Lb{min(before, 3)}|{min(after, 3)}", f"Lk{min(before, 3)}|{min(after, 3)}|{mark}|{view.lines}",
        f"c{view.cased}|{shape}",
    )  # fmt: skip


def _of_the_find(view: _View, here: int) -> Iterator[str]:
    """Of the find in which a token lies as a whole: whether the sample marks such in one piece, or in several."""
    span = view.finds[here]
    if span is None:
        yield from ["Z-"] * 8
        return
    before, inside = view.styles[span]
    shape, begin = view.shapes[here], view.ends[here][0]
    s1 = "^" if begin == "B" else _at(view.shapes, here - 1)
    t1 = _at(view.shapes, here + 1)
    whole = f"{span.kind}|{before}|{inside}"
    yield from (
        f"Z{span.kind}|{inside}", f"Zs{span.kind}|{inside}|{begin}{shape}|{t1}",
        f"Zn{span.kind}|{min(8, len(view.text[span.start : span.end].split()))}|{shape}", f"Za{whole}|{begin}",
        f"Zb{whole}|{s1}|{shape}", f"Zc{whole}|{s1}|{shape}|{t1}",
        f"Zd{whole}|{_at(view.shapes, here - 2)}|{s1}|{shape}", f"Ze{span.kind}|{before}|{s1}|{shape}",
    )  # fmt: skip


_MARKED_LINE = re.compile(r"(?:\A|\n)[^\w\s]+ ?\Z")
_MARK = re.compile(r"\n[>?|]")
_FLAT = re.compile(r"\b(?:apt|suite|flat|unit)\b", re.IGNORECASE)


def _style(span: Span, text: str) -> tuple[str, str]:
    """What stands right before a find (the start, an empty line, a new one, a mark, a colon, a word), and in it."""
    value, ahead = text[span.start : span.end], text[max(0, span.start - 40) : span.start]
    bare = ahead.rstrip(" ")
    if not ahead:
        before = "S"
    elif bare.endswith("\n"):
        before = "NN" if bare.endswith("\n\n") else "N"
    elif _MARKED_LINE.search(ahead):
        before = "M"
    else:
        before = ":" if bare.endswith(":") else "w"
    signs = (("n", "\n" in value), ("m", _MARK.search(value)), ("c", "," in value), ("f", _FLAT.search(value)),
             ("d", value[:1].isdigit()))  # fmt: skip
    return before, "".join(sign for sign, is_there in signs if is_there)


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
