"""What the server does, without HTTP: requests in, bodies in OpenAI's schema out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from luthier.engines.ask import Asker
from luthier.errors import UserError
from luthier.records import Answer
from luthier.serve.schemas import (
    ChatRequest,
    ClassifyRequest,
    RequestRefused,
    UnknownModel,
    refuse_unsupported,
)

Json = dict[str, Any]


class Service:
    """One version; requests may come at once, the engine decides how many are computed at a time.

    Args:
        asker: the version.
        model_id: the name under which it is listed.
        also_called: further names that clients may ask for.
        clock: seconds since 1970.
    """

    def __init__(
        self, asker: Asker, *, model_id: str, clock: Callable[[], float], also_called: frozenset[str] = frozenset()
    ) -> None:
        self._asker = asker
        self._model_id = model_id
        self._names = also_called | {model_id}
        self._clock = clock
        self._started = int(clock())

    def health(self) -> Json:
        return {"status": "ok", "model": self._model_id}

    def models(self) -> Json:
        return {"object": "list", "data": [self.model(self._model_id)]}

    def model(self, name: str) -> Json:
        """The entry of one model.

        Raises:
            UnknownModel: it is not the one that is served.
        """
        self._check_model(name)
        return {"id": self._model_id, "object": "model", "created": self._started, "owned_by": "luthier"}

    def classify(self, request: ClassifyRequest) -> Json:
        """Label and probabilities of each text, in order.

        Raises:
            RequestRefused: the version writes free text.
            RequestRefused: a text is too long or empty; its place is named.
        """
        if request.model is not None:
            self._check_model(request.model)
        if not self._asker.contract.labels:
            raise RequestRefused(
                f"{self._model_id!r} writes free text and has no labels",
                way_out="ask /v1/chat/completions",
                param="model",
            )
        answers = list(self._asker.engine.each(self._answer, self._placed(request.input)))
        data = [
            {"index": index, "label": _given(answer), "probabilities": answer.probabilities, **self._marks(answer)}
            for index, answer in enumerate(answers)
        ]
        return {"object": "list", "model": self._model_id, "data": data, "usage": _usage(*answers)}

    def _placed(self, asked: Sequence[str | Json]) -> list[tuple[str, str | Json]]:
        """(place in the request, text or row) of each."""
        return [(f"input.{index}" if len(asked) > 1 else "input", one) for index, one in enumerate(asked)]

    def _answer(self, placed: tuple[str, str | Json]) -> Answer:
        place, asked = placed
        try:
            return self._asker.answer_values(asked) if isinstance(asked, dict) else self._asker.answer_text(asked)
        except UserError as error:
            raise RequestRefused(f"{place}: {error.what}", way_out=error.way_out, param=place) from error

    def complete(self, request: ChatRequest) -> Json:
        """A chat completion; a classification version answers with the text of the label.

        Raises:
            UnknownModel: another model is asked for.
            RequestRefused: the request asks for something that would need another answer.
            UserError: the conversation does not fit the version or is too long.
        """
        self._check_model(request.model)
        refuse_unsupported(request, self._asker.contract)
        messages = [message.to_message() for message in request.messages]
        (answer,) = self._asker.engine.each(self._asker.answer_messages, [messages])
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": _given(answer, answer.text), "refusal": self._refusal(answer)},
            "logprobs": None,
            "finish_reason": self._finish_reason(answer),
            **self._marks(answer),
        }
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(self._clock()),
            "model": self._model_id,
            "choices": [choice],
            "usage": _usage(answer),
        }

    def _marks(self, answer: Answer) -> Json:
        """Whether a version that may abstain did, and whether a text was too long and was cut, as in training."""
        may = {"abstained": answer.abstained} if self._asker.contract.abstain_below is not None else {}
        return may | ({"lost_tokens": answer.lost_tokens} if answer.lost_tokens else {})

    def _refusal(self, answer: Answer) -> str | None:
        if not answer.abstained:
            return None
        most = max(answer.probabilities.values())
        bar = self._asker.contract.abstain_below
        return f"no label is given: the likeliest has a probability of {most:.3f}, {bar:g} is asked for"

    def _check_model(self, name: str) -> None:
        if name not in self._names:
            raise UnknownModel(
                f"the model {name[:200]!r} is not served here", way_out=f"ask for {self._model_id!r}", param="model"
            )

    def _finish_reason(self, answer: Answer) -> str:
        contract = self._asker.contract
        room = min(contract.max_new_tokens, contract.max_length - answer.prompt_tokens)
        return "stop" if contract.labels or answer.answer_tokens < room else "length"


def as_events(completion: Json, *, include_usage: bool) -> str:
    """A completion as the server-sent events of `stream: true`.

    The whole text stands in one event: an answer is checked and complete before its first byte is sent.
    """
    choice = completion["choices"][0]
    frame = {key: completion[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    deltas = [
        ({"role": "assistant", "content": ""}, None),
        ({name: said for name in ("content", "refusal") if (said := choice["message"][name]) is not None}, None),
        ({}, choice["finish_reason"]),
    ]
    events = [
        frame | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
        for delta, reason in deltas
    ]
    if include_usage:
        events = [event | {"usage": None} for event in events] + [frame | {"choices": [], "usage": completion["usage"]}]
    return "".join(f"data: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events) + "data: [DONE]\n\n"


def _given(answer: Answer, text: str | None = None) -> str | None:
    """The label or text; None where the version abstains."""
    return None if answer.abstained else text or answer.label


def _usage(*answers: Answer) -> Json:
    prompt = sum(answer.prompt_tokens for answer in answers)
    written = sum(answer.answer_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
