"""General texts join the training split (`method.replay`)."""

from __future__ import annotations

from luthier.data.replay import replay_of, replayed
from luthier.data.step import Facts, Flow, WholeStep


class Replay(WholeStep):
    needs_names = False

    def sift(self, flow: Flow) -> Facts:
        rules = replay_of(flow.resolved.recipe)
        assert rules is not None  # the step is not there else
        added, report = replayed(flow, rules)
        flow.ledger.grown("replay", len(flow.items), len(added))
        flow.items = [*flow.items, *added]
        return {"replay": report}


STEP = Replay
