"""Offspring of training rows: of train only, by chance that hangs on the row alone, checked like rows of a file."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import samples
from data_kit import resolved, shape, tokenizer_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_prepare import run, shards, tickets, write

from luthier.data.augment import row_name, set_orphans_aside
from luthier.data.contract import Renderer
from luthier.data.items import Item, Ledger
from luthier.data.prepare import prepare
from luthier.data.profile import profile
from luthier.data.shards import Example
from luthier.data_report import DataReport
from luthier.errors import DataError, RecipeError
from luthier.plan.workload import made_rows, workload
from luthier.spec.filler import Machine
from luthier.spec.load import load_recipe
from luthier.spec.recipe import Augment
from luthier.spec.resolve import resolve

SWAPS = [["guitar", "cello", "flute"], ["money", "cash"], ["broken", "cracked"]]
MIX = {"typos": 0.3, "case": 0.2, "punctuation": 0.2, "swap": 0.2, "swaps": SWAPS}


def asking(count: int) -> list[dict[str, str]]:
    """Tickets that end in a word and a mark."""
    return [{**row, "message": f"{row['message']}, can you help?"} for row in tickets(count)]


def balanced(report: DataReport) -> bool:
    """As without offspring, with what was added counted apart."""
    steps = report.steps
    made = report.augmentation
    assert made is not None
    return (
        report.rows_in + report.rows_added == report.rows_out + sum(report.dropped.values())
        and len(report.fates) == sum(report.dropped.values())
        and all(one.rows_out == two.rows_in for one, two in itertools.pairwise(steps[1:]))
        and steps[-1].rows_out == report.rows_out == sum(split.rows for split in report.splits.values())
        and all(one.made == one.rows + sum(one.dropped.values()) for one in made.techniques)
        and all(sum(one.labels.values()) in (one.rows, 0) for one in made.techniques)
    )


def offspring(folder: Path) -> list[Example]:
    return [one for one in shards(folder)["train"] if one.made_by]


def test_each_technique_makes_its_share_and_every_offspring_knows_its_parent(tmp_path: Path) -> None:
    report = run(tmp_path, asking(200), split={"group_by": "customer"}, augment=MIX)
    assert balanced(report)
    assert report.augmentation is not None
    originals = report.augmentation.originals
    by_technique = {one.technique: one for one in report.augmentation.techniques}
    assert list(by_technique) == ["typos", "case", "punctuation", "swap"]
    assert {name: one.asked for name, one in by_technique.items()} == {
        name: round(float(MIX[name]) * originals)  # type: ignore[arg-type]
        for name in by_technique
    }
    assert by_technique["typos"].rows == by_technique["typos"].asked
    assert all(len(one.examples) == min(3, one.rows) for one in by_technique.values())
    train = shards(tmp_path)["train"]
    rows = {f"data.csv:{one.line}": one for one in train if not one.made_by}
    made = [one for one in train if one.made_by]
    assert Counter(one.made_by for one in made) == {name: one.rows for name, one in by_technique.items()}
    assert max(Counter(one.parent for one in made).values()) == 2, "max_per_row"
    asker = Renderer.open(tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json")
    for one in made:
        parent = rows[one.parent]
        assert one.text != parent.text
        assert (one.answer, one.group, one.line) == (parent.answer, parent.group, parent.line)
        assert asker.clean_text(one.text) == one.text, "asked again, it stays as it is"
        assert one.input_ids == asker.prompt_ids(asker.messages(one.text)) + asker.answer_ids(one.answer)
    assert len({(one.text, one.answer) for one in train}) == len(train), "nothing stands there twice"
    assert report == DataReport.read(tmp_path / "out" / "report.json")


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(order=st.randoms(use_true_random=False), seed=st.integers(0, 3))
def test_only_train_grows_and_the_order_of_rows_does_not_count(tmp_path: Path, order: Any, seed: int) -> None:
    rows = asking(90)
    run(tmp_path, rows)
    before = {name: (tmp_path / "out" / f"{name}.arrow").read_bytes() for name in ("validation", "test")}
    train = shards(tmp_path)["train"]
    run(tmp_path, rows, augment={**MIX, "seed": seed}, canaries={"count": 1, "copies": [0, 1, 4]})
    assert before == {name: (tmp_path / "out" / f"{name}.arrow").read_bytes() for name in before}
    assert [one for one in shards(tmp_path)["train"] if not one.made_by] == train
    texts = sorted((one.made_by, one.text, one.answer) for one in offspring(tmp_path))
    assert texts
    order.shuffle(rows)
    run(tmp_path, rows, augment={**MIX, "seed": seed}, canaries={"count": 1, "copies": [0, 1, 4]})
    assert sorted((one.made_by, one.text, one.answer) for one in offspring(tmp_path)) == texts


def test_rare_labels_come_first(tmp_path: Path) -> None:
    rows = [
        {**row, "intent": "order" if n % 10 else ("refund" if n % 20 else "return")}
        for n, row in enumerate(tickets(400))
    ]
    report = run(tmp_path, rows, augment={"typos": 2 / 3, "case": 1 / 3, "balance": 0.1})
    assert balanced(report)
    made = report.augmentation
    assert made is not None
    before = Counter(one.answer for one in shards(tmp_path)["train"] if not one.made_by)
    assert made.goal == int(0.1 * before["order"])
    after = report.splits["train"].labels
    assert after["order"] == before["order"], "the commonest gets none"
    assert after["refund"] == after["return"] == made.goal
    assert made.short == {}
    by_technique = {one.technique: one.rows for one in made.techniques}
    assert by_technique["typos"] > by_technique["case"] > 0
    report = run(tmp_path, rows, augment={"typos": 0.5, "balance": 1, "max_per_row": 3})
    made = report.augmentation
    assert made is not None
    assert made.goal == before["order"]
    assert made.short == {label: before["order"] - 4 * before[label] for label in ("refund", "return")}, (
        "no row has more than three offspring, and the report tells what is missing"
    )


def test_offspring_keep_off_rows_that_are_kept_back(tmp_path: Path) -> None:
    kinds = [(thing, how) for thing in ("guitar", "zither") for how in ("broken", "late") for _ in range(9)]
    rows = [
        {"message": f"{n} my {thing} of the year came {how} again", "intent": how, "customer": ""}
        for n, (thing, how) in enumerate(kinds)
    ]
    own = [{**row, "message": row["message"].replace("guitar", "cello")} for row in rows[:12]]
    write(tmp_path / "own.csv", own)
    recipe: dict[str, Any] = {"test": "own.csv", "split": {"test": 0.1, "validation": 0.05}}
    swaps = {"swap": 1.0, "swaps": [["guitar", "cello"]]}
    for near, reason in ((False, "kept_back"), (0.9, "kept_back")):
        report = run(tmp_path, rows, leakage={"near": near}, augment=swaps, **recipe)
        assert balanced(report)
        assert report.augmentation is not None
        (made,) = report.augmentation.techniques
        assert made.dropped[reason] == 12 - sum(
            row["message"] == own_row["message"] for row in rows for own_row in own
        ) - _not_learned(tmp_path, own)
        kept_back = {one.text.casefold() for name in ("validation", "test") for one in shards(tmp_path)[name]}
        assert not any(one.text.casefold() in kept_back for one in offspring(tmp_path))
    write(tmp_path / "own.csv", [{**row, "message": row["message"] + "!"} for row in own])
    report = run(tmp_path, rows, leakage={"near": 0.9}, augment=swaps, **recipe)
    assert report.augmentation is not None
    (made,) = report.augmentation.techniques
    assert made.dropped["like_kept_back"] > 0
    assert "kept_back" not in made.dropped
    (tmp_path / "bench.csv").write_text("message\n" + "\n".join(row["message"] for row in own) + "\n")
    report = run(tmp_path, rows, leakage={"near": False, "benchmarks": ["bench.csv"]}, augment=swaps)
    assert report.augmentation is not None
    assert report.augmentation.techniques[0].dropped["benchmark"] > 0
    assert balanced(report)


def _not_learned(folder: Path, own: list[dict[str, str]]) -> int:
    """Rows of the user's own test file whose guitar is not in train (some validate)."""
    learned = {one.text for one in shards(folder)["train"] if not one.made_by}
    return sum(row["message"].replace("cello", "guitar") not in learned for row in own)


