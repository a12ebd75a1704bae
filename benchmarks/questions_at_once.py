"""Questions a second: all threads at one question, against one thread each at several; a row in results/at_once.csv.

    python benchmarks/questions_at_once.py

Paired: the two ways take turns on the same questions, and the row holds the median ratio. The questions are shipped
messages with the labels of the shipped recipe, asked of the bundled base model.
"""

from __future__ import annotations

import csv
import statistics
import time
from pathlib import Path

import torch
from rows import append, commit, processor
from transformers import AutoTokenizer

from luthier.engines.transformers import AT_ONCE, TransformersEngine
from luthier.models.base import import_base
from luthier.models.source import locate
from luthier.recipes import find

RESULT = Path(__file__).parent / "results" / "at_once.csv"
PAIRS, QUESTIONS = 9, 16


def main() -> None:
    """Measure and append the row."""
    source = locate("smollm2-135m-instruct", folder=Path(), revision=None, offline=True, say=print)
    base = import_base(source)
    engine, tokenizer = TransformersEngine.open(base), AutoTokenizer.from_pretrained(base)
    with (find("support-intents").parent / "support.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    answers = [tokenizer.encode(label + "<|im_end|>") for label in sorted({row["intent"] for row in rows})]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["message"]}], add_generation_prompt=True, return_dict=False
        )
        for row in rows[:QUESTIONS]
    ]

    def ask(prompt: list[int]) -> float:
        return engine.score(prompt, answers)[0].logprob

    def timed(ways: int) -> tuple[float, list[float]]:
        began = time.perf_counter()
        said = [ask(prompt) for prompt in prompts] if ways == 1 else list(engine.each(ask, prompts))
        return time.perf_counter() - began, said

    ratios, apart = [], 0.0
    for _ in range(PAIRS + 1):
        (one, alone), (many, together) = timed(1), timed(AT_ONCE)
        ratios.append(one / many)
        apart = max(apart, *(abs(a - b) for a, b in zip(alone, together, strict=True)))
    ratios = sorted(ratios[1:])  # the first pair warms up
    head, dirty = commit()
    row = {
        "commit": head,
        "dirty": dirty,
        "torch": torch.__version__,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "pairs": PAIRS,
        "questions": QUESTIONS,
        "median_ratio": round(statistics.median(ratios), 2),
        "lowest_ratio": round(ratios[0], 2),
        "highest_ratio": round(ratios[-1], 2),
        "largest_difference_nats": f"{apart:.1e}",
    }
    append(RESULT, row)
    print(row)


if __name__ == "__main__":
    main()
