"""Rows that ask and answer the same as an earlier one of their file."""

from __future__ import annotations

from luthier.data.dedupe import repeated
from luthier.data.items import Verdict, place_beside, said_in
from luthier.data.step import Facts, Flow, WholeStep


class Duplicates(WholeStep):
    def sift(self, flow: Flow) -> Facts:
        items = flow.items
        first = repeated(
            [(item.origin, item.digest) for item in items],
            [said_in(item) for item in items],
        )
        verdicts: list[Verdict | None] = [
            None if index is None else ("duplicate", f"of {place_beside(item, items[index])}")
            for item, index in zip(items, first, strict=True)
        ]
        for item, index in zip(items, first, strict=True):
            if index is not None:
                flow.ledger.repeats(item, items[index], 1.0)
        flow.items = flow.ledger.sift("duplicates", items, verdicts)
        return {}


STEP = Duplicates
