"""Texts with several labels: none of their rows can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.dedupe import conflicting
from luthier.data.items import Verdict
from luthier.data.step import Facts, Flow, WholeStep
from luthier.records import SplitName

_NAMED_LINES = 20


class Conflicts(WholeStep):
    """File by file; free text may have several right answers."""

    def sift(self, flow: Flow) -> Facts:
        items = flow.items
        marks = conflicting([(item.origin, item.digest) for item in items], [item.answer for item in items])
        lines: dict[tuple[SplitName | None, bytes], list[str]] = {}
        for item, mark in zip(items, marks, strict=True):
            if mark:
                lines.setdefault((item.origin, item.digest), []).append(str(item.line))
        found: list[Verdict | None] = [
            ("conflicting_labels", f"same text, other labels in lines {_few(lines[item.origin, item.digest])}")
            if mark
            else None
            for item, mark in zip(items, marks, strict=True)
        ]
        flow.items = flow.ledger.sift("conflicts", items, found)
        return {"conflicts": len(lines)}


def _few(lines: Sequence[str]) -> str:
    more = f" and {len(lines) - _NAMED_LINES} more" if len(lines) > _NAMED_LINES else ""
    return ", ".join(lines[:_NAMED_LINES]) + more


STEP = Conflicts