def test_what_would_be_found_conflicting_or_personal_is_dropped(tmp_path: Path) -> None:
    rows = tickets(60)
    for n, row in enumerate(rows):
        row["message"] = f"somebody wants {('tea', 'rice', 'milk')[n % 3]} number {n // 3}"
    augment = {"swap": 1.0, "swaps": [["tea", "rice", "milk"], ["somebody", "ana@acme.com"]]}
    report = run(tmp_path, rows, augment=augment, leakage={"near": False})
    assert balanced(report)
    made = report.augmentation
    assert made is not None
    (swap,) = made.techniques
    assert swap.dropped["personal_data"] > 3
    assert swap.dropped["other_label"] > 3
    assert not any("@" in one.text for one in offspring(tmp_path))
    assert report.findings == {}


@pytest.mark.parametrize("action", ["report", "redact"])
def test_masks_and_personal_data_of_the_parent_stay_whole(tmp_path: Path, action: str) -> None:
    rows = tickets(60)
    for row in rows:
        row["message"] += " ana@acme.com"
    privacy = {"action": action, "secrets": "stop", "profile": "fast"}
    report = run(tmp_path, rows, privacy=privacy, augment={"typos": 1.0, "typo_rate": 0.3})
    assert balanced(report)
    assert len(offspring(tmp_path)) == report.rows_added > 20
    ending = "ana@acme.com" if action == "report" else "[EMAIL]"
    assert all(one.text.endswith(ending) for one in offspring(tmp_path))
    assert report.augmentation is not None
    shown = report.augmentation.techniques[0].examples
    assert not shown if action == "report" else len(shown) == 3, "what is personal is not shown"


