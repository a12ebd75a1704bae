"""Which tokens of a conversation are learned: spans in its text, proven against the template and the tokenizer.

A span is taken only where the rendering shows it to be exactly what is asked for:

- an answer, where everything up to it in the row is letter by letter the prompt that the server would ask at that turn;
- a turn of the user or the system, where rendering another text in its place changes nothing else.

What cannot be shown is refused with its turn, never masked by guess. Characters become tokens by encoding the row piece
by piece; where that gives other ids than encoding it at once, by the tokenizer's own offsets; and where a token stands
across the end of a span, the row is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from luthier.data.contract import Renderer
from luthier.errors import DataError
from luthier.records import Message, Role
from luthier.spec.recipe import DataEntry


@dataclass(frozen=True)
class Supervision:
    """Which turns are learned; the last answer always is."""

    roles: tuple[Role, ...] = ("assistant",)
    mask_history: bool = False
    """Of the answers, the last one only."""

    @classmethod
    def of(cls, entry: DataEntry) -> Supervision:
        """What a recipe asks for."""
        return cls(entry.roles_to_train, entry.mask_history)

    @property
    def answers_only(self) -> bool:
        """Whether a row of one prompt and one answer is prompt, unlearned, and answer, learned."""
        return self.roles == ("assistant",)

    def learns(self, turn: Message) -> bool:
        """Whether a turn before the last answer is learned."""
        if turn.role == "assistant" and self.mask_history:
            return False
        return bool(turn.weight) and turn.role in self.roles


class Masked(NamedTuple):
    """A conversation as tokens."""

    ids: list[int]
    supervised: list[bool]
    prompt_tokens: int
    """How many stand before the last answer."""
    learned: dict[Role, int]
    """Supervised tokens of each role."""


class _Span(NamedTuple):
    """Characters of the prompt that are learned."""

    start: int
    end: int
    turn: int
    role: Role


def mask(renderer: Renderer, turns: Sequence[Message], supervision: Supervision) -> Masked:
    """Tokens of a conversation and which of them are learned: turns with their ends, where the template writes one.

    The ids are what the server would read as the prompt of the last answer, and that answer on its own.

    Raises:
        DataError: the last turn is no answer, or what is to be learned cannot be told apart exactly.
        ModelError: the template cannot render these turns.
    """
    if not turns or turns[-1].role != "assistant":
        raise DataError("the last turn is not an answer", way_out="end the conversation with an assistant turn")
    prompt, answer = renderer.prompt_text(turns[:-1]), turns[-1].content
    if prompt + renderer.answer_text(answer) != renderer.whole_text(turns):
        raise _retold(len(turns) - 1)
    spans = []
    for number, turn in enumerate(turns[:-1]):
        if supervision.learns(turn):
            spans.append((_answer if turn.role == "assistant" else _other)(renderer, turns, number, prompt))
    ids, owners = _tokens(renderer, prompt, sorted(spans))
    answer_ids = renderer.answer_ids(answer)
    learned: dict[Role, int] = {role: owners.count(role) for role in ("system", "user", "assistant")}
    learned["assistant"] += len(answer_ids)
    return Masked(
        ids + answer_ids, [owner is not None for owner in owners] + [True] * len(answer_ids), len(ids), learned
    )


def _answer(renderer: Renderer, turns: Sequence[Message], number: int, prompt: str) -> _Span:
    """An earlier answer: what stands before it in the row must be what the server would ask at that turn."""
    asked = renderer.prompt_text(turns[:number])
    said = asked + renderer.answer_text(turns[number].content)
    if not prompt.startswith(said):
        raise _retold(number)
    return _Span(len(asked), len(said), number, "assistant")


def _other(renderer: Renderer, turns: Sequence[Message], number: int, prompt: str) -> _Span:
    """A turn of the user or the system, found by rendering a word in its place that the row does not hold."""
    word = "Luthier"
    while word in prompt:
        word += "r"
    turn = turns[number]
    changed = [*turns[:number], turn.model_copy(update={"content": word}), *turns[number + 1 : -1]]
    before, found, after = renderer.prompt_text(changed).partition(word)
    middle = prompt[len(before) : len(prompt) - len(after)]
    whole = prompt == before + middle + after
    if not found or not whole or word in after or middle.strip() != renderer.defuse(turn.content).strip():
        raise DataError(
            f"the chat template does not write turn {number + 1} as it stands, so it cannot be told apart",
            way_out=f"take {turn.role!r} out of data.train[0].roles_to_train",
        )
    end = renderer.contract.end_of_turn
    more = len(end) if after.startswith(end) else 0
    return _Span(len(before), len(before) + len(middle) + more, number, turn.role)


def _tokens(renderer: Renderer, prompt: str, spans: Sequence[_Span]) -> tuple[list[int], list[Role | None]]:
    """Ids of the prompt as the server encodes it, and whose span each lies in."""
    ids = renderer.encode(prompt)
    if not spans:
        return ids, [None] * len(ids)
    pieces: list[int] = []
    owners: list[Role | None] = []
    place = 0
    for span in spans:
        between, inside = renderer.encode(prompt[place : span.start]), renderer.encode(prompt[span.start : span.end])
        pieces += between + inside
        owners += [None] * len(between) + [span.role] * len(inside)
        place = span.end
    rest = renderer.encode(prompt[place:])
    if pieces + rest == ids:
        return ids, owners + [None] * len(rest)
    return ids, _by_offsets(renderer.places(prompt), spans)


def _by_offsets(places: Sequence[tuple[int, int]], spans: Sequence[_Span]) -> list[Role | None]:
    """Whose span each token lies in, by the characters that it stands for."""
    owners: list[Role | None] = [None] * len(places)
    for span in spans:
        inside = [index for index, (start, end) in enumerate(places) if start < span.end and end > span.start]
        if not inside or places[inside[0]][0] < span.start or places[inside[-1]][1] > span.end:
            raise DataError(
                f"the tokenizer joins the text of turn {span.turn + 1} with what stands around it",
                way_out="strip the texts (data.clean: [strip_ends]), or learn the last answer only "
                "(data.train[0].mask_history: true)",
            )
        owners[inside[0] : inside[-1] + 1] = [span.role] * (inside[-1] + 1 - inside[0])
    return owners


def _retold(turn: int) -> DataError:
    """A template that drops or changes earlier turns, as those of thinking models do with thoughts."""
    return DataError(
        f"the chat template renders turn {turn + 1} differently once the conversation goes on",
        way_out="learn the last answer only (data.train[0].mask_history: true), or split the conversation into rows "
        "with one answer each",
    )
