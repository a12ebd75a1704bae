"""Texts with several labels, and pairs that stand there both ways round: none of their rows can be trusted."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from luthier.data.dedupe import conflicting, text_key
from luthier.data.items import Item, Verdict, answer_of
from luthier.data.step import Facts, Flow, WholeStep
from luthier.records import is_closed

_NAMED_LINES = 20


class Conflicts(WholeStep):
    """File by file; free text may have several right answers."""

    def sift(self, flow: Flow) -> Facts:
        items = flow.items
        if is_closed(flow.contract.task):
            keys: list[Hashable] = [(item.origin, item.digest) for item in items]
            answers, reason, what = [item.answer for item in items], "conflicting_labels", "same text, other labels"
        else:
            pairs = [(text_key(answer_of(item)), text_key(item.rejected)) for item in items]
            keys = [(item.origin, item.digest, frozenset(pair)) for item, pair in zip(items, pairs, strict=True)]
            answers, reason = [chosen for chosen, _ in pairs], "conflicting_preferences"
            what = "the same two answers the other way round"
        marks = conflicting(keys, answers)
        rows: dict[Hashable, list[Item]] = {}
        for item, key, mark in zip(items, keys, marks, strict=True):
            if mark:
                rows.setdefault(key, []).append(item)
        places = {key: _places(own) for key, own in rows.items()}
        found: list[Verdict | None] = [
            (reason, f"{what} in {places[key]}") if mark else None for key, mark in zip(keys, marks, strict=True)
        ]
        flow.items = flow.ledger.sift("conflicts", items, found)
        return {"conflicts": len(rows)}


def _places(items: Sequence[Item]) -> str:
    more = f" and {len(items) - _NAMED_LINES} more" if len(items) > _NAMED_LINES else ""
    shown = items[:_NAMED_LINES]
    if len({item.file for item in items}) > 1:  # of a folder
        return ", ".join(f"{item.file}:{item.line}" for item in shown) + more
    return "lines " + ", ".join(str(item.line) for item in shown) + more


STEP = Conflicts
