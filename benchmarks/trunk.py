"""A later epoch with the frozen layers kept, beside the same epoch that computes them; a row of results/trunk.csv.

    python benchmarks/trunk.py pairs CASE LAYERS [PAIRS [DATA]]      CASE: labels8 labels32 short8 short32 dolly gsm8k

Rows and settings are those of trainer.py, the adapter is on the upper LAYERS layers of SmolLM2-135M's 30. Each run is a
process of its own, kept and not kept in turn. The step that warms up is not counted; of what is kept the pass that
computes it is timed too, so that the row says after how many epochs it has paid.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trainer import CASES, ENVIRONMENT, THREADS, rows_of

STEPS = 4  # counted


def run(case: str, data: Path, layers: int, *, kept: bool) -> dict[str, Any]:
    """Seconds of the counted steps, and of the pass that computes what is kept."""
    import torch

    from luthier.data.shards import Example
    from luthier.models.adapters import attach
    from luthier.models.base import import_base, load_base
    from luthier.models.source import locate
    from luthier.models.trunk import check_trunk
    from luthier.spec.recipe import Adapter, Train
    from luthier.train import loop
    from luthier.train.inputs import Inputs, TaskRows
    from luthier.train.methods.sft import Sft
    from luthier.train.trunk import learned_rows, on_trunk, open_trunk

    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    base = import_base(locate("smollm2-135m-instruct", folder=Path(), revision=None, offline=True, say=print))
    batch = CASES[case][1]
    examples = [
        Example(n, "", "", "", cut, ids, [False] * cut + [True] * (len(ids) - cut))
        for n, (ids, cut) in enumerate(rows_of(case, data, base, batch * (STEPS + 1)))
    ]
    settings = Train(
        learning_rate=2e-4, num_train_epochs=1, max_length=1024, batch_size=batch, micro_batch_tokens=2048,
        lr_scheduler_type="constant", warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=1.0, seed=0, threads=THREADS,
    )  # fmt: skip
    adapter = Adapter(
        type="lora", r=16, alpha=32, dropout=0.0, target_modules="all-linear",
        layers_to_transform=tuple(range(30 - layers, 30)),
    )  # fmt: skip
    model = attach(load_base(base), adapter, base_name="base", seed=0)
    inputs = Inputs((TaskRows("rows", Sft(), examples),), "", "", "")
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        seconds = 0.0
        if kept:
            trunk = open_trunk(
                model, learned_rows(inputs, settings), first=check_trunk(model), base_sha256="",
                folder=Path(out) / "trunk", max_tokens=2048, progress=lambda done, total: None,
                stop_asked=lambda: False,
            )  # fmt: skip
            inputs, seconds = on_trunk(inputs, trunk), trunk.about.seconds
        result = loop.train(
            model, inputs, settings=settings, method_name="sft", validation=None,
            out=Path(out), watch=lambda event, total_steps: ends.append(time.perf_counter()), stop_asked=lambda: False,
        )  # fmt: skip
    losses = [event.loss for event in result.history]
    return {"seconds": ends[-1] - ends[0], "once": seconds * STEPS / (STEPS + 1), "losses": losses}


def measured(case: str, data: Path, layers: int, *, kept: bool) -> dict[str, Any]:
    """One run in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "one", case, str(layers), str(data), "kept" if kept else ""],
        env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def pairs(case: str, layers: int, count: int, data: Path) -> None:
    """Runs in turn; the medians of the ratios as a row."""
    from importlib.metadata import version

    from rows import append, commit, processor

    faster, once, apart = [], [], []
    for number in range(count):
        found = {kept: measured(case, data, layers, kept=kept) for kept in (number % 2 == 0, number % 2 == 1)}
        print(found, flush=True)
        faster.append(found[False]["seconds"] / found[True]["seconds"])
        once.append(found[True]["once"] / (found[False]["seconds"] - found[True]["seconds"]))
        apart += [abs(a / b - 1) for a, b in zip(found[True]["losses"], found[False]["losses"], strict=True)]
    head, dirty = commit()
    row = {
        "commit": head, "dirty": dirty, "processor": processor(), "threads": THREADS, "torch": version("torch"),
        "case": case, "layers_of_30": layers, "pairs": count,
        "times_as_fast_an_epoch": round(statistics.median(faster), 2), "slowest_pair": round(min(faster), 2),
        "fastest_pair": round(max(faster), 2), "pays_after_epochs": round(statistics.median(once), 2),
        "largest_relative_difference_of_loss": f"{max(apart):.1e}",
    }  # fmt: skip
    append(Path(__file__).parent / "results" / "trunk.csv", row)
    print(row)


def main(verb: str, case: str, layers: str, *given: str) -> None:
    """`pairs`, or `one` run."""
    if verb == "pairs":
        count, *more = given or ("5",)
        data = Path(more[0]) if more else Path(__file__).parents[2] / "shared" / "data"
        pairs(case, int(layers), int(count), data)
        return
    data, kept = given
    print(json.dumps(run(case, Path(data), int(layers), kept=kept == "kept")))


if __name__ == "__main__":
    main(*sys.argv[1:])
