"""The rows through the steps, in the order of the recipe: consecutive steps of single rows are one pass over parts."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.contract import open_frozen
from luthier.data.items import Item, Ledger, Tally, name_item
from luthier.data.likeness import Comparison, Likeness, sign_all
from luthier.data.near import Signatures
from luthier.data.privacy.profiles import FAST, Detector
from luthier.data.shards import ROWS_PER_BATCH
from luthier.data.step import Facts, Flow, RowStep, Step, WholeStep
from luthier.records import PrivacyProfile, RequestContract
from luthier.spec.recipe import Split

Stage = tuple[RowStep, ...] | WholeStep
"""Steps of single rows that are one pass, or a step that needs all rows."""


def part_rows(profile: PrivacyProfile) -> int:
    """Rows of a part; fewer where a model looks at each, which takes a hundredth of a second."""
    return 4096 if profile == "fast" else 256


def make_step(name: str, flow: Flow) -> Step:
    """The step of that name for the recipe of the flow."""
    step: Step = importlib.import_module(f"luthier.data.steps.{name}").STEP.of(flow)
    return step


@dataclass(frozen=True)
class Name:
    """Gives the items of a part what they are told apart by, as long as nothing changes their texts."""

    group_by: str
    """Column of the group; '' for none."""
    comparisons: tuple[Comparison, ...]
    """For which signatures are made."""
    is_last: bool
    """Whether no later step changes texts."""

    def __call__(self, part: Sequence[Item]) -> Mapping[Comparison, Signatures]:
        """Set groups and digests, and sign."""
        for item in part:
            name_item(item, self.group_by)
        return sign_all(part, self.comparisons)


def _still_asked(split: Split, name: Name | None) -> tuple[str, ...]:
    """Columns whose cells are asked for after a pass: by the split, and until rows have their last names for these."""
    group_by = None if name is not None and name.is_last else split.group_by
    return tuple(column for column in (split.by_time, split.column, group_by) if column)


def _keep(part: Sequence[Item], columns: Sequence[str]) -> None:
    """Drop all other cells: the texts are made, and whatever a file has beside them would be held until the split."""
    nothing: dict[str, object] = {}
    for item in part:
        item.values = {column: item.values.get(column) for column in columns} if columns else nothing


@dataclass(frozen=True)
class Passed:
    """What became of a part."""

    items: list[Item]
    tally: Tally
    made: list[Any]
    """By each step of the pass, for its `gather`."""
    signatures: Mapping[Comparison, Signatures]


@dataclass(frozen=True)
class Pass:
    """Takes one part through steps that look at each row by itself, wherever that is."""

    steps: tuple[RowStep, ...]
    contract: RequestContract
    folder: Path
    """Where the tagger of the contract lies, if it has one."""
    name: Name | None
    """None where no step needs names before texts change again."""
    columns: tuple[str, ...]
    """Whose cells are kept."""

    @property
    def looks(self) -> bool:
        """Whether the detector is needed."""
        return any(step.looks for step in self.steps)

    def __call__(self, part: Sequence[Item]) -> Passed:
        """The rows that stay, and what the steps made of them."""
        detector = _detector(self.contract.to_json(), self.folder) if self.looks else FAST
        ledger = Ledger(detector, self.contract.transforms)
        items, made = list(part), []
        for step in self.steps:
            items, one = step.sift(items, ledger)
            made.append(one)
        signatures = self.name(items) if self.name is not None else {}
        _keep(items, self.columns)
        return Passed(items, ledger.tally(), made, signatures)


@functools.lru_cache(maxsize=1)
def _detector(contract_json: str, folder: Path) -> Detector:
    return open_frozen(RequestContract.model_validate_json(contract_json), folder)


def refine(flow: Flow, steps: Sequence[Step], parts: Iterator[list[Item]]) -> Facts:
    """Take the rows through the steps.

    Args:
        flow: receives the rows that stay.
        steps: in order, the first of them one of single rows.
        parts: of the rows as they were read.

    Returns:
        What the steps have to say in the report.
    """
    stages, facts = staged(steps), dict[str, object]()
    is_named = False
    for place, stage in enumerate(stages):
        later = stages[place + 1 :]
        if isinstance(stage, WholeStep):
            facts |= stage.sift(flow)
            is_named = is_named and not stage.changes_texts
            facts |= _let_go(flow, later)
            continue
        is_named = is_named and not any(step.changes_texts for step in stage)
        name = None if is_named else _name(flow, later)
        is_named = is_named or name is not None
        if stage or name is not None:
            columns = _still_asked(flow.resolved.recipe.data.split, name)
            facts |= _pass(flow, Pass(stage, flow.contract, flow.out, name, columns), parts if place == 0 else None)
    return facts


def staged(steps: Sequence[Step]) -> list[Stage]:
    """Steps of single rows that follow one another put together; after a step that changes texts there is a pass."""
    found: list[Stage] = []
    for step in steps:
        if isinstance(step, RowStep):
            before = found.pop() if found and isinstance(found[-1], tuple) else ()
            assert isinstance(before, tuple)
            found.append((*before, step))
            continue
        assert isinstance(step, WholeStep)
        found.append(step)
        if step.changes_texts:
            found.append(())
    return found


def _name(flow: Flow, later: Sequence[Stage]) -> Name | None:
    """What names rows and signs them for the stages up to the next that changes texts; None where these need none."""
    served: list[WholeStep] = []
    is_last = True
    for stage in later:
        steps = stage if isinstance(stage, tuple) else (stage,)
        if any(step.changes_texts for step in steps):
            is_last = False
            break
        served += [step for step in steps if isinstance(step, WholeStep)]
    if not any(step.needs_names for step in served):
        return None
    asked = [step.comparison(flow) for step in served]
    comparisons = tuple(dict.fromkeys(one for one in asked if one is not None))
    return Name(flow.resolved.recipe.data.split.group_by or "", comparisons, is_last)


def _pass(flow: Flow, work: Pass, parts: Iterator[Sequence[Item]] | None) -> Facts:
    """Let the crew do it, part by part; then look at what only all parts tell."""
    if parts is None:
        parts = _handed_over(flow.items, flow.part_rows if work.looks else ROWS_PER_BATCH)
    if work.name is not None:
        flow.likeness = None  # of texts that no longer stand so
    items: list[Item] = []
    made: list[list[Any]] = [[] for _ in work.steps]
    signatures = []
    for part in flow.crew.each(work, parts):
        items += part.items
        for known, one in zip(made, part.made, strict=True):
            known.append(one)
        signatures.append(part.signatures)
        flow.ledger.join(part.tally)
    flow.items, facts = items, dict[str, object]()
    if work.name is not None:
        flow.likeness = Likeness([item.row for item in items], signatures, flow.crew)
    for step, found in zip(work.steps, made, strict=True):
        facts |= step.gather(found, flow)
    return facts


def _handed_over(items: list[Item], size: int) -> Iterator[list[Item]]:
    """Parts of the rows, taken out of the list: what comes back may be copies, and no row is to be held twice."""
    items.reverse()
    while items:
        part = items[: -size - 1 : -1]
        del items[-size:]
        yield part


def _let_go(flow: Flow, later: Sequence[Stage]) -> Facts:
    """Drop what no later step asks for: what is known of each row takes room that rendering needs."""
    rest = [stage for stage in later if isinstance(stage, WholeStep)]
    if not any(step.comparison(flow) for step in rest):
        flow.likeness = None
    if flow.meanings is None or any(step.by_meaning for step in rest):
        return {}
    report, flow.meanings = flow.meanings.report(), None
    return {"meaning": report}
