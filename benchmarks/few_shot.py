"""Zero-shot against few-shot on a prepared run's test rows, the same base, paired; rows in results/few_shot.csv.

    luthier prepare support-intents --out /tmp/few
    python benchmarks/few_shot.py /tmp/few/support-intents/latest 100 4

Takes the first test rows that training has not seen, asks the base model of the run each of them without and with
examples from the training rows, and writes accuracy of both, the paired difference and the ratio of the time.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from rows import append, commit, processor

from luthier.data.contract import Renderer
from luthier.data.shards import Shard
from luthier.engines.ask import Asker, in_words
from luthier.engines.transformers import TransformersEngine
from luthier.evals.few_shot import show
from luthier.evals.intervals import Bootstrap
from luthier.evals.metric import load_metric
from luthier.evals.score import score
from luthier.models.base import import_base
from luthier.models.source import locate
from luthier.store.runs import RunFolder

RESULT = Path(__file__).parent / "results" / "few_shot.csv"


def main() -> None:
    """Measure and append a row."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("items", type=int)
    parser.add_argument("examples", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    run = RunFolder(given.run.resolve())
    base = import_base(locate("smollm2-135m-instruct", folder=Path(), revision=None, offline=True, say=print))
    renderer = Renderer.open(run.contract, base / "tokenizer.json")
    contract = in_words(renderer.contract)
    asker = Asker(contract, renderer.under(contract), TransformersEngine.open(base, None))
    items = [row for row in Shard(run.data / "test.arrow") if not row.contaminated][: given.items]
    began = time.perf_counter()
    zero = score(asker, items)
    between = time.perf_counter()
    shown = show(asker, Shard(run.data / "train.arrow").originals(), items, count=given.examples)
    few = score(asker, items, after=shown.turns)
    ended = time.perf_counter()
    bootstrap = Bootstrap([row.group for row in items], resamples=2000, level=0.95, rng=np.random.default_rng(0))
    head, dirty = commit()
    row: dict[str, object] = {
        "commit": head, "dirty": dirty, "torch": torch.__version__, "processor": processor(), "data": contract.name,
        "labels": len(contract.labels), "max_length": contract.max_length, "items": len(items),
        "groups": bootstrap.num_groups, "examples": given.examples, "mean_examples": round(shown.mean_examples, 2),
    }  # fmt: skip
    for name in ("accuracy", "macro_f1"):
        metric = load_metric(name)
        one, other = metric.statistics(few), metric.statistics(zero)
        for system, statistics in (("zero", other), ("few", one)):
            row[f"{system}_{name}"] = round(float(metric.value(statistics.sum(axis=0))), 3)
        gap = bootstrap.difference(one, other, metric.value)
        row[f"difference_{name}"] = f"{gap.point:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
    row["time_ratio"] = round((ended - between) / (between - began), 2)
    append(RESULT, row)


if __name__ == "__main__":
    main()
