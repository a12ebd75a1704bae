"""Rows of train that stand in a named benchmark go (`data.leakage.benchmarks`)."""

from __future__ import annotations

from luthier.data.firewall import keep_off_benchmarks
from luthier.data.step import Facts, Flow, WholeStep


class Benchmarks(WholeStep):
    needs_names = False
    by_meaning = True

    def sift(self, flow: Flow) -> Facts:
        flow.items, overlaps = keep_off_benchmarks(flow.items, flow.contract, flow.resolved, flow.ledger, flow.meanings)
        return {"benchmarks": overlaps}


STEP = Benchmarks
