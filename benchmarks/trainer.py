"""Training steps a second beside TRL's SFTTrainer with PEFT; a row of results/trainer.csv a case.

    python benchmarks/trainer.py pairs CASE PAIRS [PRECISION [DATA]]
        CASE: labels8 labels32 short8 short32 dolly gsm8k; PRECISION: float32 bf16

Both systems learn the same token ids from the same weights: SmolLM2-135M, LoRA r 16 on all linear layers, two threads,
each in a process of its own, in turn, in the environment that a training stage has. No search was made for TRL's
settings. Set for it are: no gradient checkpointing, loss on the answer alone, rows of like length together on dolly and
gsm8k (group_by_length), steps of 32 long rows as four of 8 (more do not fit 24 GiB); the rest is its default. The first
step of each run warms up and is not counted. Rates are taken twice: by the clock, which other work on the machine
disturbs, and by processor time. DATA is the folder of the real sets (../shared/data unless given).
"""

from __future__ import annotations

import gzip
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CASES = {  # case: (data set, rows a step, counted steps of theirs, of ours)
    "labels8": ("banking77", 8, 2, 4),
    "labels32": ("banking77", 32, 1, 2),
    "short8": ("banking77", 8, 6, 12),
    "short32": ("banking77", 32, 2, 4),
    "dolly": ("dolly", 8, 5, 5),
    "gsm8k": ("gsm8k", 8, 5, 5),
}
THREADS = 2
AT_ONCE = {"labels32": 8}  # rows that TRL computes at once, where they are not the whole step


class Clock:
    """When steps ended, by the clock and by the processor time of this process."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))

    def rates(self, rows: int) -> dict[str, float]:
        """Rows a second over all steps but the first."""
        (began, began_computing), (ended, ended_computing) = self.ends[0], self.ends[-1]
        return {
            "rows_per_second": rows / (ended - began),
            "rows_per_processor_second": rows / (ended_computing - began_computing),
        }


def turns(case: str, data: Path) -> list[tuple[list[dict[str, str]], str]]:
    """(turns asked, answer) of the rows of a case."""
    folder = data / CASES[case][0]
    with gzip.open(folder / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if folder.name == "banking77":
        labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        system = "Which intent is it?"
        if case.startswith("labels"):
            system = "Which of these intents is it? " + ", ".join(labels)
        return [
            ([{"role": "system", "content": system}, {"role": "user", "content": row["text"]}], row["label"])
            for row in rows
        ]
    if folder.name == "gsm8k":
        return [([{"role": "user", "content": row["question"]}], row["answer"]) for row in rows]
    return [
        (
            [{"role": "user", "content": "\n\n".join(filter(None, (row["instruction"], row["context"])))}],
            row["response"],
        )
        for row in rows
    ]


def rows_of(case: str, data: Path, base: Path, count: int) -> list[tuple[list[int], int]]:
    """(token ids, tokens of the prompt) of `count` rows, none longer than 1,024 tokens."""
    import random

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    pairs = turns(case, data)
    random.Random(0).shuffle(pairs)
    made = []
    for asked, answer in pairs:
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        ids = [*prompt, *tokenizer.encode(answer + "<|im_end|>")]
        if len(ids) <= 1024:
            made.append((ids, len(prompt)))
        if len(made) == count:
            return made
    raise SystemExit(f"{case}: {len(made)} rows, {count} needed")


def ours(case: str, data: Path, base: Path, steps: int, *, bf16: bool) -> dict[str, Any]:
    """Rows a second and peak memory of this project's loop."""
    from luthier.data.shards import Example
    from luthier.models.adapters import attach
    from luthier.models.base import load_base
    from luthier.models.half import halve
    from luthier.pipeline.context import set_up_torch
    from luthier.spec.recipe import Adapter, Train
    from luthier.train import loop
    from luthier.train.inputs import Inputs, TaskRows
    from luthier.train.methods.sft import Sft

    set_up_torch(THREADS)
    batch = CASES[case][1]
    examples = [
        Example(n, "", "", "", cut, ids, [False] * cut + [True] * (len(ids) - cut))
        for n, (ids, cut) in enumerate(rows_of(case, data, base, batch * (steps + 1)))
    ]
    settings = Train(
        learning_rate=2e-4, num_train_epochs=1, max_length=1024, batch_size=batch, micro_batch_tokens=2048,
        lr_scheduler_type="constant", warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=1.0, seed=0, threads=THREADS,
    )  # fmt: skip
    adapter = Adapter(type="lora", r=16, alpha=32, target_modules="all-linear", dropout=0.0)
    model = attach(load_base(base), adapter, base_name="base", seed=0)
    if bf16:
        halve(model)
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        result = loop.train(
            model, Inputs((TaskRows(case, Sft(), examples),), "", "", ""), settings=settings, method_name="sft",
            validation=None, out=Path(out), watch=clock, stop_asked=lambda: False,
        )  # fmt: skip
    losses = [event.loss for event in result.history]
    return {**clock.rates(batch * steps), "losses": losses}


