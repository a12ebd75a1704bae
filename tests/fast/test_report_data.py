"""The data report, on what `prepare` makes of a messy file."""

from __future__ import annotations

import csv
import html
import json
import random
import re
from pathlib import Path

import pytest
from data_kit import resolved, tokenizer_folder
from test_data_cut import made as cut
from test_data_cut import text_of

from luthier.data.contract import Renderer
from luthier.data.prepare import prepare
from luthier.data.shards import Shard
from luthier.data_report import DataReport, EndpointUse
from luthier.pipeline.explain import data_lines
from luthier.report.data import render_data
from luthier.store.runs import RunFolder

LABELS = ("refund", "Refund", "late", "rare & odd")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataReport, Path]:
    folder = tmp_path_factory.mktemp("data")
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["message", "intent"])
        for number in range(120):
            label = LABELS[min(number % 12, 3)] if number % 12 < 3 or number > 100 else "late"
            text = f"message {number} &lt;b&gt; about ðŸŽ¸ {label[0]}"
            writer.writerow([text + (" mail ana@example.org" if number % 7 == 0 else ""), label])
        writer.writerow(["message 1 &lt;b&gt; about ðŸŽ¸ R", "Refund"])
    recipe = resolved(folder, privacy={"action": "redact", "secrets": "stop"}, labels={"min_rows": 9, "review": True})
    out = folder / "out"
    out.mkdir()
    return prepare(recipe, tokenizer_folder=tokenizer_folder(folder / "tokenizer"), out=out), folder


def test_it_is_one_file_that_loads_nothing_and_escapes_what_is_in_the_data(made: tuple[DataReport, Path]) -> None:
    page = render_data(made[0])
    assert not re.search(r"(src|href)=|<script|<b>|url\(", page)
    assert "default-src 'none'" in page
    assert "rare &amp; odd" in page


def test_it_says_what_happened_to_the_rows(made: tuple[DataReport, Path]) -> None:
    report, page = made[0], render_data(made[0])
    assert report.rows_out + sum(report.dropped.values()) == report.rows_in == 121
    for step in report.steps:
        assert f"<td>{step.step}</td>" in page
    assert report.similar_labels == (("Refund", "refund"),)
    assert "These read alike: Refund, refund." in page
    assert report.rare_labels == {label: rows for label, rows in report.splits["train"].labels.items() if rows < 9}
    for label, rows in report.rare_labels.items():
        assert f"{html.escape(label)} ({rows})" in page
    for split in report.splits.values():
        assert sum(split.length_counts) == split.rows


def test_it_shows_changes_but_nothing_personal(made: tuple[DataReport, Path]) -> None:
    report, page = made[0], render_data(made[0])
    assert report.changes[0].before == "message 1 &lt;b&gt; about ðŸŽ¸ R"
    assert report.changes[0].after == "message 1 <b> about 🎸 R"
    assert "ana@example.org" not in page + report.to_json()


def test_what_cleaning_uncovers_is_not_shown_as_it_was(tmp_path: Path) -> None:
    rows = "".join(f"message {n} from ana{n}&#64;example.org,{'ab'[n % 2]}\n" for n in range(60))
    (tmp_path / "data.csv").write_text("message,intent\n" + rows)
    recipe = resolved(tmp_path, privacy={"action": "redact", "secrets": "redact", "profile": "fast"})
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    assert report.findings == {"email": 60}
    assert report.changes == ()
    assert "example.org" not in report.to_json() + render_data(report)


def test_earlier_turns_are_looked_at_before_a_conversation_is_shown(tmp_path: Path) -> None:
    def chat(number: int, first: str) -> str:
        said = [f"my guitar {number} is late", "which one?", f"{first} number {number}", f"it comes on day {number}"]
        roles = ["user", "assistant", "user", "assistant"]
        return json.dumps({"messages": [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]})

    chats = [chat(n, "the red one") for n in range(40)]
    private = [one.replace("my guitar", "mail ana@example.org, my guitar") for one in chats]
    for name, lines, shown in (("plain", chats, 6), ("private", private, 0)):
        (tmp_path / "data.jsonl").write_text("\n".join(lines))
        recipe = resolved(
            tmp_path, path="data.jsonl", task="generation", input="", label="", system="Write to me@x.org."
        )
        report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / name)
        assert len(report.views) == shown


