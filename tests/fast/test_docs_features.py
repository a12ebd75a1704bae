"""The examples of docs/features.md do what the page says."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_kit import renderer, resolved, shape, tokenizer_folder

from command import call, paper_model
from luthier.data.expressions import FUNCTIONS
from luthier.data.prepare import prepare
from luthier.data.profile import profile
from luthier.data.shards import Shard
from luthier.spec.filler import Machine
from luthier.spec.load import load_recipe
from luthier.spec.resolve import resolve

PAGE = (Path(__file__).parents[2] / "docs" / "features.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def test_the_rows_become_the_prompts(tmp_path: Path) -> None:
    table, prompts = blocks("csv")[0], blocks("text")[0].splitlines()
    data = yaml.safe_load(blocks("yaml")[0])["data"]
    ours = renderer(tmp_path, input=data["train"][0]["input"], features=data["features"])
    rows = list(csv.DictReader(io.StringIO(table)))
    for row in rows:
        del row["intent"]
    assert [ours.user_text(row) for row in rows] == prompts
    assert ours.contract.column_types == {"price": "text", "created": "text"}


def test_check_shows_the_features_and_finds_what_is_wrong(tmp_path: Path) -> None:
    rows = blocks("csv")[0].splitlines()
    body = "".join(f"{row.replace('it', f'it {n}', 1)}\n" for n in range(20) for row in rows[1:])
    (tmp_path / "orders.csv").write_text(f"{rows[0]}\n{body}", encoding="utf-8")
    recipe = {
        "name": "orders",
        "model": {"name": str(paper_model(tmp_path / "model"))},
        **yaml.safe_load(blocks("yaml")[0]),
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    done = call("check", "r.yaml", cwd=tmp_path).succeeds()
    assert "  feature band (string) from price (text): CASE WHEN TRY_CAST" in done.out
    assert "  feature month (string) from created (text): strftime(" in done.out
    explained = call("check", "r.yaml", "--explain", cwd=tmp_path).succeeds().out
    assert re.search(r"data\.columns\.price = text +the type of its cells in the file", explained)
    typed = call("check", "r.yaml", "--set", "data.columns={created: date}", cwd=tmp_path).succeeds()
    assert "  feature month (string) from created (date)" in typed.out
    for sql, words in {
        "length(mesage)": ("data.features.month names the column 'mesage'", "did you mean 'message'?"),
        "(SELECT 1)": ("data.features.month holds a query inside an expression",),
        "upper(intent)": ("data.features.month uses the column 'intent', which is the answer",),
        "read_text('x')": ("data.features.month holds the function read_text()",),
    }.items():
        call("check", "r.yaml", "--set", f"data.features.month={sql}", cwd=tmp_path).fails(2, *words)
    call("check", "r.yaml", "--set", "data.features.price='1'", cwd=tmp_path).fails(2, "the name of the column 'price'")
    call("check", "r.yaml", "--set", "data.columns={message: text}", cwd=tmp_path).fails(
        2, "no expression of data.features"
    )


def test_the_real_set_says_what_was_asked_for(shared_data: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(blocks("yaml")[1])["data"]
    data["train"][0]["path"] = str(shared_data / "restaurant8k" / "test.jsonl")  # fewer rows
    del data["test"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "r", "model": {"name": "m"}, "data": data}))
    loaded = load_recipe(tmp_path / "r.yaml")
    facts = profile(Path(data["train"][0]["path"]))
    recipe = resolve(
        loaded, facts, shape(), machine=Machine(threads=1), data_sha256={}, luthier_version="0"
    )  # fmt: skip
    report = prepare(recipe, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    (asked,) = report.features
    assert (asked.rows, asked.empty, asked.failed) == (3731, 0, 0)
    texts = {row.text: row.answer for row in Shard(tmp_path / "out" / "train.arrow")}
    assert any(text.startswith("[date, time] ") for text in texts)
    assert not any(text.startswith("[time, date] ") for text in texts)
    said = {text.split("] ", 1)[1] for text in texts}
    both = [text for text in said if f"[time] {text}" in texts and f"[people] {text}" in texts]
    assert any('"time"' in texts[f"[time] {text}"] and '"people"' in texts[f"[people] {text}"] for text in both)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"([a-z_]+)\(", " ".join(blocks("yaml"))))))
def test_functions_on_the_page_are_known(name: str) -> None:
    assert name in FUNCTIONS | {"coalesce", "nullif"}


def test_the_prepared_shop(tmp_path: Path) -> None:
    data: dict[str, Any] = yaml.safe_load(blocks("yaml")[0])["data"]
    rows = [f"Where is it {n}?,{n}.90,2026-{n % 12 + 1:02}-01,{('order', 'refund')[n % 2]}" for n in range(60)]
    (tmp_path / "data.csv").write_text("message,price,created,intent\n" + "\n".join(rows) + "\n")
    made = resolved(tmp_path, input=data["train"][0]["input"], features=data["features"])
    report = prepare(made, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), out=tmp_path / "out")
    assert report.rows_out == 60
    texts = {row.line: row.text for split in report.splits for row in Shard(tmp_path / "out" / f"{split}.arrow")}
    assert texts[2] == "[cheap, January, 0.90] Where is it 0?"
    assert texts[61] == "[dear, December, 59.90] Where is it 59?"
