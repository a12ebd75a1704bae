"""Every row is in a shard or in the report; what is in a shard is private, leak-free and supervised; bytes repeat."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data_kit import resolved, shape, tokenizer_folder
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from luthier.data.audit import Faults, fault_of
from luthier.data.contract import Renderer
from luthier.data.goldens import read_goldens
from luthier.data.prepare import prepare
from luthier.data.privacy import find
from luthier.data.privacy.ner import missing_package
from luthier.data.privacy.pseudonyms import read_mapping
from luthier.data.profile import _SIDE_NAMES, profile
from luthier.data.shards import Example, Shard
from luthier.data.to_shards import SPLITS
from luthier.data_report import DataReport, Finding
from luthier.errors import DataError, RecipeError, RunError, SecretFound
from luthier.pipeline.init import init
from luthier.pipeline.named import Named
from luthier.plan.workload import workload
from luthier.records import RequestContract
from luthier.spec.filler import Machine
from luthier.spec.load import load_recipe
from luthier.spec.resolve import resolve
from luthier.spec.template import fields

WORDS = ["where", "is", "my", "parcel", "money", "broken", "please", "invoice", "call", "guitar", "late", "again"]


def message(number: int) -> str:
    return " ".join(WORDS[(number * step + step) % len(WORDS)] for step in (1, 5, 7)) + f" {number}"


def tickets(count: int = 60) -> list[dict[str, str]]:
    return [
        {"message": message(n), "intent": ("order", "refund", "return")[n % 3], "customer": f"C{n // 2}"}
        for n in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def run(folder: Path, rows: list[dict[str, Any]], *, path: str = "data.csv", **recipe: Any) -> DataReport:
    write(folder / path, rows)
    tokenizer = tokenizer_folder(folder / "tokenizer")
    return prepare(resolved(folder, path=path, **recipe), tokenizer_folder=tokenizer, out=folder / "out")


def shards(folder: Path) -> dict[str, list[Example]]:
    return {split: list(Shard(folder / "out" / f"{split}.arrow")) for split in SPLITS}


def balanced(report: DataReport) -> bool:
    steps = [step for step in report.steps if step.step != "read"]
    return (
        report.rows_in == report.rows_out + sum(report.dropped.values())
        and len(report.fates) == sum(report.dropped.values())
        and all(one.rows_out == two.rows_in for one, two in zip(report.steps, steps, strict=False))
        and report.steps[-1].rows_out == report.rows_out == sum(split.rows for split in report.splits.values())
    )


def test_a_messy_file_from_end_to_end(tmp_path: Path) -> None:
    rows = tickets()
    rows[5]["message"] = rows[2]["message"].upper()  # line 7 repeats line 4
    rows[10]["message"] = rows[9]["message"]  # lines 11 and 12 disagree
    rows[20]["message"] = " &nbsp; "
    rows[21]["intent"] = ""
    rows[22]["message"] = "word " * 600
    rows[30]["message"] = "mail <b>me</b> at ana@example.org &amp; wait"
    report = run(tmp_path, rows, split={"group_by": "customer"})
    assert balanced(report)
    assert [(fate.line, fate.reason) for fate in report.fates] == [
        (7, "duplicate"), (11, "conflicting_labels"), (12, "conflicting_labels"), (22, "empty_input"),
        (23, "empty_answer"), (24, "too_long"),
    ]  # fmt: skip
    assert [fate.detail for fate in report.fates[:2]] == ["of line 4", "same text, other labels in lines 11, 12"]
    assert (report.conflicts, report.findings, report.findings_action) == (1, {"email": 1}, "report")
    assert report == DataReport.read(tmp_path / "out" / "report.json")
    assert "rows with the same 'customer' stay together" in report.split_rule
    examples = shards(tmp_path)
    by_group: dict[str, set[str]] = {}
    for split, ones in examples.items():
        for one in ones:
            assert one.text == one.text.strip()
            by_group.setdefault(one.group, set()).add(split)
    assert all(len(splits) == 1 for splits in by_group.values())
    renderer = Renderer.open(tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json")
    assert renderer.contract.labels == ("order", "refund", "return")
    for one in [*examples["train"], *examples["test"]]:
        row = rows[one.line - 2]
        assert one.text == renderer.user_text(row)  # a request is cleaned like the row
        assert one.prompt_ids == renderer.prompt_ids(renderer.messages(one.text))
        assert one.input_ids == one.prompt_ids + renderer.answer_ids(row["intent"])
        assert one.supervised == [False] * len(one.prompt_ids) + [True] * len(renderer.answer_ids(row["intent"]))
    split = report.splits["train"]
    assert split.supervised_tokens == sum(sum(one.supervised) for one in examples["train"])
    assert split.tokens == sum(len(one.input_ids) for one in examples["train"])
    assert split.length_p50 <= split.length_p95 <= split.length_max == max(len(e.input_ids) for e in examples["train"])


def test_groups_on_disk_are_numbers_that_no_list_of_customers_gives_back(tmp_path: Path) -> None:
    rows = tickets()
    run(tmp_path, rows, split={"group_by": "customer"})
    found = [one for ones in shards(tmp_path).values() for one in ones]
    pairs = {(one.group, rows[one.line - 2]["customer"]) for one in found}
    assert len(pairs) == len({group for group, _ in pairs}) == len({customer for _, customer in pairs})
    by_line = list(dict.fromkeys(one.group for one in sorted(found, key=lambda one: one.line)))
    assert by_line == [f"g{n}" for n in range(len(by_line))]
    hashes = [hashlib.blake2b(f"customer={row['customer']}".encode(), digest_size=8).hexdigest() for row in rows]
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        assert not [one for one in hashes if one.encode() in content], path.name


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, tickets())
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name / "out").iterdir()})
    assert contents[0] == contents[1]
    assert contents[0].keys() == {
        "train.arrow", "validation.arrow", "test.arrow", "contract.json", "goldens.json", "findings.jsonl",
        "report.json",
    }  # fmt: skip
    (tmp_path / "three").mkdir()
    run(tmp_path / "three", tickets(), seed=1)
    assert (tmp_path / "three" / "out" / "test.arrow").read_bytes() != contents[0]["test.arrow"]


def test_near_duplicates_are_set_aside_and_contradictions_listed(tmp_path: Path) -> None:
    rows = [{**row, "message": f"{row['message']} {17**n}"} for n, row in enumerate(tickets())]
    rows[6]["message"] = "my order of strings and rosin has not arrived yet, where is it now"
    rows[9]["message"] = "my order of strings and rosin has not arrived yet, where is it?"  # as row 6, an order
    rows[10]["message"] = "my order of strings and rosin has not arrived yet, where is it then"  # a refund
    report = run(tmp_path, rows, dedupe={"near": 0.8})
    assert balanced(report)
    assert [(fate.line, fate.reason, fate.detail) for fate in report.fates] == [
        (11, "near_duplicate", "of line 8, likeness 0.92"),
    ]  # fmt: skip
    assert report.near is not None
    assert (report.near.threshold, report.near.num_conflicts, report.near.crowded) == (0.8, 1, 0)
    assert [(one.line, one.of_line, round(one.likeness, 2)) for one in report.near.conflicts] == [(12, 8, 0.89)]
    assert run(tmp_path, rows, dedupe={"near": False}).near is None
    assert run(tmp_path, rows).rows_out == len(rows)


def test_near_duplicates_of_free_answers_need_a_like_answer(tmp_path: Path) -> None:
    rows = [{"q": f"what is {17**n} plus {13**n}?", "a": f"it is {17**n + 13**n}"} for n in range(20)]
    rows[13] = {**rows[12], "q": rows[12]["q"] + "?"}
    rows[15] = {"q": rows[14]["q"] + "?", "a": "something that has nothing to do with the other one"}
    report = run(
        tmp_path, rows, path="data.jsonl", task="generation", input="{q}", label="a", system="", dedupe={"near": 0.8}
    )
    assert [(fate.line, fate.reason) for fate in report.fates] == [(14, "near_duplicate")]
    assert report.near is not None
    assert report.near.num_conflicts == 0


CELL = st.sampled_from(
    ["", " ", "hello", "Hello ", "call +44 20 7946 0123", "ana@example.org", "a &amp; b", "bye", "x" * 900, "late"]
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.tuples(CELL, st.sampled_from(["a", "b", ""]), st.sampled_from(["1", "2", ""])), max_size=25),
    action=st.sampled_from(["report", "redact", "drop"]),
)
def test_rows_in_are_rows_out_and_rows_set_aside(tmp_path: Path, rows: list[tuple[str, str, str]], action: str) -> None:
    given_rows = [{"message": text, "intent": label, "customer": group} for text, label, group in rows]
    report = run(
        tmp_path,
        [*given_rows, *tickets(12)],
        max_length=128,
        split={"group_by": "customer", "test": 0.3},
        privacy={"action": action, "secrets": "stop"},
    )
    assert balanced(report)
    assert report.rows_in == len(rows) + 12
    if action != "report":
        assert not any(find(one.text) for ones in shards(tmp_path).values() for one in ones)


def test_personal_data_and_secrets(tmp_path: Path) -> None:
    secret = "AKIA" + "IOSFODNN7EXAMPLE"
    rows = tickets()
    rows[3]["message"] = f"the key is {secret}"
    rows[4]["message"] = "write to ana@example.org, card 4111 1111 1111 1111"
    with pytest.raises(SecretFound) as error:
        run(tmp_path, rows)
    assert "data.csv:5 (aws_access_key)" in error.value.what
    assert secret not in str(error.value)
    assert "data.privacy.secrets" in error.value.way_out
    assert not (tmp_path / "out" / "report.json").exists()

    report = run(tmp_path, rows, privacy={"action": "redact", "secrets": "redact"})
    texts = {one.line: one.text for ones in shards(tmp_path).values() for one in ones}
    assert (texts[5], texts[6]) == ("the key is [SECRET]", "write to [EMAIL], card [CARD]")
    assert report.findings == {"card": 1, "email": 1, "secret.aws_access_key": 1}
    lines = (tmp_path / "out" / "findings.jsonl").read_text().splitlines()
    findings = [Finding.model_validate_json(line) for line in lines]
    assert [(one.line, one.column, one.kind, one.start, one.end) for one in findings] == [
        (5, "message", "secret.aws_access_key", 11, 31), (6, "message", "email", 9, 24), (6, "message", "card", 31, 50),
    ]  # fmt: skip
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert not any(value in written for value in (secret.encode(), b"ana@example.org", b"4111 1111"))

    report = run(tmp_path, rows, privacy={"action": "drop", "secrets": "drop"})
    assert [(fate.line, fate.reason, fate.detail) for fate in report.fates] == [
        (5, "secret", "secret.aws_access_key"), (6, "personal_data", "card, email"),
    ]  # fmt: skip
    report = run(tmp_path, rows, privacy={"action": "report", "secrets": "redact"})
    texts = {one.line: one.text for ones in shards(tmp_path).values() for one in ones}
    assert texts[6] == rows[4]["message"]


SECRET = "AKIA" + "IOSFODNN7EXAMPLE"


PSEUDONYMISE = {"action": "pseudonymise", "secrets": "redact", "profile": "fast"}


@pytest.fixture
def private_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_PRIVACY_KEY", "0123456789abcdef")


@pytest.mark.usefixtures("private_key")
def test_pseudonyms_are_the_same_in_every_row_and_split(tmp_path: Path) -> None:
    rows = tickets()
    for number in range(0, 60, 3):
        rows[number]["message"] += " write to ana@acme.com or AKIA" + "IOSFODNN7EXAMPLE"
    report = run(tmp_path, rows, privacy=PSEUDONYMISE)
    assert (report.findings_action, report.findings["email"]) == ("pseudonymise", 20)
    texts = [one.text for examples in shards(tmp_path).values() for one in examples]
    written = [text.partition("write to ")[2] for text in texts if "write to" in text]
    assert len(written) == 20
    assert len(set(written)) == 1, "one value, one pseudonym"
    assert re.fullmatch(r"[a-z]+\d{4}@example\.(com|net|org) or \[SECRET\]", written[0])
    asker = Renderer.open(tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json")
    assert asker.contract.privacy_action == "pseudonymise"
    assert all(asker.clean_text(text) == text for text in texts), "asked again, a text stays as it is"
    request = "I am at bob@acme.com, key AKIA" + "IOSFODNN7EXAMPLE"
    assert asker.clean_text(request) == "I am at bob@acme.com, key [SECRET]"
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"ana@acme.com" not in everything
    assert b"0123456789abcdef" not in everything


@pytest.mark.usefixtures("private_key")
def test_pseudonyms_in_answers_and_turns(tmp_path: Path) -> None:
    turns = [
        [{"role": "user", "content": f"who is number {n}?"}, {"role": "assistant", "content": "Ask ana@acme.com."}]
        for n in range(40)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    kept = {**PSEUDONYMISE, "keep_mapping": "mapping.json"}
    recipe = resolved(
        tmp_path, path="data.jsonl", task="generation", input="", label="", system="", privacy=kept, split={"test": 0.2}
    )
    folder = tokenizer_folder(tmp_path / "tokenizer")
    with pytest.raises(RecipeError, match="keep_mapping needs a passphrase"):
        prepare(recipe, tokenizer_folder=folder, out=tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_MAPPING_PASSPHRASE", "correct horse")
        prepare(recipe, tokenizer_folder=folder, out=tmp_path / "out")
    ((key, surrogate),) = read_mapping(tmp_path / "mapping.json", passphrase="correct horse").items()
    assert key == ("email", "ana@acme.com")
    answers = {one.answer for examples in shards(tmp_path).values() for one in examples}
    assert answers == {f"Ask {surrogate}."}


def test_personal_data_in_the_wording_is_told(tmp_path: Path) -> None:
    report = run(
        tmp_path, tickets(), system="Answer for ana@acme.com.", privacy={"action": "redact", "profile": "fast"}
    )
    assert report.personal_wording == ("data.train[0].system holds 1 email",)
    assert "names of people" in report.not_looked_for


@pytest.mark.skipif(bool(missing_package()), reason="needs the extra 'privacy'")
def test_a_tagger_travels_with_the_contract(tmp_path: Path) -> None:
    rows = tickets()
    for number in range(20, 60):
        rows[number]["message"] += f" badge AB-{number}"
    sample = [
        {"text": f"badge AB-{n} here", "spans": [{"start": 6, "end": 11, "type": "BADGE"}]} for n in range(10, 40)
    ]
    sample += [{"text": message(number), "spans": []} for number in range(100, 130)]
    (tmp_path / "sample.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sample))
    rules = {"action": "redact", "secrets": "stop", "profile": "maximum", "annotations": "sample.jsonl"}
    report = run(tmp_path, rows, privacy=rules)
    assert report.findings["badge"] > 30  # the small model takes some for names, and the tagger lets it
    texts = [one.text for examples in shards(tmp_path).values() for one in examples]
    assert sum(text.endswith("badge [PERSONAL]") for text in texts) > 30
    assert not any("AB-" in text for text in texts)
    place = tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json"
    asker = Renderer.open(*place)
    assert asker.clean_text("my badge AB-99") == "my badge [PERSONAL]"
    assert all(asker.clean_text(text) == text for text in texts)
    tagger = tmp_path / "out" / "tagger.safetensors"
    tagger.write_bytes(tagger.read_bytes().replace(b"badge", b"bidge"))
    with pytest.raises(RunError, match="is not the tagger of the contract beside it"):
        Renderer.open(*place)


@pytest.mark.parametrize("rule", ["stop", "redact", "drop"])
def test_a_secret_in_a_label_always_stops(tmp_path: Path, rule: str) -> None:
    rows = tickets()
    rows[3]["intent"] = rows[9]["intent"] = SECRET
    with pytest.raises(SecretFound) as error:
        run(tmp_path, rows, privacy={"action": "report", "secrets": rule})
    assert "'intent' has a label with a secret in data.csv:5 (aws_access_key)" in error.value.what
    assert SECRET not in str(error.value)
    assert error.value.way_out
    assert not (tmp_path / "out").exists()


def test_personal_data_in_a_label(tmp_path: Path) -> None:
    rows = tickets()
    for row in rows[:20]:
        row["intent"] = "ana@example.org"
    for action in ("redact", "drop"):
        with pytest.raises(DataError, match=r"personal data in data\.csv:2 \(email\), and .* is '") as error:
            run(tmp_path, rows, privacy={"action": action, "secrets": "stop"})
        assert "ana@" not in str(error.value)
        assert "rename the label" in error.value.way_out
    assert run(tmp_path, rows).findings == {"email": 1}
    finding = Finding.model_validate_json((tmp_path / "out" / "findings.jsonl").read_text())
    assert (finding.line, finding.column, finding.kind) == (2, "intent", "email")


@pytest.mark.parametrize("key", ["system", "input"])
def test_a_secret_in_the_wording_always_stops(tmp_path: Path, key: str) -> None:
    with pytest.raises(SecretFound) as error:
        run(tmp_path, tickets(), privacy={"action": "redact", "secrets": "redact"}, **{key: f"{SECRET} {{message}}"})
    assert error.value.what == f"data.train[0].{key} holds a secret (aws_access_key)"
    assert error.value.way_out


def test_rows_that_are_too_long_leave_too_few_labels(tmp_path: Path) -> None:
    rows = tickets()
    for row in rows:
        row["message"] += " x" * (400 if row["intent"] != "order" else 0)
    with pytest.raises(DataError, match=r"fewer than two labels .* 40 of 60 rows .*train\.max_length, 512 tokens"):
        run(tmp_path, rows)


NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).map(str.strip).filter(bool)
ODD = ["{x!r}", "a:b", "Kommentar!r", "a b", "x[0]", "x.y", "{", "}}", '"', "${HOME}", "$${A}", "a{b}c", "\\"]


@settings(max_examples=40, deadline=None)
@given(name=st.sampled_from(ODD) | NAME, label=st.sampled_from(ODD) | NAME)
def test_columns_of_any_name_go_from_init_to_shards(
    tmp_path_factory: pytest.TempPathFactory, name: str, label: str
) -> None:
    assume(name != label and not find(name) and not find(label))
    assume(not set(re.split(r"\W|_", label.casefold())) & _SIDE_NAMES)  # such as 'year', which nobody asks for
    folder = tmp_path_factory.mktemp("odd")
    write(
        folder / "export.csv", [{name: message(n) + " and more", label: ("Ana", "Bo", "Cy")[n % 3]} for n in range(60)]
    )
    path, found = init(Named(str(folder / "export.csv")), output=None)
    loaded = load_recipe(path)
    recipe = resolve(
        loaded, found, shape(), machine=Machine(threads=1), data_sha256={"data.train.0.path": found.sha256},
        luthier_version="0",
    )  # fmt: skip
    assert fields(recipe.recipe.entry.input or "") == (name,)
    assert recipe.recipe.entry.label == label
    assert workload(recipe, found, tokens_per_char=1.0).num_labels == 3
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(folder / "tokenizer"), out=folder / "out")
    assert report.rows_out == 60
    assert {one.text.partition(" ")[0] for one in shards(folder)["train"]} <= set(WORDS)


def test_many_secrets_are_counted(tmp_path: Path) -> None:
    rows = tickets()
    for number in range(7):
        rows[number]["message"] += " ghp_" + "a1B2" * 9
    with pytest.raises(SecretFound, match=r"7 secrets in the data: data\.csv:2 \(github_token\), .* and 2 more"):
        run(tmp_path, rows)


def test_own_files_are_checked_for_leaks(tmp_path: Path) -> None:
    rows = tickets()
    test = [
        {**rows[0], "message": rows[0]["message"].upper(), "customer": "N1"},
        {"message": "quite new", "intent": "order", "customer": rows[1]["customer"]},
        {"message": "also new", "intent": "refund", "customer": "N2"},
        {"message": "never seen", "intent": "return", "customer": "N4"},
    ]
    write(tmp_path / "test.csv", test)
    write(tmp_path / "validation.csv", [{"message": "for choosing", "intent": "order", "customer": "N3"}, test[2]])
    report = run(tmp_path, rows, split={"group_by": "customer"}, test="test.csv", validation="validation.csv")
    assert balanced(report)
    assert report.splits["train"].rows == 60
    assert report.fates == ()
    assert {one.line: one.contaminated for one in shards(tmp_path)["test"]} == {
        2: "exact",
        3: "group",
        4: "exact",
        5: "",
    }
    assert [(one.split, one.exact, one.group) for one in report.leakage] == [("validation", 0, 0), ("test", 2, 1)]
    assert (report.splits["validation"].rows, report.splits["test"].rows) == (2, 4)
    assert report.splits["test"].contaminated == 3
    assert report.split_rule == "test is the file test.csv; validation is the file validation.csv; seed 0"
    assert set(report.source_sha256) == {"data.csv", "test.csv", "validation.csv"}


def test_a_test_file_that_training_has_seen_whole_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", tickets(6))
    with pytest.raises(DataError, match=r"seen every one of the 6 rows of the test split: 6 by text\n  -> give"):
        run(tmp_path, tickets(), test="test.csv")


def test_labels_that_cannot_be_learned(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", [*tickets(3), {"message": "new", "intent": "reffund", "customer": "N"}])
    with pytest.raises(DataError, match=r"test\.csv:5: the label 'reffund' is not among the labels of") as error:
        run(tmp_path, tickets(), test="test.csv")
    assert "known: order, refund, return" in error.value.way_out
    with pytest.raises(DataError, match=r"have the one label 'order' in column 'intent' \(5 rows read: none was set"):
        run(tmp_path, [{"message": message(n), "intent": "order", "customer": "C"} for n in range(5)])
    with pytest.raises(DataError, match=r"data\.limit\.train: 2 rows cannot hold 3 labels\n  -> set it to 3 or more"):
        run(tmp_path, tickets(), limit={"train": 2})
    rows = [*tickets(), {"message": "word " * 600, "intent": "rare", "customer": "N"}]
    report = run(tmp_path, rows)  # the only row of its label is too long
    assert "rare" not in report.splits["train"].labels


def test_labels_with_an_order_stand_in_it_and_each_has_its_place(tmp_path: Path) -> None:
    order = ["return", "order", "refund"]
    run(tmp_path, tickets(), labels={"order": order})
    contract = RequestContract.read(tmp_path / "out" / "contract.json")
    assert contract.labels == contract.label_order == tuple(order)
    run(tmp_path, tickets())
    assert RequestContract.read(tmp_path / "out" / "contract.json").labels == ("order", "refund", "return")
    with pytest.raises(DataError, match=r"data\.csv:\d+: the label 'refund' is not in data\.labels\.order") as error:
        run(tmp_path, tickets(), labels={"order": ["return", "order"]})
    assert "data.labels.rename; there: return, order" in error.value.way_out
    with pytest.raises(DataError, match=r"names 'gone', and no row to learn from has this label") as error:
        run(tmp_path, tickets(), labels={"order": [*order, "gone"]})
    assert "learned: order, refund, return" in error.value.way_out
    renamed = {"rename": {"return": "1", "order": "2", "refund": "3"}, "order": [3, 2, 1]}
    run(tmp_path, tickets(), labels=renamed)
    assert RequestContract.read(tmp_path / "out" / "contract.json").labels == ("3", "2", "1")


def test_without_stratification_a_label_may_be_absent_from_train(tmp_path: Path) -> None:
    rows = [*tickets(12), *({"message": f"odd {n}", "intent": f"rare{n}", "customer": f"R{n}"} for n in range(20))]
    report = run(tmp_path, rows, split={"stratify": False, "test": 0.5})
    assert balanced(report)
    assert report.dropped["label_not_in_train"] > 0
    assert set(report.splits["test"].labels) <= set(report.splits["train"].labels)


def test_limits_are_drawn_by_label(tmp_path: Path) -> None:
    report = run(tmp_path, tickets(), limit={"train": 9, "test": 6, "validation": 3})
    assert report.splits["train"].labels == {"order": 3, "refund": 3, "return": 3}
    assert [report.splits[split].rows for split in SPLITS] == [9, 3, 6]
    assert report.dropped == {"over_limit": 42}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "{text}"}, r"data\.csv: data\.train\[0\]\.input names the column 'text'"),
        ({"label": "Intent"}, r"data\.train\[0\]\.label names the column 'Intent', .*\n  -> did you mean 'intent'\?"),
        ({"split": {"group_by": "client"}}, r"data\.split\.group_by names the column 'client'"),
        ({"input": "", "label": ""}, "no column holds conversations"),
        (
            {"max_length": 16},
            r"no row is left for the train split: 60 of 60 rows .*max_length, 16 tokens\n  -> raise",
        ),
    ],
)
def test_recipes_that_do_not_fit_the_file(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        run(tmp_path, tickets(), **change)
    assert error.value.way_out


def test_a_file_of_empty_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row is left of 3 \(3 empty_input\)"):
        run(tmp_path, [{"message": " ", "intent": "a", "customer": "C"}] * 3)


def test_free_text_keeps_its_layout(tmp_path: Path) -> None:
    rows = [{"q": f"def f{n}():\n    return {n}", "a": f"  {n} &amp; cafÃ©\n\n    x"} for n in range(20)]
    report = run(tmp_path, rows, path="data.jsonl", task="generation", input="{q}", label="a", system="")
    assert balanced(report)
    one = shards(tmp_path)["train"][0]
    number = one.line - 1
    assert (one.text, one.answer) == (f"def f{number}():\n    return {number}", f"{number} &amp; café\n\n    x")
    contract = Renderer.open(tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json").contract
    longest = max(len(e.input_ids) - len(e.prompt_ids) for e in shards(tmp_path)["train"])
    assert (contract.labels, contract.max_new_tokens) == ((), max(16, longest))
    assert report.splits["train"].labels == {}


def test_conversations(tmp_path: Path) -> None:
    def turns(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    rows: list[dict[str, Any]] = [{"messages": turns(f"hi {n}", "yes?", f"the {n}", "no")} for n in range(20)]
    rows[0]["messages"] = turns("hello", "good day", "bye")  # nothing after the last answer is learned
    rows[1]["messages"] = turns("only a question")
    rows[2]["messages"][1]["role"] = "tool"
    rows[3]["messages"][1]["content"] = ""
    rows[4]["messages"][1]["role"] = "user"
    rows[5]["messages"] = "text"
    rows[6]["messages"].insert(2, {"role": "system", "content": "s"})
    rows[7]["messages"][1]["content"] = " \u200b "
    rows[8]["messages"][0]["content"] = "mail ana@example.org"
    report = run(
        tmp_path, rows, path="data.jsonl", task="generation", input="", label="", system="Be kind.",
        privacy={"action": "redact", "secrets": "stop"},
    )  # fmt: skip
    assert balanced(report)
    assert [(fate.line, fate.reason, fate.detail) for fate in report.fates] == [
        (2, "bad_conversation", "no answer to a user's turn"),
        (3, "bad_conversation", "turn 2 has a role that is not system, user or assistant"),
        (4, "bad_conversation", "turn 2 has no text"),
        (5, "bad_conversation", "turns 1 and 2 are both the user's"),
        (6, "bad_conversation", "not a list of turns with 'role' and 'content'"),
        (7, "bad_conversation", "turn 3 is a system turn, which only the first may be"),
        (8, "bad_conversation", "a turn is empty after cleaning"),
    ]
    renderer = Renderer.open(tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json")
    examples = {one.line: one for ones in shards(tmp_path).values() for one in ones}
    text = renderer._tokenizer.decode(examples[9].input_ids, skip_special_tokens=False)
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nmail [EMAIL]<|im_end|>\n")
    learned = [n for n, learn in zip(examples[10].input_ids, examples[10].supervised, strict=True) if learn]
    assert learned == renderer.answer_ids("yes?") + renderer.answer_ids("no")
    assert (examples[10].text, examples[10].answer, examples[1].answer) == ("the 9", "no", "good day")


def test_the_audit_names_the_row(tmp_path: Path) -> None:
    run(tmp_path, tickets())
    contract = Renderer.open(tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json").contract
    good = shards(tmp_path)["train"][0]
    length = len(good.input_ids)
    assert not fault_of(good, contract)
    faults = Faults()
    faults.add("data.csv:7", "")
    faults.refuse()
    bad = {
        "no token is supervised": replace(good, supervised=[False] * length),
        "an answer's end of turn is not supervised": replace(good, supervised=[*good.supervised[:-1], False]),
        "the row does not consist of a prompt and its answer": replace(good, prompt_tokens=length),
    }
    for number, (problem, example) in enumerate(bad.items()):
        assert fault_of(example, contract) == problem
        for line in range(number, 8):
            faults.add(f"data.csv:{line}", problem)
    with pytest.raises(DataError) as error:
        faults.refuse()
    assert str(error.value) == (
        "21 rows would teach something wrong: "
        "no token is supervised: data.csv:0, data.csv:1, data.csv:2, data.csv:3, data.csv:4; "
        "an answer's end of turn is not supervised: "
        "data.csv:1, data.csv:2, data.csv:3, data.csv:4, data.csv:5; "
        "the row does not consist of a prompt and its answer: "
        "data.csv:2, data.csv:3, data.csv:4, data.csv:5, data.csv:6\n"
        "  -> take these rows out of the file, or use a model with another chat template"
    )


def test_goldens(tmp_path: Path) -> None:
    run(tmp_path, tickets())
    goldens = read_goldens(tmp_path / "out" / "goldens.json")
    assert [golden.name for golden in goldens] == [
        "real_1", "real_2", "long", "empty", "non_latin", "code", "emoji", "control_tokens",
    ]  # fmt: skip
    renderer = Renderer.open(tmp_path / "out" / "contract.json", tmp_path / "tokenizer" / "tokenizer.json")
    for golden in goldens:
        assert list(golden.prompt_ids) == renderer.prompt_ids(renderer.messages(golden.text))
        assert len(golden.prompt_ids) <= renderer.contract.max_length
    assert len(goldens[2].prompt_ids) > 300
    with pytest.raises(RunError, match="is missing"):
        read_goldens(tmp_path / "goldens.json")
    (tmp_path / "goldens.json").write_text("[1]")
    with pytest.raises(RunError, match="is damaged"):
        read_goldens(tmp_path / "goldens.json")


def test_what_init_would_find_in_an_odd_file_can_be_prepared(tmp_path: Path) -> None:
    rows = [
        {"Nr.": n, "Kd-Nr.": f"K-{n // 3:05}", "Was der Kunde schrieb": message(n), "Team": ("Ana", "Bo", "Cy")[n % 3]}
        for n in range(60)
    ]
    write(tmp_path / "export.csv", rows)
    (tmp_path / "recipe.yaml").write_text(
        "name: r\nmodel: {name: m}\ndata: {train: [{path: export.csv}], leakage: {near: off}}\n"
    )
    loaded = load_recipe(tmp_path / "recipe.yaml")
    found = profile(tmp_path / "export.csv")
    recipe = resolve(
        loaded, found, shape(), machine=Machine(threads=1), data_sha256={"data.train.0.path": found.sha256},
        luthier_version="0",
    )  # fmt: skip
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    assert balanced(report)
    assert (report.rows_out, set(report.splits["train"].labels)) == (60, {"Ana", "Bo", "Cy"})


def test_the_room_starts_without_torch() -> None:
    code = (
        "import sys, luthier.data.prepare, luthier.data.profile; "
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.skipif(bool(missing_package()), reason="needs the extra 'privacy'")
def test_what_only_the_profile_finds_is_not_kept_in_the_clear_anywhere(tmp_path: Path) -> None:
    name = "Margaret Thatcher"
    assert not find(f"yesterday {name} wrote & asked where parcel 1 is"), "the patterns alone do not find it"
    rows = [{**row, "message": row["message"] + " &amp; so on"} for row in tickets()]
    rows[0]["message"] = f"yesterday {name} wrote &amp; asked where parcel 1 is"
    write(tmp_path / "data.csv", rows)
    with (tmp_path / "data.csv").open("a", encoding="utf-8") as file:
        file.write(f"yesterday {name} wrote and asked where parcel 2 is\n")
    report = prepare(
        resolved(tmp_path, privacy={"action": "redact", "secrets": "stop", "profile": "balanced"}, max_bad_rows=0.5),
        tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"),
        out=tmp_path / "out",
    )
    assert report.quarantined == 1
    assert report.changes
    assert all(change.line != 2 for change in report.changes), "a text with a find is not shown at all"
    for path in (tmp_path / "out").iterdir():
        assert b"Thatcher" not in path.read_bytes(), path.name
    (kept,) = map(json.loads, (tmp_path / "out" / "quarantine.jsonl").read_text(encoding="utf-8").splitlines())
    assert "raw" not in kept


def test_rows_of_a_folder_name_the_file_of_the_row_that_they_repeat(tmp_path: Path) -> None:
    rows = tickets(60)
    near = {
        **rows[2],
        "message": "please tell me where my long awaited and well insured parcel of guitars is right now",
    }
    rows[2] = near
    more = [dict(rows[1]), {**near, "message": near["message"] + "?"}, {**rows[3], "intent": "other"}, dict(rows[1])]
    (tmp_path / "many").mkdir()
    write(tmp_path / "many" / "a.jsonl", rows)
    write(tmp_path / "many" / "b.jsonl", more)
    recipe = resolved(tmp_path, path="many", dedupe={"near": 0.9})
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    last = [(fate.line, fate.detail) for fate in report.fates if fate.file == "many/b.jsonl"]
    assert last[:1] + last[2:] == [
        (1, "of many/a.jsonl:2"), (3, "same text, other labels in many/a.jsonl:4, many/b.jsonl:3"),
        (4, "of many/a.jsonl:2"),
    ]  # fmt: skip
    assert last[1][0] == 2
    assert re.fullmatch(r"of many/a\.jsonl:3, likeness 0\.9\d", last[1][1])
