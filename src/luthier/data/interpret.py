"""From cells to what is asked and answered: texts, labels or turns; and their cleaning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.data.answers import joined, labels_in, number_of
from luthier.data.chat import parse_chat
from luthier.data.contract import prepare_text
from luthier.data.inputs import as_text, fill
from luthier.data.items import Item, Ledger, Verdict
from luthier.data.step import RowStep
from luthier.errors import DataError
from luthier.records import RequestContract, is_closed, is_read_off, is_text
from luthier.spec.template import fields

_LABEL_TRANSFORMS = ("strip_control", "normalise_unicode", "collapse_whitespace")


@dataclass(frozen=True)
class Fill(RowStep):
    """The first step of every recipe: nothing is cleaned yet but the labels of a closed set."""

    contract: RequestContract
    """Input template; one of '' stands for chat rows."""
    label: str
    """Column of the answer."""
    chat_column: str
    """Column of the conversations of chat rows."""
    rejected: str = ""
    """Column of the other answer of a preference; '' for none."""

    def sift(self, items: list[Item], ledger: Ledger) -> tuple[list[Item], None]:
        """Fill in text and answer, or turns, of each item; conversations that cannot be read go."""
        if not self.contract.input:
            verdicts = _read_turns(items, self.chat_column)
            if self.rejected:
                verdicts = [
                    old or _read_rejected(item, self.rejected) for old, item in zip(verdicts, items, strict=True)
                ]
            return ledger.sift("conversations", items, verdicts), None
        names, verdicts = fields(self.contract.input), list[Verdict | None]()
        for item in items:
            cells = {name: item.values.get(name) for name in names}
            has_text = any(as_text(cell).strip() for cell in cells.values())
            item.text = fill(self.contract.input, cells) if has_text else ""
            item.answer, verdict = _answer_in(item.values.get(self.label), self.contract)
            verdicts.append(verdict)
            item.rejected = as_text(item.values.get(self.rejected)) if self.rejected else ""
        return ledger.sift("answers", items, verdicts) if any(verdicts) else items, None


def _answer_in(cell: object, contract: RequestContract) -> tuple[str, Verdict | None]:
    """What a row teaches, and why it cannot: labels are cleaned, several are sorted, and numbers have to be such."""
    text = as_text(cell)
    if is_closed(contract.task):
        return _cleaned(text, _LABEL_TRANSFORMS), None
    if contract.task == "multi_label":
        try:
            labels = labels_in(cell, contract.separator)
        except DataError as error:
            return "", ("bad_labels", f"{error.what}; {error.way_out}" if error.way_out else error.what)
        return joined([_cleaned(label, _LABEL_TRANSFORMS) for label in labels], contract.separator), None
    if contract.task == "regression" and text.strip():
        number = number_of(text)
        return text.strip(), None if number is not None else ("not_a_number", f"{text[:60]!r} is no finite number")
    return text, None


def clean(items: Sequence[Item], contract: RequestContract, ledger: Ledger) -> list[Item]:
    """Clean the texts; rows without a text, an answer or a turn go."""
    paired = contract.task == "preference"
    for item in items if paired else ():
        item.rejected = _cleaned(item.rejected, contract.transforms)
    if contract.input:
        changed = sum(_clean(item, contract, ledger) for item in items)
        answers = not is_text(contract.task)
        missing = [_missing(item, answers=answers, paired=paired) for item in items]
        return ledger.sift("clean", items, missing, changed=changed)
    changed = sum(_clean_turns(item, contract) for item in items)
    empty: list[Verdict | None] = [
        ("bad_conversation", "a turn is empty after cleaning")
        if not all(turn.content for turn in item.turns)
        else _missing_other(item, paired=paired)
        for item in items
    ]
    return ledger.sift("clean", items, empty, changed=changed)


def chat_column(items: Sequence[Item]) -> str:
    """The column in which most of the rows hold a conversation that can be read.

    Raises:
        DataError: no column holds any.
    """
    columns = Counter(
        name for item in items for name, value in item.values.items() if not isinstance(parse_chat(value), str)
    )
    if not columns:
        raise DataError(
            f"{items[0].file if items else 'the file'}: no column holds conversations that can be read",
            way_out="set data.train[0].input and .label, or give a column with lists of {'role', 'content'}",
        )
    return columns.most_common(1)[0][0]


def _clean(item: Item, contract: RequestContract, ledger: Ledger) -> bool:
    raw = item.text
    item.text = _cleaned(raw, contract.transforms)
    if not is_read_off(contract.task):
        item.answer = _cleaned(item.answer, contract.transforms)
    if item.text == raw:
        return False
    ledger.changed(item, raw)
    return True


def _missing(item: Item, *, answers: bool, paired: bool) -> Verdict | None:
    if not item.text:
        return "empty_input", "nothing is left of the input after cleaning"
    if answers and not item.answer:
        return "empty_answer", "the answer's cell is empty"
    return _missing_other(item, paired=paired)


def _missing_other(item: Item, *, paired: bool) -> Verdict | None:
    """Of a preference; an empty cell may also mean that there never was another answer."""
    return ("empty_rejected", "the rejected answer's cell is empty") if paired and not item.rejected else None


def _read_turns(items: Sequence[Item], column: str) -> list[Verdict | None]:
    verdicts: list[Verdict | None] = []
    for item in items:
        turns = parse_chat(item.values.get(column))
        if isinstance(turns, str):
            verdicts.append(("bad_conversation", turns))
            continue
        item.turns = turns
        verdicts.append(None)
    return verdicts


def _read_rejected(item: Item, column: str) -> Verdict | None:
    """The other answer of a conversation: a text, or a conversation that differs in its last turn only."""
    cell = item.values.get(column)
    if not isinstance(cell, list):
        item.rejected = as_text(cell)
        return None
    turns = parse_chat(cell)
    if isinstance(turns, str):
        return "bad_conversation", f"{column}: {turns}"
    if [(turn.role, turn.content) for turn in turns[:-1]] != [(turn.role, turn.content) for turn in item.turns[:-1]]:
        return "bad_conversation", f"{column} and its counterpart differ before the last answer"
    item.rejected = turns[-1].content
    return None


def _clean_turns(item: Item, contract: RequestContract) -> bool:
    before = item.turns
    item.turns = tuple(
        turn.model_copy(update={"content": _cleaned(turn.content, contract.transforms)}) for turn in before
    )
    return item.turns != before


def _cleaned(text: str, transforms: Sequence[str]) -> str:
    return prepare_text(text, transforms=transforms, redact_personal=False, redact_secrets=False)
