"""Draw recipes at random, train each, and compare what the plan predicted with what happened.

    OMP_NUM_THREADS=1 python benchmarks/predictions.py run N [FIRST]   # a row a recipe in results/predictions.csv
    python benchmarks/predictions.py sum                               # shares and medians over its rows

A recipe is a few steps of the bundled base on made-up messages; layers, rank, lengths, labels, batch, micro-batch, kept
trunk and computing again are drawn from its number. The machine is shared, so time is processor time on one thread, the
product's rate as well: what a machine that does nothing else would take. Only the training stage is run: its start, its
steps, its validation. The budget is drawn around the prediction, so that `fits` is hard to say.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from rows import HERE, append, commit, processor

from luthier.launch.child import stage_environment
from luthier.pipeline.drive import Session, work_through
from luthier.pipeline.start import look, open_run
from luthier.plan import cost
from luthier.plan.make import make_plan
from luthier.recipes import general_text

RESULTS = HERE / "results" / "predictions.csv"


def drawn(number: int, folder: Path) -> Path:
    """The recipe of that number, with its data."""
    draw = random.Random(number)
    labels, chars = draw.choice((2, 5, 12)), draw.choice((40, 120, 400, 1200))
    batch_size, epochs = draw.choice((4, 8, 16)) if chars < 300 else 4, draw.choice((1, 2))
    rows = max(batch_size, round(draw.uniform(1500, 3500) / (0.27 * chars + 20) / epochs))  # a minute or so
    words = general_text().split()
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "kind"])
        for row in range(2 * rows + 40):
            text = " ".join(draw.choices(words, k=max(2, round(draw.uniform(0.5, 1.5) * chars / 6))))
            writer.writerow([f"{row}: {text}", f"kind {'abcdefghijkl'[row % labels]}"])
    upper = draw.choice((None, None, 15, 24))
    train: dict[str, Any] = {
        "num_train_epochs": epochs,
        "batch_size": batch_size,
        "micro_batch_tokens": draw.choice((512, 1024, 2048)),
        "max_length": 512,
        "gradient_checkpointing": draw.random() < 0.25,
        "threads": 1,
        "validations": 1,
    }
    adapter: dict[str, Any] = {"type": "lora", "r": draw.choice((4, 16, 64))}
    if upper is not None:
        adapter["layers_to_transform"] = list(range(upper, 30))
        train["cache_trunk"] = draw.random() < 0.5
    entry = {"name": "kind", "path": "data.csv", "task": "classification", "input": "{text}", "label": "kind"}
    recipe = {
        "name": f"drawn-{number}",
        "model": {"name": "smollm2-135m-instruct"},
        "data": {
            "train": [entry],
            "limit": {"train": rows, "validation": 4, "test": 4},
            "labels": {"review": False},
            "leakage": {"near": False},
            "privacy": {"profile": "fast"},
        },
        "method": {"type": "sft"},
        "adapter": adapter,
        "train": train,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def one(number: int) -> dict[str, Any]:
    """Predict, prepare, train; a row of the results."""
    folder = Path(tempfile.mkdtemp(prefix="drawn-"))
    try:
        prepared = look(str(drawn(number, folder)), overrides=(), offline=True, say=lambda line: None)
        gflops = cost.matmul_rate(seconds=3.0, clock=time.process_time)
        plan = make_plan(prepared.resolved, prepared.profiles[0], prepared.shape, matmul_gflops=gflops)
        run = open_run(prepared, out=folder / "runs")
        session = Session(run, prepared.resolved, True, lambda line: None)
        work_through(session, "prepare", plan=plan, prepared=prepared)
        command = [sys.executable, "-P", "-m", "luthier.cli", "_stage", "train", str(run.path)]
        with (folder / "log").open("w") as log:
            child = subprocess.Popen(command, env=stage_environment(threads=1, offline=True), stdout=log, stderr=log)
            _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit((folder / "log").read_text()[-2000:])
    finally:
        shutil.rmtree(folder)
    recipe, draw = prepared.resolved.recipe, random.Random(-1 - number)
    predicted = {
        "seconds": plan.prediction.train_seconds + cost.STAGE_SECONDS,
        "gib": plan.prediction.train_memory_gib,
    }
    actual = {"seconds": usage.ru_utime + usage.ru_stime, "gib": usage.ru_maxrss / 2**20}
    budget = {name: value * draw.uniform(0.6, 1.6) for name, value in predicted.items()}
    head, dirty = commit()
    return {
        "number": number, "commit": head, "dirty": dirty, "processor": processor(), "gflops": f"{gflops:.1f}",
        "layers": len(getattr(recipe.adapter, "layers_to_transform", None) or range(30)),
        "r": getattr(recipe.adapter, "r", ""),
        "chars": round(prepared.profiles[0].mean_input_chars), "labels": len(prepared.profiles[0].labels),
        "batch_size": recipe.train.batch_size, "micro_batch_tokens": recipe.train.micro_batch_tokens,
        "epochs": recipe.train.num_train_epochs, "again": recipe.train.gradient_checkpointing,
        "trunk": recipe.train.cache_trunk,
        "predicted_seconds": f"{predicted['seconds']:.1f}", "processor_seconds": f"{actual['seconds']:.1f}",
        "predicted_gib": f"{predicted['gib']:.3f}", "peak_gib": f"{actual['gib']:.3f}",
        "fits_predicted": all(predicted[name] <= budget[name] for name in budget),
        "fits": all(actual[name] <= budget[name] for name in budget),
    }  # fmt: skip


def sum_up() -> dict[str, Any]:
    """Over all rows: how far off time and memory are, and how often `fits` was wrong."""
    with RESULTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    times = [float(row["predicted_seconds"]) / float(row["processor_seconds"]) - 1 for row in rows]
    peaks = [float(row["predicted_gib"]) / float(row["peak_gib"]) - 1 for row in rows]
    return {
        "n": len(rows),
        "fits_wrong": sum(row["fits_predicted"] != row["fits"] for row in rows),
        "fits_promised_in_vain": sum(row["fits_predicted"] == "True" and row["fits"] == "False" for row in rows),
        "time_within_25": sum(abs(error) <= 0.25 for error in times),
        "memory_within_10": sum(abs(error) <= 0.10 for error in peaks),
        "time_median_error": round(statistics.median(times), 3),
        "memory_median_error": round(statistics.median(peaks), 3),
    }


if __name__ == "__main__":
    if sys.argv[1] == "run":
        first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
        for number in range(first, first + int(sys.argv[2])):
            append(RESULTS, one(number))
    print(sum_up())
