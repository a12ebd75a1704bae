"""Pairs in the data room: whatever holds for an answer holds for the rejected one; contradictions are named."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_kit import shape, tokenizer_folder

from luthier.data.audit import fault_of
from luthier.data.contract import Renderer
from luthier.data.prepare import prepare
from luthier.data.profile import profile
from luthier.data.shards import Example, Shard
from luthier.data_report import DataReport
from luthier.errors import DataError, RecipeError, SecretFound
from luthier.plan.workload import workload
from luthier.spec.filler import Machine
from luthier.spec.load import load_recipe
from luthier.spec.resolve import ResolvedRecipe, resolve

Row = dict[str, Any]
NAMES = ("ana", "ben", "cleo", "dan", "eve")


def row(number: int, **changes: Any) -> Row:
    asked = f"where is the parcel {number} of {NAMES[number % 5]}"
    return {"prompt": asked, "chosen": f"it is with us, {number}", "rejected": f"no idea {number * 7}"} | changes


def chat(number: int, **changes: Any) -> Row:
    start = [{"role": "user", "content": row(number)["prompt"]}]
    return {
        name: [*start, {"role": "assistant", "content": row(number)[name]}] for name in ("chosen", "rejected")
    } | changes


def resolved(folder: Path, rows: Sequence[Row], **more: Any) -> ResolvedRecipe:
    (folder / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    entry = {"path": "data.jsonl", "license": "unknown"} | more.pop("entry", {})
    data = {"train": [entry], "leakage": {"near": False}, "privacy": {"profile": "fast"}} | more.pop("data", {})
    (folder / "r.yaml").write_text(yaml.safe_dump({"name": "r", "model": "m", "data": data, **more}))
    loaded = load_recipe(folder / "r.yaml")
    return resolve(
        loaded, profile(folder / "data.jsonl"), shape(), machine=Machine(threads=1), data_sha256={}, luthier_version="0"
    )


def run(folder: Path, rows: Sequence[Row], **more: Any) -> DataReport:
    given = resolved(folder, rows, **more)
    return prepare(given, tokenizer_folder=tokenizer_folder(folder / "tokenizer"), out=folder / "out")


def learned(folder: Path) -> list[Example]:
    return [one for split in ("train", "validation", "test") for one in Shard(folder / "out" / f"{split}.arrow")]


def fates(report: DataReport) -> list[tuple[int, str]]:
    return [(fate.line, fate.reason) for fate in report.fates]


def test_both_answers_are_rendered_by_the_same_code_after_the_same_prompt(tmp_path: Path) -> None:
    report = run(tmp_path, [row(n) for n in range(60)])
    assert (report.task, report.name, report.rows_out, report.end_of_turn_supervised) == ("preference",) * 2 + (
        60,
        True,
    )
    ours = Renderer.open(tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json")
    assert ours.contract.labels == ()
    for one in learned(tmp_path):
        given = row(one.line - 1)
        assert (one.text, one.answer, one.rejected) == (given["prompt"], given["chosen"], given["rejected"])
        assert one.prompt_ids == ours.prompt_ids(ours.messages(one.text))
        assert one.input_ids[one.prompt_tokens :] == ours.answer_ids(one.answer)
        assert one.rejected_ids == ours.answer_ids(one.rejected)
        assert one.num_supervised == len(ours.answer_ids(one.answer)) + len(one.rejected_ids)
    tokens = sum(split.tokens for split in report.splits.values())
    assert tokens == sum(one.num_tokens for one in learned(tmp_path))


def test_conversations_that_differ_in_the_last_turn_are_pairs(tmp_path: Path) -> None:
    long = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    rows = [chat(n) for n in range(58)]
    rows += [{name: [*long, *turns] for name, turns in chat(58).items()}]
    rows += [chat(59, rejected=[{"role": "user", "content": "another"}, {"role": "assistant", "content": "x"}])]
    report = run(tmp_path, rows)
    assert fates(report) == [(60, "bad_conversation")]
    assert "differ before the last answer" in report.fates[0].detail
    for one in learned(tmp_path):
        assert one.num_supervised == sum(one.supervised) + len(one.rejected_ids)
        assert one.supervised == [False] * one.prompt_tokens + [True] * (len(one.input_ids) - one.prompt_tokens)
    plain = tmp_path / "plain"
    plain.mkdir()
    run(plain, [row(n) for n in range(58)])
    tokens = [{one.line: (one.input_ids, one.rejected_ids) for one in learned(place)} for place in (tmp_path, plain)]
    assert all(tokens[0][line] == ids for line, ids in tokens[1].items())


def test_every_fault_of_a_pair_has_a_line_and_a_reason(tmp_path: Path) -> None:
    rows = [row(n) for n in range(60)]
    rows[3]["rejected"] = " "
    rows[5]["chosen"] = ""
    rows[7]["rejected"] = rows[7]["chosen"]
    rows[11] = row(10)
    rows[13] = {**row(12), "chosen": row(12)["rejected"], "rejected": row(12)["chosen"].upper()}
    rows[17]["rejected"] = "much too long " * 90
    rows[19]["chosen"] = "much too long " * 90
    report = run(tmp_path, rows)
    assert sorted(fates(report)) == [
        (4, "empty_rejected"), (6, "empty_answer"), (8, "equal_answers"), (12, "duplicate"),
        (13, "conflicting_preferences"), (14, "conflicting_preferences"), (18, "too_long"), (20, "too_long"),
    ]  # fmt: skip
    assert report.conflicts == 1
    detail = next(fate.detail for fate in report.fates if fate.line == 13)
    assert detail == "the same two answers the other way round in lines 13, 14"
    assert report.rows_in == report.rows_out + len(report.fates)


def test_another_answer_to_the_same_prompt_is_another_pair_in_the_same_split(tmp_path: Path) -> None:
    rows = [row(n // 2, rejected=f"no {n}") for n in range(60)]
    report = run(tmp_path, rows)
    assert report.rows_out == 60
    where = {
        (one.text, split) for split in ("train", "validation", "test") for one in Shard(tmp_path / f"out/{split}.arrow")
    }
    assert len(where) == 30


def test_near_duplicates_are_compared_with_both_answers(tmp_path: Path) -> None:
    text = "the guitar of my brother came without its strings and the case is scratched all over, what now"
    rows = [row(n) for n in range(40)]
    rows += [
        row(0, prompt=text),
        row(0, prompt=f"{text}?"),
        row(0, prompt=text, rejected="rain is expected in the north tomorrow, take an umbrella"),
    ]
    report = run(tmp_path, rows, data={"dedupe": {"near": 0.8}})
    assert fates(report) == [(42, "near_duplicate")]


@pytest.mark.parametrize("make", [row, chat])
def test_personal_data_in_a_rejected_answer_is_found_and_taken_out(tmp_path: Path, make: Any) -> None:
    rows = [make(n) for n in range(60)]
    mail = "write to ana@example.org"
    rows[4]["rejected"] = mail if make is row else [chat(4)["rejected"][0], {"role": "assistant", "content": mail}]
    report = run(tmp_path, rows, data={"privacy": {"action": "redact", "profile": "fast"}})
    assert report.findings == {"email": 1}
    found = json.loads((tmp_path / "out" / "findings.jsonl").read_text())
    assert (found["line"], found["column"]) == (5, "rejected")
    (one,) = [one for one in learned(tmp_path) if one.line == 5]
    assert one.rejected == "write to [EMAIL]"
    ours = Renderer.open(tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json")
    assert one.rejected_ids == ours.answer_ids(one.rejected)
    assert b"ana@example" not in (tmp_path / "out" / "train.arrow").read_bytes()


def test_answers_that_redaction_made_equal_teach_nothing(tmp_path: Path) -> None:
    rows = [row(n) for n in range(60)]
    rows[4] |= {"chosen": "write to ana@example.org", "rejected": "write to ben@example.org"}
    report = run(tmp_path, rows, data={"privacy": {"action": "redact", "profile": "fast"}})
    assert fates(report) == [(5, "equal_answers")]


def test_a_secret_in_a_rejected_answer_stops_the_run(tmp_path: Path) -> None:
    rows = [row(n) for n in range(60)]
    rows[4]["rejected"] = "use AKIA" + "IOSFODNN7EXAMPLE"
    with pytest.raises(SecretFound, match=r"data\.jsonl:5"):
        run(tmp_path, rows)


def test_a_cut_prompt_leaves_room_for_the_longer_of_both_answers(tmp_path: Path) -> None:
    rows = [row(n) for n in range(60)]
    rows[4] |= {"prompt": "story " * 400, "rejected": "no " * 30}
    report = run(tmp_path, rows, data={"too_long": "cut_end"}, train={"max_length": 200})
    assert not report.fates
    assert max(one.prompt_tokens + len(one.rejected_ids) for one in learned(tmp_path)) <= 200
    assert report.truncated_rows == 1


def test_the_audit_sees_an_end_of_the_rejected_answer_that_is_missing(tmp_path: Path) -> None:
    run(tmp_path, [row(n) for n in range(60)])
    ours = Renderer.open(tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json")
    one = learned(tmp_path)[0]
    assert fault_of(one, ours.contract) == ""
    broken = Example(**{name: getattr(one, name) for name in one.__slots__} | {"rejected_ids": one.rejected_ids[:-1]})
    assert fault_of(broken, ours.contract) == "the rejected answer's end of turn is not supervised"
    assert not Shard(tmp_path / "out" / "train.arrow").rejected_endings([1, 2, 3]).any()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"entry": {"rejected": "nobody", "task": "generation"}},
            r"rejected.* is for preferences, and the task is gen",
        ),
        ({"entry": {"rejected": "chosen"}}, r"the column 'chosen' is the preferred answer or part of the input too"),
        ({"entry": {"roles_to_train": ["user", "assistant"]}}, r"roles_to_train does not go with preferences"),
        ({"entry": {"mask_history": True}}, r"mask_history does not go with preferences"),
        ({"data": {"augment": {"case": 0.1}}}, r"data\.augment does not go with preferences"),
        ({"data": {"canaries": {"count": 1}}}, r"data\.canaries does not go with preferences"),
        ({"method": "sft"}, r"method 'sft' does not do 'preference'"),
        ({"entry": {"task": "generation"}, "method": "dpo"}, r"method 'dpo' does not do 'generation'"),
    ],
)
def test_what_does_not_go_with_pairs_is_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        resolved(tmp_path, [row(n) for n in range(60)], **more)
    assert caught.value.way_out


def test_a_missing_column_of_rejected_answers_is_told(tmp_path: Path) -> None:
    rows = [{"prompt": row(n)["prompt"], "chosen": row(n)["chosen"]} for n in range(60)]
    with pytest.raises(RecipeError, match="no column looks like the answer that was not preferred"):
        resolved(tmp_path, rows, entry={"task": "preference", "input": "{prompt}", "label": "chosen"})


def test_columns_of_other_names_are_taken_and_one_that_is_not_there_is_named(tmp_path: Path) -> None:
    rows = [{"ask": row(n)["prompt"], "good": row(n)["chosen"], "bad": row(n)["rejected"]} for n in range(60)]
    entry = {"task": "preference", "input": "{ask}", "label": "good", "rejected": "bad"}
    run(tmp_path, rows, entry=entry)
    assert learned(tmp_path)[0].rejected.startswith("no idea")
    with pytest.raises(DataError, match=r"rejected names the column 'worse', which is not there"):
        run(tmp_path, rows, entry=entry | {"rejected": "worse"})


def test_what_is_found_and_filled_in(tmp_path: Path) -> None:
    rows = [row(n) for n in range(60)]
    given = resolved(tmp_path, rows)
    found = profile(tmp_path / "data.jsonl")
    assert (found.shape, found.task, found.label, found.rejected) == ("preference", "preference", "chosen", "rejected")
    assert not found.is_chat
    recipe = given.recipe
    assert (recipe.method.type, recipe.entry.name, recipe.evaluate.baselines) == (
        "dpo",
        "preference",
        ("length", "base"),
    )
    assert recipe.data.steps == ("clean", "privacy", "conflicts", "duplicates", "split", "leakage")
    assert all(f"method.{key}" in given.reasons for key in recipe.method.model_dump())
    work = workload(given, found, tokens_per_char=0.3)
    chars = sum(len(one["chosen"]) + len(one["rejected"]) for one in rows) / 60
    assert work.answer_tokens == pytest.approx(chars * 0.3 + 2)
    assert (work.is_paired, work.reference_rows) == (True, work.train_rows + work.validation_rows)
    plain = workload(resolved(tmp_path, rows, method="simpo"), found, tokens_per_char=0.3)
    assert plain.reference_rows == 0


def test_a_file_of_conversations_is_told_from_one_without_a_prompt(tmp_path: Path) -> None:
    given = resolved(tmp_path, [chat(n) for n in range(60)])
    found = profile(tmp_path / "data.jsonl")
    assert (found.shape, found.task, found.input, found.is_chat) == ("preference", "preference", "", True)
    assert (given.recipe.entry.label, given.recipe.entry.rejected, given.recipe.entry.input) == (
        "chosen",
        "rejected",
        "",
    )
    assert found.mean_answer_chars == pytest.approx(
        sum(len(one["chosen"]) + len(one["rejected"]) for one in (row(n) for n in range(60))) / 60
    )
    with pytest.raises(RecipeError, match="cannot tell what the columns are for"):
        resolved(tmp_path, [{"chosen": row(n)["chosen"], "rejected": row(n)["rejected"]} for n in range(60)])
