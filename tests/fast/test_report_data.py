"""The data report, on what `prepare` makes of a messy file."""

from __future__ import annotations

import csv
import html
import re
from pathlib import Path

import pytest
from data_kit import resolved, tokenizer_folder

from luthier.data.contract import Renderer
from luthier.data.prepare import prepare
from luthier.data.shards import Shard
from luthier.data_report import DataReport
from luthier.report.data import render_data

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
    assert report.changes[0].before == "message 0 &lt;b&gt; about ðŸŽ¸ r mail [EMAIL]"
    assert report.changes[0].after == "message 0 <b> about 🎸 r mail [EMAIL]"
    assert "ana@example.org" not in page + report.to_json()


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
