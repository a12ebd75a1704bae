"""Which slots of a booking a guest's words fill, several or none (restaurant8k); a row in results/several_labels.csv.

    LUTHIER_DATA=FOLDER python benchmarks/several_labels.py [--set train.threads=1 ...]

FOLDER holds restaurant8k/. The labels of a row are the names of its slots; 400 of the official test rows are drawn.
Times are not recorded: the machine is shared.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rows import append, commit, processor

RESULTS = Path(__file__).parent / "results" / "several_labels.csv"
RECIPE: dict[str, Any] = {
    "name": "booking_slots_filled",
    "model": {"name": "smollm2-135m-instruct"},
    "data": {
        "train": [
            {
                "name": "slots", "path": "train.jsonl", "task": "multi_label", "input": "{text}", "label": "filled",
                "system": "Which slots does the guest fill?", "license": "CC-BY-4.0",
            }
        ],
        "split": {"validation": 0.05},
        "test": "test.jsonl",
        "limit": {"validation": 200, "test": 400},
        "privacy": {"action": "report", "profile": "fast"},
    },
    "method": {"type": "multi_label"},
    "adapter": {"r": 8},
    "train": {
        "max_tokens": 80000, "num_train_epochs": 1, "max_length": 128, "batch_size": 16, "validations": 4, "threads": 1
    },
    "export": ["adapter"],
}  # fmt: skip


def write_rows(folder: Path) -> None:
    """Both files with the names of the slots as labels."""
    source = Path(os.environ["LUTHIER_DATA"]) / "restaurant8k"
    for name, file in (("train", "train.jsonl.gz"), ("test", "test.jsonl")):
        read = gzip.open if file.endswith(".gz") else open
        with read(source / file, "rt", encoding="utf-8") as rows, (folder / f"{name}.jsonl").open("w") as out:
            for line in rows:
                row = json.loads(line)
                filled = sorted({one["slot"] for one in row["slots"]})
                out.write(json.dumps({"text": row["text"], "filled": filled}) + "\n")


def show(interval: dict[str, Any]) -> str:
    """Point and interval, for a cell."""
    return f"{interval['point']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def main(more: list[str]) -> None:
    """Run it and append its row."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_rows(folder)
        (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
        command = [sys.executable, "-m", "luthier.cli", "run", str(folder / "recipe.yaml"), "--json", *more]
        done = subprocess.run([*command, "--out", str(folder / "runs")], stdout=subprocess.PIPE, text=True, check=False)
        document = json.loads(done.stdout)
        train = json.loads((Path(document["run"]) / "train/result.json").read_text(encoding="utf-8"))
    report = document["evaluation"]
    scores = {score["system"]: score["metrics"] for score in report["systems"]}
    head, dirty = commit()
    row: dict[str, Any] = {
        "commit": head,
        "dirty": dirty,
        "luthier": version("luthier"),
        "processor": processor(),
        "threads": train["threads"],
        "trained_tokens": train["trained_tokens"],
        "rows_learned": train["supervised_tokens"],
        "n_test": report["num_items"],
    }
    for system in ("majority", "tfidf_logreg", "base", "tuned"):
        for metric in ("micro_f1", "macro_f1", "accuracy"):
            row[f"{system}_{metric}"] = show(scores[system][metric])
    for one in report["differences"]:
        if (one["against"], one["metric"]) == ("tfidf_logreg", "micro_f1"):
            row["tuned_minus_tfidf_micro_f1"] = show(one["interval"])
    append(RESULTS, row)
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
