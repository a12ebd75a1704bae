"""Students of few weights and few rows, with and without a teacher, on the same test rows.

    LUTHIER_DATA=FOLDER python benchmarks/distillation.py TEACHER [SEEDS [ROWS]]

FOLDER holds trec6/; TEACHER is a finished run of recipes/trec6_teacher.yaml; the students learn as trec6_student.yaml
says. For each seed the rows are drawn anew, and all ways learn from the same ones. Intervals are of the mean over
seeds, by resampling test rows; they go into results/distillation.csv. Times are not recorded: the machine is shared.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from rows import append, commit, processor

from luthier.data.shards import Shard
from luthier.evals.intervals import Bootstrap
from luthier.pipeline.answers import open_asker
from luthier.store.runs import RunFolder

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "distillation.csv"
WAYS = {
    "sft": "{type: sft}",
    "distill, T 1": "{type: distill, teacher: TEACHER, temperature: 1}",
    "distill, T 2, teacher alone": "{type: distill, teacher: TEACHER, temperature: 2, alpha: 1}",
}


def trained(way: str, teacher: str, *, seed: int, rows: int, out: Path) -> RunFolder:
    """A student, up to its weights."""
    name = f"student-{list(WAYS).index(way)}-{seed}-{rows}"
    given = [f"method={WAYS[way].replace('TEACHER', teacher)}", f"name={name}", f"data.limit.train={rows}"]
    given += [f"data.split.seed={seed}", f"train.seed={seed}"]
    command = [sys.executable, "-P", "-m", "luthier.cli", "train", str(HERE / "recipes" / "trec6_student.yaml")]
    subprocess.run([*command, "--out", str(out), *(part for one in given for part in ("--set", one))], check=True)
    return RunFolder.open(name, out=out)


def right(run: RunFolder, test: Shard) -> np.ndarray:
    """Whether the tuned model answers each test row rightly."""
    asker = open_asker(run)
    return np.array([asker.answer_text(row.text).label == row.answer for row in test], dtype=float)


def main(teacher: str, seeds: int, rows: int) -> None:
    """Teacher and students, on the test rows of the first student."""
    out = Path(os.environ.get("LUTHIER_OUT", "runs"))
    runs = {(way, seed): trained(way, teacher, seed=seed, rows=rows, out=out) for seed in range(seeds) for way in WAYS}
    test = Shard(next(iter(runs.values())).data / "test.arrow")
    found = {"teacher": right(RunFolder.open(teacher, out=out), test)}
    for way in WAYS:
        found[way] = np.mean([right(runs[way, seed], test) for seed in range(seeds)], axis=0)
    bootstrap = Bootstrap([""] * len(test), resamples=2000, level=0.95, rng=np.random.default_rng(0))
    revision, dirty = commit()
    head = {"commit": revision, "dirty": dirty, "processor": processor(), "rows": rows, "seeds": seeds}
    head["n_test"] = len(test)
    for way, hits in found.items():
        own = bootstrap.interval(hits[:, None], lambda sums: sums[..., 0] / len(test))
        gap = bootstrap.difference(hits[:, None], found["sft"][:, None], lambda sums: sums[..., 0] / len(test))
        print(f"{way}: {own.point:.3f} [{own.low:.3f}, {own.high:.3f}], less sft {gap.point:+.3f}")
        values = {"accuracy": own.point, "low": own.low, "high": own.high}
        values |= {"less_sft": gap.point, "less_low": gap.low, "less_high": gap.high}
        append(RESULTS, {**head, "way": way, **{name: f"{value:.4f}" for name, value in values.items()}})


if __name__ == "__main__":
    main(sys.argv[1], *(int(one) for one in (*sys.argv[2:], *("3", "120")[len(sys.argv) - 2 :])))
