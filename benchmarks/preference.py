"""Learning from preferences beside TRL's DPOTrainer with PEFT; a row of results/preference.csv.

    python benchmarks/preference.py agree [DATA]
    python benchmarks/preference.py pairs CASE PAIRS [DATA]
        CASE: dpo8 (preference_politeness), long8 (pandalm)

`agree` holds losses and gradients of dpo (sigmoid and ipo), orpo and simpo against TRL's own code: one step of real
rows, the same adapter, which has left its start; it ends with an error where they differ. `pairs` takes training steps
in turn, as benchmarks/trainer.py does and with its settings: eight pairs a step, the same token ids, SmolLM2-135M, LoRA
r 16 on all linear layers, two threads. Both know what the base says of the pairs before the first step, which warms up
and is not counted (precompute_ref_log_probs there). DATA is the folder of the real sets (../shared/data unless given).
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from trainer import THREADS, Clock

CASES = {"dpo8": ("preference_politeness", 8, 2, 4), "long8": ("pandalm", 8, 2, 4)}
LONGEST = 512
ADAPTER = {"r": 16, "target_modules": "all-linear"}


def rows_of(case: str, data: Path, base: Path, count: int) -> list[dict[str, list[int]]]:
    """Token ids of prompt, chosen and rejected answer of `count` pairs, none longer than LONGEST."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = [json.loads(line) for line in (data / CASES[case][0] / "train.jsonl").read_text("utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    made = []
    for row in rows:
        asked = [{"role": "user", "content": row["prompt"]}]
        ids = {"prompt_ids": tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)}
        ids |= {f"{name}_ids": tokenizer.encode(row[name] + "<|im_end|>") for name in ("chosen", "rejected")}
        if len(ids["prompt_ids"]) + max(len(ids["chosen_ids"]), len(ids["rejected_ids"])) <= LONGEST:
            made.append(ids)
        if len(made) == count:
            return made
    raise SystemExit(f"{case}: {len(made)} pairs, {count} needed")


def examples_of(rows: list[dict[str, list[int]]]) -> list[Any]:
    """The same pairs as rows of a shard."""
    from luthier.data.shards import Example

    return [
        Example(
            n, "", "", "", len(row["prompt_ids"]), row["prompt_ids"] + row["chosen_ids"],
            [False] * len(row["prompt_ids"]) + [True] * len(row["chosen_ids"]), rejected_ids=row["rejected_ids"],
        )
        for n, row in enumerate(rows)
    ]  # fmt: skip


def settings_of(batch: int) -> Any:
    """Of our loop."""
    from luthier.spec.recipe import Train

    return Train(
        learning_rate=5e-5, num_train_epochs=1, max_length=LONGEST, batch_size=batch, micro_batch_tokens=2048,
        lr_scheduler_type="constant", warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=1.0, seed=0, threads=THREADS,
    )  # fmt: skip


def tuned(base: Path) -> Any:
    """The base with a fresh adapter of ours."""
    from luthier.models.adapters import attach
    from luthier.models.base import load_base
    from luthier.spec.adapters.lora import Lora

    return attach(load_base(base), Lora(alpha=32, dropout=0.0, **ADAPTER), base_name="base", seed=0)


def referred(model: Any, method: Any, examples: list[Any], folder: Path) -> Any:
    """The method, ready to learn, and what it measures from."""
    from luthier.train.reference import open_reference

    reference = open_reference(
        model, examples, method=method, base_sha256="", folder=folder, max_tokens=2048,
        tell=(lambda done, total: None, lambda: False),
    )  # fmt: skip
    return method.beside(reference), reference