def test_conversations_translations_and_extractions(tmp_path: Path) -> None:
    turns = [
        [
            {"role": "user", "content": "hello there"},
            {"role": "assistant", "content": "how can I help?"},
            {"role": "user", "content": f"what is the price of guitar {n}?"},
            {"role": "assistant", "content": f"A guitar {n} is dear."},
        ]
        for n in range(60)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    chat: dict[str, Any] = {"task": "generation", "input": "", "label": "", "system": ""}
    report = run_file(tmp_path, "chat.jsonl", **chat, augment={"typos": 0.3, "swap": 0.3, "swaps": SWAPS[:1]})
    assert balanced(report)
    made = offspring(tmp_path)
    for one in made:
        whole = json.dumps(one.text)
        assert "hello" not in whole
        if one.made_by == "swap":
            (thing,) = {"cello", "flute"} & set(one.text.split())
            assert f"A {thing} " in one.answer, "question and answer go together"
        else:
            assert "guitar" in one.text, "the answer repeats it"
    pairs = [{"de": f"Anna kauft Brot {n}", "en": f"Anna buys bread {n}"} for n in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))
    told: dict[str, Any] = {"task": "translation", "input": "{de}", "label": "en", "system": ""}
    report = run_file(
        tmp_path, "pairs.jsonl", **told, augment={"swap": 1.0, "swaps": [["Anna", "Maria"], ["Brot", "Milch"]]}
    )
    assert {(one.text.rsplit(" ", 1)[0], one.answer.rsplit(" ", 1)[0]) for one in offspring(tmp_path)} == {
        ("Maria kauft Brot", "Maria buys bread")
    }, "a word without its translation is not exchanged"


def run_file(folder: Path, path: str, **recipe: Any) -> DataReport:
    tokenizer = tokenizer_folder(folder / "tokenizer")
    return prepare(resolved(folder, path=path, **recipe), tokenizer_folder=tokenizer, out=folder / "out")


