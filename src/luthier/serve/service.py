"""What the server does, without HTTP: requests in, bodies in OpenAI's schema out."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from luthier.engines.ask import Asker
from luthier.errors import UserError
from luthier.records import Answer, RequestContract
from luthier.serve.schemas import (
    ChatRequest,
    ClassifyRequest,
    RequestRefused,
    UnknownModel,
    refuse_unsupported,
)
from luthier.serve.scores import placed, refuse_scoring, scores, usage

Json = dict[str, Any]


class Service:
    """One version; requests may come at once, the engine decides how many are computed at a time.

    A version of several tasks is listed as one model a task, MODEL_ID/TASK.

    Args:
        askers: the version's tasks by name.
        model_id: the name under which it is listed.
        also_called: further names that clients may ask for.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        askers: Mapping[str, Asker],
        *,
        model_id: str,
        clock: Callable[[], float],
        also_called: frozenset[str] = frozenset(),
    ) -> None:
        self._model_id = model_id
        several = len(askers) > 1
        self._askers = {f"{model_id}/{task}" if several else model_id: asker for task, asker in askers.items()}
        self._names = {
            f"{name}/{task}" if several else name: f"{model_id}/{task}" if several else model_id
            for name in also_called | {model_id}
            for task in askers
        }
        self._clock = clock
        self._started = int(clock())

    def health(self) -> Json:
        return {"status": "ok", "model": self._model_id}

    def models(self) -> Json:
        return {"object": "list", "data": [self.model(name) for name in self._askers]}

    def model(self, name: str) -> Json:
        """The entry of one model.

        Raises:
            UnknownModel: it is not the one that is served.
        """
        return {"id": self._named(name), "object": "model", "created": self._started, "owned_by": "luthier"}

    def classify(self, request: ClassifyRequest) -> Json:
        """Label, labels or number of each text, with probabilities of labels, or the scores of answers, in order.

        Raises:
            RequestRefused: the version writes free text.
            RequestRefused: a text is too long or empty; its place is named.
        """
        model = self._named(request.model) if request.model is not None else self._only_labels()
        asker = self._askers[model]
        if not _is_read_off(asker.contract):
            raise RequestRefused(
                f"{model!r} writes free text and has no labels", way_out="ask /v1/chat/completions", param="model"
            )
        if asker.contract.scores_answers:
            return scores(asker, request.input, model=model)
        answers = list(asker.engine.each(lambda one: self._answer(asker, one), placed(request.input)))
        data = [
            {
                "index": index,
                **said(asker.contract, answer),
                **_marks(asker.contract, answer),
            }
            for index, answer in enumerate(answers)
        ]
        return {"object": "list", "model": model, "data": data, "usage": usage(*answers)}

    def _only_labels(self) -> str:
        """The model that a request means which names none: the only one, or the only one with labels."""
        closed = [name for name, asker in self._askers.items() if _is_read_off(asker.contract)]
        known = closed if len(closed) == 1 else list(self._askers)
        if len(known) > 1:
            raise RequestRefused(
                f"{self._model_id!r} has several tasks", way_out=f"name one as model: {', '.join(known)}", param="model"
            )
        return known[0]

    def _answer(self, asker: Asker, given: tuple[str, str | Json]) -> Answer:
        place, asked = given
        try:
            return asker.answer_values(asked) if isinstance(asked, dict) else asker.answer_text(asked)
        except UserError as error:
            raise RequestRefused(f"{place}: {error.what}", way_out=error.way_out, param=place) from error

    def complete(self, request: ChatRequest) -> Json:
        """A chat completion; a classification version answers with the text of the label.

        Raises:
            UnknownModel: another model is asked for.
            RequestRefused: the request asks for something that would need another answer.
            UserError: the conversation does not fit the version or is too long.
        """
        model = self._named(request.model)
        asker = self._askers[model]
        refuse_scoring(asker.contract, model=model)
        refuse_unsupported(request, asker.contract)
        messages = [message.to_message() for message in request.messages]
        (answer,) = asker.engine.each(asker.answer_messages, [messages])
        choice = {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": _given(answer, answer.text),
                "refusal": _refusal(asker.contract, answer),
            },
            "logprobs": None,
            "finish_reason": _finish_reason(asker.contract, answer),
            **_marks(asker.contract, answer),
        }
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(self._clock()),
            "model": model,
            "choices": [choice],
            "usage": usage(answer),
        }

    def _named(self, name: str) -> str:
        """The listed name of a model that is served here."""
        if name not in self._names:
            known = ", ".join(map(repr, self._askers))
            raise UnknownModel(
                f"the model {name[:200]!r} is not served here", way_out=f"ask for {known}", param="model"
            )
        return self._names[name]


def _finish_reason(contract: RequestContract, answer: Answer) -> str:
    room = min(contract.max_new_tokens, contract.max_length - answer.prompt_tokens)
    return "stop" if _is_read_off(contract) or answer.answer_tokens < room else "length"


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


def _is_read_off(contract: RequestContract) -> bool:
    """Whether labels or numbers are given, and nothing is written."""
    return bool(contract.labels) or contract.answered_by == "head"


def said(contract: RequestContract, answer: Answer) -> Json:
    """What is said of a text that gets labels or a number."""
    if contract.scale is not None:
        return {"value": answer.value}
    label = {"labels": answer.given} if contract.tags else {"label": _given(answer)}
    return {**label, "probabilities": answer.probabilities}


def _marks(contract: RequestContract, answer: Answer) -> Json:
    """Whether a version that may abstain did, and whether a text was too long and was cut, as in training."""
    may = {"abstained": answer.abstained} if contract.abstain_below is not None else {}
    return may | ({"lost_tokens": answer.lost_tokens} if answer.lost_tokens else {})


def _refusal(contract: RequestContract, answer: Answer) -> str | None:
    if not answer.abstained:
        return None
    most = max(answer.probabilities.values())
    return f"no label is given: the likeliest has a probability of {most:.3f}, {contract.abstain_below:g} is asked for"


def _given(answer: Answer, text: str | None = None) -> str | None:
    """The label or text; None where the version abstains."""
    return None if answer.abstained else text or answer.label
