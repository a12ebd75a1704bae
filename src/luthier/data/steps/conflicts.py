"""Texts with several labels: none of their rows can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.dedupe import conflicting
from luthier.data.items import Item, Verdict
from luthier.data.step import Facts, Flow, WholeStep
from luthier.records import SplitName

_NAMED_LINES = 20


class Conflicts(WholeStep):
    """File by file; free text may have several right answers."""

    def sift(self, flow: Flow) -> Facts:
        items = flow.items
        marks = conflicting([(item.origin, item.digest) for item in items], [item.answer for item in items])
        rows: dict[tuple[SplitName | None, bytes], list[Item]] = {}
        for item, mark in zip(items, marks, strict=True):
            if mark:
                rows.setdefault((item.origin, item.digest), []).append(item)
        places = {key: _places(own) for key, own in rows.items()}
        found: list[Verdict | None] = [
            ("conflicting_labels", f"same text, other labels in {places[item.origin, item.digest]}") if mark else None
            for item, mark in zip(items, marks, strict=True)
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
