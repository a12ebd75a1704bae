"""Request bodies in OpenAI's words. What would change an answer and cannot be honored is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from luthier.data.inputs import as_text
from luthier.errors import UserError
from luthier.records import Message, RequestContract

MAX_INPUTS = 256

_GREEDY = "leave it out: answers are greedy, as they were evaluated"
_TEXT_ONLY = "leave it out: this server writes text, or the label of a text"
_NEUTRAL: dict[str, tuple[tuple[object, ...], str]] = {
    "temperature": ((0,), "send 0 or " + _GREEDY),
    "presence_penalty": ((0,), _GREEDY),
    "frequency_penalty": ((0,), _GREEDY),
    "logit_bias": (({},), _GREEDY),
    "n": ((1,), "send 1 or leave it out: a greedy answer has no second"),
    "logprobs": ((False,), "leave it out; /v1/classify gives the probability of each label"),
    "top_logprobs": ((0,), "leave it out; /v1/classify gives the probability of each label"),
    "stop": (("", []), "leave it out: an answer ends where the model was taught to end it"),
    "response_format": (({"type": "text"},), _TEXT_ONLY),
    "modalities": ((["text"],), _TEXT_ONLY),
    "tools": (([],), _TEXT_ONLY),
    "tool_choice": (("none", "auto"), _TEXT_ONLY),
    "functions": (([],), _TEXT_ONLY),
    "function_call": (("none", "auto"), _TEXT_ONLY),
}
"""Field -> the values that ask for nothing (null always does), and the way out for others."""


class RequestRefused(UserError):
    """A request asks for something that this server does not do.

    Args:
        what: what was asked.
        way_out: what to send instead.
        param: name of the field, for the error body.
    """

    code = ""

    def __init__(self, what: str, *, way_out: str, param: str) -> None:
        super().__init__(what, way_out=way_out)
        self.param = param


class UnknownModel(RequestRefused):
    """A request names a model that is not served here."""

    http_status = 404
    code = "model_not_found"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _whole_characters(text: str) -> str:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise ValueError("half of a surrogate pair is no character")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
"""JSON can escape halves of characters, which no tokenizer reads."""


class TextPart(Body):
    type: Literal["text"]
    text: Text


def _as_parts(content: object) -> object:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(given: object) -> object:
    return [given] if isinstance(given, str | dict) else given


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart])]
    name: str | None = Field(None, description="No effect.")
    refusal: None = Field(None, description="Comes along when an earlier answer is sent back.")

    def to_message(self) -> Message:
        """The turn in our words; parts of text are joined as they stand."""
        role = "system" if self.role == "developer" else self.role
        return Message(role=role, content="".join(part.text for part in self.content))


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool | None = Field(None, description="No effect.")


class ChatRequest(Body):
    """POST /v1/chat/completions."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, gt=0, description="Accepted where the version never writes more.")
    max_completion_tokens: int | None = Field(None, gt=0, description="Accepted where the version never writes more.")
    temperature: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    stop: str | list[str] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    top_p: float | None = Field(None, description="No effect on a greedy answer.")
    seed: int | None = Field(None, description="No effect on a greedy answer.")
    user: str | None = Field(None, description="No effect.")
    metadata: dict[str, str] | None = Field(None, description="No effect.")
    store: bool | None = Field(None, description="No effect: nothing is stored.")
    parallel_tool_calls: bool | None = Field(None, description="No effect.")
    service_tier: str | None = Field(None, description="No effect.")
    safety_identifier: str | None = Field(None, description="No effect.")
    prompt_cache_key: str | None = Field(None, description="No effect.")


def _text_or_row(given: object) -> object:
    if isinstance(given, str):
        return _whole_characters(given)
    if not isinstance(given, dict):
        raise ValueError("Input should be a valid string, or an object of columns and their cells")
    for part in (*given, *map(as_text, given.values())):
        _whole_characters(part)
    return given


Asked = Annotated[str | dict[str, Any], PlainValidator(_text_or_row, json_schema_input_type=str | dict[str, Any])]
"""A text that is the whole user turn, or a row: column -> cell."""


class ClassifyRequest(Body):
    """POST /v1/classify."""

    input: Annotated[
        list[Asked],
        Field(min_length=1, max_length=MAX_INPUTS),
        BeforeValidator(_as_list, json_schema_input_type=str | dict[str, Any] | list[str | dict[str, Any]]),
    ]
    model: str | None = None


def refuse_unsupported(request: ChatRequest, contract: RequestContract) -> None:
    """Check that the answer of this version is what the request asks for.

    Raises:
        RequestRefused: a field asks for sampling, several answers, tools, or fewer tokens than the version may write.
    """
    for name, (neutral, way_out) in _NEUTRAL.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            shown = repr(value)
            shown = shown if len(shown) <= 80 else shown[:79] + "…"
            raise RequestRefused(f"{name} {shown} is not supported", way_out=way_out, param=name)
    for name in ("max_tokens", "max_completion_tokens"):
        limit = getattr(request, name)
        if limit is not None and limit < contract.max_new_tokens:
            raise RequestRefused(
                f"{name} {limit} is less than the {contract.max_new_tokens} tokens that this version may write",
                way_out=f"send {contract.max_new_tokens} or more, or leave it out",
                param=name,
            )
