"""From refined rows to shards, and what only tokens tell: whether enough is left, and how long an answer may get."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from luthier.data.answers import divided
from luthier.data.augment import set_orphans_aside
from luthier.data.contract import Renderer, with_labels
from luthier.data.cut import SHORTEST_OPEN_ANSWER
from luthier.data.items import CANARY, Item, Ledger, labels_of
from luthier.data.masks import Supervision
from luthier.data.shards import Shard, distribute
from luthier.data.step import Flow
from luthier.data.steps.labels import check_labels
from luthier.data.tokenise import render_rows
from luthier.errors import DataError
from luthier.records import Contamination, RequestContract, Scale, SplitName, is_closed, is_read_off, is_text

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

_OVERLAP: dict[Contamination, str] = {
    "exact": "by text", "near": "by nearly the same text", "group": "by group", "meaning": "by meaning",
}  # fmt: skip


def write_shards(flow: Flow, tokenizer: Path) -> dict[SplitName, Path]:
    """Tokenise; rows that are too long may have been the last of their label, so labels are looked at once more.

    Raises:
        DataError: what is left cannot be learned from, or tested with.
    """
    items, renderer, resolved, ledger = flow.items, flow.renderer, flow.resolved, flow.ledger
    parts, shards = flow.out / "parts", {split: flow.out / f"{split}.arrow" for split in SPLITS}
    _number_groups(items)
    asked = Supervision.of(resolved.recipe.entry)
    rendered, files, divided = render_rows(
        items, renderer, ledger, asked=asked, tokenizer=tokenizer, parts=parts, crew=flow.crew
    )
    _refuse_short_length(items, rendered, renderer.contract, ledger)
    kept = set_orphans_aside(rendered, ledger)
    kept = check_labels(kept, resolved, ledger, step="labels after length")
    for split in ("train", "test"):
        if not any(item.split == split for item in kept):
            raise DataError(
                f"{resolved.file(resolved.recipe.entry.path)}: no row is left for the {split} split "
                f"({ledger.rows_in} rows read: {ledger.summary()})",
                way_out=f"give more rows, or another data.split.test, or a file of its own as data.{split}",
            )
    _refuse_seen_test([item for item in kept if item.split == "test"])
    left = {id(item) for item in kept}
    distribute(
        files,
        shards,
        [
            item.split if id(item) in left else None
            for item, rows in zip(rendered, divided, strict=True)
            for _ in range(rows)
        ],
    )
    shutil.rmtree(parts)
    return shards


def _number_groups(items: Sequence[Item]) -> None:
    """Groups get numbers in the order of their first rows.

    Until here a group is a hash of what its column holds, so that no draw depends on the order of the rows; on disk
    whoever has a list of customers could hash them all and look them up.
    """
    numbers: dict[str, str] = {}
    for item in items:
        item.group = numbers.setdefault(item.group, f"g{len(numbers)}")


def _refuse_seen_test(test: Sequence[Item]) -> None:
    if all(item.contaminated for item in test):
        counts = Counter(item.contaminated for item in test)
        found = ", ".join(f"{count} {_OVERLAP[kind]}" for kind, count in counts.items() if kind)
        raise DataError(
            f"training has seen every one of the {len(test)} rows of the test split: {found}",
            way_out="give other rows as data.test, or, where likeness or groups are no leak here, "
            "set data.leakage.near or .meaning higher or data.split.group_by to ''",
        )


def _refuse_short_length(
    before: Sequence[Item], after: Sequence[Item], contract: RequestContract, ledger: Ledger
) -> None:
    """Stop where length alone left nothing, or fewer than two labels, to learn from or to test with."""
    too_long = ledger.dropped.get("too_long", 0)
    learned = [labels_of(item for item in items if item.split == "train") for items in (before, after)]
    few = is_closed(contract.task) and len(learned[0]) >= 2 and len(learned[1]) < 2
    gone = {item.split for item in before} - {item.split for item in after} - {"validation"}
    if too_long and (few or gone):
        left = "no row" if gone else "fewer than two labels"
        raise DataError(
            f"{left} is left for the {max(gone, default='train')} split: {too_long} of {len(before)} rows "
            f"are longer than train.max_length, {contract.max_length} tokens",
            way_out="raise train.max_length, or shorten the texts or data.train[0].system",
        )


def completed(renderer: Renderer, train: Shard, *, written: int) -> RequestContract:
    """The contract with what only the training rows tell: the labels, or how long answers get.

    Args:
        renderer: of the contract so far.
        train: the rows.
        written: tokens of the answers that a method writes itself; 0 where it writes none.
    """
    contract = renderer.contract
    if is_text(contract.task):
        return contract
    if is_closed(contract.task):
        rows = Counter(_taught(train))
        made = with_labels(renderer, rows)
        if made.answered_by == "head":
            made = made.model_copy(update={"label_rows": tuple(rows[label] for label in made.labels)})
        return made
    if contract.task == "multi_label":
        contract = _with_tags(contract, train)
    if contract.task == "regression":
        contract = contract.model_copy(update={"scale": _scale(train)})
    longest = max(length - prompt for length, prompt in zip(train.lengths, train.column("prompt_tokens"), strict=True))
    most = max(int(longest), written, 0 if is_read_off(contract.task) else SHORTEST_OPEN_ANSWER)
    return contract.model_copy(update={"max_new_tokens": min(most, contract.max_length // 2)})


def _with_tags(contract: RequestContract, train: Shard) -> RequestContract:
    """The contract with the labels of which a training row has some, and how many rows have each.

    Raises:
        DataError: no row has any.
    """
    rows = Counter(label for answer in _taught(train) for label in divided(answer, contract.separator))
    if not rows:
        raise DataError(
            f"{contract.name}: no row of the train split has a label",
            way_out="look at data.train[0].label and data.labels.separator",
        )
    tags = tuple(sorted(rows))
    counts = tuple(rows[tag] for tag in tags) if contract.answered_by == "head" else ()
    return contract.model_copy(update={"tags": tags, "label_rows": counts})


def _scale(train: Shard) -> Scale:
    """Of the numbers of the training rows.

    Raises:
        DataError: they are all the same.
    """
    numbers = np.array([float(answer) for answer in _taught(train)], dtype=np.float64)
    mean, spread = float(numbers.mean()), float(numbers.std())
    if not spread > 0:
        raise DataError(
            f"all {len(numbers)} numbers of the train split are {mean:g}: there is nothing to learn",
            way_out="look at data.train[0].label",
        )
    if not np.isfinite(spread):
        raise DataError(
            f"the numbers of the train split are too large ({np.abs(numbers).max():g}) to take their mean",
            way_out="give them in another unit",
        )
    return Scale(mean=mean, spread=spread)


def _taught(train: Shard) -> list[str]:
    """Answers of all rows but canaries."""
    answers = zip(train.column("answer"), train.column("made_by"), strict=True)
    return [answer for answer, made_by in answers if made_by != CANARY]