def test_offspring_go_with_their_parent_and_with_length(tmp_path: Path) -> None:
    ledger = Ledger()
    parent = Item("a.csv", 2, None, {}, text="x")
    child = Item("a.csv", 2, None, {}, text="y", made_by="typos", parent="a.csv:2")
    assert set_orphans_aside([parent, child], ledger) == [parent, child]
    assert set_orphans_aside([child], ledger) == []
    assert ledger.unmade == {("typos", "parent_set_aside"): 1}
    assert ledger.fates == []
    rows = tickets(90)
    for row in rows[::2]:
        row["message"] += " long" * 38
    longest = max(split.length_max for split in run(tmp_path, rows).splits.values())
    report = run(tmp_path, rows, max_length=longest - 1, augment={"case": 0.9, "typos": 0.9, "typo_rate": 0.3})
    assert balanced(report)
    made = report.augmentation
    assert made is not None
    assert sum(one.dropped.get("too_long", 0) for one in made.techniques) > 0
    assert 0 < report.dropped["too_long"] < 45
    there = {f"data.csv:{one.line}" for one in shards(tmp_path)["train"] if not one.made_by}
    assert {one.parent for one in offspring(tmp_path)} <= there


def test_a_rows_name_is_what_it_says() -> None:
    one, other = Item("a.csv", 2, None, {}, text="x", answer="y"), Item("b.csv", 9, None, {}, text="x", answer="y")
    assert row_name(one) == row_name(other) != row_name(Item("a.csv", 2, None, {}, text="x", answer="z"))


def test_nothing_is_reported_where_nothing_is_asked(tmp_path: Path) -> None:
    report = run(tmp_path, tickets())
    assert (report.augmentation, report.canaries, report.rows_added) == (None, None, 0)
    assert not {"augmentation", "canaries"} & {step.step for step in report.steps}


