"""A reward model beside TRL's RewardTrainer with PEFT: token ids, losses, gradients and scores of the same pairs.

    python benchmarks/reward.py agree [DATA]

Six pairs of preference_politeness, SmolLM2-135M-Instruct, LoRA r 16 and a head that have left their start. Each side
makes its own tokens of the rows. It ends with an error where they differ. DATA is the folder of the real sets
(../shared/data unless given).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COUNT, CENTER, THREADS = 6, 0.01, 2
ADAPTER = {"r": 16, "target_modules": "all-linear"}
RECIPE = {
    "name": "judge",
    "model": {"name": "smollm2-135m-instruct"},
    "data": {"train": [{"path": "pairs.jsonl", "task": "preference"}], "leakage": {"near": False}},
    "method": {"type": "reward", "center_rewards_coefficient": CENTER},
}


def prepared(data: Path, folder: Path) -> list[Any]:
    """The first pairs of the training rows, as this project prepares them."""
    import yaml

    from luthier.data.shards import Shard
    from luthier.store.runs import RunFolder

    lines = (data / "preference_politeness" / "train.jsonl").read_text("utf-8").splitlines()[:40]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "judge.yaml").write_text(yaml.safe_dump(RECIPE), "utf-8")
    subprocess.run([sys.executable, "-m", "luthier.cli", "prepare", "judge.yaml"], cwd=folder, check=True)
    return list(Shard(RunFolder.open("judge", out=folder / "runs").data / "train.arrow"))[:COUNT]


def ours(base: Path) -> Any:
    """The base with an adapter and a head of ours, which have left their start."""
    import torch

    from luthier.models.adapters import attach
    from luthier.models.base import load_base
    from luthier.models.classifier import head_of, put_head
    from luthier.spec.adapters.lora import Lora

    model = attach(load_base(base), Lora(alpha=32, dropout=0.0, **ADAPTER), base_name="base", seed=0)
    put_head(model, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
        head = head_of(model)
        assert head is not None
        head.weight.normal_(std=0.05)
    return model


def theirs(base: Path, examples: list[Any], out: Path) -> Any:
    """TRL's trainer over conversations."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    def turns(example: Any, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": example.text}, {"role": "assistant", "content": answer}]

    rows = [{"chosen": turns(one, one.answer), "rejected": turns(one, one.rejected)} for one in examples]
    config = RewardConfig(
        output_dir=str(out), center_rewards_coefficient=CENTER, gradient_checkpointing=False, bf16=False, use_cpu=True,
        max_length=None, report_to="none", per_device_train_batch_size=COUNT, dataloader_pin_memory=False,
        disable_dropout=True, seed=0,
    )  # fmt: skip
    return RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32), args=config,
        train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(lora_alpha=32, task_type="SEQ_CLS", modules_to_save=["score"], **ADAPTER),
    )  # fmt: skip


def agree(data: Path, base: Path) -> None:
    """Tokens, scores, loss and gradient, ours and TRL's; an error where they differ."""
    import torch
    from peft import set_peft_model_state_dict

    from luthier.models.adapters import adapter_state
    from luthier.spec.methods.reward import RewardModel as Settings
    from luthier.train.methods.reward import RewardModel
    from luthier.train.over_prompts import scores_at_ends

    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as out:
        examples, model = prepared(data, Path(out)), ours(base)
        trainer = theirs(base, examples, Path(out) / "trl")
        state = adapter_state(model)
        set_peft_model_state_dict(trainer.model, state)
        method = RewardModel(Settings(center_rewards_coefficient=CENTER), "polite")
        rows = [row for one in examples for row in method.computed(one)]
        found = [ids for row in trainer.train_dataset for ids in (row["chosen_ids"], row["rejected_ids"])]
        assert found == [list(row) for row in rows], "the tokens differ"
        batch = trainer.data_collator(list(trainer.train_dataset))
        trainer.model.eval()
        with torch.no_grad():
            scores = scores_at_ends(model, rows, "polite").view(-1, 2)
            its_scores = torch.stack(trainer.model(**batch).logits.squeeze(-1).chunk(2), 1)
        apart = float((scores - its_scores).abs().max() / its_scores.abs().max())
        mine = method.loss_sum(model, examples) / len(examples)
        its = trainer.compute_loss(trainer.model, dict(batch))
        mine.backward()
        its.backward()
        hers = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        own = {_theirs(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert own.keys() == hers.keys(), sorted(own.keys() ^ hers.keys())[:4]
        squares = sum(float(((own[name] - hers[name]) ** 2).sum()) for name in own)
        error = (squares / sum(float((grad**2).sum()) for grad in hers.values())) ** 0.5
        one, other = float(mine.detach()), float(its.detach())
        found_apart = {"scores_apart": apart, "loss": one, "loss_of_trl": other, "gradients_apart": error}
        print(json.dumps({"pairs": len(examples), "tokens": sum(map(len, rows)), **found_apart}))
        assert apart < 1e-4
        assert abs(one - other) < 1e-5 * abs(other)
        assert error < 1e-4


def _theirs(name: str) -> str:
    """The parameter's name there, where the head learns whole within the adapter."""
    return name.replace(".score.weight", ".score.modules_to_save.default.weight")


if __name__ == "__main__":
    from luthier.models.base import import_base
    from luthier.models.source import locate

    assert sys.argv[1:2] == ["agree"], __doc__
    here = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parents[2] / "shared" / "data"
    bundled = locate("smollm2-135m-instruct", folder=Path(), revision=None, offline=True, say=print)
    agree(here, import_base(bundled))
