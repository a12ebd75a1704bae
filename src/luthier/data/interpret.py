"""From cells to what is asked and answered: cleaned texts, labels or turns. Rows where one is missing get a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from luthier.data.chat import parse_chat
from luthier.data.contract import prepare_text
from luthier.data.inputs import as_text, fill
from luthier.data.items import Item, Ledger, Verdict
from luthier.errors import DataError
from luthier.records import RequestContract, is_closed
from luthier.spec.template import fields

_LABEL_TRANSFORMS = ("strip_control", "normalise_unicode", "collapse_whitespace")


def interpret(
    items: Sequence[Item],
    contract: RequestContract,
    *,
    label: str,
    chat_column: str,
    rename: Mapping[str, str],
    ledger: Ledger,
) -> tuple[list[Item], frozenset[str]]:
    """Fill in text and answer, or turns, of each item.

    Args:
        items: rows as they were read.
        contract: input template and transforms; a template of '' stands for chat rows.
        label: column of the answer.
        chat_column: column of the conversations of chat rows.
        rename: label in the file -> label to learn.
        ledger: learns of rows without a text, an answer or readable turns.

    Returns:
        The items that are left, and, where some are to be renamed, the labels that stand in the file.
    """
    if contract.input:
        changed = sum(_fill(item, contract, label, ledger) for item in items)
        labels = frozenset(item.answer for item in items) if rename else frozenset()
        for item in items if rename else ():
            item.answer = rename.get(item.answer, item.answer)
        return ledger.sift("clean", items, [_missing(item) for item in items], changed=changed), labels
    chats = ledger.sift("conversations", items, _read_turns(items, chat_column))
    changed = sum(_clean_turns(item, contract) for item in chats)
    empty: list[Verdict | None] = [
        ("bad_conversation", "a turn is empty after cleaning") if not all(turn.content for turn in item.turns) else None
        for item in chats
    ]
    return ledger.sift("clean", chats, empty, changed=changed), frozenset()


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


def _fill(item: Item, contract: RequestContract, label: str, ledger: Ledger) -> bool:
    cells = {name: item.values.get(name) for name in fields(contract.input)}
    if any(as_text(cell).strip() for cell in cells.values()):
        raw = fill(contract.input, cells)
        item.text = _cleaned(raw, contract.transforms)
    else:
        raw = ""
    transforms = _LABEL_TRANSFORMS if is_closed(contract.task) else contract.transforms
    item.answer = _cleaned(as_text(item.values.get(label)), transforms)
    if item.text == raw:
        return False
    ledger.changed(item, raw)
    return True


def _missing(item: Item) -> Verdict | None:
    if not item.text:
        return "empty_input", "nothing is left of the input after cleaning"
    return None if item.answer else ("empty_answer", "the answer's cell is empty")


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


def _clean_turns(item: Item, contract: RequestContract) -> bool:
    before = item.turns
    item.turns = tuple(
        turn.model_copy(update={"content": _cleaned(turn.content, contract.transforms)}) for turn in before
    )
    return item.turns != before


def _cleaned(text: str, transforms: Sequence[str]) -> str:
    return prepare_text(text, transforms=transforms, redact_personal=False, redact_secrets=False)
