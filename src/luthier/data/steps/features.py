"""Columns computed from columns (`data.features`): the reader does it, so that the rows come with them."""

from __future__ import annotations

from luthier.data.items import Item, Ledger
from luthier.data.step import RowStep


class Features(RowStep):
    """Comes first in every order, and finds its work done and counted."""

    def sift(self, items: list[Item], ledger: Ledger) -> tuple[list[Item], None]:
        return items, None


STEP = Features
