"""A CSV that nobody prepared: `init` and `run` on the 135M model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.real


def test_init_on_an_untidy_file_gives_a_recipe_that_runs(finished: Any, shared_data: Path) -> None:
    source = shared_data / "dirty_doaj" / "doaj-article-sample.csv"
    (finished.work / "articles.csv").write_bytes(source.read_bytes())
    finished.call("init", "articles.csv")
    settings = [
        "train.max_tokens=1500",
        "data.limit.test=8",
        "data.limit.validation=4",
        "data.limit.train=300",
        "train.validations=1",
    ]
    done = finished.call(
        "run", "articles.yaml", "--json", *(part for one in settings for part in ("--set", one)), check=False
    )
    assert done.returncode in (0, 3), done.stderr  # the gate decides by what so few rows prove
    document = json.loads(done.stdout)
    assert document["evaluation"]["num_items"] <= 8
    assert (finished.work / document["run"] / "report.html").is_file()
