"""What the server says for a reward model: the score of an answer, or of both answers of a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from luthier.engines.ask import Asker
from luthier.engines.pair import ANSWER, Scored, answer_columns, question_columns, said_of, score_values
from luthier.errors import UserError
from luthier.records import Answer, RequestContract
from luthier.serve.schemas import ChatMessage, RequestRefused

MESSAGES = "messages"
"""Key of a conversation that ends with the answer."""

_TURNS = TypeAdapter(list[ChatMessage])

Asked = str | dict[str, Any]


def placed(asked: Sequence[Asked]) -> list[tuple[str, Asked]]:
    """(place in the request, text or row) of each."""
    return [(f"input.{index}" if len(asked) > 1 else "input", one) for index, one in enumerate(asked)]


def usage(*answers: Answer) -> dict[str, int]:
    """Tokens that were read and written."""
    prompt = sum(answer.prompt_tokens for answer in answers)
    written = sum(answer.answer_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def scores(asker: Asker, asked: Sequence[Asked], *, model: str) -> dict[str, Any]:
    """The body of an answer: of each row or conversation its score, of a pair both and which is preferred.

    Raises:
        RequestRefused: one has no answer, is empty or too long; its place is named.
    """
    found = list(asker.engine.each(lambda one: _scored(asker, *one), placed(asked)))
    data = [{"index": index, **one.said, **_lost(one)} for index, one in enumerate(found)]
    answers = [answer for one in found for answer in one.answers]
    return {"object": "list", "model": model, "data": data, "usage": usage(*answers)}


def _lost(one: Scored) -> dict[str, int]:
    return {"lost_tokens": one.answers[0].lost_tokens} if one.answers[0].lost_tokens else {}


def _scored(asker: Asker, place: str, asked: Asked) -> Scored:
    try:
        if isinstance(asked, str):
            raise UserError("a text alone has no answer that could be scored", way_out=f"send {_form(asker.contract)}")
        if set(asked) == {MESSAGES} and MESSAGES not in question_columns(asker.contract):
            turns = _TURNS.validate_python(asked[MESSAGES])
            answers = (asker.score_messages([turn.to_message() for turn in turns]),)
            return Scored(answers, said_of((ANSWER,), answers))
        return score_values(asker, asked, answer_columns(asker.contract, asked))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, (place, MESSAGES, *fault["loc"])))
        raise RequestRefused(
            f"{where}: {fault['msg']}", way_out="send turns of role and content", param=where
        ) from error
    except UserError as error:
        raise RequestRefused(f"{place}: {error.what}", way_out=error.way_out, param=place) from error


def _form(contract: RequestContract) -> str:
    """What a request for a score looks like."""
    answer = (ANSWER,) if ANSWER not in question_columns(contract) else contract.answer_columns
    cells = ", ".join(f'"{name}": ...' for name in (*question_columns(contract), *answer))
    row = f"{{{cells}}} or " if contract.input else ""
    return f'{row}{{"messages": [..., {{"role": "assistant", "content": ...}}]}}'


def refuse_scoring(contract: RequestContract, *, model: str) -> None:
    """Check that a version writes.

    Raises:
        RequestRefused: it scores what others write.
    """
    if contract.scores_answers:
        raise RequestRefused(
            f"{model!r} scores answers and writes none",
            way_out=f"ask /v1/classify with {_form(contract)} as input",
            param="model",
        )
