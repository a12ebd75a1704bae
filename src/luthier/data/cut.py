"""Prompts that are too long lose some of the user's own words: never the template, the recipe's words or the answer.

How much room a prompt has is a number in the request contract, so that the same text is cut alike when it is learned
from, evaluated, predicted and served: the answer that will be given is not known then, so room is kept for the longest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from luthier.data import clean
from luthier.data.contract import Renderer
from luthier.data.items import Item, Ledger, answer_of
from luthier.data.masks import Supervision
from luthier.data.shards import ROWS_PER_BATCH
from luthier.records import Message, TooLong, is_closed
from luthier.spec.template import parse

GAP = " [...] "
"""What stands where the middle was."""

SHORTEST_OPEN_ANSWER = 16
"""Tokens that a free answer may take, however short those are that are learned."""


def cut_rows(
    items: list[Item], renderer: Renderer, supervision: Supervision, ledger: Ledger
) -> tuple[list[Item], Renderer]:
    """Shorten what is too long, where the contract asks for it; nothing happens, and nothing is counted, where not.

    A conversation of which earlier turns are learned stays as it is: each of its answers was given to a prompt of
    another length, which the server would cut elsewhere. Such rows, and those that do not fit even so, are set aside
    when rows are tokenised.

    Returns:
        The items, and a renderer whose contract knows how long a prompt may be.
    """
    contract = renderer.contract
    if contract.too_long == "drop" or not items:
        return items, renderer
    room = contract.max_length - _reserved(items, renderer)
    renderer = renderer.under(contract.model_copy(update={"max_prompt_tokens": room}))
    changed = 0
    for start in range(0, len(items), ROWS_PER_BATCH):
        some = items[start : start + ROWS_PER_BATCH]
        turns = [renderer.with_system(item.turns[:-1]) if item.turns else renderer.messages(item.text) for item in some]
        for item, asked, ids in zip(
            some, turns, renderer.encode_all([renderer.prompt_text(one) for one in turns]), strict=True
        ):
            if len(ids) > room and not any(map(supervision.learns, asked)):
                changed += _cut(item, *fit(renderer, asked))
    return ledger.sift("cut", items, [None] * len(items), changed=changed), renderer


def _cut(item: Item, asked: Sequence[Message], lost: int) -> bool:
    item.lost_tokens = lost
    if not lost:
        return False
    if item.turns:
        item.turns = (*asked[len(asked) + 1 - len(item.turns) :], item.turns[-1])
    else:
        item.text = asked[-1].content
    return True


def _reserved(items: Sequence[Item], renderer: Renderer) -> int:
    """Tokens that are kept for an answer: the longest label; of free text the longest, up to half of a row."""
    contract = renderer.contract
    if is_closed(contract.task):
        return max(len(renderer.answer_ids(label)) for label in {item.answer for item in items})
    longest = max(_lengths(items, renderer))
    return min(max(longest, SHORTEST_OPEN_ANSWER), contract.max_length // 2)


def _lengths(items: Sequence[Item], renderer: Renderer) -> Iterable[int]:
    for start in range(0, len(items), ROWS_PER_BATCH):
        some = items[start : start + ROWS_PER_BATCH]
        answers = [answer_of(item) for item in some] + [item.rejected for item in some if item.rejected]
        yield from map(len, renderer.all_answer_ids(answers))


def fit(renderer: Renderer, messages: Sequence[Message]) -> tuple[tuple[Message, ...], int]:
    """Shorten the longest turn of the user until the prompt has room, if the contract says that it is to be cut.

    What already fits stays as it is, so cutting twice changes nothing.

    Returns:
        The conversation, as it was where it fits or where no cut would make it fit, and the tokens that were cut.
    """
    turns, room = tuple(messages), renderer.contract.max_prompt_tokens
    if room is None:
        return turns, 0
    excess = len(renderer.prompt_ids(turns)) - room
    users = [(len(turn.content), number) for number, turn in enumerate(turns) if turn.role == "user"]
    if excess <= 0 or not users:
        return turns, 0
    number = max(users)[1]
    text = renderer.defuse(turns[number].content)
    head, tail = _own_words(renderer, text)
    body = text[len(head) : len(text) - len(tail)]
    places = renderer.places(body)
    keep = len(places)
    while excess > 0:  # shorter text may be cut into tokens in another way, so it is counted again
        keep -= excess
        if keep <= 0:
            return turns, 0
        kept = head + _shortened(body, places, keep, renderer.contract.too_long) + tail
        cut = (*turns[:number], turns[number].model_copy(update={"content": kept}), *turns[number + 1 :])
        excess = len(renderer.prompt_ids(cut)) - room
    return cut, len(places) - keep


def _shortened(body: str, places: Sequence[tuple[int, int]], keep: int, where: TooLong) -> str:
    """`keep` tokens of a text, the characters that they stand for whole."""
    if where == "cut_end":
        return body[: places[keep - 1][1]].rstrip()
    if where == "cut_start":
        return body[places[-keep][0] :].lstrip()
    first = body[: places[(keep + 1) // 2 - 1][1]].rstrip()
    last = body[places[len(places) - keep // 2][0] :].lstrip() if keep > 1 else ""
    return (first + GAP + last).rstrip()


def _own_words(renderer: Renderer, text: str) -> tuple[str, str]:
    """What the input template says before its first column and after its last one, as far as the text has it."""
    head, tail = _around(renderer.contract.input, renderer.contract.transforms)
    head = head if text.startswith(head) else ""
    return head, tail if text.endswith(tail) and len(text) >= len(head) + len(tail) else ""


@cache
def _around(template: str, transforms: tuple[str, ...]) -> tuple[str, str]:
    if not template:
        return "", ""
    parts = parse(template)
    columns = [number for number, part in enumerate(parts) if not isinstance(part, str)]
    before, after = parts[: columns[0]], parts[columns[-1] + 1 :]
    return clean.apply(transforms, "".join(map(str, before))), clean.apply(transforms, "".join(map(str, after)))
