"""Labels get the names that they are to be learned under (`data.labels.rename`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from luthier.data.items import Item, Ledger
from luthier.data.labels import refuse_unknown
from luthier.data.step import Facts, Flow, RowStep


@dataclass(frozen=True)
class Rename(RowStep):
    """Passes the labels of the file on, so that names which no row has are found."""

    names: Mapping[str, str]

    @classmethod
    def of(cls, flow: Flow) -> Self:
        return cls(flow.resolved.recipe.data.labels.rename)

    def sift(self, items: list[Item], ledger: Ledger) -> tuple[list[Item], frozenset[str]]:
        labels = frozenset(item.answer for item in items)
        changed = 0
        for item in items:
            new = self.names.get(item.answer, item.answer)
            changed += new != item.answer
            item.answer = new
        return ledger.sift("rename", items, [None] * len(items), changed=changed), labels

    def gather(self, made: Sequence[frozenset[str]], flow: Flow) -> Facts:
        """Raises:
        DataError: a label to be renamed is not in the file.
        """
        refuse_unknown(self.names, frozenset().union(*made), key="data.labels.rename")
        return {}


STEP = Rename
