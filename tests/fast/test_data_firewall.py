"""Nothing that was learned counts as a test: equal and like texts and groups are found, marked, and kept apart."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from data_kit import resolved, tokenizer_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_prepare import balanced, run, shards, write

from luthier.data.goldens import read_goldens
from luthier.data.near import jaccard, shingles
from luthier.data.prepare import prepare
from luthier.errors import DataError
from luthier.pipeline.explain import data_lines
from luthier.report.data import render_data
from luthier.store.runs import RunFolder

LABELS = ("order", "refund", "return")


def texts(count: int, seed: int = 0) -> list[str]:
    """Messages that have nothing to do with each other."""
    draw = random.Random(seed)
    return [
        " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(3, 8))) for _ in range(9))
        for _ in range(count)
    ]


def rows_of(messages: list[str], *, first: int = 0) -> list[dict[str, str]]:
    return [{"message": text, "intent": LABELS[n % 3], "customer": f"C{first + n}"} for n, text in enumerate(messages)]


def changed(text: str, last: str = "violin") -> str:
    """The same with another last word: like the old one, and not equal."""
    return text.rsplit(" ", 1)[0] + f" {last}"


def test_test_rows_are_marked_and_validation_rows_set_aside(tmp_path: Path) -> None:
    train = rows_of(texts(60))
    own = texts(20, seed=1)
    test = [
        {**train[0], "customer": "N1"},
        {**train[1], "message": changed(train[1]["message"]), "customer": "N2"},
        {**train[2], "message": changed(train[2]["message"]), "intent": train[0]["intent"], "customer": "N3"},
        {"message": own[0], "intent": "order", "customer": train[4]["customer"]},
        {"message": changed(own[1]), "intent": "order", "customer": "N4"},
        {"message": own[2], "intent": "order", "customer": "N5"},
    ]
    validation = [
        {"message": changed(train[6]["message"]), "intent": train[6]["intent"], "customer": "N6"},
        {"message": own[1], "intent": "order", "customer": "N7"},
    ]
    write(tmp_path / "test.csv", test)
    write(tmp_path / "validation.csv", validation)
    own_files: dict[str, Any] = {"test": "test.csv", "validation": "validation.csv", "split": {"group_by": "customer"}}
    report = run(tmp_path, train, leakage={"near": 0.7}, **own_files)
    assert balanced(report)
    marks = {one.line: one.contaminated for one in shards(tmp_path)["test"]}
    # Line 4 has another label than the row that it is like, which gives nothing away; line 6 is like a validation row.
    assert marks == {2: "exact", 3: "near", 4: "", 5: "group", 6: "near", 7: ""}
    assert [(one.split, one.exact, one.near, one.group) for one in report.leakage] == [
        ("validation", 0, 1, 0), ("test", 1, 2, 1),
    ]  # fmt: skip
    assert [(fate.file, fate.line, fate.reason) for fate in report.fates] == [("validation.csv", 2, "leaked_near")]
    assert (report.splits["test"].rows, report.splits["test"].contaminated) == (6, 4)
    assert {one.contaminated for one in shards(tmp_path)["train"]} == {""}
    assert len(shards(tmp_path)["train"]) == 60

    report = run(tmp_path, train, leakage={"near": False}, **own_files)
    assert [(one.exact, one.near, one.group) for one in report.leakage] == [(0, 0, 0), (1, 0, 1)]


def test_goldens_are_never_contaminated(tmp_path: Path) -> None:
    train = rows_of(texts(30))
    clean = {"message": "the one clean row of the file", "intent": "order", "customer": "N"}
    write(tmp_path / "test.csv", [*train[:20], clean])
    run(tmp_path, train, test="test.csv", leakage={"near": 0.8})
    goldens = read_goldens(tmp_path / "out" / "goldens.json")
    assert [one.text for one in goldens if one.name.startswith("real")] == [clean["message"]]


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 30))
def test_a_draw_keeps_like_rows_in_one_split(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("draw")
    messages = texts(40)
    messages += [changed(text) for text in messages[:20]] + [changed(text, "viola") for text in messages[:5]]
    rows = rows_of(messages)  # the labels of like rows may differ: they stay together all the same
    report = run(folder, rows, leakage={"near": 0.7}, seed=seed)
    assert report.rows_left_apart == 0
    assert all(leak.rows == 0 for leak in report.leakage)
    split_of = {one.text: split for split, ones in shards(folder).items() for one in ones}
    for text in messages[:20]:
        assert jaccard(shingles(text), shingles(changed(text))) >= 0.7
        assert split_of[text] == split_of[changed(text)]
    assert "near-duplicates (likeness 0.7) too" in report.split_rule


def test_groups_that_like_rows_link_are_drawn_as_one(tmp_path: Path) -> None:
    messages = texts(40)
    rows = [*rows_of(messages), *rows_of([changed(messages[0])])]
    rows[1]["customer"] = rows[0]["customer"]  # C0 has rows 0 and 1
    rows[40]["customer"] = rows[2]["customer"]  # C2 has row 2 and one that is like row 0
    for seed in range(10):
        run(tmp_path, rows, split={"group_by": "customer"}, leakage={"near": 0.7}, seed=seed)
        split_of = {one.line - 2: split for split, ones in shards(tmp_path).items() for one in ones}
        assert len({split_of[row] for row in (0, 1, 2, 40)}) == 1


def test_a_chain_too_long_to_be_kept_together_is_left_apart_and_marked(tmp_path: Path) -> None:
    messages = texts(30)
    text = messages[0].rsplit(" ", 1)[0]
    rows = rows_of([*messages, *(f"{text} {word}" for word in texts(1, seed=9)[0].split() + messages[1].split())])
    for row in rows[30:]:
        row["intent"] = rows[0]["intent"]
    report = run(tmp_path, rows, leakage={"near": 0.7}, split={"test": 0.4, "validation": 0.1})
    assert balanced(report)
    assert report.rows_left_apart == 19
    assert sum(one.near for one in report.leakage) > 0
    for one in shards(tmp_path)["test"]:
        assert (one.contaminated == "near") == one.text.startswith(text)


def test_rows_that_stand_in_a_benchmark_are_not_learned(tmp_path: Path) -> None:
    train = rows_of(texts(60))
    ours = [{"message": train[0]["message"].upper(), "x": "1"}, {"message": changed(train[3]["message"]), "x": "2"}]
    write(tmp_path / "ours.csv", ours)
    other = {"id": "a", "question": train[6]["message"], "choices": ["short", train[9]["message"]]}
    write(
        tmp_path / "other.jsonl", [other, {"id": "b", "question": "something else entirely, to be sure", "choices": []}]
    )
    files = ["ours.csv", "other.jsonl"]
    held_out = rows_of(texts(10, seed=3), first=100)
    held_out[0] = {**train[0], "customer": "N"}
    write(tmp_path / "test.csv", held_out)
    report = run(tmp_path, train, test="test.csv", leakage={"near": 0.7, "benchmarks": files})
    assert balanced(report)
    found = {fate.line: fate.detail for fate in report.fates if fate.reason == "benchmark"}
    assert {line: detail.partition(",")[0] for line, detail in found.items()} == {
        2: "stands in ours.csv:2", 5: "stands in ours.csv:3", 8: "stands in other.jsonl:1",
        11: "stands in other.jsonl:1",
    }  # fmt: skip
    assert ", likeness 0." in found[5]
    assert [(one.file, one.rows, one.exact, one.near) for one in report.benchmarks] == [
        ("ours.csv", 2, 1, 1), ("other.jsonl", 2, 1, 1),
    ]  # fmt: skip
    assert set(files) < set(report.source_sha256)
    assert len(shards(tmp_path)["test"]) == 10, "only rows of train are kept off benchmarks"
    assert not shards(tmp_path)["test"][0].contaminated, "the row that it repeats is no longer learned"
    report = run(tmp_path, train, test="test.csv", leakage={"near": False, "benchmarks": files})
    assert [(one.exact, one.near) for one in report.benchmarks] == [(1, 0), (1, 0)]


@pytest.mark.parametrize("dedupe", [0.8, False])
def test_a_crowd_hides_no_leak(tmp_path: Path, dedupe: float | bool) -> None:
    """Form letters: a row has more like it in its own split than it is ever compared with."""
    letter = "dear customer your order number {:07} has been sent to you today, thank you for waiting so long"
    crowd = [{"message": letter.format(1000 * n), "intent": "order", "customer": f"A{n}"} for n in range(120)]
    alone = {"message": letter.format(999), "intent": "order", "customer": "B"}
    other = rows_of(texts(60), first=500)
    clean = rows_of(texts(6, seed=7), first=900)
    cases = {"t": ([*other, *crowd], [alone, *clean]), "u": ([*other, alone], [*crowd, *clean])}
    for name, (train, test) in cases.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "test.csv", test)
        run(tmp_path / name, train, test="test.csv", dedupe={"near": dedupe}, leakage={"near": 0.8})
        letters = [row for row in shards(tmp_path / name)["test"] if row.text.startswith("dear")]
        assert letters
        assert {row.contaminated for row in letters} == {"near"}


@pytest.mark.parametrize("action", ["report", "redact", "pseudonymise"])
def test_rows_of_a_benchmark_are_found_whatever_became_of_personal_data(
    tmp_path: Path, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_PRIVACY_KEY", "k" * 32)
    train = rows_of([f"{text} write to ana.lopez{n}@shop.example" for n, text in enumerate(texts(60))])
    write(tmp_path / "bench.csv", [{"question": row["message"]} for row in train])
    rules = {"action": action, "secrets": "redact", "profile": "fast"}
    write(tmp_path / "test.csv", rows_of(texts(10, seed=3), first=100))
    with pytest.raises(DataError, match="54 benchmark"):
        run(tmp_path, train, test="test.csv", leakage={"near": 0.8, "benchmarks": ["bench.csv"]}, privacy=rules)


def test_conversations_are_kept_off_benchmarks(tmp_path: Path) -> None:
    def chat(number: int, text: str) -> dict[str, Any]:
        said = [("system", "Be kind."), ("user", text), ("assistant", f"It is {number}.")]
        return {"messages": [{"role": role, "content": content} for role, content in said]}

    questions = texts(40)
    chats = [chat(number, text) for number, text in enumerate(questions)]
    write(tmp_path / "plain.jsonl", [{"question": text} for text in questions[:6]])
    write(tmp_path / "chats.jsonl", chats[10:15])
    rules = {"near": 0.8, "benchmarks": ["plain.jsonl", "chats.jsonl"]}
    report = run(tmp_path, chats, path="data.jsonl", task="generation", input="", label="", leakage=rules)
    found = {fate.line for fate in report.fates if fate.reason == "benchmark"}
    held = {row.line for split in ("validation", "test") for row in shards(tmp_path)[split]}
    assert found | held >= {1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15}
    assert len(found) > 5
    assert [one.rows for one in report.benchmarks] == [6, 5]


def test_the_terminal_tells_what_was_found(tmp_path: Path) -> None:
    train = rows_of(texts(30))
    train[4] = {**train[0], "message": changed(train[0]["message"]), "intent": train[1]["intent"]}
    write(tmp_path / "bench.csv", [train[9]])
    like = {**train[2], "message": changed(train[2]["message"])}
    write(tmp_path / "test.csv", [train[0], like, *rows_of(texts(3, 1), first=50)])
    rules: dict[str, Any] = {
        "dedupe": {"near": 0.7},
        "leakage": {"near": 0.7, "benchmarks": ["bench.csv"]},
        "test": "test.csv",
    }
    report = run(tmp_path, train, **rules)
    lines = data_lines(report, RunFolder(tmp_path))
    assert not any("chains" in line for line in lines)
    more = data_lines(report.model_copy(update={"rows_left_apart": 7}), RunFolder(tmp_path))
    assert "  7 rows form chains of near-duplicates too long to be kept in one split" in more
    assert "  seen in training: 1 rows of test by text, 1 nearly, 0 by group; marked, they do not count" in lines
    assert "  benchmark bench.csv: 1 rows of train stand in it, 0 nearly; set aside" in lines
    assert "  nearly the same text under other labels: 1, data.csv:6 and data.csv:2" in lines


def test_rows_of_several_files_are_told_with_their_files(tmp_path: Path) -> None:
    """Line 3 of one file stands for another row than line 3 of the next."""
    rows = rows_of(texts(40))
    one, other = rows[:20], rows[20:]
    other[1] = {**one[1], "customer": "N1"}  # equal
    other[2] = {**one[2], "message": changed(one[2]["message"]), "customer": "N2"}  # nearly
    other[3] = {**one[3], "message": changed(one[3]["message"]), "intent": one[4]["intent"], "customer": "N3"}
    (tmp_path / "files").mkdir()
    for name, some in (("a", one), ("b", other)):
        write(tmp_path / "files" / f"{name}.csv", some)
    recipe = resolved(tmp_path, path="files", dedupe={"near": 0.7})
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    assert [(kind.file, kind.line, kind.of_file, kind.of_line) for kind in report.duplicates] == [
        ("files/b.csv", 3, "files/a.csv", 3),
        ("files/b.csv", 4, "files/a.csv", 4),
    ]
    assert report.near is not None
    ((conflict),) = report.near.conflicts
    assert (conflict.file, conflict.line, conflict.of_file, conflict.of_line) == ("files/b.csv", 5, "files/a.csv", 5)
    page = render_data(report)
    assert "files/b.csv:3</td>" in page
    assert "files/a.csv:3</td>" in page
    told = "  nearly the same text under other labels: 1, files/b.csv:5 and files/a.csv:5"
    assert told in data_lines(report, RunFolder(tmp_path))


def test_rows_whose_crowd_was_not_compared_whole_are_counted(tmp_path: Path) -> None:
    def orders(first: int, count: int) -> list[dict[str, str]]:
        numbers = range(first, first + 1000 * count, 1000)
        said = [f"your order number {number:07} has been sent to you today" for number in numbers]
        return [{"message": text, "intent": "order", "customer": f"D{first}-{n}"} for n, text in enumerate(said)]

    write(tmp_path / "test.csv", [*orders(500, 3), *rows_of(texts(2, seed=1), first=90)])
    write(tmp_path / "bench.csv", orders(250, 30))
    rules: dict[str, Any] = {"test": "test.csv", "split": {"validation": 0.01}}
    train = [*rows_of(texts(30)), *orders(0, 60)]
    report = run(tmp_path, train, leakage={"near": 0.7}, **rules)
    (test,) = (one for one in report.leakage if one.split == "test")
    assert (test.near, test.crowded) == (3, 3)
    page = render_data(report)
    assert "3 rows of the test split have so many like candidates in training that only the likeliest were" in page

    report = run(tmp_path, train, leakage={"near": 0.7, "benchmarks": ["bench.csv"]}, **rules)
    (overlap,) = report.benchmarks
    assert overlap.near == overlap.crowded == 59  # one row was drawn for validation
    assert "59 rows of train have so many like candidates in bench.csv that only the likeliest" in render_data(report)
    few = run(tmp_path, [*rows_of(texts(30)), *orders(0, 3)], leakage={"near": 0.7}, **rules)
    assert [one.crowded for one in few.leakage] == [0, 0]


def test_a_benchmark_without_texts_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "data.csv", rows_of(texts(30)))
    write(tmp_path / "bench.csv", [{"id": "1", "answer": "B"}])
    recipe = resolved(tmp_path, leakage={"benchmarks": ["bench.csv"]})
    with pytest.raises(DataError, match=r"bench\.csv has no cell of 20 characters or more[^$]*-> name a file that"):
        prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    recipe = resolved(tmp_path, leakage={"benchmarks": ["none.csv"]})
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
