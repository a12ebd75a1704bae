"""Rows that `data.filter` does not want go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from luthier.data.filters import filtered
from luthier.data.items import Item, Ledger
from luthier.data.step import Flow, RowStep
from luthier.spec.recipe import Filter as Rules


@dataclass(frozen=True)
class Filter(RowStep):
    rules: Rules

    @classmethod
    def of(cls, flow: Flow) -> Self:
        rules = flow.resolved.recipe.data.filter
        assert rules is not None  # the step is not there else
        return cls(rules)

    def sift(self, items: list[Item], ledger: Ledger) -> tuple[list[Item], None]:
        return ledger.sift("filter", items, filtered(items, self.rules)), None


STEP = Filter