def test_many_rows_that_contradict_each_other_make_no_long_report(tmp_path: Path) -> None:
    rows = "".join(f"ok thanks,{'ab'[n % 2]}\n" for n in range(400))
    rows += "".join(f"message number {n} of all,{'ab'[n % 2]}\n" for n in range(40))
    (tmp_path / "data.csv").write_text("message,intent\n" + rows)
    report = prepare(resolved(tmp_path), tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "o")
    assert report.dropped == {"conflicting_labels": 400}
    assert report.fates[0].detail.endswith("in lines " + ", ".join(map(str, range(2, 22))) + " and 380 more")


def test_rows_are_shown_as_the_model_reads_them(made: tuple[DataReport, Path]) -> None:
    report, folder = made
    renderer = Renderer.open(folder / "out/contract.json", folder / "tokenizer/tokenizer.json")
    assert {view.split for view in report.views} == {"train", "validation", "test"}
    page = html.unescape(render_data(report))
    for view in report.views:
        row = next(row for row in Shard(folder / f"out/{view.split}.arrow") if row.line == view.line)
        assert "".join(token.text for token in view.tokens) == renderer.raw_text(row.input_ids)
        assert [token.supervised for token in view.tokens for _ in range(token.num_tokens)] == row.supervised
        learned = "".join(token.text for token in view.tokens if token.supervised)
        assert learned.startswith(row.answer)
        assert f'<span class="token learned" title="1 token">{view.tokens[-1].text}</span>' in page
        assert "🎸" in "".join(token.text for token in view.tokens), "bytes of one character are shown together"


