"""Each row gets its split: by lot, by time, or as its file or a column says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from luthier.data.firewall import Firewall
from luthier.data.inputs import as_text
from luthier.data.items import Item, Ledger, Verdict
from luthier.data.likeness import Comparison, leak_comparison
from luthier.data.split import assign, assign_by_time, assign_stable
from luthier.data.step import Facts, Flow, WholeStep
from luthier.data.times import read_times
from luthier.errors import DataError
from luthier.records import SplitName, is_closed
from luthier.spec.resolve import ResolvedRecipe


class Split(WholeStep):
    by_meaning = True

    def comparison(self, flow: Flow) -> Comparison | None:
        return leak_comparison(flow.resolved, flow.contract)

    def sift(self, flow: Flow) -> Facts:
        """Raises:
        DataError: no row is left, or one cannot be given a split.
        """
        resolved, ledger = flow.resolved, flow.ledger
        if not flow.items:
            raise DataError(
                f"{resolved.file(resolved.recipe.entry.path)}: no row is left of {ledger.rows_in} ({ledger.summary()})",
                way_out="check data.train[0].input and .label, and the lines that `luthier prepare` reports",
            )
        flow.items, times = _timed(flow.items, resolved, ledger)
        apart = _assign(flow, times, self.comparison(flow))
        flow.items = ledger.sift("split", flow.items, [None] * len(flow.items))
        return {"rows_left_apart": apart}


def split_rule(resolved: ResolvedRecipe) -> str:
    """How rows came into splits, in words."""
    data, split = resolved.recipe.data, resolved.recipe.data.split
    if split.column:
        return f"named by the column {split.column!r}; seed {split.seed} of limits"
    asked = (("test", split.test, data.test), ("validation", split.validation, data.validation))
    own = [f"{name} is the file {file}" for name, _, file in asked if file]
    shares = ", ".join(f"{name} {share:g}" for name, share, file in asked if share and not file)
    whole = f"rows with the same {repr(split.group_by) if split.group_by else 'text'} stay together"
    likeness = data.leakage.threshold
    parts = list(own)
    if shares and split.by_time:
        parts.append(f"by {split.by_time!r}, the newest last: {shares}")
    elif shares and split.stable:
        parts += [f"drawn by lot: {shares}", whole, "later rows move none"]
    elif shares:
        like = "" if likeness is None else f", near-duplicates (likeness {likeness:g}) too"
        like += "" if data.leakage.meaning is None else f", rows of like meaning ({data.leakage.meaning:g}) too"
        parts += [f"drawn: {shares}", whole + like]
        parts += ["labels keep their shares"] if split.stratify else []
    return "; ".join([*parts, f"seed {split.seed}"])


def _timed(items: Sequence[Item], resolved: ResolvedRecipe, ledger: Ledger) -> tuple[list[Item], dict[int, datetime]]:
    """Set aside rows to be split by time that have none, and the times of the others by the items' identity."""
    column = resolved.recipe.data.split.by_time
    if not column:
        return list(items), {}
    ours = [item for item in items if item.origin is None]
    read = read_times([item.values.get(column) for item in ours], column=column)
    times = {id(item): time for item, time in zip(ours, read, strict=True) if time is not None}
    missing: Verdict = ("no_time", f"nothing in the column {column!r} can be read as a time")
    verdicts = [None if item.origin or id(item) in times else missing for item in items]
    kept = ledger.sift("times", items, verdicts)
    if not times:
        raise DataError(
            f"{resolved.file(resolved.recipe.entry.path)}: no row has a time in column {column!r} (data.split.by_time)",
            way_out="name a column of dates such as 2026-03-01, or leave by_time out",
        )
    return kept, times


def _assign(flow: Flow, times: Mapping[int, datetime], comparison: Comparison | None) -> int:
    """Give every item its split.

    Returns:
        The number of rows whose near-duplicates were left apart.
    """
    items, resolved = flow.items, flow.resolved
    data, split = resolved.recipe.data, resolved.recipe.data.split
    ours = [item for item in items if item.origin is None]
    test = 0.0 if data.test else split.test or 0.0
    validation = 0.0 if data.validation else split.validation or 0.0
    groups, apart = [item.group for item in ours], 0
    if split.column:
        names = [_official(item, split.column, resolved) for item in ours]
    elif split.by_time:
        names = assign_by_time([times[id(item)] for item in ours], test=test, validation=validation)
    elif split.stable:
        # Near-duplicates are not joined: a later row that links two groups would move one of them.
        names = assign_stable(groups, test=test, validation=validation, seed=split.seed)
    else:
        groups, apart = Firewall(flow.contract, items, flow.likeness, comparison).joined_groups(ours)
        groups = flow.meanings.joined_groups(ours, groups) if flow.meanings is not None else groups
        closed = is_closed(resolved.recipe.entry.task)
        stratify = bool(split.stratify) and closed
        names = assign(
            groups, [item.answer for item in ours], test=test, validation=validation, seed=split.seed, stratify=stratify
        )
    for item, name in zip(ours, names, strict=True):
        item.split = name
    for item in items:
        item.split = item.origin or item.split
    return apart


_OFFICIAL: dict[str, SplitName] = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test",
}  # fmt: skip


def _official(item: Item, column: str, resolved: ResolvedRecipe) -> SplitName:
    """The split that the row itself names."""
    name = as_text(item.values.get(column)).strip().casefold()
    if name not in _OFFICIAL:
        # What stands there may be anything, also personal data; only a plain word is shown.
        shown = repr(name) if name.isalpha() and len(name) < 20 else "another text" if name else "nothing"
        raise DataError(
            f"{resolved.file(item.file)}:{item.line}: column {column!r} (data.split.column) names no split, "
            f"it holds {shown}",
            way_out=f"write one of {', '.join(_OFFICIAL)}",
        )
    return _OFFICIAL[name]


STEP = Split
