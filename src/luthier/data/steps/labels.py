"""Rows to be evaluated whose label nothing can be learned of go, or stop everything where they are the user's own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from luthier.data.items import Item, Ledger, Verdict, labels_of
from luthier.data.step import Facts, Flow, WholeStep
from luthier.errors import DataError
from luthier.records import is_closed
from luthier.spec.resolve import ResolvedRecipe


class Labels(WholeStep):
    needs_names = False

    def sift(self, flow: Flow) -> Facts:
        flow.items = check_labels(flow.items, flow.resolved, flow.ledger, step="labels")
        return {}


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
    _refuse_other_order(resolved, items, learned)
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


def _refuse_other_order(resolved: ResolvedRecipe, items: Sequence[Item], learned: Collection[str]) -> None:
    """Where labels have an order, each that occurs has its place, and each place has rows to learn from."""
    order = resolved.recipe.data.labels.order
    for item in items if order else ():
        if item.answer not in order and not item.made_by:
            raise DataError(
                f"{resolved.file(item.file)}:{item.line}: the label {item.answer!r} is not in data.labels.order",
                way_out=f"put it in its place, or give it another name with data.labels.rename; there: "
                f"{_shortened(order)}",
            )
    if missing := [label for label in order if label not in learned]:
        raise DataError(
            f"data.labels.order names {missing[0]!r}, and no row to learn from has this label",
            way_out=f"leave it out, or add such rows; learned: {_shortened(sorted(learned))}",
        )


def _shortened(labels: Sequence[str], most: int = 12) -> str:
    return ", ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")


STEP = Labels
