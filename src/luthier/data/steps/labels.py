"""Rows to be evaluated whose label nothing can be learned of go, or stop everything where they are the user's own."""

from __future__ import annotations

from collections.abc import Sequence

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


STEP = Labels
