"""Documents through the whole pipeline, what others make of the result, and a task learned on top of it."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from command import Done, call, luthier
from luthier.data.shards import Shard
from luthier.data_report import DataReport
from luthier.eval_records import EvalReport
from luthier.records import RequestContract
from luthier.store.runs import RunFolder
from tiny import write_model, write_recipe

pytestmark = pytest.mark.slow

WORDS = [
    "the",
    "order",
    "of",
    "guitar",
    "is",
    "late",
    "and",
    "refund",
    "not",
    "here",
    "purfling",
    "soundpost",
    "varnish",
    "bridge",
]
RECIPE = {
    "name": "words",
    "objective": {"targets": {"domain.bits_per_byte": "<= 9"}},
    "model": {"name": "model"},
    "data": {
        "train": [{"path": "docs", "license": "CC0-1.0"}],
        "split": {"test": 0.3, "validation": 0.15},
        "privacy": {"action": "redact", "profile": "fast"},
    },
    "method": {"type": "pretrain", "replay": {"path": "general.jsonl", "share": 0.2}},
    "adapter": {"r": 4},
    "train": {
        "num_train_epochs": 1, "max_length": 64, "batch_size": 8, "micro_batch_tokens": 256, "threads": 1,
        "validations": 1, "learning_rate": 0.005,
    },
    "evaluate": {"resamples": 200},
    "export": ["adapter", "merged"],
}  # fmt: skip


@dataclass(frozen=True)
class World:
    folder: Path
    done: Done
    run: RunFolder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("domain")
    write_model(folder / "model")
    rng = random.Random(0)
    (folder / "docs").mkdir()
    for number in range(24):
        parts = [" ".join(rng.choice(WORDS) for _ in range(40)) + f" {number}." for _ in range(rng.randrange(1, 5))]
        (folder / "docs" / f"{number}.md").write_text("# Part\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    general = [f"{number} birds over the {name} river" for number in range(30) for name in ("blue", "wide")]
    (folder / "general.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in general))
    (folder / "words.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False), encoding="utf-8")
    done = luthier("run", "words.yaml", "--json", cwd=folder, LUTHIER_HOME=str(folder / "home")).decides()
    return World(folder, done, RunFolder.open("words", out=folder / "runs"))


def test_the_run_says_what_was_gained_replayed_and_forgotten(world: World) -> None:
    report = EvalReport.read(world.run.eval_report)
    data = DataReport.read(world.run.data_report)
    scores = {system.system: system.metrics["bits_per_byte"].point for system in report.systems}
    assert scores["tuned"] < scores["base"]
    assert data.replay is not None
    assert 0.1 < data.replay.share <= 0.2
    assert report.terms is not None
    card, page = world.run.card.read_text(encoding="utf-8"), world.run.report.read_text(encoding="utf-8")
    for said in (
        "bits per byte",
        "terms of the domain",
        f"{data.replay.rows} of {data.replay.available} general texts",
    ):
        assert said in page, said
    assert f"{data.replay.rows} general texts replayed" in card
    assert "Going on with a text of the domain" in card
    assert world.done.document["gate"]["passed"] is True


def test_what_was_made_opens_elsewhere_and_says_the_same(world: World) -> None:
    """Bits per byte of the merged folder, and of base and adapter, by plain transformers and PEFT."""
    import math

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = world.run.artifacts / "merged"
    plain = AutoModelForCausalLM.from_pretrained(merged, local_files_only=True).eval()
    base = AutoModelForCausalLM.from_pretrained(world.folder / "model", local_files_only=True)
    adapted = PeftModel.from_pretrained(base, world.run.artifacts / "adapter").eval()
    rows = Shard(world.run.data / "test.arrow")
    size = sum(len(row.text.encode()) for row in rows)
    report = EvalReport.read(world.run.eval_report)
    ours = next(one for one in report.systems if one.system == "tuned").metrics["bits_per_byte"].point
    for model in (plain, adapted):
        bits = 0.0
        for row in rows:
            ids = torch.tensor([row.input_ids])
            labels = torch.where(torch.tensor([row.supervised]), ids, -100)
            with torch.no_grad():
                bits += float(model(input_ids=ids, labels=labels).loss) * sum(row.supervised[1:]) / math.log(2)
        assert bits / size == pytest.approx(ours, rel=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(merged, local_files_only=True)
    assert tokenizer.chat_template == (world.folder / "model" / "chat_template.jinja").read_text(encoding="utf-8")


def test_predict_goes_on_with_the_text_as_plain_transformers_does(world: World) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with (world.folder / "in.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["text"], ["the order of the guitar"]])
    out = world.folder / "out.jsonl"
    call("predict", "words", "in.csv", "--output", str(out), cwd=world.folder).succeeds()
    merged, contract = world.run.artifacts / "merged", RequestContract.read(world.run.contract)
    tokenizer = AutoTokenizer.from_pretrained(merged, local_files_only=True)
    ids = torch.tensor([tokenizer("the order of the guitar")["input_ids"]])
    model = AutoModelForCausalLM.from_pretrained(merged, local_files_only=True)
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=contract.max_new_tokens,
        eos_token_id=list(contract.stop_ids),
    )[0, ids.shape[1] :]  # fmt: skip
    assert json.loads(out.read_text(encoding="utf-8"))["text"] == tokenizer.decode(
        made, skip_special_tokens=True
    ).strip()  # fmt: skip


def test_a_task_is_tuned_on_top_of_the_merged_folder(world: World) -> None:
    recipe = write_recipe(world.folder, world.run.artifacts / "merged", num_train_epochs=1, validations=1)
    luthier("train", recipe.name, cwd=world.folder, LUTHIER_HOME=str(world.folder / "home")).succeeds()
    top = RunFolder.open("tiny", out=world.folder / "runs")
    shape = json.loads(top.shape.read_text(encoding="utf-8"))
    assert (shape["license"], shape["license_source"]) == ("Apache-2.0", "model card")
    readme = (world.run.artifacts / "merged" / "README.md").read_text(encoding="utf-8")
    assert "Made from `model`" in readme
    contract = RequestContract.read(top.contract)
    assert "<|im_start|>" in contract.chat_template, "the base's own template, not that of documents"
