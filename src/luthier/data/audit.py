"""The supervision audit: that every row teaches what it should, checked while it is made and counted in the shards."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.data.items import CANARY
from luthier.data.shards import Example, Part, Shard
from luthier.data_report import SupervisionAudit
from luthier.errors import DataError
from luthier.records import RequestContract

BINS = 32
_NAMED = 5
_SHOWN_LINES = 20


def fault_of(row: Example, contract: RequestContract) -> str:
    """What is wrong with a row: nothing to learn, an end of turn that is not learned, no answer at its end; or ''."""
    end = list(contract.end_of_turn_ids)
    stops = [
        index + 1
        for index, (now, after) in enumerate(zip(row.supervised, [*row.supervised[1:], False], strict=True))
        if now and not after
    ]
    answers = stops[-1:] if row.supervised_user or row.supervised_system else stops
    if not stops:
        return "no token is supervised"
    if any(row.input_ids[stop - len(end) : stop] != end for stop in answers):
        return "an answer's end of turn is not supervised"
    if stops[-1] != len(row.input_ids) or not 0 < row.prompt_tokens < len(row.input_ids):
        return "the row does not consist of a prompt and its answer"
    if row.rejected_ids and row.rejected_ids[-len(end) :] != end:
        return "the rejected answer's end of turn is not supervised"
    return ""


class Faults:
    """Rows that must not be learned from: all are counted, the first few are named."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._rows = 0

    def add(self, place: str, fault: str) -> None:
        """A row at FILE:LINE, and what is wrong with it; '' for nothing."""
        if fault:
            self._rows += 1
            places = self._places.setdefault(fault, [])
            if len(places) < _NAMED:
                places.append(place)

    def refuse(self) -> None:
        """Stop where there is any.

        Raises:
            DataError: with the rows.
        """
        if self._rows:
            found = "; ".join(f"{fault}: {', '.join(places)}" for fault, places in self._places.items())
            raise DataError(
                f"{self._rows} row{'s' if self._rows > 1 else ''} would teach something wrong: {found}",
                way_out="take these rows out of the file, or use a model with another chat template",
            )


def supervision(shard: Shard, *, end_ids: Sequence[int], closed: bool) -> SupervisionAudit:
    """What the rows of a shard really teach, counted from its tokens.

    Args:
        shard: of one split.
        end_ids: ids that end an answer.
        closed: whether the answers are labels.
    """
    per_row = np.concatenate([np.zeros(0, np.int64), *(_per_row(part) for part in shard.parts())])
    per_row = per_row + shard.rejected_lengths
    endings = [_endings(part, np.asarray(end_ids, np.int32)) for part in shard.parts()]
    stretches, ended, rows_ended = (int(sum(column)) for column in zip((0, 0, 0), *endings, strict=True))
    rows_ended -= int((~shard.rejected_endings(end_ids)).sum())  # of a pair both answers have to end
    user, system = sum(shard.column("supervised_user")), sum(shard.column("supervised_system"))
    total, lost = int(per_row.sum()), np.asarray(shard.column("lost_tokens"), np.int64)
    by_label = Counter[str]()
    if closed:
        columns = zip(shard.column("answer"), shard.column("made_by"), per_row.tolist(), strict=True)
        for label, made_by, count in columns:
            by_label.update({label: count} if made_by != CANARY else {})
    ordered = np.sort(per_row)
    counts, _ = np.histogram(per_row, bins=BINS, range=(0, max(1, _at(ordered, 1.0))))
    return SupervisionAudit(
        rows_unsupervised=int((per_row == 0).sum()),
        rows_ended=rows_ended,
        stretches=stretches,
        stretches_ended=ended,
        per_row_min=_at(ordered, 0.0),
        per_row_p50=_at(ordered, 0.5),
        per_row_p95=_at(ordered, 0.95),
        per_row_max=_at(ordered, 1.0),
        per_row_counts=tuple(counts.tolist()),
        by_role={"system": system, "user": user, "assistant": total - user - system},
        by_label=dict(sorted(by_label.items())),
        rows_cut=int((lost > 0).sum()),
        tokens_lost=int(lost.sum()),
        first_cut_lines=tuple(
            line for line, cut in zip(shard.column("line"), lost.tolist(), strict=True) if cut
        )[:_SHOWN_LINES],
    )  # fmt: skip


def _at(ordered: NDArray[np.int64], share: float) -> int:
    """A percentile by nearest rank."""
    return int(ordered[max(0, math.ceil(share * len(ordered)) - 1)]) if len(ordered) else 0


def _per_row(part: Part) -> NDArray[np.int64]:
    """Supervised tokens of each row."""
    before = np.concatenate([[0], np.cumsum(part.supervised, dtype=np.int64)])
    return np.asarray(before[part.offsets[1:]] - before[part.offsets[:-1]])


def _endings(part: Part, end: NDArray[np.int32]) -> tuple[int, int, int]:
    """Stretches of supervised tokens, how many of them end with `end`, and how many rows do."""
    stops = part.supervised.copy()
    stops[:-1] &= ~part.supervised[1:]
    lasts = part.offsets[1:] - 1
    stops[lasts] = part.supervised[lasts]  # the token after the last one of a row is another row's
    places = np.flatnonzero(stops)
    starts = part.offsets[np.searchsorted(part.offsets, places, side="right") - 1]
    ended = np.ones(len(places), np.bool_)
    for back, token in enumerate(end[::-1]):
        at = places - back
        ended &= (at >= starts) & (part.ids[at] == token) & part.supervised[at]
    return len(places), int(ended.sum()), int(ended[np.isin(places, lasts)].sum())
