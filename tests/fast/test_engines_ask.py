"""What training sets aside is not answered either: a text of which cleaning leaves nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from echo_engine import asker, contract

from luthier.engines.ask import Asker
from luthier.errors import UserError
from luthier.pipeline.answers import predict
from luthier.pipeline.named import Named, opened
from luthier.records import Answer, Message

OPEN = contract(task="generation", labels=(), input="")
BLANKS = ["", "  \n", "\t"]


def one_turn(asked: Asker, text: str) -> Answer:
    return asked.answer_messages([Message(role="user", content=text)])


@pytest.mark.parametrize("text", BLANKS)
@pytest.mark.parametrize("ask", [Asker.answer_text, lambda asked, text: asked.answer_values({"text": text}), one_turn])
def test_a_text_of_which_cleaning_leaves_nothing_is_refused(ask: Callable[[Asker, str], Answer], text: str) -> None:
    with pytest.raises(UserError, match="nothing is left of the text after cleaning") as caught:
        ask(asker(1.0), text)
    assert caught.value.http_status == 400
    assert "give a text" in caught.value.way_out


def test_a_row_whose_columns_are_all_empty_is_refused_whatever_the_template_adds() -> None:
    asked = asker(1.0, contract(input="title: {title} {body}"))
    assert asked.answer_values({"title": "", "body": "g"}).label
    with pytest.raises(UserError, match="nothing is left of the text"):
        asked.answer_values({"title": " ", "body": None})


def test_an_empty_turn_in_a_conversation_is_refused() -> None:
    said = [
        Message(role="user", content=" "),
        Message(role="assistant", content="g"),
        Message(role="user", content="g"),
    ]
    with pytest.raises(UserError, match="nothing is left of the text"):
        asker(1.0, OPEN).answer_messages(said)


def test_predict_names_the_line_of_an_empty_text(tmp_path) -> None:
    (tmp_path / "in.csv").write_text('text,id\n"ggg",1\n"  ",2\n', encoding="utf-8")
    out = tmp_path / "out.jsonl"
    assert predict(
        asker(1.0), opened(Named(str(tmp_path / "in.csv")), offline=True), output=out, progress=lambda *_: None
    ) == {
        "answered": 1,
        "faults": 1,
    }
    line = out.read_text(encoding="utf-8").splitlines()[1]
    assert '"line": 3, "error": "cannot_be_asked", "detail": "nothing is left of the text after cleaning"' in line
