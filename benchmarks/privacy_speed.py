"""Short documents a second on one core: profile `fast` beside Presidio's default; rows in results/privacy_speed.csv.

    python benchmarks/privacy_speed.py [--texts FILE.jsonl]

The documents are the messages of the shipped recipe, or the 'text's of a file. Both systems take turns on the same
documents, five times, in one process and thread; the row holds medians and the lowest and highest ratio of a turn.
Presidio gets every tenth document, because it is slow. Time is that of the processor, not of the clock, so that other
work on the machine counts less.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path

from privacy_quality import Find, presidio_default
from rows import append, commit, processor

from luthier.data.privacy import find
from luthier.recipes import find as recipe

RESULT = Path(__file__).parent / "results" / "privacy_speed.csv"
TURNS, EVERY = 5, 10


def rate(system: Find, texts: list[str]) -> float:
    """Documents a second."""
    began = time.process_time()
    for text in texts:
        system(text)
    return len(texts) / (time.process_time() - began)


def main() -> None:
    """Measure and append the row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path)
    asked = parser.parse_args()
    if asked.texts:
        texts = [json.loads(line)["text"] for line in asked.texts.read_text(encoding="utf-8").splitlines()]
    else:
        with (recipe("support-intents").parent / "support.csv").open(encoding="utf-8", newline="") as file:
            texts = [row["message"] for row in csv.DictReader(file)]
    theirs = presidio_default()
    turns = [(rate(find, texts), rate(theirs, texts[::EVERY])) for _ in range(TURNS + 1)][1:]  # the first warms up
    ratios = sorted(ours / other for ours, other in turns)
    head, dirty = commit()
    row = {
        "commit": head,
        "dirty": dirty,
        "presidio": version("presidio-analyzer"),
        "processor": processor(),
        "source": asked.texts.name if asked.texts else "support.csv",
        "documents": len(texts),
        "characters_each": round(statistics.mean(map(len, texts))),
        "turns": TURNS,
        "fast_per_second": round(statistics.median(ours for ours, _ in turns)),
        "presidio_per_second": round(statistics.median(other for _, other in turns), 1),
        "median_ratio": round(statistics.median(ratios)),
        "lowest_ratio": round(ratios[0]),
        "highest_ratio": round(ratios[-1]),
    }
    append(RESULT, row)
    print(row)


if __name__ == "__main__":
    main()