def test_it_shows_what_was_made(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(
        "message,intent\n" + "".join(f"my guitar {17**n} is late,{'ab'[n % 8 == 0]}\n" for n in range(200))
    )
    recipe = resolved(
        tmp_path,
        augment={"typos": 0.4, "swap": 0.2, "swaps": [["guitar", "<cello>"]], "balance": 0.9},
        canaries={"count": 1, "copies": [0, 1, 4]},
    )
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    page = render_data(report)
    made = report.augmentation
    assert made is not None
    assert f"{made.rows} offspring of {made.originals} training rows" in page
    assert f"{report.rows_added} more were made for training. 0 were set aside" in page
    for one in made.techniques:
        assert len(one.examples) == 3
        for pair in one.examples:
            assert f"{html.escape(pair.before)}</td>" in page
            assert f"{html.escape(pair.after)}</td>" in page
        assert f"{one.technique}</td>" in page
    assert made.short
    assert f"Each label was to have {made.goal} rows. Still short: b ({made.short['b']})." in page
    assert "5 rows of training are planted secrets: 1 in 0 copies, 1 in 1 copy, 1 in 4 copies." in page
    assert f"+{report.rows_added}" in page
    said = "\n".join(data_lines(report, RunFolder(tmp_path)))
    assert f"{report.rows_out} used, {report.rows_added} of them made for training" in said
    assert "canaries: 5 rows" in said
    assert "1 labels have fewer than" in said
    asked = EndpointUse(endpoint="http://h/v1", model="m", requests=3, from_cache=2, tokens=9, unanswered=4)
    dropped = made.techniques[0].model_copy(update={"dropped": {"too_long": 7}, "asked": 999})
    made = made.model_copy(update={"endpoint": asked, "techniques": (dropped,)})
    report = report.model_copy(update={"augmentation": made})
    for told in ("m was asked 3 times (9 tokens)", "the budget did not reach for 4 rows", "(set aside: 7 too long)"):
        assert told in "\n".join(data_lines(report, RunFolder(tmp_path)))
    assert "The budget was used up before 4 rows were asked about." in render_data(report)


def test_what_is_supervised_and_what_was_cut_is_shown(tmp_path: Path) -> None:
    rows = [{"message": text_of(n), "intent": "rare" if n % 5 == 0 else "usual"} for n in range(60)]
    cut(tmp_path, rows, max_length=128)
    recipe = resolved(tmp_path, max_length=128, too_long="cut_middle")
    train = recipe.recipe.train.model_copy(update={"class_weight": "balanced"})
    recipe = recipe.model_copy(update={"recipe": recipe.recipe.model_copy(update={"train": train})})
    report = prepare(recipe, tokenizer_folder=tmp_path / "tokenizer", out=tmp_path / "out")
    page = render_data(report)
    assert "The text of 20 rows was cut to fit" in page
    lost = sum(split.supervision.tokens_lost for split in report.splits.values() if split.supervision)
    share = 100 * lost / (lost + sum(split.tokens for split in report.splits.values()))
    assert f"{round(share, 2)} % of all tokens were lost by it" in page
    audit = report.splits["train"].supervision
    assert audit is not None
    for number in (audit.rows_ended, audit.per_row_p50, audit.per_row_max, audit.by_role["assistant"]):
        assert f'<td class="n">{number}</td>' in page
    assert f"lines {', '.join(map(str, audit.first_cut_lines))}" in page
    assert "Every row ends with an end of turn that is learned." in page
    assert "share that counts" in page
    for one in report.balance:
        assert f'<td>{one.label}</td><td class="n">{one.rows}</td>' in page
        assert f'<td class="n">{round(100 * one.effective_share, 1)}</td></tr>' in page
    without = render_data(report.model_copy(update={"balance": (), "end_of_turn_supervised": False}))
    assert "share that counts" not in without
    assert "the model may not stop" in without
    told = "\n".join(data_lines(report, RunFolder(tmp_path)))
    assert f"cut to fit: 20 rows, {lost} tokens of their texts" in told
    usual, rare = (one.share for one in report.balance)
    assert f"what labels count in training: usual {usual:.0%} -> 50%, rare {rare:.0%} -> 50%" in told


def test_rows_that_cannot_be_read_are_shown_by_reason_and_masked(tmp_path: Path) -> None:
    good = "".join(f"message number {number} of all,{'ab'[number % 2]}\n" for number in range(60))
    bad = "mail ana@example.org,a,<b>too many</b>\n" + "one\n" * 7
    (tmp_path / "data.csv").write_text("message,intent\n" + good + bad + "nul \0,a\n")
    recipe = resolved(tmp_path, max_bad_rows=1.0)
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    assert report.quarantined == 9
    assert [(row.line, row.reason) for row in report.bad_rows] == [
        *((line, "wrong_cell_count") for line in range(62, 67)), (70, "nul_character"),
    ]  # fmt: skip
    page = render_data(report)
    assert "9 of 69 rows (13.04 %) are in quarantine.jsonl" in html.unescape(page)
    assert "mail [EMAIL],a,&lt;b&gt;too many&lt;/b&gt;" in page
    assert "ana@" not in page + report.to_json()


ENGLISH = [
    "please",
    "where",
    "guitar",
    "came",
    "without",
    "strings",
    "order",
    "money",
    "return",
    "broken",
    "parcel",
    "invoice",
    "late",
    "again",
    "shipped",
    "wrong",
]
GERMAN = [
    "bitte",
    "wohin",
    "meine",
    "Bestellung",
    "ohne",
    "Saiten",
    "Rechnung",
    "zurück",
    "kaputt",
    "Paket",
    "schon",
    "wieder",
    "falsch",
    "geliefert",
    "nicht",
]


def test_it_shows_what_repeats_and_in_which_languages(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=9)) for words in [ENGLISH] * 40 + [GERMAN] * 20]
    texts += [texts[3], f"{texts[4]} ana@x.org", "ok", "no"]
    rows = [f"{text},{'b' if place in (3, 60) else 'a' if place in (4, 61) else 'ab'[place % 2]}" for place, text in
            enumerate(texts)]  # fmt: skip
    (tmp_path / "data.csv").write_text("\n".join(["message,intent", *rows]))
    rules = {"action": "report", "secrets": "stop", "profile": "fast"}
    recipe = resolved(tmp_path, dedupe={"near": 0.7}, privacy=rules)
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    exact, near = report.duplicates
    assert (exact.line, exact.of_line, exact.likeness) == (62, 5, 1.0)
    assert exact.file == exact.of_file == "data.csv"
    assert exact.text == exact.of_text == texts[3]
    assert (near.line, near.of_line) == (63, 6)
    assert 0.7 <= near.likeness < 1
    assert (near.text, near.of_text) == (f"{texts[4]} [EMAIL]", texts[4])
    told = report.languages
    assert told is not None
    assert told.looked_at == report.rows_out == sum(told.rows.values()) + told.too_short
    assert told.too_short == 2
    assert told.rows["de"] > 15
    assert told.rows["en"] > 30
    page = render_data(report)
    assert "ana@" not in report.to_json() + page
    assert f"Languages of {report.rows_out} of these rows" in page
    assert html.escape(near.text) in page
    assert "Languages were not told" in render_data(report.model_copy(update={"languages": None}))
