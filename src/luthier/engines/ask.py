"""The one way to ask: evaluation, validation, `predict` and the server all call `Asker`, so they say the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from luthier.data.answers import divided, joined
from luthier.data.contract import Renderer
from luthier.data.cut import fit
from luthier.data.features import input_columns
from luthier.data.inputs import as_text
from luthier.data.json_values import parse_row
from luthier.data.read import Row
from luthier.engines.protocol import Engine, HeadEngine
from luthier.errors import RunError, UserError
from luthier.records import Answer, Message, RequestContract, is_text
from luthier.rewards.number import said_number
from luthier.spec.template import fields


def in_words(contract: RequestContract) -> RequestContract:
    """The same question to a model without a head: labels of a closed set are scored as words, and one is always given;
    several labels, or a number, are written.
    """
    nothing = {"label_rows": (), "abstain_below": None, "threshold": None}
    return contract.model_copy(update={"answered_by": "words", **nothing})


class Asker:
    """A model behind a request contract."""

    def __init__(self, contract: RequestContract, renderer: Renderer, engine: Engine) -> None:
        self.contract = contract
        self.renderer = renderer
        self.engine = engine
        self._label_ids = [renderer.answer_ids(label) for label in contract.labels]

    def answer_values(self, values: Mapping[str, object]) -> Answer:
        """Answer a row of a table: features, the input template, cleaning and redaction are applied to it.

        Raises:
            UserError: nothing is left of the text after cleaning, or it is too long.
        """
        return self._answer(self._asked_by(values))

    def _asked_by(self, values: Mapping[str, object]) -> tuple[Message, ...]:
        if not self.contract.input:
            conversations = "a conversation that ends with the answer" if self.contract.scores_answers else ""
            raise UserError(
                f"this version {'scores the ends of' if conversations else 'answers'} conversations, not rows",
                way_out=f"send {conversations} as messages" if conversations else "ask /v1/chat/completions",
            )
        cells = self.renderer.with_features(values)
        text = self.renderer.filled(cells)
        said = any(as_text(cells[name]).strip() for name in fields(self.contract.input))
        return self.renderer.messages(_something(text if said else ""))

    def score_values(self, values: Mapping[str, object], answer: str) -> Answer:
        """Score an answer to a row of a table, both cleaned and redacted as in training; the score is its `value`.

        Raises:
            UserError: nothing is left of text or answer after cleaning, they are too long, or this version writes.
        """
        return self._scored(self._asked_by(values), answer)

    def score_messages(self, messages: Sequence[Message]) -> Answer:
        """Score the last turn of a conversation, which is an answer of the assistant.

        Raises:
            UserError: the conversation ends otherwise or asks nothing; or see `score_values`.
        """
        if self.contract.features:
            raise UserError(
                "this version computes what it is asked from columns, and a conversation has none",
                way_out="send a row with the columns and the answer",
            )
        *asked, last = messages or (Message(role="user", content=""),)
        if last.role != "assistant" or not asked or asked[-1].role != "user":
            raise UserError(
                "the conversation does not end with a user message and the answer to it",
                way_out="send the assistant's turn that is to be scored last",
            )
        return self._scored(self.renderer.with_system([self._cleaned(message) for message in asked]), last.content)

    def _scored(self, messages: Sequence[Message], answer: str) -> Answer:
        if not self.contract.scores_answers:
            raise UserError("this version answers, and scores no answers", way_out="send the question alone")
        prompt, lost = self._prompt(messages)
        ids = self.renderer.answer_ids(_something(self.renderer.clean_text(answer), "answer"))
        if len(prompt) + len(ids) > self.contract.max_length:
            raise UserError(
                f"prompt and answer have {len(prompt)} + {len(ids)} tokens, and {self.contract.max_length} fit "
                "(max_length)",
                way_out="shorten them, or train with a larger train.max_length",
            )
        value = float(self._head.class_logits([*prompt, *ids], self.contract.name)[0])
        return _read_off([*prompt, *ids], lost, f"{value:.6g}", value=value)

    def answer_text(self, text: str) -> Answer:
        """Answer a text that is the whole user turn; it is cleaned and redacted as in training.

        Where the version computes features, the text is a row: a JSON object of the columns that they need.

        Raises:
            UserError: nothing is left of the text after cleaning, it is too long, or it is no row where one is needed.
        """
        if self.contract.features:
            return self.answer_values(self._row_of(text))
        return self._answer(self.renderer.messages(_something(self.renderer.clean_text(text))))

    def answer_prepared(self, text: str, *, after: Sequence[Message] = ()) -> Answer:
        """Answer a text that prepare has cleaned already, `after` answered examples if there are any."""
        return self._answer(self.renderer.messages(text, after=after))

    def answer_messages(self, messages: Sequence[Message]) -> Answer:
        """Answer a conversation. One user turn, with no system prompt or the contract's own, is `answer_text`.

        Raises:
            UserError: the conversation is empty or does not end with the user's turn, a user's turn is empty after
                cleaning, or a classification version is given anything but one user turn.
        """
        turns = [message for message in messages if message.role != "system"]
        systems = [message.content for message in messages if message.role == "system"]
        if not turns or turns[-1].role != "user":
            raise UserError("the conversation does not end with a user message", way_out="send the user's turn last")
        if len(turns) == 1 and (not systems or systems == [self.contract.system]):
            return self.answer_text(turns[0].content)
        if is_text(self.contract.task):
            raise UserError(
                f"this version goes on with one text; found {len(turns)} turns and {len(systems)} system prompts",
                way_out="send one user message with the beginning of a text, and no system prompt",
            )
        labels = self.contract.labels or self.contract.answered_by == "head"
        if labels or self.contract.features:
            does, one = "labels" if labels else "answers", "row" if self.contract.features else "text"
            raise UserError(
                f"this version {does} one {one}; found {len(turns)} turns and {len(systems)} system prompts",
                way_out="send one user message without a system prompt",
            )
        return self._answer(self.renderer.with_system([self._cleaned(message) for message in messages]))

    def _cleaned(self, message: Message) -> Message:
        """A turn as training cleans the turns of a row; the recipe's own system prompt is never cleaned."""
        if message.role == "system" and message.content == self.contract.system:
            return message
        text = self.renderer.clean_text(message.content)
        return message.model_copy(update={"content": _something(text) if message.role == "user" else text})

    def _row_of(self, text: str) -> dict[str, object]:
        columns = input_columns(self.contract.input, self.contract.features)
        way_out = f"send a JSON object with {', '.join(columns)}"
        parsed = parse_row(1, text)
        if not isinstance(parsed, Row):
            raise UserError(
                f"this version computes what it is asked from columns, and the text is no row: {parsed.detail}",
                way_out=way_out,
            )
        return parsed.values

    def free_text(self, prepared: str, *, after: Sequence[Message] = ()) -> str:
        """Greedy text for a prepared user turn, whatever the task; `after` answered examples if there are any."""
        return self._generate(self._prompt(self.renderer.messages(prepared, after=after))[0])[0]

    @property
    def prompt_room(self) -> int:
        """Tokens that a prompt may have: all but those of the longest label, or one of free text."""
        if self.contract.max_prompt_tokens is not None:
            return self.contract.max_prompt_tokens
        return self.contract.max_length - max((len(ids) for ids in self._label_ids), default=1)

    def _prompt(self, messages: Sequence[Message]) -> tuple[list[int], int]:
        """Ids of the prompt, and how many tokens it has lost, which it only may where training cut such texts too."""
        messages, lost = fit(self.renderer, messages)
        prompt = self.renderer.prompt_ids(messages)
        limit, room = self.contract.max_length, self.prompt_room
        if len(prompt) > room:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, {room} fit beside the answer (max_length {limit})",
                way_out="shorten the text, or train with a larger train.max_length",
            )
        return prompt, lost

    @property
    def _head(self) -> HeadEngine:
        if not isinstance(self.engine, HeadEngine):
            raise RunError(
                f"engine {self.engine.name!r} has no classification head, by which this version answers",
                way_out="serve its adapter or its merged weights with transformers",
            )
        return self.engine

    def _answer(self, messages: Sequence[Message]) -> Answer:
        if self.contract.scores_answers:
            raise UserError(
                "this version scores answers and writes none", way_out="send the answer that is to be scored too"
            )
        prompt, lost = self._prompt(messages)
        if self.contract.answered_by == "head":
            return self._by_head(prompt, lost)
        if not self.contract.labels:
            text, count = self._generate(prompt)
            number = said_number(text) if self.contract.scale is not None else 0.0
            return Answer(
                text=text,
                given=divided(text, self.contract.separator) if self.contract.tags else None,
                value=None if self.contract.scale is None else math.nan if number is None else number,
                label="",
                probabilities={},
                prompt_tokens=len(prompt),
                answer_tokens=count,
                lost_tokens=lost,
                log_mass=None,
                greedy_label=None,
            )
        found = self.engine.score(prompt, self._label_ids)
        scores = np.asarray([score.logprob for score in found], dtype=np.float64)
        written = [label for label, score in zip(self.contract.labels, found, strict=True) if score.is_greedy]
        best = int(scores.argmax())
        weights = np.exp(scores - scores[best])
        probabilities = weights / weights.sum()
        label = self.contract.labels[best]
        return Answer(
            text=label,
            label=label,
            probabilities={name: float(p) for name, p in zip(self.contract.labels, probabilities, strict=True)},
            prompt_tokens=len(prompt),
            answer_tokens=len(self._label_ids[best]),
            lost_tokens=lost,
            log_mass=float(scores[best] + np.log(weights.sum())),
            greedy_label=written[0] if written else "",  # at most one: the end of turn makes labels prefix-free
        )

    def _by_head(self, prompt: Sequence[int], lost: int) -> Answer:
        scores = self._head.class_logits(prompt, self.contract.name).astype(np.float64)
        if not self.contract.labels:
            return self._several(prompt, lost, scores) if self.contract.tags else self._number(prompt, lost, scores)
        weights = np.exp(scores - scores.max())
        probabilities = weights / weights.sum()
        best = int(probabilities.argmax())
        label, bar = self.contract.labels[best], self.contract.abstain_below
        return Answer(
            text=label,
            label=label,
            probabilities={name: float(p) for name, p in zip(self.contract.labels, probabilities, strict=True)},
            prompt_tokens=len(prompt),
            answer_tokens=len(self._label_ids[best]),
            lost_tokens=lost,
            log_mass=None,
            greedy_label=None,
            abstained=bar is not None and float(probabilities[best]) < bar,
        )

    def _several(self, prompt: Sequence[int], lost: int, scores: NDArray[np.float64]) -> Answer:
        """Every label whose own probability reaches the threshold."""
        chances = 1.0 / (1.0 + np.exp(-scores))
        assert self.contract.threshold is not None, "a head for several labels has a threshold"
        probabilities = {name: float(p) for name, p in zip(self.contract.tags, chances, strict=True)}
        given = tuple(name for name, p in probabilities.items() if p >= self.contract.threshold)
        return _read_off(prompt, lost, joined(given, self.contract.separator), given=given, probabilities=probabilities)

    def _number(self, prompt: Sequence[int], lost: int, scores: NDArray[np.float64]) -> Answer:
        assert self.contract.scale is not None, "a head without labels says a number"
        value = self.contract.scale.mean + self.contract.scale.spread * float(scores[0])
        places = max(0, 6 - math.floor(math.log10(self.contract.scale.spread)))  # a millionth of what numbers differ by
        return _read_off(prompt, lost, f"{value:.{places}f}", value=value)

    def _generate(self, prompt: Sequence[int]) -> tuple[str, int]:
        room = min(self.contract.max_new_tokens, self.contract.max_length - len(prompt))
        ids = self.engine.generate(prompt, max_new_tokens=room, stop_ids=self.contract.stop_ids)
        return self.renderer.decode(ids), len(ids)


def _read_off(
    prompt: Sequence[int],
    lost: int,
    text: str,
    *,
    given: tuple[str, ...] | None = None,
    value: float | None = None,
    probabilities: Mapping[str, float] = MappingProxyType({}),
) -> Answer:
    """What a head says that is no label of a closed set; nothing is written."""
    return Answer(
        text=text,
        label="",
        given=given,
        value=value,
        probabilities=dict(probabilities),
        prompt_tokens=len(prompt),
        answer_tokens=0,
        lost_tokens=lost,
        log_mass=None,
        greedy_label=None,
    )


def _something(cleaned: str, what: str = "text") -> str:
    """The text or answer, unless it is empty: training sets such rows aside, so nothing is known of an answer to them.

    Raises:
        UserError: it is empty.
    """
    if not cleaned.strip():
        raise UserError(f"nothing is left of the {what} after cleaning", way_out="give a text that says something")
    return cleaned
