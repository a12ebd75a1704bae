"""What SmolLM2-135M loses when a part of it goes, before any healing; rows of results/pruning.csv.

    python benchmarks/pruning.py [TOKENS [DATA]]

Rows are instructions with answers (trainer.py's case dolly). On TOKENS tokens of some it is measured what each part
does; on about as many of others the loss a token of the answers, of the whole model and without the part. The
difference is of rows, paired, with a normal interval over rows. The speed is that of one pass over the same packed row,
whole and pruned in turn, the median of three pairs.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import HERE, append, commit, processor
from trainer import rows_of

CASES: dict[str, dict[str, Any]] = {
    "3 layers, block_influence": {"layers": {"remove": 3, "by": "block_influence", "contiguous": False}},
    "3 layers, angular": {"layers": {"remove": 3, "by": "angular", "contiguous": True}},
    "3 layers, loss": {"layers": {"remove": 3, "by": "loss", "contiguous": False}},
    "6 layers, block_influence": {"layers": {"remove": 6, "by": "block_influence", "contiguous": False}},
    "6 layers, angular": {"layers": {"remove": 6, "by": "angular", "contiguous": True}},
    "3/4 of channels, activation": {"mlp": {"keep": 0.75, "by": "activation"}},
    "3/4 of channels, taylor": {"mlp": {"keep": 0.75, "by": "taylor"}},
    "3/4 of channels, magnitude": {"mlp": {"keep": 0.75, "by": "magnitude"}},
    "2/3 of heads, activation": {"heads": {"keep": 0.67, "by": "activation"}},
}
THREADS = 1


def main(tokens: int, data: Path) -> None:
    """All cases, one after the other."""
    import torch

    from luthier.compress.prune.choose import choose
    from luthier.compress.prune.rows import packed, summed_loss
    from luthier.compress.prune.write import write_smaller
    from luthier.data.shards import Example
    from luthier.models.base import import_base, load_base
    from luthier.models.forward import in_evaluation
    from luthier.models.shape import read_shape
    from luthier.models.source import locate
    from luthier.spec.prune import Prune

    torch.set_num_threads(THREADS)
    source = locate("smollm2-135m-instruct", folder=Path(), revision=None, offline=True, say=print)
    base, shape = import_base(source), read_shape(source)
    examples = [
        Example(n, "", "", "", cut, ids, [False] * cut + [True] * (len(ids) - cut))
        for n, (ids, cut) in enumerate(rows_of("dolly", data, base, 64))
        if len(ids) <= 128
    ]
    halves: list[list[Example]] = [[], []]
    for example in examples:
        half = halves[0] if sum(len(one.input_ids) for one in halves[0]) < tokens else halves[1]
        if sum(len(one.input_ids) for one in half) < tokens:
            half.append(example)
    asked, judged = packed(halves[0], whole=False), [packed([one], whole=False)[0] for one in halves[1]]
    model: Any = load_base(base)

    def losses(of: Any) -> list[float]:
        with in_evaluation(of):
            return [float(summed_loss(of, rows)) for rows in judged]

    def seconds(of: Any) -> float:
        start = time.perf_counter()
        with in_evaluation(of):
            summed_loss(of, asked[0])
        return time.perf_counter() - start

    counts, whole = [len(rows.read) for rows in judged], losses(model)
    revision, dirty = commit()
    for name, section in CASES.items():
        settings = Prune.model_validate(section)
        start = time.perf_counter()
        chosen = choose(model, asked, settings, shape, lambda what, done, total: None)
        took = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            smaller = write_smaller(model, chosen.kept, base=base, out=Path(folder))
        after = losses(smaller)
        speeds = [seconds(model) / seconds(smaller) for _ in range(3)]
        rises = [(b - a) / n for a, b, n in zip(whole, after, counts, strict=True)]
        spread = 1.96 * statistics.stdev(rises) / len(rises) ** 0.5
        mean = statistics.mean(rises)
        row = {
            "case": name,
            "parameters": sum(one.numel() for one in smaller.parameters()),
            "of": sum(one.numel() for one in model.parameters()),
            "loss_whole": f"{sum(whole) / sum(counts):.3f}",
            "loss_pruned": f"{sum(after) / sum(counts):.3f}",
            "rise": f"{mean:.2f} [{mean - spread:.2f}, {mean + spread:.2f}]",
            "speed": f"{statistics.median(speeds):.2f}",
            "went": " ".join(map(str, sorted(chosen.depth.removed))) if chosen.depth else "",
            "seconds": f"{took:.0f}",
            "rows_asked": len(halves[0]),
            "tokens_asked": sum(rows.tokens for rows in asked),
            "rows": len(judged),
            "processor": processor(),
            "threads": THREADS,
            "torch": torch.__version__,
            "commit": revision,
            "dirty": dirty,
        }
        print(row, flush=True)
        append(HERE / "results" / "pruning.csv", row)


if __name__ == "__main__":
    given = sys.argv[1:]
    main(int(given[0]) if given else 1024, Path(given[1] if len(given) > 1 else os.environ["LUTHIER_DATA"]))
