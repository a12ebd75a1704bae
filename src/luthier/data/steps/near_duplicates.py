"""Rows that nearly repeat an earlier one of their file and label (`data.dedupe.near`)."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.dedupe import near_repeated
from luthier.data.items import Item, Verdict, place_beside
from luthier.data.likeness import Comparison
from luthier.data.step import Facts, Flow, WholeStep
from luthier.data_report import NearConflict, NearReport
from luthier.records import SplitName, is_closed

MOST_CONFLICTS = 200
"""Near-duplicates under other labels that the report lists; all are counted."""


class NearDuplicates(WholeStep):
    def comparison(self, flow: Flow) -> Comparison | None:
        """Free answers are compared with their questions."""
        rules = flow.resolved.recipe.data.dedupe
        if rules is None or rules.threshold is None:
            return None
        return Comparison(flow.contract.input, rules.threshold, with_answers=not is_closed(flow.contract.task))

    def sift(self, flow: Flow) -> Facts:
        comparison, likeness, items = self.comparison(flow), flow.likeness, flow.items
        assert comparison is not None and likeness is not None  # noqa: PT018 (the step is there where it is asked for)
        closed = is_closed(flow.contract.task)
        every = likeness.pairs(items, comparison)
        verdicts: dict[int, Verdict] = {}
        conflicts: list[NearConflict] = []
        for own in _by_origin(items):
            found = near_repeated(likeness.pairs(own, comparison), [item.answer if closed else "" for item in own])
            for item, match in zip(own, found.first, strict=True):
                if match is not None:
                    detail = f"of {place_beside(item, own[match.index])}, likeness {match.jaccard:.2f}"
                    verdicts[id(item)] = ("near_duplicate", detail)
                    flow.ledger.repeats(item, own[match.index], match.jaccard)
            conflicts += [
                NearConflict(file=one.file, line=one.line, of_file=of.file, of_line=of.line, likeness=match.jaccard)
                for one, of, match in ((own[row], own[match.index], match) for row, match in found.conflicts)
            ]
        report = NearReport(
            threshold=comparison.threshold,
            compared=every.compared,
            crowded=every.crowded,
            num_conflicts=len(conflicts),
            conflicts=tuple(conflicts[:MOST_CONFLICTS]),
        )
        flow.items = flow.ledger.sift("near duplicates", items, [verdicts.get(id(item)) for item in items])
        return {"near": report}


def _by_origin(items: Sequence[Item]) -> list[list[Item]]:
    parts: dict[SplitName | None, list[Item]] = {}
    for item in items:
        parts.setdefault(item.origin, []).append(item)
    return list(parts.values())


STEP = NearDuplicates
