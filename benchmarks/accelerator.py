"""The training loop on an NVIDIA accelerator: beside TRL, and beside the processor's numbers.

    python benchmarks/accelerator.py exact BASE
    python benchmarks/accelerator.py pairs BASE DATA CASE[,CASE..] PAIRS
    python benchmarks/accelerator.py profile BASE DATA CASE

BASE is a folder of a transformers model with its tokenizer; where it holds no weights they are drawn (speed does not
depend on them). Cases are those of trainer.py. Both systems stand on the accelerator, a process each, and compute in
turn, a stretch of steps each; the first stretch and the first steps of each do not count. Rows of
results/accelerator.csv.

TRL gets bf16 (autocast), Liger's kernels, SDPA, no gradient checkpointing, losses read every tenth step, rows of like
length together on dolly and gsm8k; ours: frozen weights and attention in bf16, the rest in float32, compiled layers.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from trainer import CASES, rows_of

WARM, COUNTED = 12, 30


def base_model(base: Path) -> Any:
    """In float32, of its own weights or of drawn ones."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if list(base.glob("*.safetensors")):
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=torch.float32)


def lora(model: Any) -> Any:
    """With a fresh adapter on every linear layer."""
    from luthier.models.adapters import attach
    from luthier.spec.adapters.lora import Lora

    adapter = Lora(type="lora", r=16, alpha=32, target_modules="all-linear", dropout=0.0)
    return attach(model, adapter, base_name="base", seed=0)


class Ours:
    """Stretches of steps of this project's loop."""

    def __init__(self, base: Path, made: list[tuple[list[int], int]], batch: int, *, compiled: bool = True) -> None:
        from luthier.data.shards import Example
        from luthier.models.compiled import compile_layers
        from luthier.models.half import halve
        from luthier.pipeline.context import set_up_torch

        set_up_torch(8)
        self.examples = [
            Example(n, "", "", "", cut, ids, [False] * cut + [True] * (len(ids) - cut))
            for n, (ids, cut) in enumerate(made)
        ]
        self.batch = batch
        self.model = lora(base_model(base))
        halve(self.model)
        self.model.cuda()
        if compiled:
            compile_layers(self.model)

    def stretch(self) -> tuple[float, list[Any]]:
        """Seconds of the counted steps, and the events."""
        from luthier.spec.recipe import Train
        from luthier.train import loop
        from luthier.train.inputs import Inputs, TaskRows
        from luthier.train.methods.sft import Sft

        settings = Train(
            learning_rate=2e-4, num_train_epochs=1, max_length=1024, batch_size=self.batch, micro_batch_tokens=16384,
            lr_scheduler_type="constant", warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=1.0, seed=0, threads=8,
        )  # fmt: skip
        ends: list[float] = []

        def watch(*args: Any, **kwargs: Any) -> None:
            torch.cuda.synchronize()
            ends.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as out:
            result = loop.train(
                self.model, Inputs((TaskRows("case", Sft(), self.examples),), "", "", ""), settings=settings,
                method_name="sft", validation=None, out=Path(out), watch=watch, stop_asked=lambda: False,
            )  # fmt: skip
        return ends[-1] - ends[WARM - 1], list(result.history)


