"""What training has seen of validation goes, and of test is marked."""

from __future__ import annotations

from luthier.data.firewall import Firewall
from luthier.data.likeness import Comparison, leak_comparison
from luthier.data.step import Facts, Flow, WholeStep


class Leakage(WholeStep):
    by_meaning = True

    def comparison(self, flow: Flow) -> Comparison | None:
        return leak_comparison(flow.resolved, flow.contract)

    def sift(self, flow: Flow) -> Facts:
        firewall = Firewall(flow.contract, flow.items, flow.likeness, self.comparison(flow))
        flow.items, leaks = firewall.check(flow.items, flow.ledger, flow.meanings)
        return {"leakage": leaks}


STEP = Leakage
