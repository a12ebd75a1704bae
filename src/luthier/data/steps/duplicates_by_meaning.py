"""Rows that mean what an earlier one of their file means (`data.dedupe.meaning`)."""

from __future__ import annotations

from luthier.data.step import Facts, Flow, WholeStep


class DuplicatesByMeaning(WholeStep):
    needs_names = False
    by_meaning = True

    def sift(self, flow: Flow) -> Facts:
        assert flow.meanings is not None  # opened where it is asked for
        flow.items = flow.meanings.set_aside(flow.items)
        return {}


STEP = DuplicatesByMeaning
