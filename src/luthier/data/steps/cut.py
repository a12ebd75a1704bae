"""Texts that are too long are shortened (`data.too_long`), in the rows and in every request."""

from __future__ import annotations

from luthier.data.cut import cut_rows
from luthier.data.masks import Supervision
from luthier.data.step import Facts, Flow, WholeStep


class Cut(WholeStep):
    """Of all rows, because a prompt leaves room for the longest answer."""

    changes_texts = True
    needs_names = False

    def sift(self, flow: Flow) -> Facts:
        supervision = Supervision.of(flow.resolved.recipe.entry)
        flow.items, flow.renderer = cut_rows(flow.items, flow.renderer, supervision, flow.ledger)
        return {}


STEP = Cut
