"""What docs/answers.md says is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from luthier.evals.metrics import bleu, chrf
from luthier.spec.limits import parse_limit
from luthier.spec.load import load_recipe
from luthier.spec.plugins import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "answers.md").read_text(encoding="utf-8")


def test_the_recipe_shown_is_read_and_its_targets_are_measured(tmp_path: Path) -> None:
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"name": "r", "model": "m", **shown}), encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    assert recipe.objective.targets
    for key, text in recipe.objective.targets.items():
        limit = parse_limit(key, text, section="targets")
        assert limit.subject == recipe.entry.label  # an entry without a name is called by it
        assert recipe.entry.task in METRICS.get(limit.metric).tasks


def test_every_metric_stands_beside_the_tasks_that_it_is_for() -> None:
    free = ("translation", "generation", "extraction")
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", PAGE, re.MULTILINE))
    measured = {name: [task for task in free if task in facts.tasks] for name, facts in METRICS.entries().items()}
    assert {name for name, tasks in measured.items() if tasks} == set(told)
    for name, tasks in told.items():
        assert measured[name] == list(free if tasks == "all three" else tasks.split(", "))


def test_the_signature_is_that_of_the_code() -> None:
    assert all(metric.SIGNATURE in PAGE.replace("\\|", "|") for metric in (chrf, bleu))
