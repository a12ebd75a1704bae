"""`luthier run --seeds`: trainings that differ in their seed alone, judged on the same rows; nothing is chosen."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from command import Done, luthier
from luthier.eval_records import EvalReport, Leaderboard, SeedsReport
from luthier.plan_records import Plan
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.runs import RunFolder
from tiny import write_messages, write_model

RECIPE = {
    "name": "kinds",
    "model": {"name": "model"},
    "data": {
        "train": [
            {"name": "kind", "path": "messages.csv", "task": "classification", "input": "{text}", "label": "kind"}
        ],
        "split": {"test": 0.3, "validation": 0.1},
        "privacy": {"profile": "fast"},
        "leakage": {"near": False},
    },
    "method": "classify",
    "adapter": {"r": 4},
    "evaluate": {"resamples": 200},
    "export": ["adapter"],
    "train": {"num_train_epochs": 1, "max_length": 96, "threads": 1, "seed": 7, "validations": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("seeds")
    write_model(folder / "model")
    write_messages(folder / "messages.csv")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False), encoding="utf-8")
    return folder, run(folder, "--seeds", "2").succeeds()


def run(folder: Path, *more: str) -> Done:
    return luthier("run", "recipe.yaml", "--json", *more, cwd=folder, LUTHIER_HOME=str(folder / "home"))


def test_the_seeds_differ_in_their_seed_alone_and_share_the_rows(world: tuple[Path, Done]) -> None:
    folder, done = world
    (document,) = done.document["seeds"]
    runs = [RunFolder(folder / "runs" / name) for name in document["runs"]]
    first, other = (ResolvedRecipe.read(one.resolved).recipe.model_dump() for one in runs)
    assert (first["train"].pop("seed"), other["train"].pop("seed")) == (7, 8) == tuple(document["seeds"])
    assert first == other
    assert (runs[0].data / "test.arrow").read_bytes() == (runs[1].data / "test.arrow").read_bytes()
    for one in runs:
        assert Plan.read(one.plan).recipe_sha256 == ResolvedRecipe.read(one.resolved).sha256
    weights = [next(one.tuned.glob("*.safetensors")).read_bytes() for one in runs]
    assert weights[0] != weights[1]


def test_the_numbers_are_those_of_the_runs(world: tuple[Path, Done]) -> None:
    folder, done = world
    latest = RunFolder((folder / "runs/kinds/latest").resolve())
    report = SeedsReport.read(latest.seeds)
    runs = [RunFolder(folder / "runs" / name) for name in report.runs]
    assert str(latest.path) == str(runs[0].path), "what is exported is the recipe's own seed"
    assert done.document["run"] == str(Path("runs") / report.runs[0])
    assert runs[0].gate.is_file()
    assert not runs[1].gate.exists()
    for score in report.scores:
        tuned = [EvalReport.read(one.eval_report).systems[-1] for one in runs]
        assert [one.system for one in tuned] == ["tuned", "tuned"]
        assert score.values == pytest.approx([one.metrics[score.metric].point for one in tuned])
        assert score.training_sd == pytest.approx(np.std(score.values, ddof=1))
    against = {gap.against for gap in report.differences}
    assert {"base", "tfidf_logreg", "majority"} <= against
    page = latest.seeds_page.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?http", page)
    assert "seed 7" in page
    assert "seed 8" in page


def test_runs_are_ranked_on_one_page_beside_the_baselines_of_the_first(world: tuple[Path, Done]) -> None:
    folder, done = world
    names = done.document["seeds"][0]["runs"]
    runs = [str(Path("runs") / name) for name in names]
    ranked = luthier("report", *runs, "--json", cwd=folder).succeeds().document
    board = Leaderboard.model_validate({key: value for key, value in ranked.items() if key != "page"} | {"pairs": ()})
    assert {one.name for one in board.contenders if not one.is_baseline} == set(names)
    assert {one.name for one in board.contenders if one.is_baseline} == {"TF-IDF + logistic regression"}
    values = [one.metrics[board.metric].point for one in board.contenders]
    assert values == sorted(values, reverse=True)
    evaluated = {name: EvalReport.read(RunFolder(folder / "runs" / name).eval_report) for name in names}
    for one in board.contenders:
        report = evaluated.get(one.name, evaluated[names[0]])
        (system,) = [each for each in report.systems if each.system == ("tfidf_logreg" if one.is_baseline else "tuned")]
        assert one.metrics[board.metric].point == pytest.approx(system.metrics[board.metric].point)
    assert board.pair_level == pytest.approx(1 - 0.05 / 3)
    assert len(ranked["pairs"]) == 3
    page = (folder / "leaderboard.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)\s*=\s*['\"]?http", page)
    assert all(name in page for name in names)
    shutil.copytree(folder / "runs", folder / "copy", symlinks=True)
    twice = str(Path("copy") / names[0])
    for wrong, message in (
        ((runs[0], runs[0]), "is named twice"),
        ((runs[0], twice), f"two of the runs are called {names[0]}"),
        ((runs[0], "-o", "x.html"), "drop it"),
    ):
        refused = luthier("report", *wrong, cwd=folder)
        assert refused.code == 2
        assert message in refused.err


def test_nothing_is_done_twice_and_odd_wishes_are_refused(world: tuple[Path, Done]) -> None:
    folder, done = world
    again = run(folder, "--seeds", "2").succeeds()
    assert again.document["seeds"] == done.document["seeds"]
    assert again.err.count("train: unchanged, not run again") == 2 + 1, "each seed, and the first when it is exported"
    for more, message in (
        (("--seeds", "1"), "the spread of one seed cannot be seen"),
        (("--seeds", "2", "--search"), "--seeds and --search cannot be one command"),
    ):
        refused = run(folder, *more)
        assert refused.code == 2
        assert message in refused.err
    of_run = luthier("run", done.document["run"], "--seeds", "2", cwd=folder)
    assert of_run.code == 2
    assert "name its recipe" in of_run.err
