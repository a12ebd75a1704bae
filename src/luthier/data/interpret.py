"""From cells to what is asked and answered: cleaned texts, labels or turns. Rows where one is missing get a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from luthier.data.chat import parse_chat
from luthier.data.contract import prepare_text
from luthier.data.inputs import as_text, fill
from luthier.data.items import Item, Ledger, Verdict
from luthier.data.labels import rename as renamed
from luthier.errors import DataError
from luthier.records import RequestContract, is_closed
from luthier.spec.template import fields

_LABEL_TRANSFORMS = ("strip_control", "normalise_unicode", "collapse_whitespace")


def interpret(
    items: Sequence[Item], contract: RequestContract, *, label: str, rename: Mapping[str, str], ledger: Ledger
) -> list[Item]:
    """Fill in text and answer, or turns, of each item.

    Args:
        items: rows as they were read.
        contract: input template and transforms; a template of '' stands for chat rows.
        label: column of the answer.
        rename: label in the file -> label to learn.
        ledger: learns of rows without a text, an answer or readable turns.

    Raises:
        DataError: the rows should be conversations and no column holds any, or a label to rename does not occur.
    """
    if contract.input:
        changed = sum(_fill(item, contract, label, ledger) for item in items)
        if rename:
            new = renamed([item.answer for item in items], rename, key="data.labels.rename")
            for item, answer in zip(items, new, strict=True):
                item.answer = answer
        return ledger.sift("clean", items, [_missing(item) for item in items], changed=changed)
    chats = ledger.sift("conversations", items, _read_turns(items))
    changed = sum(_clean_turns(item, contract) for item in chats)
    empty: list[Verdict | None] = [
        ("bad_conversation", "a turn is empty after cleaning") if not all(turn.content for turn in item.turns) else None
        for item in chats
    ]
    return ledger.sift("clean", chats, empty, changed=changed)


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


def _read_turns(items: Sequence[Item]) -> list[Verdict | None]:
    verdicts: list[Verdict | None] = []
    columns = Counter(
        name for item in items for name, value in item.values.items() if not isinstance(parse_chat(value), str)
    )
    if not columns:
        raise DataError(
            f"{items[0].file if items else 'the file'}: no column holds conversations that can be read",
            way_out="set data.train[0].input and .label, or give a column with lists of {'role', 'content'}",
        )
    column = columns.most_common(1)[0][0]
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
