"""A prompt that is too long loses the user's own words only, and the same ones wherever it is asked."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from data_kit import renderer, resolved, tokenizer_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from luthier.data.contract import Renderer
from luthier.data.cut import GAP, fit
from luthier.data.prepare import prepare
from luthier.data.shards import Example, Shard
from luthier.data_report import DataReport
from luthier.engines.ask import Asker
from luthier.engines.protocol import Score
from luthier.errors import UserError
from luthier.records import Message, TooLong
from luthier.serve.app import create_app

SIDES: tuple[TooLong, ...] = ("cut_start", "cut_middle", "cut_end")
WORDS = [
    "the",
    "order",
    "has",
    "not",
    "come",
    "and",
    "i",
    "want",
    "my",
    "money",
    "back",
    "please",
    "call",
    "me",
    "about",
    "the",
    "parcel",
    "é",
    "🙂",
]
SPLITS = ("train", "validation", "test")


class Recording:
    """An engine that keeps the prompts it is given and says nothing."""

    name = "recording"

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    def score(self, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Score]:
        self.prompts.append(list(prompt_ids))
        return [Score(-1.0 - number, False) for number in range(len(answers))]

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        self.prompts.append(list(prompt_ids))
        return []

    def each(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        return map(function, items)


def text_of(number: int) -> str:
    count = 12 if number % 3 else 150
    return (
        " ".join(WORDS[(number * 7 + place * (1 + number % 5)) % len(WORDS)] for place in range(count)) + f" {number}"
    )


def made(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> DataReport:
    folder.mkdir(exist_ok=True)
    chat = "messages" in rows[0]
    if chat:
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        changes = {"path": "data.jsonl", "task": "generation", "input": "", "label": "", **changes}
    else:
        with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    recipe = resolved(folder, **changes)
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(folder / "tokenizer"), out=folder / "out")
    assert report.rows_in == report.rows_out + len(report.fates)
    return report


def tickets() -> list[dict[str, Any]]:
    return [{"message": text_of(n), "intent": ("order", "refund")[n % 2]} for n in range(60)]


def rows_of(folder: Path) -> dict[int, Example]:
    return {row.line: row for split in SPLITS for row in Shard(folder / "out" / f"{split}.arrow")}


def opened(folder: Path) -> Renderer:
    return Renderer.open(folder / "out" / "contract.json", folder / "tokenizer" / "tokenizer.json")


def asked(folder: Path) -> tuple[TestClient, Recording]:
    """The server of a prepared run, in this process, and what its engine was asked."""
    reader, engine = opened(folder), Recording()
    app = create_app({"t": Asker(reader.contract, reader, engine)}, model_id="m")  # type: ignore[arg-type]
    return TestClient(app, base_url="http://127.0.0.1"), engine


@pytest.mark.parametrize("where", SIDES)
def test_rows_are_cut_as_requests_are(tmp_path: Path, where: TooLong) -> None:
    rows = tickets()
    template = "Read this: {message} Which is it?"
    report = made(tmp_path, rows, max_length=128, too_long=where, input=template)
    cut = {line: row for line, row in rows_of(tmp_path).items() if row.lost_tokens}
    assert len(cut) == 20
    assert not report.dropped.get("too_long")
    (step,) = [step for step in report.steps if step.step == "cut"]
    assert (step.rows_in, step.rows_out, step.rows_changed) == (60, 60, 20)
    client, engine = asked(tmp_path)
    for line, row in rows_of(tmp_path).items():
        assert row.text.startswith("Read this:")
        assert row.text.endswith("Which is it?")
        assert len(row.input_ids) <= 128
        whole = template.format(message=rows[line - 2]["message"])
        said = client.post("/v1/classify", json={"input": whole}).json()["data"][0]
        assert said.get("lost_tokens", 0) == row.lost_tokens
        chat = {"model": "m", "messages": [{"role": "user", "content": whole}]}
        choice = client.post("/v1/chat/completions", json=chat).json()["choices"][0]
        assert choice.get("lost_tokens", 0) == row.lost_tokens
        assert engine.prompts[-2:] == [row.prompt_ids, row.prompt_ids]
    one = next(iter(cut.values()))
    assert len(one.prompt_ids) > 128 - 20, "no more is cut than must be"
    assert (GAP in one.text) == (where == "cut_middle")


def test_without_the_key_they_are_set_aside(tmp_path: Path) -> None:
    report = made(tmp_path, tickets(), max_length=128)
    assert report.dropped == {"too_long": 20}
    assert "cut" not in {step.step for step in report.steps}
    client, _ = asked(tmp_path)
    refused = client.post("/v1/classify", json={"input": text_of(0)})
    assert refused.status_code == 400
    assert "shorten the text" in refused.json()["error"]["message"]


def test_free_answers_are_never_cut_and_what_leaves_no_room_is_set_aside(tmp_path: Path) -> None:
    rows = [{"message": text_of(n), "intent": "yes " * (1 + n % 4) + str(n)} for n in range(40)]
    rows[4]["intent"] = "word " * 120  # longer than a row
    rows[7]["message"], rows[7]["intent"] = text_of(9) + " twice", "no " * 80 + "7"
    report = made(tmp_path, rows, max_length=128, too_long="cut_end", task="generation", system="")
    places = {fate.line: fate for fate in report.fates}
    assert set(places) == {6, 9}
    assert all("no cut of the user's text makes it fit" in fate.detail for fate in places.values())
    reader = opened(tmp_path)
    for line, row in rows_of(tmp_path).items():
        assert row.answer == rows[line - 2]["intent"].strip()
        assert reader.decode(row.input_ids[row.prompt_tokens :]) == row.answer
        assert row.input_ids[-1:] == list(reader.contract.end_of_turn_ids)
    room = reader.contract.max_prompt_tokens
    assert room == 64, "room is kept for the longest answer, at most half of a row"
    assert reader.contract.max_new_tokens <= 128 - room


def test_a_conversation_is_cut_where_one_answer_is_learned(tmp_path: Path) -> None:
    def turns(*texts: str) -> dict[str, Any]:
        return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]}

    long = " ".join(WORDS * 9)
    rows = [turns(f"{n} {long} {n}", "yes", f"and {n}", f"no {n}") for n in range(12)]
    rows += [turns(f"{n} {long} {n}", f"maybe {n}") for n in range(20, 32)]
    report = made(tmp_path / "all", rows, max_length=160, system="", too_long="cut_middle")
    assert [fate.line for fate in report.fates] == list(range(1, 13))
    folder = tmp_path / "last"
    folder.mkdir()
    made_of = resolved(
        folder,
        path="data.jsonl",
        task="generation",
        input="",
        label="",
        max_length=160,
        system="",
        too_long="cut_middle",
    )
    entry = made_of.recipe.entry.model_copy(update={"mask_history": True})
    data = made_of.recipe.data.model_copy(update={"train": (entry,)})
    made_of = made_of.model_copy(update={"recipe": made_of.recipe.model_copy(update={"data": data})})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    report = prepare(made_of, tokenizer_folder=tokenizer_folder(folder / "tokenizer"), out=folder / "out")
    assert report.rows_out == 24
    client, engine = asked(folder)
    for line, row in rows_of(folder).items():
        assert row.lost_tokens
        messages = rows[line - 1]["messages"][:-1]
        assert client.post("/v1/chat/completions", json={"model": "m", "messages": messages}).status_code == 200
        assert engine.prompts[-1] == row.prompt_ids


@settings(deadline=None, max_examples=60)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    before=st.text("ab \n", max_size=40),
    room=st.integers(30, 90),
    where=st.sampled_from(SIDES),
)
def test_what_is_cut_fits_and_is_not_cut_again(
    tmp_path_factory: pytest.TempPathFactory, text: str, before: str, room: int, where: TooLong
) -> None:
    plain = _plain(tmp_path_factory)
    ours = plain.under(plain.contract.model_copy(update={"too_long": where, "max_prompt_tokens": room}))
    turns = (
        Message(role="user", content=before), Message(role="assistant", content="b"), Message(role="user", content=text)
    )  # fmt: skip
    found, lost = fit(ours, turns)
    fits = len(ours.prompt_ids(turns)) <= room
    assert (lost == 0) == (found == turns)
    if fits:
        assert not lost
    elif lost:
        assert len(ours.prompt_ids(found)) <= room
        assert fit(ours, found) == (found, 0)
        assert sum(a != b for a, b in zip(found, turns, strict=True)) == 1
        assert found[1] == turns[1]
    assert fit(plain, turns) == (turns, 0), "a contract that does not ask for it cuts nothing"


_PLAIN: list[Renderer] = []


def _plain(factory: pytest.TempPathFactory) -> Renderer:
    if not _PLAIN:
        _PLAIN.append(renderer(factory.mktemp("plain"), task="generation", system=""))
    return _PLAIN[0]


def test_a_prompt_that_no_cut_makes_fit_is_refused(tmp_path: Path) -> None:
    plain = renderer(tmp_path, labels=("a", "b"))
    ours = plain.under(plain.contract.model_copy(update={"too_long": "cut_end", "max_prompt_tokens": 10}))
    asker = Asker(ours.contract, ours, Recording())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="10 fit beside the answer"):
        asker.answer_text("what is it " * 9)


def test_a_conversation_that_may_not_be_cut_goes_where_the_server_would_cut_its_prompt(tmp_path: Path) -> None:
    """Its turns are learned, so they stay as they are; the row as a whole would fit, beside its own short answer."""
    long_answer = "please call me about the refund of the parcel " * 8
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{text_of(1)[:20]} {n}"},
                {"role": "assistant", "content": long_answer},
            ]
        }
        for n in range(24)
    ]
    turns = ["the order has not come " * 15 + "7", "why", "the money is not back " * 15, "no"]
    rows.append({"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    seen = {}
    for too_long in ("cut_middle", "drop"):
        recipe = resolved(
            tmp_path, path="data.jsonl", task="generation", input="", label="", system="", max_length=256,
            too_long=too_long,
        )  # fmt: skip
        entry = recipe.recipe.entry.model_copy(update={"roles_to_train": ("user", "assistant")})
        data = recipe.recipe.data.model_copy(update={"train": (entry,)})
        recipe = recipe.model_copy(update={"recipe": recipe.recipe.model_copy(update={"data": data})})
        report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
        seen[too_long] = [(fate.line, fate.reason, fate.detail) for fate in report.fates if fate.line == 25]
        room = opened(tmp_path).contract.max_prompt_tokens
        assert (room is None) == (too_long == "drop")
    assert not seen["drop"], "uncut, and no server would cut it"
    ((_, reason, detail),) = seen["cut_middle"]
    assert reason == "too_long"
    assert re.fullmatch(r"its prompt has \d+ tokens, there is room for \d+", detail)
