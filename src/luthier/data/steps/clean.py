"""Texts are cleaned as those of requests will be; rows of which nothing is left, or that have no answer, go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from luthier.data.interpret import clean
from luthier.data.items import Item, Ledger
from luthier.data.step import Flow, RowStep
from luthier.records import RequestContract


@dataclass(frozen=True)
class Clean(RowStep):
    changes_texts = True
    looks = True  # no text with a find is shown among the changes
    contract: RequestContract

    @classmethod
    def of(cls, flow: Flow) -> Self:
        return cls(flow.contract)

    def sift(self, items: list[Item], ledger: Ledger) -> tuple[list[Item], None]:
        return clean(items, self.contract, ledger), None


STEP = Clean
