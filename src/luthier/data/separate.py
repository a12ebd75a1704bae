"""Splits, and what may not be in them: labels that cannot be learned, texts and groups that were learned."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.items import Item, Ledger, Verdict
from luthier.data.split import assign, draw
from luthier.errors import DataError
from luthier.records import Leakage, SplitName, is_closed
from luthier.spec.resolve import ResolvedRecipe


def separate(items: Sequence[Item], resolved: ResolvedRecipe, ledger: Ledger) -> tuple[list[Item], tuple[Leakage, ...]]:
    """Give every item its split, then set aside what must not be evaluated on, then keep to the limits.

    Raises:
        DataError: no row or only one label is left, a label of the user's own test file cannot be learned, or a limit
            is below the number of labels.
    """
    if not items:
        raise DataError(
            f"{resolved.file(resolved.recipe.entry.path)}: no row is left of {ledger.rows_in} ({ledger.summary()})",
            way_out="check data.train[0].input and .label, and the lines that `luthier prepare` reports",
        )
    _assign(items, resolved)
    kept = check_labels(items, resolved, ledger, step="labels")
    kept, leaks = _remove_leaks(kept, ledger)
    return _limit(kept, resolved, ledger), leaks


def split_rule(resolved: ResolvedRecipe) -> str:
    """How rows came into splits, in words."""
    data, split = resolved.recipe.data, resolved.recipe.data.split
    asked = (("test", split.test, data.test), ("validation", split.validation, data.validation))
    own = [f"{name} is the file {file}" for name, _, file in asked if file]
    shares = [f"{name} {share:g}" for name, share, file in asked if share and not file]
    whole = f"rows with the same {repr(split.group_by) if split.group_by else 'text'} stay together"
    parts = [*own, *([f"drawn: {', '.join(shares)}", whole] if shares else [])]
    if shares and split.stratify:
        parts.append("labels keep their shares")
    return "; ".join([*parts, f"seed {resolved.recipe.data.split.seed}"])


def _assign(items: Sequence[Item], resolved: ResolvedRecipe) -> None:
    data, split = resolved.recipe.data, resolved.recipe.data.split
    ours = [item for item in items if item.origin is None]
    names = assign(
        [item.group for item in ours],
        [item.answer for item in ours],
        test=0.0 if data.test else split.test or 0.0,
        validation=0.0 if data.validation else split.validation or 0.0,
        seed=resolved.recipe.data.split.seed,
        stratify=bool(split.stratify) and is_closed(resolved.recipe.entry.task),
    )
    for item, name in zip(ours, names, strict=True):
        item.split = name
    for item in items:
        item.split = item.origin or item.split


def check_labels(items: Sequence[Item], resolved: ResolvedRecipe, ledger: Ledger, *, step: str) -> list[Item]:
    """Set aside rows to be evaluated whose label is not in train.

    Raises:
        DataError: train has one label only, or such a row stands in a file of the user's own.
    """
    if not is_closed(resolved.recipe.entry.task):
        return list(items)
    learned = {item.answer for item in items if item.split == "train"}
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
        if item.answer in learned:
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


def _remove_leaks(items: Sequence[Item], ledger: Ledger) -> tuple[list[Item], tuple[Leakage, ...]]:
    """Set aside rows to be evaluated that training has seen; for test, validation counts too: it picks the weights."""
    seen = {item.key for item in items if item.split == "train"}
    groups = {item.group for item in items if item.split == "train"}
    verdicts: dict[int, Verdict] = {}
    leaks = []
    splits: tuple[SplitName, ...] = ("validation", "test")
    for split in splits:
        rows = [item for item in items if item.split == split]
        exact = [item for item in rows if item.key in seen]
        grouped = [item for item in rows if item.group in groups and item.key not in seen]
        verdicts |= {id(item): ("leaked_text", "a row that is learned from has the same text") for item in exact}
        verdicts |= {id(item): ("leaked_group", "a row that is learned from has the same group") for item in grouped}
        leaks.append(Leakage(split=split, exact=len(exact), group=len(grouped)))
        seen |= {item.key for item in rows}
        groups |= {item.group for item in rows}
    return ledger.sift("leakage", items, [verdicts.get(id(item)) for item in items]), tuple(leaks)


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
