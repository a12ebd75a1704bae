"""Runs on halves of one task and on two tasks, merged in every way; a row each in results/merging.csv.

    LUTHIER_DATA=FOLDER python benchmarks/merging.py [OUT]

FOLDER holds sst2/ and trec6/. Parents learn ROWS rows each, the yardstick the rows of both. Every merge is evaluated on
the same test rows, beside base and parents. Times are not recorded: the machine is shared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from rows import append, commit, processor

RESULTS = Path(__file__).parent / "results" / "merging.csv"
ROWS, TEST = 240, 200

SENTIMENT = {"name": "sentiment", "task": "classification", "input": "{text}", "label": "label"}
QUESTION = {"name": "question", "task": "classification", "input": "{text}", "label": "label"}
USUAL: dict[str, Any] = {
    "model": {"name": "smollm2-135m-instruct"},
    "method": {"type": "sft"},
    "evaluate": {"baselines": ["base"]},
}
LEARNING = {"num_train_epochs": 2, "validations": 2, "max_length": 256}

HALVES: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "linear, rank 16": {"method": "linear", "rank": 16},
    "ties": {"method": "ties"},
    "ties, rank 32": {"method": "ties", "rank": 32},
    "dare_linear": {"method": "dare_linear"},
    "dare_ties": {"method": "dare_ties"},
    "greedy": {"method": "greedy"},
}
TASKS: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "linear, weights 1": {"method": "linear", "weights": [1.0, 1.0]},
    "ties": {"method": "ties"},
}


def rows_of(name: str, first: int, count: int, split: str = "train") -> list[str]:
    """Lines of a data set, evenly spread over its labels' order by taking each n-th."""
    lines = (Path(os.environ["LUTHIER_DATA"]) / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    step = len(lines) // 1000 or 1
    return lines[::step][first : first + count]


def write(out: Path) -> None:
    """Files and recipes."""
    sets = {
        "half-a": rows_of("sst2", 0, ROWS),
        "half-b": rows_of("sst2", ROWS, ROWS),
        "both": rows_of("sst2", 0, 2 * ROWS),
        "questions": rows_of("trec6", 0, ROWS),
        "sentiment-validation": rows_of("sst2", 0, 100, "validation"),
        "sentiment-test": rows_of("sst2", 0, TEST, "test"),
        "questions-validation": rows_of("trec6", ROWS, 100),
        "questions-test": rows_of("trec6", 0, TEST, "test"),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in sets.items():
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def entry(task: dict[str, Any], rows: str, about: str) -> dict[str, Any]:
        return {
            **task,
            "path": f"{rows}.jsonl",
            "validation": f"{about}-validation.jsonl",
            "test": f"{about}-test.jsonl",
        }

    def save(name: str, entries: list[dict[str, Any]], **more: Any) -> None:
        recipe = {"name": name, **USUAL, "data": {"train": entries}, **more}
        (out / f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")

    for rows in ("half-a", "half-b", "both"):
        save(rows, [entry(SENTIMENT, rows, "sentiment")], train=LEARNING)
    save("questions", [entry(QUESTION, "questions", "questions")], train=LEARNING)
    common = {"max_length": 256}
    for case, merge in HALVES.items():
        runs = ["half-a", "half-b"]
        save(
            _name("halves", case), [entry(SENTIMENT, "both", "sentiment")], merge={"runs": runs, **merge}, train=common
        )
    both = [entry(SENTIMENT, "half-a", "sentiment"), entry(QUESTION, "questions", "questions")]
    for case, merge in TASKS.items():
        save(_name("tasks", case), both, merge={"runs": ["half-a", "questions"], **merge}, train=common)


def _name(kind: str, case: str) -> str:
    return f"{kind}-{case.replace(', ', '-').replace(' ', '')}"


def luthier(out: Path, *arguments: str) -> Any:
    """The document that a command gives."""
    command = [sys.executable, "-m", "luthier.cli", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=out)
    return json.loads(done.stdout)


def show(interval: dict[str, Any]) -> str:
    """Point and interval, for a cell."""
    return f"{interval['point']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def judge(out: Path, name: str, kind: str, case: str) -> None:
    """Evaluate a run, and a row for each of its tasks."""
    luthier(out, "train", f"{name}.yaml")
    document = luthier(out, "evaluate", name)
    run = out / "runs" / name / "latest"
    train = json.loads((run / "train/result.json").read_text(encoding="utf-8"))
    head, dirty = commit()
    for report in [document] if "systems" in document else document.values():
        scores = {one["system"].partition("/")[0]: one["metrics"] for one in report["systems"]}
        gaps = {
            one["against"].partition("/")[0]: one["interval"]
            for one in report["differences"]
            if one["metric"] == "accuracy"
        }
        parents = sorted(system for system in scores if system.startswith("parent "))
        row: dict[str, Any] = {
            "kind": kind,
            "case": case,
            "task": report["name"],
            "commit": head,
            "dirty": dirty,
            "luthier": version("luthier"),
            "torch": version("torch"),
            "processor": processor(),
            "threads": train["threads"],
            "train_rows": ROWS,
            "n_test": report["num_items"],
            "into": train["merge"]["into"] if train["merge"] else "",
            "kept": round(train["merge"]["kept"], 4) if train["merge"] else "",
            "base_accuracy": show(scores["base"]["accuracy"]),
            "tuned_accuracy": show(scores["tuned"]["accuracy"]),
            "parents_accuracy": "; ".join(f"{p.split()[1]} {scores[p]['accuracy']['point']:.3f}" for p in parents),
            "tuned_minus_parents": "; ".join(f"{p.split()[1]} {show(gaps[p])}" for p in parents),
            "general_ratio": show(report["general"]["ratio"]),
        }
        append(RESULTS, row)
        print(json.dumps(row, indent=2), flush=True)


def main(arguments: list[str]) -> None:
    """All of it."""
    out = Path(arguments[0] if arguments else "merging-runs").resolve()
    write(out)
    for name in ("half-a", "half-b"):
        judge(out, name, "parent", name)
    for case in HALVES:
        judge(out, _name("halves", case), "halves", case)
    judge(out, "questions", "parent", "questions")
    for case in TASKS:
        judge(out, _name("tasks", case), "tasks", case)
    judge(out, "both", "yardstick", "both")


if __name__ == "__main__":
    main(sys.argv[1:])
