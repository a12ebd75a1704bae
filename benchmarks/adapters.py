"""What each type of adapter learns of the same rows in the same steps; rows of results/adapters.csv.

    python benchmarks/adapters.py all [STEPS [DATA]]      python benchmarks/adapters.py only NAME [STEPS [DATA]]

SmolLM2-135M learns the intent of banking77's messages, written out, 8 rows a step, at the rate that a recipe gets where
it leaves it open; the loss is that of 32 other rows, per token of their answers. Each run is a process of its own on
one thread; memory is the largest that it had, the state of the optimizer and a copy for a checkpoint included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from trainer import rows_of

HELD_OUT = 32
CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, rslora": {"use_rslora": True},
    "lora, dora": {"use_dora": True},
    "lora, pissa": {"init_lora_weights": "pissa"},
    "lora, B 16 times as fast": {"train": {"loraplus_lr_ratio": 16.0}},
    "lora, NEFTune 5": {"train": {"neftune_noise_alpha": 5.0}},
    "lora, upper 10 of 30 layers": {"layers_to_transform": range(20, 30)},
    "lora, base in 4 bits": {"model": {"load_in_4bit": True}},
    "ia3": {"type": "ia3"},
    "vera": {"type": "vera"},
    "loha": {"type": "loha"},
    "lokr": {"type": "lokr"},
    "oft": {"type": "oft"},
    "full": {"type": "full"},
    "full, upper 10 of 30 layers": {"type": "full", "layers_to_transform": range(20, 30)},
    "full, at the rate of lora": {"type": "full", "train": {"learning_rate": 1e-3}},
}


def run(name: str, data: Path, steps: int) -> dict[str, Any]:
    """Held-out loss before and after, seconds of a step, memory."""
    import statistics

    import torch

    from luthier.data.shards import Example
    from luthier.models.base import import_base, load_base
    from luthier.models.quantised import quantise_base
    from luthier.models.source import locate
    from luthier.pipeline.context import set_up_torch
    from luthier.pipeline.training import with_adapter
    from luthier.spec.base import Model
    from luthier.spec.fill_training import fill_adapter
    from luthier.spec.filler import Filler
    from luthier.spec.plugins import ADAPTERS, METHODS
    from luthier.spec.recipe import Recipe
    from luthier.train import loop
    from luthier.train.inputs import Inputs, TaskRows
    from luthier.train.memory import peak_memory_gib
    from luthier.train.methods.sft import Sft

    set_up_torch(1)
    source = locate("smollm2-135m-instruct", folder=Path(), revision=None, offline=True, say=print)
    base = import_base(source)
    rows = [
        Example(n, "", "", "", cut, ids, [False] * cut + [True] * (len(ids) - cut))
        for n, (ids, cut) in enumerate(rows_of("short8", data, base, 8 * steps + HELD_OUT))
    ]
    given = dict(CASES[name])
    held = Model(name="m", **given.pop("model", {}))
    kind = ADAPTERS.get(given.get("type", "lora"))
    train = {
        "learning_rate": METHODS.get("sft").learning_rates[0][1] * kind.rate_factor, "num_train_epochs": 1,
        "max_length": 1024, "batch_size": 8, "micro_batch_tokens": 1024, "lr_scheduler_type": "linear",
        "warmup_ratio": 0.06, "weight_decay": 0.0, "max_grad_norm": 1.0, "seed": 0, "threads": 1, "save_steps": 10,
    } | given.pop("train", {})  # fmt: skip
    recipe = {"name": "r", "model": {"name": "m"}, "data": {"train": [{"path": "d"}]}, "adapter": given, "train": train}
    filler = Filler(Recipe.model_validate(recipe))
    fill_adapter(filler)
    resolved = Recipe.model_validate(filler.tree)
    begun = quantise_base(source, base, held) if held.load_in_4bit else base
    model = with_adapter(load_base(begun), resolved, base_name="base")
    tested, method = rows[:HELD_OUT], Sft()

    def loss() -> float:
        model.eval()
        with torch.no_grad():
            parts = [float(method.loss_sum(model, tested[start : start + 16])) for start in range(0, HELD_OUT, 16)]
        return sum(parts) / sum(map(method.count, tested))

    before = loss()
    inputs = Inputs((TaskRows("rows", method, rows[HELD_OUT:]),), "", "", "")
    with tempfile.TemporaryDirectory() as out:
        result = loop.train(
            model, inputs, settings=resolved.train, method_name="sft", validation=None, out=Path(out),
            watch=lambda event, total_steps: None, stop_asked=lambda: False,
        )  # fmt: skip
    return {
        "case": name, "parameters": result.trainable_parameters, "learning_rate": resolved.train.learning_rate,
        "steps": result.steps, "loss_before": round(before, 4), "loss_after": round(loss(), 4),
        "seconds_a_step": round(statistics.median(event.seconds for event in result.history), 2),
        "memory_gib": round(peak_memory_gib(), 2),
    }  # fmt: skip


def measured(name: str, steps: int, data: Path) -> None:
    """One run in a process of its own, as a row."""
    from importlib.metadata import version

    from rows import append, commit, processor

    from luthier.launch.child import COMPUTING

    done = subprocess.run(
        [sys.executable, __file__, "one", name, str(steps), str(data)],
        env=os.environ | COMPUTING, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    head, dirty = commit()
    row = {
        "commit": head, "dirty": dirty, "processor": processor(), "torch": version("torch"), "peft": version("peft"),
        **json.loads(done.stdout.splitlines()[-1]), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    append(Path(__file__).parent / "results" / "adapters.csv", row)
    print(row, flush=True)


def main(verb: str, *given: str) -> None:
    """`all`, `only` one case, or `one` run in this process."""
    names, rest = (list(CASES), given) if verb == "all" else ([given[0]], given[1:])
    steps, data = int(rest[0]) if rest else 10, Path(rest[1] if len(rest) > 1 else "../shared/data")
    for name in names:
        if verb == "one":
            print(json.dumps(run(name, data, steps)))
        else:
            measured(name, steps, data)


if __name__ == "__main__":
    main(*sys.argv[1:])