def theirs(case: str, data: Path, base: Path, steps: int, *, bf16: bool) -> dict[str, Any]:
    """The same of TRL."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(THREADS)
    batch = CASES[case][1]
    made = rows_of(case, data, base, batch * (steps + 1))
    rows = Dataset.from_list([{"input_ids": ids, "labels": [-100] * cut + ids[cut:]} for ids, cut in made])
    clock, at_once = Clock(), AT_ONCE.get(case, batch)

    class Told(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock()

    with tempfile.TemporaryDirectory() as out:
        settings = SFTConfig(
            output_dir=out, per_device_train_batch_size=at_once, gradient_accumulation_steps=batch // at_once,
            max_steps=steps + 1, learning_rate=2e-4,
            lr_scheduler_type="constant", gradient_checkpointing=False, bf16=bf16, use_cpu=True, max_length=None,
            report_to="none", save_strategy="no", logging_steps=1, dataloader_pin_memory=False, disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True}, seed=0,
            **({"train_sampling_strategy": "group_by_length"} if case in ("dolly", "gsm8k") else {}),
        )  # fmt: skip
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), settings, train_dataset=rows,
            processing_class=AutoTokenizer.from_pretrained(base), callbacks=[Told()],
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {**clock.rates(batch * steps), "losses": losses}


def measured(system: str, case: str, precision: str, data: Path) -> dict[str, Any]:
    """One run in a process of its own, with the environment of a stage; but nothing there looks for a parent."""
    from luthier.launch.child import stage_environment

    environment = stage_environment(threads=THREADS, offline=True)
    del environment["LUTHIER_PARENT"]
    done = subprocess.run(
        [sys.executable, __file__, "one", system, case, precision, str(data)], env=environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def pairs(case: str, count: int, precision: str, data: Path) -> None:
    """Runs in turn; the medians of the ratios as a row."""
    from importlib.metadata import version

    from rows import append, commit, processor

    ratios: dict[str, list[float]] = {"rows_per_second": [], "rows_per_processor_second": [], "peak_gib": []}
    for number in range(count):
        order = ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours")
        found = {system: measured(system, case, precision, data) for system in order}
        print(found, flush=True)
        for name, seen in ratios.items():
            seen.append(found["ours"][name] / found["theirs"][name])
    head, dirty = commit()
    speed, work, memory = ratios.values()
    row = {
        "commit": head, "dirty": dirty, "processor": processor(), "threads": THREADS, "torch": version("torch"),
        "trl": version("trl"), "peft": version("peft"), "case": case, "precision": precision, "pairs": count,
        "times_as_fast_as_trl": round(statistics.median(speed), 2), "slowest_pair": round(min(speed), 2),
        "fastest_pair": round(max(speed), 2), "by_processor_time": round(statistics.median(work), 2),
        "peak_memory_of_trl": round(statistics.median(memory), 2),
    }  # fmt: skip
    append(Path(__file__).parent / "results" / "trainer.csv", row)
    print(row)


def main(verb: str, *given: str) -> None:
    """`pairs`, or `one` run of one system."""
    here = Path(__file__).parents[2] / "shared" / "data"
    if verb == "pairs":
        case, count, *more = given
        pairs(case, int(count), more[0] if more else "float32", Path(more[1]) if more[1:] else here)
        return
    from luthier.models.base import import_base
    from luthier.models.source import locate

    system, case, precision, data = given
    base = import_base(locate("smollm2-135m-instruct", folder=Path(), revision=None, offline=True, say=print))
    theirs_steps, ours_steps = CASES[case][2:]
    run, steps = (ours, ours_steps) if system == "ours" else (theirs, theirs_steps)
    found = run(case, Path(data), base, steps, bf16=precision == "bf16")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**found, "peak_gib": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
