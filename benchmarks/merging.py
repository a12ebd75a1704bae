"""Runs on halves of one task and on two tasks, merged in every way; a row each in results/merging.csv.

    LUTHIER_DATA=FOLDER python benchmarks/merging.py [OUT]

FOLDER holds sst2/ and trec6/. Each parent learns ROWS rows, the yardstick of the halves the rows of both. All models
answer the same ASKED test rows of each task; differences are paired. Times are not recorded: the machine is shared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rows import append, commit, processor

from luthier.evals.intervals import Bootstrap

RESULTS = Path(__file__).parent / "results" / "merging.csv"
ROWS, TEST, ASKED = 192, 200, 100

TASK = {"task": "classification", "input": "{text}", "label": "label"}
USUAL: dict[str, Any] = {
    "model": {"name": "smollm2-135m-instruct"},
    "method": {"type": "sft"},
    "evaluate": {"baselines": ["base"]},
    "export": [],
}
LEARNING = {"num_train_epochs": 1, "validations": 1, "max_length": 256}

HALVES: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "linear, rank 4": {"method": "linear", "rank": 4},
    "ties": {"method": "ties"},
    "dare_linear": {"method": "dare_linear"},
    "greedy": {"method": "greedy"},
}
TASKS: dict[str, dict[str, Any]] = {
    "linear, weights 1": {"method": "linear", "weights": [1.0, 1.0]},
    "ties": {"method": "ties"},
}


def rows_of(name: str, first: int, count: int, split: str = "train") -> list[str]:
    """Lines of a data set, spread over it."""
    lines = (Path(os.environ["LUTHIER_DATA"]) / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    step = max(1, len(lines) // 900)
    return lines[::step][first : first + count]


def write(out: Path) -> None:
    """Files and recipes."""
    sets = {
        "half-a": rows_of("sst2", 0, ROWS),
        "half-b": rows_of("sst2", ROWS, ROWS),
        "both": rows_of("sst2", 0, 2 * ROWS),
        "questions": rows_of("trec6", 0, ROWS),
        "sentiment-validation": rows_of("sst2", 0, 60, "validation"),
        "sentiment-test": rows_of("sst2", 0, TEST, "test"),
        "question-validation": rows_of("trec6", ROWS, 60),
        "question-test": rows_of("trec6", 0, TEST, "test"),
        "sentiment-asked": rows_of("sst2", 0, ASKED, "test"),
        "question-asked": rows_of("trec6", 0, ASKED, "test"),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in sets.items():
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sentiment = {name: _entry("sentiment", name) for name in ("half-a", "half-b", "both")}
    question = _entry("question", "questions")
    for name, entry in sentiment.items():
        _save(out, name, [entry], train=LEARNING)
    _save(out, "questions", [question], train=LEARNING)
    for case, merge in HALVES.items():
        _save(out, _name("halves", case), [sentiment["both"]], merge={"runs": ["half-a", "half-b"], **merge})
    for case, merge in TASKS.items():
        runs = ["half-a", "questions"]
        _save(out, _name("tasks", case), [sentiment["half-a"], question], merge={"runs": runs, **merge})


def _entry(task: str, rows: str) -> dict[str, Any]:
    files = {"path": f"{rows}.jsonl", "validation": f"{task}-validation.jsonl", "test": f"{task}-test.jsonl"}
    return {"name": task, **TASK, **files}


def _save(out: Path, name: str, entries: list[dict[str, Any]], **more: Any) -> None:
    recipe = {"name": name, **USUAL, "data": {"train": entries}, "train": {"max_length": 256}, **more}
    (out / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def _name(kind: str, case: str) -> str:
    return f"{kind}-{case.replace(', ', '-').replace(' ', '')}"


def right(out: Path, name: str, task: str) -> np.ndarray:
    """Whether each test row of a task is answered rightly by a run, which is made where it is not there."""
    run, told = out / "runs" / name / "latest", out / f"{name}.{task}.said.jsonl"
    if not told.exists():
        _luthier(out, "train", f"{name}.yaml")
        asked = run / "tasks" / task if (run / "tasks" / task).is_dir() else run
        _luthier(out, "predict", str(asked), f"{task}-asked.jsonl", "--output", str(told))
    expected = [json.loads(line)["label"] for line in (out / f"{task}-asked.jsonl").read_text().splitlines()]
    said = [json.loads(line)["label"] for line in told.read_text(encoding="utf-8").splitlines()]
    return np.array([one == other for one, other in zip(expected, said, strict=True)], dtype=np.float64)


def _luthier(out: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "luthier.cli", *arguments], stdout=subprocess.DEVNULL, check=True, cwd=out)


def judge(out: Path, kind: str, case: str, name: str, task: str, parent: str) -> None:
    """A row for a run on a task, beside a parent that learned the task."""
    mine, its = right(out, name, task), right(out, parent, task)
    bootstrap = Bootstrap([""] * len(mine), resamples=2000, level=0.95, rng=np.random.default_rng(0))
    own = bootstrap.interval(mine[:, None], lambda sums: sums[..., 0] / len(mine))
    gap = bootstrap.difference(mine[:, None], its[:, None], lambda sums: sums[..., 0] / len(mine))
    train = json.loads((out / "runs" / name / "latest/train/result.json").read_text(encoding="utf-8"))
    head, dirty = commit()
    row: dict[str, Any] = {
        "kind": kind,
        "case": case,
        "task": task,
        "commit": head,
        "dirty": dirty,
        "luthier": version("luthier"),
        "torch": version("torch"),
        "processor": processor(),
        "threads": train["threads"],
        "train_rows": ROWS,
        "n_test": len(mine),
        "into": train["merge"]["into"] if train["merge"] else "",
        "kept": round(train["merge"]["kept"], 4) if train["merge"] else "",
        "accuracy": f"{own.point:.3f} [{own.low:.3f}, {own.high:.3f}]",
        "against": parent,
        "difference": f"{gap.point:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
    }
    append(RESULTS, row)
    print(json.dumps(row), flush=True)


def main(arguments: list[str]) -> None:
    """All of it."""
    out = Path(arguments[0] if arguments else "merging-runs").resolve()
    write(out)
    parents = (
        ("half-a", "sentiment", "half-b"),
        ("half-b", "sentiment", "half-a"),
        ("questions", "question", "questions"),
    )
    for name, task, other in parents:
        judge(out, "parent", name, name, task, other)
    for case in HALVES:
        judge(out, "halves", case, _name("halves", case), "sentiment", "half-b")
    for case in TASKS:
        for task, parent in (("sentiment", "half-a"), ("question", "questions")):
            judge(out, "tasks", case, _name("tasks", case), task, parent)
    judge(out, "yardstick", "both", "both", "sentiment", "half-b")


if __name__ == "__main__":
    main(sys.argv[1:])
