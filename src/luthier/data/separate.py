"""Splits, and what may not be in them: labels that cannot be learned, texts and groups that were learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from luthier.data.by_meaning import Meanings
from luthier.data.dedupe import near_repeated
from luthier.data.firewall import Firewall, keep_off_benchmarks
from luthier.data.inputs import as_text
from luthier.data.items import Item, Ledger, Verdict, labels_of
from luthier.data.likeness import Comparison, Likeness
from luthier.data.split import assign, assign_by_time, assign_stable, draw
from luthier.data.times import read_times
from luthier.data_report import BenchmarkOverlap, Leakage, MeaningReport, NearConflict, NearReport
from luthier.errors import DataError
from luthier.records import RequestContract, SplitName, is_closed
from luthier.spec.resolve import ResolvedRecipe


@dataclass(frozen=True)
class Separated:
    """Items with their splits, and what was seen on the way."""

    items: list[Item]
    leakage: tuple[Leakage, ...]
    benchmarks: tuple[BenchmarkOverlap, ...]
    rows_left_apart: int
    """Rows in chains of near-duplicates that were too long to be kept in one split."""
    meaning: MeaningReport | None
    """None where nothing was compared by meaning."""


def separate(
    items: Sequence[Item],
    contract: RequestContract,
    resolved: ResolvedRecipe,
    ledger: Ledger,
    *,
    likeness: Likeness,
    meanings: Meanings | None = None,
) -> Separated:
    """Give every item its split, then find what must not be evaluated on or learned, then keep to the limits.

    Raises:
        DataError: no row or only one label is left, a label of the user's own test file cannot be learned, or a limit
            is below the number of labels.
    """
    if not items:
        raise DataError(
            f"{resolved.file(resolved.recipe.entry.path)}: no row is left of {ledger.rows_in} ({ledger.summary()})",
            way_out="check data.train[0].input and .label, and the lines that `luthier prepare` reports",
        )
    kept, times = _timed(items, resolved, ledger)
    firewall = Firewall(contract, kept, likeness, leak_comparison(resolved, contract))
    apart = _assign(kept, times, resolved, firewall, meanings)
    kept, overlaps = keep_off_benchmarks(kept, contract, resolved, ledger, meanings)
    kept = check_labels(kept, resolved, ledger, step="labels")
    kept, leaks = firewall.check(kept, ledger, meanings)
    meant = meanings.report() if meanings is not None else None
    return Separated(_limit(kept, resolved, ledger), leaks, overlaps, apart, meant)


MOST_CONFLICTS = 200
"""Near-duplicates under other labels that the report lists; all are counted."""


def dedupe_comparison(resolved: ResolvedRecipe, contract: RequestContract) -> Comparison | None:
    """How rows are compared that may repeat each other; free answers are compared with their questions."""
    rules = resolved.recipe.data.dedupe
    if rules is None or rules.threshold is None:
        return None
    return Comparison(contract.input, rules.threshold, with_answers=not is_closed(contract.task))


def leak_comparison(resolved: ResolvedRecipe, contract: RequestContract) -> Comparison | None:
    """How rows are compared that may give each other away."""
    threshold = resolved.recipe.data.leakage.threshold
    return None if threshold is None else Comparison(contract.input, threshold, with_answers=False)


def comparisons(resolved: ResolvedRecipe, contract: RequestContract) -> tuple[Comparison, ...]:
    """All ways in which rows of this recipe are compared."""
    asked = (dedupe_comparison(resolved, contract), leak_comparison(resolved, contract))
    return tuple(dict.fromkeys(one for one in asked if one is not None))


def set_near_aside(
    items: Sequence[Item], contract: RequestContract, resolved: ResolvedRecipe, likeness: Likeness, ledger: Ledger
) -> tuple[list[Item], NearReport | None]:
    """Set aside near-duplicates of the same label, file by file."""
    comparison = dedupe_comparison(resolved, contract)
    if comparison is None:
        return list(items), None
    closed = is_closed(contract.task)
    every = likeness.pairs(items, comparison)
    verdicts: dict[int, Verdict] = {}
    conflicts: list[NearConflict] = []
    for own in _by_origin(items):
        found = near_repeated(likeness.pairs(own, comparison), [item.answer if closed else "" for item in own])
        for item, match in zip(own, found.first, strict=True):
            if match is not None:
                detail = f"of line {own[match.index].line}, likeness {match.jaccard:.2f}"
                verdicts[id(item)] = ("near_duplicate", detail)
                ledger.repeats(item, own[match.index], match.jaccard)
        conflicts += [
            NearConflict(file=own[row].file, line=own[row].line, of_line=own[m.index].line, likeness=m.jaccard)
            for row, m in found.conflicts
        ]
    report = NearReport(
        threshold=comparison.threshold,
        compared=every.compared,
        crowded=every.crowded,
        num_conflicts=len(conflicts),
        conflicts=tuple(conflicts[:MOST_CONFLICTS]),
    )
    return ledger.sift("near duplicates", items, [verdicts.get(id(item)) for item in items]), report


def _by_origin(items: Sequence[Item]) -> list[list[Item]]:
    parts: dict[SplitName | None, list[Item]] = {}
    for item in items:
        parts.setdefault(item.origin, []).append(item)
    return list(parts.values())


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


def _assign(
    items: Sequence[Item],
    times: Mapping[int, datetime],
    resolved: ResolvedRecipe,
    firewall: Firewall,
    meanings: Meanings | None,
) -> int:
    """Give every item its split.

    Returns:
        The number of rows whose near-duplicates were left apart.
    """
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
        groups, apart = firewall.joined_groups(ours)
        groups = meanings.joined_groups(ours, groups) if meanings is not None else groups
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


def check_labels(items: Sequence[Item], resolved: ResolvedRecipe, ledger: Ledger, *, step: str) -> list[Item]:
    """Set aside rows to be evaluated whose label is not in train.

    Raises:
        DataError: train has one label only, or such a row stands in a file of the user's own.
    """
    if not is_closed(resolved.recipe.entry.task):
        return list(items)
    learned = labels_of(item for item in items if item.split == "train")
    file = resolved.file(resolved.recipe.entry.path)
    if len(learned) < 2:
        found = f"the one label {next(iter(learned))!r}" if learned else "no label"
        raise DataError(
            f"{file}: the rows to learn from have {found} in column {resolved.recipe.entry.label!r} "
            f"({ledger.rows_in} rows read: {ledger.summary()})",
            way_out="give rows of at least two labels, or set data.train[0].label to another column",
        )
    verdicts: list[Verdict | None] = []
    for item in items:
        if item.answer in learned or item.made_by:
            verdicts.append(None)
        elif item.origin is not None:
            raise DataError(
                f"{resolved.file(item.file)}:{item.line}: the label {item.answer!r} is not among the labels of {file}",
                way_out=f"correct it, or add rows with it to {resolved.recipe.entry.path}; "
                f"known: {_shortened(sorted(learned))}",
            )
        else:
            verdicts.append(("label_not_in_train", "no row with its label can be learned from"))
    return ledger.sift(step, items, verdicts)


def _shortened(labels: Sequence[str], most: int = 12) -> str:
    return ", ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _limit(items: Sequence[Item], resolved: ResolvedRecipe, ledger: Ledger) -> list[Item]:
    limits = resolved.recipe.data.limit
    closed = is_closed(resolved.recipe.entry.task)
    learned = {item.answer for item in items if item.split == "train"}
    if closed and limits.train is not None and limits.train < len(learned):
        raise DataError(
            f"data.limit.train: {limits.train} rows cannot hold {len(learned)} labels",
            way_out=f"set it to {len(learned)} or more, or leave it out",
        )
    bounds: tuple[tuple[SplitName, int | None], ...] = (
        ("train", limits.train), ("validation", limits.validation), ("test", limits.test),
    )  # fmt: skip
    over: dict[int, Verdict] = {}
    for split, limit in bounds:
        rows = [item for item in items if item.split == split]
        if limit is None or len(rows) <= limit:
            continue
        places = [f"{item.file}:{item.line}" for item in rows]
        labels = [item.answer if closed else "" for item in rows]
        stays = draw(places, labels, limit=limit, seed=resolved.recipe.data.split.seed)
        detail = f"data.limit.{split} is {limit}"
        over |= {id(item): ("over_limit", detail) for item, stay in zip(rows, stays, strict=True) if not stay}
    return ledger.sift("limit", items, [over.get(id(item)) for item in items])
