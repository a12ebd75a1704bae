"""What a tagger of the user's own sample may say beside the other detectors: it adds, and masks nothing less.

Every letter and digit that another detector found stays found, and what a pattern or a checksum found stays as it is.
The sample may say of what kind a find of free text is, and in how many pieces an address is marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from luthier.data.privacy import cues
from luthier.data.privacy.spans import OPEN_ENDED, PLACEHOLDERS, Span, add_cut, add_extended, placeholders
from luthier.data.privacy.tagger import CUT_AS_THE_SAMPLE, Said

LEAST_CHANCE = 0.6
"""Of a find that other detectors look for too and do not have; chosen by cross-validation, see benchmarks/LOG.md."""


def settle(known: Sequence[Span], said: Iterable[Said], text: str) -> list[Span]:
    """The finds of the other detectors and those of the tagger as one list without overlaps."""
    closed = placeholders(text)
    tidy = [Said(span, chance) for one, chance in said for span in cues.trimmed([one], text)]
    finds = [one.span for one in tidy]
    kinds = {(span.start, span.end): span.kind for span in finds}
    taken: list[Span] = []
    cut: list[Span] = []
    for span in known:
        if span.kind == CUT_AS_THE_SAMPLE and (pieces := _pieces(span, finds, known, text)):
            taken += pieces
            cut.append(span)
        else:
            kind = kinds.get((span.start, span.end), span.kind) if span.kind in OPEN_ENDED else span.kind
            taken.append(span if kind == span.kind else Span(span.start, span.end, kind, span.detector))
    likely = [one.span for one in tidy if one.chance >= LEAST_CHANCE or one.span.kind not in PLACEHOLDERS]
    add_extended(taken, [one for one in likely if not any(_meet(one, other) for other in cut)], closed, text)
    add_cut(taken, known, closed, text)  # whatever else happened: nothing that was found is left open
    return sorted(taken, key=lambda span: span.start)


def _pieces(address: Span, said: Sequence[Span], known: Sequence[Span], text: str) -> list[Span]:
    """The tagger's finds in place of an address: all its letters and digits, and nothing of another find; else none."""
    pieces = [one for one in said if _meet(one, address)]
    covered = {place for one in pieces for place in range(one.start, one.end)}
    whole = all(place in covered or not text[place].isalnum() for place in range(address.start, address.end))
    apart = not any(_meet(one, other) for one in pieces for other in known if other is not address)
    disjoint = not any(_meet(one, other) for one in pieces for other in pieces if one is not other)
    return pieces if whole and apart and disjoint else []


def _meet(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end
