"""Which of the methods that do a task suits it, from rows and labels alone; the plan adds memory, time and evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from luthier.records import DataProfile, is_closed
from luthier.spec.plugins import METHODS, MethodFacts

THIN_ROWS_PER_LABEL = 10.0
"""Training rows a label below which a head, which starts from nothing, has little to learn from; the words of a label
mean something to the base before it has seen a row (Schick & Schütze 2021, arXiv 2001.07676, table 1)."""

MANY_LABELS = 20
"""Labels above which writing one of them out is the longer way; of 77 it lost to counting words (benchmarks/LOG.md)."""


_BY_HEAD = {
    "multi_label": "each label has a probability of its own",
    "regression": "a number is near or far, and words of it are right or wrong",
}


@dataclass(frozen=True)
class Suited:
    """A method that does the task, and why it stands where it stands."""

    facts: MethodFacts
    why: str


def labels_of(
    task: str | None, label: str | None, profile: DataProfile, *, rename: Mapping[str, str]
) -> Mapping[str, int]:
    """Label -> rows, renamed as the recipe says; where it names another column than the profile has counted, as many
    equals as that has distinct values.
    """
    if not is_closed(task):
        return {}
    if is_counted(label, profile):
        rows: Counter[str] = Counter()
        for name, count in profile.labels.items():
            rows[rename.get(name, name)] += count
        return rows
    distinct = next((column.distinct for column in profile.columns if column.name == label), 0)
    return {str(number): profile.num_rows // max(1, distinct) for number in range(distinct)}


def is_counted(label: str | None, profile: DataProfile) -> bool:
    """Whether the profile has counted the rows of each label."""
    return label in (None, "", profile.label) and bool(profile.labels)


TAUGHT = "a teacher says more of each token than the answer alone"
"""Why a method with one goes before the same without (Hinton et al. 2015, arXiv 1503.02531, section 1)."""

REWARDED = "what is measured is learned, not the words of one answer"
"""Why a method by rewards goes before learning given answers (Shao et al. 2024, arXiv 2402.03300, section 5.2)."""


SCORED = "asked for: it scores answers and writes none, so no method that writes stands in its place"
"""Why a method that scores answers stands alone."""


def suited(task: str, *, num_labels: int, train_rows: float, given: str = "") -> tuple[Suited, ...]:
    """The methods of the table that do a task, the one that suits best first.

    A method with a teacher or rewards is there only where it is `given`, for nobody else can name these; so is one that
    scores answers, and then no other is, for it answers another question.

    A head goes before writing labels out where there are rows enough for it, or labels so many that none could be
    written well. What nothing tells apart stands in the order of names.
    """
    able = [facts for facts in METHODS.entries().values() if task in facts.tasks]
    able = [facts for facts in able if not facts.only_if_asked or facts.name == given]
    if scoring := [facts for facts in able if facts.scores_answers]:
        return tuple(Suited(facts, SCORED) for facts in scoring)
    if task in _BY_HEAD:
        able.sort(key=lambda facts: not facts.has_head)
        return tuple(Suited(facts, _BY_HEAD[task] if facts.has_head else "written token by token") for facts in able)
    if len(able) == 1:
        return (Suited(able[0], f"the only method of this version for {task}"),)
    head, why = prefers_head(num_labels, train_rows / num_labels) if num_labels else (False, f"made for {task}")
    others = "not as good as the first by what is known of such data" if num_labels else f"made for {task} too"
    order = sorted(able, key=lambda facts: (facts.has_head is not head, not facts.only_if_asked, facts.name))
    whys = {facts.name: why if facts.has_head is head else others for facts in able}
    asked = {facts.name: TAUGHT if facts.is_taught else REWARDED for facts in able if facts.only_if_asked}
    return tuple(Suited(facts, (whys | asked)[facts.name]) for facts in order)


def prefers_head(num_labels: int, rows_per_label: float) -> tuple[bool, str]:
    """Whether a head suits better than writing labels out, and why."""
    if num_labels > MANY_LABELS:
        return True, f"one of {num_labels} labels is read off at once; writing one out is learned slowly"
    if rows_per_label < THIN_ROWS_PER_LABEL:
        return False, f"with {rows_per_label:.0f} rows a label their words say more than a new head can learn"
    return True, f"with {rows_per_label:,.0f} rows a label a head can be learned, and answers at once"
