"""`luthier init` on files that nobody prepared gives recipes that `luthier run` completes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import yaml

from command import Done, call, luthier
from luthier.data_report import DataReport
from luthier.eval_records import EvalReport

pytestmark = pytest.mark.slow

SMALL = [
    "--set",
    "train={max_length: 256, batch_size: 8, num_train_epochs: 1, threads: 1, validations: 1}",
    "--set",
    "evaluate={resamples: 200, baselines: [base]}",
    "--set",
    "export=[adapter]",
    "--set",
    "data.privacy.profile=fast",
]


def run(recipe: Path, model: Path, *changes: str) -> Done:
    """Complete the recipe with a tiny model, and nothing else changed but what makes it long."""
    return luthier(
        "run",
        recipe,
        "--set",
        f"model.name={model}",
        *SMALL,
        *changes,
        "--json",
        cwd=recipe.parent,
        LUTHIER_HOME=str(recipe.parent / "home"),
    )


def write_odd_table(path: Path) -> None:
    """What a German office exports: semicolons, cp1252, blanks and umlauts in the header, dates, numbers, a free id."""
    rng = random.Random(3)
    things, places = (
        ["Geige", "Gitarre", "Flöte", "Trommel", "Bogen", "Saite"],
        ["in Köln", "in Graz", "beim Händler", "zu Hause"],
    )
    said = {
        "Rückgabe": ["möchte ich zurückgeben", "soll zurück", "nehmen Sie bitte zurück"],
        "Lieferung": ["ist noch nicht da", "kommt zu spät", "fehlt im Paket"],
        "Prüfung": ["ist beschädigt", "klingt schief", "hat einen Riss; was nun?"],
    }
    lines = ["Vorgangs-Nr.;Datum;Kunden Nr;Anfrage (Text);Priorität;Kategorie für Ablage"]
    for number in range(150):
        kind = rng.choice(list(said))
        what = f"{rng.choice(things)} {rng.choice(places)} {rng.choice(said[kind])}"
        text = f"Meine {what} – Nr. {number}, „bitte“ um Antwort"
        lines.append(f'V-{4000 + number};{1 + number % 28:02}.03.2026;K{number // 2:03};"{text}";{number % 3};{kind}')
    path.write_bytes(("\r\n".join(lines) + "\r\n").encode("cp1252"))


def test_odd_columns(tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "Anfragen 2026 (März).csv"
    write_odd_table(data)
    made = call("init", data, "--json", cwd=tmp_path).succeeds().document
    found, recipe = made["profile"], Path(made["recipe"])
    assert (found["encoding"], found["delimiter"], found["num_rows"]) == ("cp1252", ";", 150)
    entry = yaml.safe_load(recipe.read_text())["data"]["train"][0]
    assert (entry["input"], entry["label"], entry["task"]) == (
        "{Anfrage (Text)}",
        "Kategorie für Ablage",
        "classification",
    )
    assert yaml.safe_load(recipe.read_text())["data"]["split"]["group_by"] == "Kunden Nr"
    explained = call("check", recipe, "--set", f"model.name={tiny_model}", "--explain", cwd=tmp_path).succeeds().out
    assert "{Anfrage (Text)}" in explained
    document = run(recipe, tiny_model).decides().document
    evaluation = EvalReport.model_validate_json((tmp_path / document["run"] / "eval" / "report.json").read_bytes())
    assert evaluation.labels == ("Lieferung", "Prüfung", "Rückgabe")
    report = DataReport.read(tmp_path / document["run"] / "data" / "report.json")
    assert report.rows_out >= 140
    assert "'Kunden Nr' stay together" in report.split_rule
    assert "–" in (tmp_path / document["run"] / "data" / "goldens.json").read_text(encoding="utf-8")


def test_a_file_of_the_real_world(tmp_path: Path, tiny_model: Path, shared_data: Path) -> None:
    data = shutil.copy(shared_data / "dirty_doaj" / "doaj-article-sample.csv", tmp_path)
    recipe = Path(call("init", data, "--json", cwd=tmp_path).succeeds().document["recipe"])
    entry = yaml.safe_load(recipe.read_text())["data"]["train"][0]
    assert entry["input"] == "{Title}"
    assert entry["label"] in {"Publisher", "Language", "Licence"}
    done = run(recipe, tiny_model, "--set", "data.limit={train: 120, validation: 20, test: 40}").decides()
    report = DataReport.read(tmp_path / done.document["run"] / "data" / "report.json")
    assert report.rows_in == 1001
    assert report.rows_in == report.rows_out + sum(report.dropped.values())
    assert report.splits["test"].rows <= 40
    assert report.dropped["over_limit"] > 500
