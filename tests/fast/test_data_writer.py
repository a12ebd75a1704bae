"""A teacher elsewhere writes answers: asked once, within a budget, about nothing private or kept back, and judged."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import samples
from data_kit import tokenizer_folder
from echo_engine import LABELS as LETTERS
from echo_engine import asker
from openai_fake import Fake, serving
from test_data_prepare import run, shards, tickets, write
from test_serve_openai import serving as serving_version

from command import call
from luthier.data.profile import profile
from luthier.data.shards import Example
from luthier.data_report import DataReport, TaughtRows
from luthier.errors import DataError, RecipeError, SecretFound
from luthier.plan.workload import workload
from luthier.spec.asking import refuse_unfit_writer
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe, load_recipe
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import resolve

LABELS = {"late": "order", "broken": "refund"}


def kind(system: str, user: str) -> str:
    return next((label for word, label in LABELS.items() if word in user), "return")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    with serving(kind) as one:
        yield one


def rules(fake: Fake, **more: Any) -> dict[str, Any]:
    return {"endpoint": fake.url, "model": "m", **more}


def unlabelled(folder: Path, *texts: str) -> str:
    rows = [{"message": text} for text in texts or [f"the thing {n} is late" for n in range(5)]]
    write(folder / "more.csv", rows)
    return "more.csv"


def told(report: DataReport) -> TaughtRows:
    assert report.teacher is not None
    assert report.rows_in + report.rows_added == report.rows_out + sum(report.dropped.values())
    return report.teacher


def written(folder: Path) -> list[Example]:
    return [row for row in shards(folder)["train"] if row.made_by == "teacher"]


FREE: dict[str, Any] = {"task": "generation", "label": "intent"}


def test_rows_without_answers_join_training_with_those_of_the_teacher(tmp_path: Path, fake: Fake) -> None:
    path = unlabelled(tmp_path, "it is late 1", "it is broken 2", "nothing 3")
    before = run(tmp_path, tickets())
    report = run(tmp_path, tickets(), teacher=rules(fake, path=path))
    found = told(report)
    assert [(row.text, row.answer, row.line) for row in written(tmp_path)] == [
        ("it is late 1", "order", 2), ("it is broken 2", "refund", 3), ("nothing 3", "return", 4),
    ]  # fmt: skip
    assert (found.file, found.available, found.rows, found.rewritten, found.kept) == ("more.csv", 3, 3, 0, 0)
    assert found.labels == {"order": 1, "refund": 1, "return": 1}
    assert found.endpoint.model_dump(exclude={"endpoint", "model"}) == {
        "requests": 3, "from_cache": 0, "tokens": 90, "unanswered": 0,
    }  # fmt: skip
    assert {name: split.rows for name, split in report.splits.items()} == {
        name: split.rows + 3 * (name == "train") for name, split in before.splits.items()
    }
    assert report.source_sha256.keys() == {"data.csv", "more.csv"}
    assert (found.examples[0].before, found.examples[0].after) == ("it is late 1", "order")
    bodies = [body["messages"] for body in fake.asked]
    assert [one[-1]["content"] for one in bodies] == ["it is late 1", "it is broken 2", "nothing 3"]
    assert bodies[0][0]["content"].endswith("Answer with one of these labels and nothing else: order, refund, return.")
    again = run(tmp_path, tickets(), teacher=rules(fake, path=path))
    assert (len(fake.asked), told(again).endpoint.from_cache) == (3, 3)
    folder = tmp_path / "home" / "answers"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert any("teacher: 3 of 3 rows of more.csv answered" in line for line in lines(again))


def lines(report: DataReport) -> list[str]:
    from luthier.pipeline.explain import _added

    return _added(report)


@pytest.mark.parametrize(
    ("said", "answer"),
    [("Order", "order"), ('"refund".', "refund"), (" `RETURN`\n", "return"), ("order and refund", ""), ("", "")],
)
def test_a_label_is_known_whatever_stands_around_it_and_nothing_else_is(
    tmp_path: Path, fake: Fake, said: str, answer: str
) -> None:
    fake.reply = lambda system, user: said
    found = told(run(tmp_path, tickets(), teacher=rules(fake, path=unlabelled(tmp_path, "one text"))))
    assert [row.answer for row in written(tmp_path)] == ([answer] if answer else [])
    assert found.dropped == ({} if answer else {"not_a_label" if said else "empty": 1})


def test_rows_of_groups_that_are_kept_back_are_not_asked_about(tmp_path: Path, fake: Fake) -> None:
    rows = [{**row, "customer": f"c{number % 12}"} for number, row in enumerate(tickets())]
    write(tmp_path / "more.csv", [{"message": f"other words {n}", "customer": f"c{n}"} for n in range(14)])
    split = {"test": 0.3, "validation": 0.2, "group_by": "customer", "stratify": False}
    report = run(tmp_path, rows, split=split, teacher=rules(fake, path="more.csv"))
    found = told(report)
    assert 0 < found.dropped["group_kept_back"] < 12
    assert found.rows == 14 - found.dropped["group_kept_back"] == len(fake.asked)
    held = {row.group for name in ("validation", "test") for row in shards(tmp_path)[name]}
    assert not held & {row.group for row in written(tmp_path)}


def test_what_is_cut_off_refused_or_over_budget_is_counted(tmp_path: Path, fake: Fake) -> None:
    fake.finish = "length"
    path = unlabelled(tmp_path)
    found = told(run(tmp_path, tickets(), teacher=rules(fake, path=path)))
    assert (found.rows, found.dropped) == (0, {"cut_off": 5})
    again = told(run(tmp_path, tickets(), teacher=rules(fake, path=path)))
    assert (again.dropped, again.endpoint.from_cache) == ({"cut_off": 5}, 5)
    fake.finish = "content_filter"
    found = told(run(tmp_path, tickets(), teacher=rules(fake, path=path, model="filtered")))
    assert (found.rows, found.dropped) == (0, {"refused": 5})
    fake.finish, fake.refusal = "stop", "I may not"
    found = told(run(tmp_path, tickets(), teacher=rules(fake, path=path, model="other")))
    assert (found.rows, found.dropped) == (0, {"refused": 5})
    fake.refusal = None
    found = told(run(tmp_path, tickets(), teacher=rules(fake, path=path, model="third", max_requests=2)))
    assert (found.rows, found.endpoint.requests, found.endpoint.unanswered) == (2, 2, 3)
    found = told(run(tmp_path, tickets(), teacher=rules(fake, path=path, model="third", max_requests=2)))
    assert (found.rows, found.endpoint.from_cache, found.endpoint.unanswered) == (4, 2, 1), "it goes on where it ended"


def test_rows_that_stand_elsewhere_are_not_asked_about(tmp_path: Path, fake: Fake) -> None:
    run(tmp_path, tickets())
    splits = shards(tmp_path)
    held = [rows[0].text for rows in splits.values()]
    near = splits["test"][0].text + " "
    path = unlabelled(tmp_path, *held, near.replace(" ", "  "), "a new text", "a new text", " ")
    found = told(run(tmp_path, tickets(), teacher=rules(fake, path=path)))
    assert [body["messages"][-1]["content"] for body in fake.asked] == ["a new text"]
    assert found.dropped == {"empty_input": 1, "repeated": 1, "stands_in_the_data": 4}
    long = "where is the parcel that was promised for the birthday of the child next week, number "
    rows = [*tickets(), *({"message": f"{long}{n * 37}", "intent": "order", "customer": f"L{n}"} for n in range(12))]
    run(tmp_path, rows, leakage={"near": 0.8})
    tested = [row.text for row in shards(tmp_path)["test"] if row.text.startswith(long)]
    assert tested
    path = unlabelled(tmp_path, tested[0] + "1", "quite another text")
    found = told(run(tmp_path, rows, leakage={"near": 0.8}, teacher=rules(fake, path=path)))
    assert found.dropped == {"nearly_in_the_data": 1}
    write(tmp_path / "bench.csv", [{"message": "quite another text"}])
    found = told(run(tmp_path, tickets(), leakage={"benchmarks": ["bench.csv"]}, teacher=rules(fake, path=path)))
    assert "benchmark" in next(iter(found.dropped))


def test_personal_data_is_seen_to_before_it_is_sent_and_when_it_comes_back(tmp_path: Path, fake: Fake) -> None:
    path = unlabelled(tmp_path, "mail ana@example.org, it is late")
    with pytest.raises(DataError, match=r"data\.teacher: 1 of the 1 rows .*\(email\).*more\.csv:2") as error:
        run(tmp_path, tickets(), teacher=rules(fake, path=path))
    assert "data.teacher.send_personal_data: true" in error.value.way_out
    assert not fake.asked
    report = run(tmp_path, tickets(), privacy={"action": "redact"}, teacher=rules(fake, path=path))
    assert [body["messages"][-1]["content"] for body in fake.asked] == ["mail [EMAIL], it is late"]
    assert told(report).findings == report.findings == {"email": 1}
    run(tmp_path, tickets(), teacher=rules(fake, path=path, send_personal_data=True))
    assert fake.asked[-1]["messages"][-1]["content"] == "mail ana@example.org, it is late"
    fake.reply = lambda system, user: "write to bob@example.org"
    found = told(run(tmp_path, tickets(), teacher=rules(fake, path=unlabelled(tmp_path, "whom to ask?")), **FREE))
    assert (found.rows, found.dropped) == (0, {"personal_data": 1})


def test_no_turn_of_a_conversation_is_sent_unseen_and_no_secret_at_all(tmp_path: Path, fake: Fake) -> None:
    said = ["mail ana@example.org", "sure", "thanks", "welcome"]
    chats = [
        {"messages": [{"role": ("user", "assistant")[k % 2], "content": f"{text} {n}"} for k, text in enumerate(said)]}
        for n in range(40)
    ]
    chat: dict[str, Any] = {"path": "c.jsonl", "task": "generation", "input": None, "label": "messages"}
    with pytest.raises(DataError, match=r"hold personal data \(email\)"):
        run(tmp_path, chats, teacher=rules(fake, rewrite=True), **chat)
    clean = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "welcome"}]
    under = [{"messages": [{"role": "system", "content": f"You help ana@example.org {n}"}, *clean]} for n in range(40)]
    with pytest.raises(DataError, match=r"hold personal data \(email\)"):
        run(tmp_path, under, teacher=rules(fake, rewrite=True), **chat)
    path = unlabelled(tmp_path, "the key is AKIA" + "IOSFODNN7EXAMPLE")
    with pytest.raises(SecretFound, match=r"more\.csv"):
        run(tmp_path, tickets(), teacher=rules(fake, path=path))
    assert not fake.asked


def test_training_rows_get_the_answers_of_the_teacher_and_no_others_do(tmp_path: Path, fake: Fake) -> None:
    fake.reply = lambda system, user: f"said of {user[-2:]}" if "late" in user else ""
    run(tmp_path, tickets(), **FREE)
    before = shards(tmp_path)
    report = run(tmp_path, tickets(), teacher=rules(fake, rewrite=True), **FREE)
    after, found = shards(tmp_path), told(report)
    assert after["test"] == before["test"]
    assert after["validation"] == before["validation"]
    for old, new in zip(before["train"], after["train"], strict=True):
        assert new.text == old.text
        assert new.answer == (f"said of {old.text[-2:]}".strip() if "late" in old.text else old.answer)
    assert found.rewritten == sum("late" in row.text for row in before["train"]) > 0
    assert (found.file, found.rows, found.rewritten + found.kept) == ("", 0, len(before["train"]))
    assert found.dropped == {"empty": found.kept}


def test_conversations_are_rewritten_in_their_last_turn(tmp_path: Path, fake: Fake) -> None:
    fake.reply = lambda system, user: f"{system}|better {user}"
    turns = [
        [{"role": r, "content": f"{r[0]} {n} {k}"} for k in range(2) for r in ("user", "assistant")] for n in range(40)
    ]
    chats = [{"messages": one} for one in turns]
    report = run(tmp_path, chats, path="c.jsonl", task="generation", input=None, label="messages", teacher=rules(
        fake, rewrite=True, system="Be brief."))  # fmt: skip
    assert told(report).rewritten == len(shards(tmp_path)["train"])
    assert all(row.answer.startswith("Be brief.|better u ") for row in shards(tmp_path)["train"])
    roles = {tuple(message["role"] for message in body["messages"]) for body in fake.asked}
    assert roles == {("system", "user", "assistant", "user")}


@pytest.mark.parametrize(
    ("system", "sent"),
    [
        (None, ("Sort it.\nAnswer with one of these labels and nothing else: order, refund, return.", "it is late")),
        ("Which?", ("Which?", "it is late")),
        ("", ("it is late",)),
    ],
)
def test_the_teacher_is_asked_under_its_own_system_prompt(
    tmp_path: Path, fake: Fake, system: str | None, sent: tuple[str, ...]
) -> None:
    path = unlabelled(tmp_path, "it is late")
    run(tmp_path, tickets(), system="Sort it.", teacher=rules(fake, path=path, system=system, temperature=0.5))
    (body,) = fake.asked
    assert tuple(one["content"] for one in body["messages"]) == sent
    assert (body["temperature"], body["model"]) == (0.5, "m")
    assert body["max_tokens"] == len("refund") + 32
    assert written(tmp_path)[0].answer == "order"


@pytest.mark.parametrize(
    ("entry", "data", "words"),
    [
        ({"task": "preference", "rejected": "note"}, {"path": "more.csv"}, "has two"),
        ({"task": "domain"}, {"rewrite": True}, "has none"),
        ({}, {"rewrite": True}, "would put a model's labels in the place"),
        ({"features": {"size": "length(message)"}}, {"path": "more.csv"}, "data.features computes"),
    ],
    ids=["pairs", "documents", "labels", "features"],
)
def test_what_cannot_be_answered_is_refused(entry: dict[str, Any], data: dict[str, Any], words: str) -> None:
    features = entry.pop("features", {})
    usual = {"path": "d.csv", "task": "classification", "input": "{message}", "label": "intent", "name": "n"}
    teacher = {"endpoint": "http://127.0.0.1:1/v1", "model": "m", **data}
    recipe = samples.recipe(data={"train": [usual | entry], "teacher": teacher, "features": features})
    with pytest.raises(RecipeError, match=words):
        refuse_unfit_writer(recipe)


def test_a_recipe_that_cannot_be_is_refused_where_it_is_resolved() -> None:
    teacher = {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "rewrite": True}
    with pytest.raises(RecipeError, match="would put a model's labels in the place"):
        samples.resolved(data={"train": [{"path": "support.csv"}], "teacher": teacher})


def test_what_the_section_refuses_by_line(tmp_path: Path) -> None:
    head = "name: r\nmodel: m\ndata:\n  train: d.csv\n"
    for text, words in (
        ("  teacher: {endpoint: 'http://h/v1', model: m}\n", "needs rows to answer"),
        ("  teacher: {endpoint: 'ftp://h', model: m, rewrite: true}\n", "is a URL such as"),
    ):
        (tmp_path / "r.yaml").write_text(head + text, encoding="utf-8")
        with pytest.raises(RecipeError, match=words) as error:
            load_recipe(tmp_path / "r.yaml")
        assert "r.yaml:5" in error.value.what
    several = head.replace("d.csv", "[{path: a.csv, name: a}, {path: b.csv, name: b}]")
    (tmp_path / "r.yaml").write_text(f"{several}  teacher: {{endpoint: 'http://h/v1', model: m, rewrite: true}}\n")
    with pytest.raises(RecipeError, match="the answers of one task"):
        load_recipe(tmp_path / "r.yaml")


def test_a_column_that_is_not_there_and_a_damaged_answer_are_named(tmp_path: Path, fake: Fake) -> None:
    write(tmp_path / "more.csv", [{"text": "it is late"}])
    with pytest.raises(DataError, match=r"more\.csv: data\.teacher\.path names the column 'message'"):
        run(tmp_path, tickets(), teacher=rules(fake, path="more.csv"))
    path = unlabelled(tmp_path, "it is late")
    run(tmp_path, tickets(), teacher=rules(fake, path=path))
    (kept,) = (tmp_path / "home" / "answers").iterdir()
    for damage in (b"{", b"[1]", b"{}"):
        kept.write_bytes(damage)
        with pytest.raises(DataError, match="is damaged"):
            run(tmp_path, tickets(), teacher=rules(fake, path=path))
    kept.write_text(json.dumps({"text": "order", "whole": True}))  # as an earlier version wrote it
    assert told(run(tmp_path, tickets(), teacher=rules(fake, path=path))).rows == 1


def test_labels_that_an_answer_cannot_tell_apart_are_refused(tmp_path: Path, fake: Fake) -> None:
    rows = [{**row, "intent": row["intent"].upper() if n % 2 else row["intent"]} for n, row in enumerate(tickets())]
    with pytest.raises(DataError, match="differ only in case"):
        run(tmp_path, rows, teacher=rules(fake, path=unlabelled(tmp_path)))


def test_offspring_of_its_rows_stay(tmp_path: Path, fake: Fake) -> None:
    path = unlabelled(tmp_path)
    run(tmp_path, tickets(), teacher=rules(fake, path=path), augment={"case": 1.0, "max_per_row": 1})
    parents = {row.parent for row in shards(tmp_path)["train"] if row.made_by == "case"}
    assert {f"more.csv:{line}" for line in range(2, 7)} <= parents


def test_offline_a_teacher_elsewhere_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    tokenizer_folder(tmp_path / "tokenizer")
    (tmp_path / "r.yaml").write_text(
        "name: r\nmodel: nothing\ndata:\n  train: nowhere.csv\n"
        "  teacher: {endpoint: 'https://api.example.com/v1', model: m, rewrite: true}\n"
    )
    done = call("check", "r.yaml", cwd=tmp_path)
    done.fails(2, "data.teacher.endpoint: offline", "api.example.com")


def test_a_version_that_is_served_here_may_be_the_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a key, and under the prompt that it was tuned with."""
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TEACHER_KEY", "sk-teacher")
    rows = [{**row, "intent": LETTERS[n % 3]} for n, row in enumerate(tickets())]
    path = unlabelled(tmp_path, "ggg ggg ggg", "kkk kkk kkk kkk")
    with serving_version(asker(2.0), api_keys=frozenset({"sk-teacher"})) as address:
        teacher = {"endpoint": f"{address}/v1", "model": "letters@production", "key_env": "TEACHER_KEY"}
        found = told(run(tmp_path, rows, teacher=teacher | {"path": path, "system": ""}))
        expected = [asker(2.0).answer_text(text).text for text in ("ggg ggg ggg", "kkk kkk kkk kkk")]
    assert [row.answer for row in written(tmp_path)] == expected == ["ggg", "kkk"]
    assert found.endpoint.tokens > 0
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(RecipeError, match=r"data\.teacher\.key_env: TEACHER_KEY is not set"):
        run(tmp_path, rows, teacher=teacher | {"path": path})


