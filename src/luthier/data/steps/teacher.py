"""A teacher writes answers that training rows are learned with (`data.teacher`)."""

from __future__ import annotations

from luthier.data.shards import Shard
from luthier.data.step import Facts, Flow, WholeStep
from luthier.data.writer import TEACHER, Written, write_answers
from luthier.data_report import TaughtRows
from luthier.records import is_closed


class Teacher(WholeStep):
    needs_names = False

    def __init__(self) -> None:
        self._written: Written | None = None

    def sift(self, flow: Flow) -> Facts:
        rules = flow.resolved.recipe.data.teacher
        assert rules is not None  # the step is not there else
        self._written = write_answers(flow, rules)
        flow.ledger.grown(TEACHER, len(flow.items), len(self._written.rows))
        flow.items = [*flow.items, *self._written.rows]
        self._written = self._written._replace(rows=[])
        return {}

    def tell(self, train: Shard, flow: Flow) -> Facts:
        """What is left of its answers once they are tokens."""
        written, rules = self._written, flow.resolved.recipe.data.teacher
        assert written is not None and rules is not None  # noqa: PT018 (after `sift`)
        marks = zip(train.column("made_by"), train.column("answer"), strict=True)
        own = [answer for made_by, answer in marks if made_by == TEACHER]
        later = {reason: count for (of, reason), count in flow.ledger.unmade.items() if of == TEACHER}
        labels = {label: own.count(label) for label in sorted(set(own))} if is_closed(flow.contract.task) else {}
        return {
            "teacher": TaughtRows(
                file=rules.path or "",
                available=written.available,
                rows=len(own),
                rewritten=written.rewritten,
                kept=written.kept,
                dropped=dict(sorted((later | dict(written.dropped)).items())),
                labels=labels,
                findings=dict(written.findings),
                endpoint=written.use,
                examples=written.examples,
            )
        }


STEP = Teacher
