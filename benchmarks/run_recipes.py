"""Run the recipes on real data and add a row for each to results/recipes.csv.

    LUTHIER_DATA=FOLDER python benchmarks/run_recipes.py banking77 sst2

FOLDER holds banking77/, sst2/ and trec6/. Times are not recorded: the machine is shared;
what counts is quality on the same rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rows import append, commit, processor

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "recipes.csv"
FLOORS = {
    "banking77": 0.860,
    "banking77_classify": 0.860,
    "sst2": 0.800,
    "sst2_classify": 0.800,
    "trec6_classify": 0.832,
}
"""Accuracy of naive Bayes on word unigrams and bigrams, fitted on the whole training set, scored on the whole test set
(as the collection's own notes give it): more data than the cut recipes see."""


def show(interval: dict[str, Any]) -> str:
    """Point and interval, for a cell."""
    return f"{interval['point']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def main(names: list[str]) -> None:
    """Run each recipe and append its row."""
    for name in names:
        command = [sys.executable, "-m", "luthier.cli", "run", str(HERE / "recipes" / f"{name}.yaml"), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        document = json.loads(done.stdout)
        run, report = Path(document["run"]), document["evaluation"]
        train = json.loads((run / "train/result.json").read_text(encoding="utf-8"))
        rows = json.loads((run / "data/report.json").read_text(encoding="utf-8"))["splits"]["train"]["rows"]
        scores = {score["system"]: score["metrics"] for score in report["systems"]}
        head, dirty = commit()
        row: dict[str, Any] = {
            "recipe": name,
            "commit": head,
            "dirty": dirty,
            "luthier": version("luthier"),
            "torch": version("torch"),
            "transformers": version("transformers"),
            "processor": processor(),
            "threads": train["threads"],
            "train_rows": rows,
            "trained_tokens": train["trained_tokens"],
            "n_test": report["num_items"],
        }
        for system in ("majority", "tfidf_logreg", "base", "tuned"):
            for metric in ("accuracy", "macro_f1"):
                row[f"{system}_{metric}"] = show(scores[system][metric])
        row["naive_bayes_all_rows_accuracy"] = FLOORS[name]
        append(RESULTS, row)
        print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:] or sorted(FLOORS))