def ours(case: str, data: Path, base: Path, steps: int) -> dict[str, Any]:
    """Pairs a second and peak memory of this project's loop."""
    from luthier.pipeline.context import set_up_torch
    from luthier.spec.methods import dpo
    from luthier.train import loop
    from luthier.train.inputs import Inputs, TaskRows
    from luthier.train.methods.dpo import Dpo

    set_up_torch(THREADS)
    batch = CASES[case][1]
    examples = examples_of(rows_of(case, data, base, batch * (steps + 1)))
    model, clock = tuned(base), Clock()
    with tempfile.TemporaryDirectory() as out:
        method, _ = referred(model, Dpo(dpo.Dpo()), examples, Path(out) / "reference")
        result = loop.train(
            model, Inputs((TaskRows("pairs", method, examples),), "", "", ""), settings=settings_of(batch),
            method_name="dpo", validation=None, out=Path(out), watch=clock, stop_asked=lambda: False,
        )  # fmt: skip
    return {**clock.rates(batch * steps), "losses": [event.loss for event in result.history]}


def their_trainer(base: Path, rows: list[dict[str, list[int]]], out: str, **settings: Any) -> Any:
    """TRL's, over rows that are token ids already."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class Ready(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *given: Any, **more: Any) -> Any:
            return dataset

    callbacks = settings.pop("callbacks", [])
    config = DPOConfig(
        output_dir=out, beta=0.1, learning_rate=5e-5, lr_scheduler_type="constant", gradient_checkpointing=False,
        bf16=False, use_cpu=True, max_length=None, report_to="none", save_strategy="no", logging_steps=1,
        dataloader_pin_memory=False, disable_tqdm=True, precompute_ref_log_probs=True, seed=0, **settings,
    )  # fmt: skip
    return Ready(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), args=config,
        train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(base),
        callbacks=callbacks, peft_config=LoraConfig(lora_alpha=32, task_type="CAUSAL_LM", **ADAPTER),
    )  # fmt: skip


def theirs(case: str, data: Path, base: Path, steps: int) -> dict[str, Any]:
    """The same of TRL."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(THREADS)
    batch, clock = CASES[case][1], Clock()

    class Told(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock()

    with tempfile.TemporaryDirectory() as out:
        trainer = their_trainer(
            base, rows_of(case, data, base, batch * (steps + 1)), out, per_device_train_batch_size=batch,
            max_steps=steps + 1, callbacks=[Told()],
        )  # fmt: skip
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {**clock.rates(batch * steps), "losses": losses}


def agree(data: Path, base: Path) -> None:
    """Losses and gradients of a step of real rows, ours and TRL's; an error where they differ."""
    import torch
    from peft import set_peft_model_state_dict

    from luthier.models.adapters import adapter_state
    from luthier.spec.methods import dpo, orpo, simpo
    from luthier.train.methods.dpo import Dpo
    from luthier.train.methods.orpo import Orpo
    from luthier.train.methods.simpo import Simpo

    torch.set_num_threads(THREADS)
    rows = rows_of("dpo8", data, base, 6)
    examples, model = examples_of(rows), tuned(base)
    with tempfile.TemporaryDirectory() as out:
        trainer = their_trainer(base, rows, out, per_device_train_batch_size=len(rows))
        _, reference = referred(model, Dpo(dpo.Dpo()), examples, Path(out) / "reference")
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        set_peft_model_state_dict(trainer.model, adapter_state(model))
        batch = trainer.data_collator(list(trainer.train_dataset))
        apart = (
            reference.of(examples) - torch.stack([batch["ref_chosen_logps"], batch["ref_rejected_logps"]], 1)
        ).abs()
        print(f"reference: log-probabilities up to {apart.max():.1e} apart")
        assert apart.max() < 1e-2
        cases = {
            "sigmoid": (Dpo(dpo.Dpo(), reference), lambda: their_dpo(trainer, batch, "sigmoid")),
            "ipo": (Dpo(dpo.Dpo(loss="ipo"), reference), lambda: their_dpo(trainer, batch, "ipo")),
            "orpo": (Orpo(orpo.Orpo()), lambda: their_orpo(trainer.model, batch)),
            "simpo": (Simpo(simpo.Simpo()), lambda: their_simpo(trainer.model, batch)),
        }
        for name, (method, make) in cases.items():
            model.zero_grad()
            trainer.model.zero_grad()
            mine, its = method.loss_sum(model, examples) / len(examples), make()
            mine.backward()
            its.backward()
            hers = {n: p.grad for n, p in trainer.model.named_parameters() if p.grad is not None}
            own = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            assert own.keys() == hers.keys()
            squares = sum(float(((own[n] - hers[n]) ** 2).sum()) for n in own)
            error = (squares / sum(float((g**2).sum()) for g in hers.values())) ** 0.5
            one, other = float(mine.detach()), float(its.detach())
            print(f"{name}: loss {one:.6f} and {other:.6f}, gradients {error:.1e} apart", flush=True)
            assert abs(one - other) < 1e-4 * abs(other)
            assert error < 1e-3


def their_dpo(trainer: Any, batch: dict[str, Any], loss: str) -> Any:
    """The loss of TRL's trainer."""
    trainer.loss_types = [loss]
    return trainer._compute_loss(trainer.model, dict(batch), False)


def their_means(model: Any, batch: dict[str, Any], get: Any) -> tuple[Any, Any]:
    """Mean log-probability a token of the answers, by TRL's function."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    return get(logits, labels, average_log_prob=True).chunk(2)


def their_orpo(model: Any, batch: dict[str, Any]) -> Any:
    """TRL's odds ratio; the likelihood beside it is ours: of the answer alone, a mean over pairs."""
    from trl.experimental.orpo import ORPOTrainer

    chosen, rejected = their_means(model, batch, ORPOTrainer.get_batch_logps)
    given = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    return -chosen.mean() - ORPOTrainer.odds_ratio_loss(given, chosen, rejected)[0].mean()


def their_simpo(model: Any, batch: dict[str, Any]) -> Any:
    """The loss that TRL keeps beside CPO."""
    from trl.experimental.cpo import CPOTrainer

    chosen, rejected = their_means(model, batch, CPOTrainer.get_batch_logps)
    given = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=1.0, loss_type="simpo", label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    return CPOTrainer.cpo_loss(given, chosen, rejected)[0].mean()


def measured(system: str, case: str, data: Path) -> dict[str, Any]:
    """One run in a process of its own, with the environment of a stage; but nothing there looks for a parent."""
    from luthier.launch.child import stage_environment

    environment = stage_environment(threads=THREADS, offline=True)
    del environment["LUTHIER_PARENT"]
    command = [sys.executable, __file__, "one", system, case, str(data)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def pairs(case: str, count: int, data: Path) -> None:
    """Runs in turn; the medians of the ratios as a row."""
    from importlib.metadata import version

    from rows import append, commit, processor

    ratios: dict[str, list[float]] = {"rows_per_second": [], "rows_per_processor_second": [], "peak_gib": []}
    for number in range(count):
        order = ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours")
        found = {system: measured(system, case, data) for system in order}
        print(found, flush=True)
        for name, seen in ratios.items():
            seen.append(found["ours"][name] / found["theirs"][name])
    head, dirty = commit()
    speed, work, memory = ratios.values()
    row = {
        "commit": head, "dirty": dirty, "processor": processor(), "threads": THREADS, "torch": version("torch"),
        "trl": version("trl"), "peft": version("peft"), "case": case, "pairs": count,
        "times_as_fast_as_trl": round(statistics.median(speed), 2), "slowest_pair": round(min(speed), 2),
        "fastest_pair": round(max(speed), 2), "by_processor_time": round(statistics.median(work), 2),
        "peak_memory_of_trl": round(statistics.median(memory), 2),
    }  # fmt: skip
    append(Path(__file__).parent / "results" / "preference.csv", row)
    print(row)


def main(verb: str, *given: str) -> None:
    """`agree`, `pairs`, or `one` run of one system."""
    here = Path(__file__).parents[2] / "shared" / "data"
    if verb == "pairs":
        case, count, *more = given
        pairs(case, int(count), Path(more[0]) if more else here)
        return
    from luthier.models.base import import_base
    from luthier.models.source import locate

    base = import_base(locate("smollm2-135m-instruct", folder=Path(), revision=None, offline=True, say=print))
    if verb == "agree":
        agree(Path(given[0]) if given else here, base)
        return
    system, case, data = given
    theirs_steps, ours_steps = CASES[case][2:]
    run, steps = (ours, ours_steps) if system == "ours" else (theirs, theirs_steps)
    found = run(case, Path(data), base, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**found, "peak_gib": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
