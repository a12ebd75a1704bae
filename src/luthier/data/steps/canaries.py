"""Secrets are planted in the training split (`data.canaries`)."""

from __future__ import annotations

from luthier.data.canaries import plant, reported
from luthier.data.shards import Shard
from luthier.data.step import Facts, Flow, WholeStep


class Canaries(WholeStep):
    needs_names = False

    def sift(self, flow: Flow) -> Facts:
        flow.items = plant(flow.items, flow.renderer, flow.resolved, flow.ledger, out=flow.out)
        return {}

    def tell(self, train: Shard, flow: Flow) -> Facts:
        return {"canaries": reported(train, flow.resolved)}


STEP = Canaries