class Theirs:
    """The same of TRL."""

    def __init__(self, base: Path, made: list[tuple[list[int], int]], case: str, batch: int) -> None:
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoTokenizer, TrainerCallback
        from trl import SFTConfig, SFTTrainer

        self.ends: list[float] = []
        ends = self.ends

        class Told(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step in (WARM, WARM + COUNTED):
                    torch.cuda.synchronize()
                    ends.append(time.perf_counter())

        torch.use_deterministic_algorithms(False)
        rows = Dataset.from_list([{"input_ids": ids, "labels": [-100] * cut + ids[cut:]} for ids, cut in made])
        self.folder = tempfile.TemporaryDirectory()
        settings = SFTConfig(
            output_dir=self.folder.name, per_device_train_batch_size=batch, max_steps=WARM + COUNTED,
            learning_rate=2e-4, lr_scheduler_type="constant", gradient_checkpointing=False, bf16=True, max_length=None,
            report_to="none", save_strategy="no", logging_steps=10, disable_tqdm=True, use_liger_kernel=True,
            dataloader_num_workers=4, dataloader_persistent_workers=True,
            dataset_kwargs={"skip_prepare_dataset": True}, seed=0,
            **({"train_sampling_strategy": "group_by_length"} if case in ("dolly", "gsm8k") else {}),
        )  # fmt: skip
        self.trainer = SFTTrainer(
            base_model(base), settings, train_dataset=rows, processing_class=AutoTokenizer.from_pretrained(base),
            callbacks=[Told()],
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        )  # fmt: skip

    def stretch(self) -> float:
        torch.use_deterministic_algorithms(False)
        self.ends.clear()
        self.trainer.train()
        return self.ends[1] - self.ends[0]


def matrix_rate() -> float:
    """FLOP a second of a large bf16 product of random numbers."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - began)


def work(model: Any) -> float:
    """FLOP of the linear layers a computed token: forward and by the input; adapters forward and twice backward."""
    frozen = sum(m.weight.numel() for n, m in model.named_modules() if n.endswith("base_layer"))
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return 4.0 * frozen + 6.0 * learned


def serve(system: str, base: Path, data: Path, case: str, pipe: Any) -> None:
    """A process of its own, since Liger changes transformers' classes for whoever shares them: a stretch when asked."""
    torch.backends.cuda.matmul.allow_tf32 = False
    batch = CASES[case][1]
    made = rows_of(case, data, base, batch * (WARM + COUNTED))
    rate = matrix_rate() if system == "ours" else 0.0
    side: Any = Ours(base, made, batch) if system == "ours" else Theirs(base, made, case, batch)
    while pipe.recv():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        told: dict[str, float] = {}
        if system == "ours":
            told["seconds"], events = side.stretch()
            told["share"] = sum(e.computed_tokens for e in events[WARM:]) * work(side.model) / told["seconds"] / rate
        else:
            told["seconds"] = side.stretch()
        told["peak"] = torch.cuda.max_memory_allocated() - before
        pipe.send(told)


def pairs(base: Path, data: Path, cases: str, count: int) -> None:
    """Stretches in turn, a first one of each not counted; of each case the medians of the ratios as a row."""
    from importlib.metadata import version
    from multiprocessing import get_context

    from rows import append, commit

    context = get_context("spawn")
    for case in cases.split(","):
        pipes = {}
        for system in ("ours", "theirs"):
            here, there = context.Pipe()
            context.Process(target=serve, args=(system, base, data, case, there)).start()
            pipes[system] = here
        ratios, peaks, shares = [], [], []
        for number in range(count + 1):
            told = {}
            for system in ("ours", "theirs") if number % 2 == 0 else ("theirs", "ours"):
                pipes[system].send(True)
                told[system] = pipes[system].recv()
            print(case, number, told, flush=True)
            if number:
                ratios.append(told["theirs"]["seconds"] / told["ours"]["seconds"])
                peaks.append(told["ours"]["peak"] / told["theirs"]["peak"])
                shares.append(told["ours"]["share"])
        for pipe in pipes.values():
            pipe.send(False)
        head, dirty = commit()
        row = {
            "commit": head, "dirty": dirty, "device": torch.cuda.get_device_name(), "torch": version("torch"),
            "transformers": version("transformers"), "trl": version("trl"), "peft": version("peft"), "base": base.name,
            "case": case, "pairs": count, "times_as_fast_as_trl": round(statistics.median(ratios), 2),
            "slowest_pair": round(min(ratios), 2), "fastest_pair": round(max(ratios), 2),
            "peak_memory_of_trl": round(statistics.median(peaks), 2),
            "share_of_matrix_rate": round(statistics.median(shares), 3),
        }  # fmt: skip
        append(Path(__file__).parent / "results" / "accelerator.csv", row)
        print(row, flush=True)


def exact(base: Path) -> None:
    """A tree of rows on the accelerator beside each row alone on the processor: loss and gradient."""
    from luthier.data.shards import Example
    from luthier.models.compiled import compile_layers
    from luthier.models.half import halve
    from luthier.pipeline.context import set_up_torch
    from luthier.train.methods.sft import Sft

    set_up_torch(8)
    torch.manual_seed(1)
    start = torch.randint(10, 9000, (300,)).tolist()
    examples = []
    for number, length in enumerate((5, 60, 200, 17, 33, 130)):
        own = torch.randint(10, 9000, (length + 4,)).tolist()
        ids = (start if number % 3 else start[:150]) + own
        examples.append(Example(number, "", "", "", len(ids) - 4, ids, [False] * (len(ids) - 4) + [True] * 4))

    def found(*, device: str, half: bool, compiled: bool, together: bool) -> tuple[float, torch.Tensor]:
        model = lora(base_model(base))
        torch.manual_seed(2)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        if half:
            halve(model)
        model.to(device).train()
        if compiled:
            compile_layers(model)
        total = 0.0
        began = time.perf_counter()
        for group in [examples] if together else [[one] for one in examples]:
            loss = Sft().loss_sum(model, group)
            loss.backward()
            total += float(loss)
        seconds = time.perf_counter() - began
        print(device, half, compiled, together, f"{seconds:.1f} s", flush=True)
        gradients = [p.grad.double().cpu().flatten() for p in model.parameters() if p.grad is not None]
        return total, torch.cat(gradients)

    loss, gradient = found(device="cpu", half=False, compiled=False, together=False)
    for half in (False, True):
        for compiled in (False, True):
            other, own = found(device="cuda", half=half, compiled=compiled, together=True)
            apart = float((own - gradient).norm() / gradient.norm())
            what = f"bf16 {half}, compiled {compiled}"
            print(f"{what}: loss off by {abs(other - loss) / loss:.2g}, gradient by {apart:.2g}", flush=True)


def profile(base: Path, data: Path, case: str) -> None:
    """Where the time of a step goes, compiled and not."""
    batch = CASES[case][1]
    made = rows_of(case, data, base, batch * (WARM + COUNTED))
    for compiled in (False, True):
        ours = Ours(base, made, batch, compiled=compiled)
        began = time.perf_counter()
        ours.stretch()
        first = time.perf_counter() - began
        seconds, events = ours.stretch()
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        tokens = statistics.mean(event.computed_tokens for event in events)
        print(f"{case} compiled {compiled}: first stretch {first:.1f} s, a step {seconds / COUNTED * 1e3:.1f} ms, "
              f"{tokens:.0f} tokens a step", flush=True)  # fmt: skip
        ours.examples = ours.examples[: batch * (WARM + 3)]  # the tables of a long stretch take minutes
        with torch.profiler.profile(activities=kinds) as seen:
            ours.stretch()
        table = seen.key_averages()
        print(table.table(sort_by="self_cuda_time_total", row_limit=14, max_name_column_width=60), flush=True)
        print(table.table(sort_by="self_cpu_time_total", row_limit=14, max_name_column_width=60), flush=True)
        del ours


def main(verb: str, base: str, *given: str) -> None:
    """What was asked for, with products of float32 in float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    if verb == "exact":
        exact(Path(base))
    elif verb == "pairs":
        pairs(Path(base), Path(given[0]), given[1], int(given[2]))
    else:
        profile(Path(base), Path(given[0]), given[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
