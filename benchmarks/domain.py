"""Continued pre-training on enterprise_docs, with and without replayed general texts; a row each in results/domain.csv.

    LUTHIER_DATA=FOLDER python benchmarks/domain.py [--set train.threads=1 ...]

FOLDER holds enterprise_docs/ and wikitext2/. Both runs learn about the same tokens of the domain. What was forgotten is
measured on the shipped general text, as in every run, and on paragraphs of wikitext2's test file, whose validation file
is what is replayed. Times are not recorded: the machine is shared.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rows import append, commit, processor

from luthier.evals.general import compare_general, paragraph_losses
from luthier.evals.intervals import Bootstrap
from luthier.pipeline.answers import open_asker
from luthier.pipeline.context import Context
from luthier.pipeline.progress import Progress
from luthier.store.runs import RunFolder

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "domain.csv"
PARAGRAPHS = 30
VARIANTS = {
    "replay 0.2": [],
    "no replay": ["--set", "method.replay=null", "--set", "train.max_tokens=12000", "--set", "train.batch_size=1"],
}


def show(interval: dict[str, Any]) -> str:
    """Point and interval, for a cell."""
    return f"{interval['point']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"


def wikitext() -> str:
    """Every n-th long paragraph of the test file."""
    path = Path(os.environ["LUTHIER_DATA"]) / "wikitext2" / "test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    long = [text for text in texts if 300 < len(text) < 1200 and not text.startswith("=")]
    return "\n\n".join(long[:: max(1, len(long) // PARAGRAPHS)][:PARAGRAPHS])


def forgotten(run: RunFolder) -> Any:
    """Perplexity of wikitext2, base and tuned."""
    tuned = open_asker(run)
    base = Context(run, Progress()).asker(tuned.engine.without_adapter())  # type: ignore[attr-defined]
    text = wikitext()
    losses = [paragraph_losses(asker, text, lambda done, total: None) for asker in (base, tuned)]
    bootstrap = Bootstrap([""] * len(losses[0]), resamples=2000, level=0.95, rng=np.random.default_rng(0))
    return compare_general(losses[0], losses[1], source="wikitext2 test", bootstrap=bootstrap).model_dump()


def main(arguments: list[str]) -> None:
    """Run each variant and append its row."""
    for name, settings in VARIANTS.items():
        recipe = HERE / "recipes" / "enterprise_docs.yaml"
        command = [sys.executable, "-m", "luthier.cli", "run", str(recipe), "--json", *settings, *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        document = json.loads(done.stdout)
        run, report = RunFolder(Path(document["run"])), document["evaluation"]
        train = json.loads(run.train_result.read_text(encoding="utf-8"))
        data = json.loads(run.data_report.read_text(encoding="utf-8"))
        scores = {score["system"]: score["metrics"] for score in report["systems"]}
        head, dirty = commit()
        row: dict[str, Any] = {
            "variant": name,
            "commit": head,
            "dirty": dirty,
            "luthier": version("luthier"),
            "torch": version("torch"),
            "transformers": version("transformers"),
            "processor": processor(),
            "threads": train["threads"],
            "trained_tokens": train["trained_tokens"],
            "replay_share": round(data["replay"]["share"], 4) if data["replay"] else 0,
            "test_pieces": report["num_items"],
            "test_documents": data["splits"]["test"]["documents"],
        }
        for system in ("base", "tuned"):
            for metric in ("bits_per_byte", "perplexity"):
                row[f"{system}_{metric}"] = show(scores[system][metric])
        row["bits_per_byte_difference"] = show(
            next(one["interval"] for one in report["differences"] if one["metric"] == "bits_per_byte")
        )
        row["terms"] = report["terms"]["num_terms"] if report["terms"] else 0
        for key in ("base", "tuned", "ratio"):
            row[f"terms_{key}"] = show(report["terms"][key]) if report["terms"] else ""
        row["general_ratio"] = show(report["general"]["ratio"])
        wiki = forgotten(run)
        row |= {f"wikitext2_{key}": show(wiki[key]) for key in ("base", "tuned", "ratio")}
        append(RESULTS, row)
        print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
