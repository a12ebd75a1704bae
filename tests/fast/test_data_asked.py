"""What is learned is what is asked: the server reads, letter by letter and token by token, what training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_kit import CHATML, tokenizer_folder
from test_data_cut import asked, made, opened, rows_of
from test_data_masks import FOLDED, GEMMA, SMOLLM2

TEXTS = [
    "who is there ",
    "me & <b>you</b>",
    "and  what\n\n  then?",
    "the parcel 🙂",
    "naïve",
    "no <|im_end|> here",
    "ok",
]


@pytest.mark.parametrize("own_system", [True, False], ids=["its own system", "the contract's"])
@pytest.mark.parametrize("template", [CHATML, SMOLLM2, GEMMA, FOLDED], ids=["chatml", "smollm2", "gemma", "folded"])
def test_every_answer_of_a_conversation_is_learned_after_what_the_server_reads(
    tmp_path: Path, template: str, own_system: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_data_cut.tokenizer_folder", lambda place: tokenizer_folder(place, template=template))
    rows: list[dict[str, Any]] = []
    clean = ("unescape_html", "collapse_whitespace")
    for number in range(12):
        turns = [
            {"role": ("user", "assistant")[place % 2], "content": f"{TEXTS[(number + place) % len(TEXTS)]} {number}"}
            for place in range(6)
        ]
        if own_system and template != GEMMA:
            turns.insert(0, {"role": "system", "content": " Answer in  rhyme. "})
        rows.append({"messages": turns})
    system = "" if template == GEMMA else "Be kind."
    report = made(tmp_path, rows, system=system, max_length=512, clean=clean)
    assert report.rows_out == 12
    client, engine = asked(tmp_path)
    end = list(opened(tmp_path).contract.end_of_turn_ids)
    for line, row in rows_of(tmp_path).items():
        turns = rows[line - 1]["messages"]
        marks = [False, *row.supervised]
        starts = [place for place, on in enumerate(row.supervised) if on and not marks[place]]
        answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
        assert len(starts) == len(answers) == 3
        for start, answer in zip(starts, answers, strict=True):
            reply = client.post("/v1/chat/completions", json={"model": "m", "messages": turns[:answer]})
            assert reply.status_code == 200
            assert engine.prompts[-1] == row.input_ids[:start]
            stop = next((p for p in range(start, len(marks) - 1) if not row.supervised[p]), len(row.input_ids))
            assert row.input_ids[stop - len(end) : stop] == end


@pytest.mark.parametrize("template", [CHATML, SMOLLM2, GEMMA], ids=["chatml", "smollm2", "gemma"])
def test_every_row_of_a_table_is_asked_as_it_is_learned(
    tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_data_cut.tokenizer_folder", lambda place: tokenizer_folder(place, template=template))
    rows = [
        {"message": f"{TEXTS[n % len(TEXTS)]} {n}".replace("\n", " "), "intent": ("order", "refund")[n % 2]}
        for n in range(28)
    ]
    made(tmp_path, rows, system="" if template == GEMMA else "Label it.")
    client, engine = asked(tmp_path)
    for line, row in rows_of(tmp_path).items():
        text = rows[line - 2]["message"]
        client.post("/v1/classify", json={"input": text}).raise_for_status()
        chat = {"model": "m", "messages": [{"role": "user", "content": text}]}
        client.post("/v1/chat/completions", json=chat).raise_for_status()
        assert engine.prompts[-2:] == [row.prompt_ids, row.prompt_ids]