def test_the_plan_counts_the_rows_that_will_be_answered(tmp_path: Path) -> None:
    write(tmp_path / "data.csv", tickets(120))
    write(tmp_path / "more.csv", [{"message": row["message"], "x": "order", "y": "C00"} for row in tickets(60)])

    def tokens(**teacher: Any) -> int:
        data: dict[str, Any] = {"train": [{"path": "data.csv", "input": "{message}", "label": "intent"}]}
        if teacher:
            data["teacher"] = {"endpoint": "http://127.0.0.1:1/v1", "model": "m", **teacher}
        recipe = Recipe.model_validate({"name": "r", "model": {"name": "m"}, "data": data, "method": {"type": "sft"}})
        found = profile(tmp_path / "data.csv")
        made = resolve(
            LoadedRecipe(recipe, tmp_path / "r.yaml", "", ()), found, samples.shape(), machine=Machine(threads=1),
            data_sha256={}, luthier_version="0",
        )  # fmt: skip
        return workload(made, found, tokens_per_char=0.25).trained_tokens

    plain = tokens()
    assert tokens(path="more.csv") == pytest.approx(plain * (1 + 60 / 86), rel=0.1)
    assert tokens(path="more.csv", max_requests=10) == pytest.approx(plain * (1 + 10 / 86), rel=0.05)