def test_files_of_words(tmp_path: Path) -> None:
    (tmp_path / "words.csv").write_text("# things\nguitar, cello,flute\n\nmoney,cash\n", encoding="utf-8")
    inline = run(tmp_path, tickets(), augment={"swap": 0.4, "swaps": [["guitar", "cello", "flute"], ["money", "cash"]]})
    texts = [one.text for one in offspring(tmp_path)]
    assert run(tmp_path, tickets(), augment={"swap": 0.4, "swaps": "words.csv"}) == inline
    assert [one.text for one in offspring(tmp_path)] == texts != []
    for content, message in (
        ("alone\n", "set 1 needs two words"),
        ("a,b\nb,c\n", "'b' stands in set 1 and in set 2"),
        ("# nothing\n", "holds no set"),
    ):
        (tmp_path / "words.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            run(tmp_path, tickets(), augment={"swap": 0.4, "swaps": "words.csv"})
    (tmp_path / "words.csv").write_bytes(b"\xff\xfe,b")
    with pytest.raises(DataError, match="cannot be read"):
        run(tmp_path, tickets(), augment={"swap": 0.4, "swaps": "words.csv"})


def recipe_with(folder: Path, augment: str, *, task: str = "classification") -> Any:
    write(folder / "data.csv", tickets())
    (folder / "r.yaml").write_text(
        "name: r\nmodel: {name: m}\nmethod: sft\ndata:\n  train: [{path: data.csv, input: '{message}', label: intent, "
        f"task: {task}}}]\n{augment}",
        encoding="utf-8",
    )
    found = profile(folder / "data.csv")
    loaded = load_recipe(folder / "r.yaml")
    return resolve(loaded, found, shape(), machine=Machine(threads=1), data_sha256={}, luthier_version="0")


def test_what_is_open_is_filled_in(tmp_path: Path) -> None:
    def shares(augment: str) -> list[float | None]:
        rules = recipe_with(tmp_path, augment).recipe.data.augment
        return [rules.typos, rules.case, rules.punctuation, rules.swap]

    assert shares("  augment:\n") == [0.1, 0.05, 0.05, 0.0]
    assert shares("  augment: {swaps: [[a, b]]}\n") == [0.1, 0.05, 0.05, 0.1]
    assert shares("  augment: {case: 0.2}\n") == [0.0, 0.2, 0.0, 0.0]
    assert shares("  augment: {case: 0.2, swaps: [[a, b]]}\n") == [0.0, 0.2, 0.0, 0.1]
    asked = "  augment: {paraphrase: {endpoint: 'http://127.0.0.1:1/v1', model: m}}\n"
    assert shares(asked) == [0.0] * 4
    assert recipe_with(tmp_path, "  augment: off\n  canaries: off\n").recipe.data.augment is None
    assert recipe_with(tmp_path, "  canaries:\n").recipe.data.canaries is not None


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        ("  augment: {swap: 0.1}\n", "give sets, or a file of them"),
        ("  augment: {swaps: [[a]]}\n", "set 1 needs two words"),
        ("  augment: {swaps: [[a, b], [A, c]]}\n", "'A' stands in set 1 and in set 2"),
        ("  augment: {paraphrase: {endpoint: 'http://u:p@host/v1', model: m}}\n", "without user, password or query"),
        ("  canaries: {prompt: 'The code'}\n", r"needs \{name\} once"),
        ("  canaries: {copies: [0, 0]}\n", "different numbers"),
    ],
)
def test_recipes_that_cannot_be_done(tmp_path: Path, augment: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_with(tmp_path, augment)


def test_there_is_no_balance_without_labels(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"balance is for tasks with a closed set of answers, this is generation"):
        recipe_with(tmp_path, "  augment: {typos: 0.1, balance: 1}\n", task="generation")


def test_the_example_of_the_page_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text(encoding="utf-8")
    example = re.search(r"```yaml\n(data:\n.*?)```", page, re.DOTALL)
    assert example is not None
    write(tmp_path / "support.csv", asking(120))
    (tmp_path / "r.yaml").write_text(f"name: r\nmodel: {{name: m}}\n{example[1]}", encoding="utf-8")
    loaded = load_recipe(tmp_path / "r.yaml")
    recipe = resolve(
        loaded, profile(tmp_path / "support.csv"), shape(), machine=Machine(threads=1), data_sha256={},
        luthier_version="0",
    )  # fmt: skip
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    assert balanced(report)
    assert report.augmentation is not None
    assert all(one.rows == one.asked > 0 for one in report.augmentation.techniques)
    for key in set(re.findall(r"^\| `([a-z_]+)", page, re.MULTILINE)):
        assert key in Augment.model_fields, key


@pytest.mark.parametrize(
    "augment",
    [{"typos": 0.3, "case": 0.2}, {"typos": 1.0, "balance": 0.5, "max_per_row": 1}, {"typos": 1.0, "balance": 0.2}],
)
def test_the_plan_counts_what_will_be_made(tmp_path: Path, augment: dict[str, Any]) -> None:
    rows = [{**row, "intent": "rare" if n % 10 == 0 else "order"} for n, row in enumerate(asking(400))]
    canaries = {"count": 1, "copies": [0, 3]}
    report = run(tmp_path, rows, augment=augment, canaries=canaries)
    data = resolved(tmp_path, augment=augment, canaries=canaries).recipe.data
    assert report.augmentation is not None
    labels = Counter(row["intent"] for row in rows)
    assert made_rows(data, report.augmentation.originals, labels) == pytest.approx(report.rows_added, abs=3)
    assert made_rows(resolved(tmp_path).recipe.data, 400, labels) == 0
    paraphrase = {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "share": 0.5, "max_requests": 20}
    assert made_rows(resolved(tmp_path, augment={"paraphrase": paraphrase}).recipe.data, 400, labels) == 20


def test_the_plan_trains_on_what_will_be_made() -> None:
    plain, more = (
        workload(
            samples.resolved(data={"train": [{"path": "support.csv"}], **data}, train={}),
            samples.profile(),
            tokens_per_char=0.25,
        )
        for data in ({}, {"augment": {"typos": 0.5}})
    )
    assert more.trained_tokens == pytest.approx(1.5 * plain.trained_tokens, rel=0.001)
    assert (more.train_rows, more.whole_epochs) == (plain.train_rows, plain.whole_epochs), "offspring are no new rows"
