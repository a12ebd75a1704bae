"""Training rows get offspring (`data.augment`)."""

from __future__ import annotations

from dataclasses import replace

from luthier.data.augment import Grown, augment, reported
from luthier.data.shards import Shard
from luthier.data.step import Facts, Flow, WholeStep
from luthier.records import is_closed


class Augment(WholeStep):
    needs_names = False

    def __init__(self) -> None:
        self._grown = Grown([])

    def sift(self, flow: Flow) -> Facts:
        self._grown = augment(flow.items, flow.renderer, flow.resolved, flow.ledger)
        flow.items, self._grown = self._grown.items, replace(self._grown, items=[])
        return {}

    def tell(self, train: Shard, flow: Flow) -> Facts:
        """What is left of the offspring once they are tokens."""
        closed = is_closed(flow.contract.task)
        return {"augmentation": reported(self._grown, train, flow.ledger, closed=closed)}


STEP = Augment
