"""Heads of several tasks leave the house each as a model of its own, what they share as a language model above them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classify_kit import LORA
from data_kit import resolved
from safetensors.torch import load_file, save_file

from luthier.compress.export import Asked, export, parts_of
from luthier.data.goldens import read_goldens
from luthier.data.prepare import prepare
from luthier.engines.transformers import TransformersEngine
from luthier.errors import ParityError
from luthier.govern.gate import _parity_lines
from luthier.models.adapters import attach, save_adapter
from luthier.models.base import load_base
from luthier.models.classifier import heads_of, put_head
from luthier.records import Artifact, RequestContract
from luthier.spec.methods.classify import Classify
from luthier.store.files import sha256_files
from luthier.store.runs import HEADS
from tiny import llama, write_messages, write_tokenizer


@dataclass(frozen=True)
class Run:
    """A tiny model with two heads that also writes, and what it is asked."""

    base: Path
    adapter: Path
    asked: dict[str, Asked]
    engine: TransformersEngine
    out: Path

    def export(self, kind: str, *names: str) -> Artifact:
        return export(
            kind, base=self.base, adapter=self.adapter, run=self.out, asked=[self.asked[name] for name in names],
            reference=self.engine, weights_sha256="w" * 64,
        )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("heads")
    base, adapter = place / "base", place / "adapter"
    write_tokenizer(base)
    llama(tie_word_embeddings=False).save_pretrained(base, safe_serialization=True)
    write_messages(place / "data.csv")
    asked = {}
    for name, system in (("kind", "Kind?"), ("mood", "Mood?"), ("reply", "")):
        task = "generation" if name == "reply" else "classification"
        renamed = {"late": "bad", "broken": "bad", "refund": "good"} if name == "mood" else {}
        given = resolved(
            place, task=task, input="{text}", label="kind", max_length=400 if name == "reply" else 160, system=system,
            labels={"rename": renamed},
        )  # fmt: skip
        changes: dict[str, Any] = {} if name == "reply" else {"method": Classify()}
        recipe = given.recipe.model_copy(update=changes)
        prepare(given.model_copy(update={"recipe": recipe}), tokenizer_folder=base, out=place / name)
        contract = RequestContract.read(place / name / "contract.json").model_copy(update={"name": name})
        asked[name] = Asked(contract, read_goldens(place / name / "goldens.json"))
    tuned = attach(load_base(base), LORA, base_name="tiny", seed=0)
    for name in ("kind", "mood"):
        put_head(tuned, len(asked[name].contract.labels), task=name, beside_words=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)
        for head in heads_of(tuned).values():
            head.weight.normal_(std=0.4, generator=generator)
    adapter.mkdir()
    save_adapter(tuned, adapter)
    return Run(base, adapter, asked, TransformersEngine.open(base, adapter), place)


ALL = ("kind", "mood", "reply")


@pytest.fixture(scope="module")
def artifacts(made: Run) -> dict[str, Artifact]:
    return {kind: made.export(kind, *ALL) for kind in ("adapter", "merged")}


def test_the_labels_of_the_two_heads_are_their_own(made: Run) -> None:
    assert [made.asked[name].contract.labels for name in ("kind", "mood")] == [
        ("broken", "late", "refund"), ("bad", "good"),
    ]  # fmt: skip


def test_every_task_passes_parity_and_every_file_is_hashed(made: Run, artifacts: dict[str, Artifact]) -> None:
    prompts = sum(len(one.goldens) for one in made.asked.values())
    for kind, artifact in artifacts.items():
        parity = artifact.parity
        assert (parity.passed, parity.ids_equal, parity.answered_by, parity.prompts) == (True, True, "both", prompts)
        assert parity.greedy_equal == prompts
        folder = made.out / "artifacts" / kind
        assert artifact.sha256 == sha256_files(folder)
        assert {path.name for path in folder.iterdir() if path.is_dir()} == {"kind", "mood"}
        assert [path.name for path in sorted(folder.glob("contract*"))] == ["contract.reply.json"]
        assert RequestContract.read(folder / "mood" / "contract.json") == made.asked["mood"].contract


def test_plain_tools_open_each_folder_by_itself(made: Run, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    for name in ("kind", "mood"):
        contract, goldens = made.asked[name].contract, made.asked[name].goldens
        moved = {
            kind: shutil.copytree(made.out / "artifacts" / kind / name, tmp_path / kind / name) for kind in artifacts
        }
        config = json.loads((moved["adapter"] / "adapter_config.json").read_text())
        assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
        start = AutoModelForSequenceClassification.from_pretrained(made.base, num_labels=len(contract.labels))
        whole = AutoModelForSequenceClassification.from_pretrained(moved["merged"])
        assert [whole.config.id2label[place] for place in range(len(contract.labels))] == list(contract.labels)
        for model in (PeftModel.from_pretrained(start, moved["adapter"]), whole):
            for golden in goldens:
                with torch.no_grad():
                    found = model.eval()(input_ids=torch.tensor([golden.prompt_ids])).logits[0].numpy()
                expected = made.engine.class_logits(golden.prompt_ids, name)
                assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    folder = made.out / "artifacts"
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"
    speaks = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(made.base), folder / "adapter")
    for model in (speaks, AutoModelForCausalLM.from_pretrained(folder / "merged")):
        for golden in made.asked["reply"].goldens:
            with torch.no_grad():
                found = model.eval()(input_ids=torch.tensor([golden.prompt_ids])).logits[0].numpy()
            expected = made.engine.logits(golden.prompt_ids)
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert not any("score" in name for name in load_file(folder / "merged" / "model.safetensors"))


def test_heads_alone_stand_over_a_language_model_that_nobody_asks(made: Run, tmp_path: Path) -> None:
    assert [(part.name, len(part.asked)) for part in parts_of([made.asked["kind"], made.asked["mood"]])] == [
        ("", 0), ("kind", 1), ("mood", 1),
    ]  # fmt: skip
    artifact = replace(made, out=tmp_path).export("adapter", "kind", "mood")
    assert artifact.parity.answered_by == "head"
    assert (tmp_path / "artifacts" / "adapter" / HEADS).is_file()
    assert not list((tmp_path / "artifacts" / "adapter").glob("contract*"))


@pytest.mark.parametrize("task", ["kind", "mood"])
def test_an_export_with_another_head_is_deleted(made: Run, tmp_path: Path, task: str) -> None:
    spoiled = shutil.copytree(made.adapter, tmp_path / "adapter")
    heads = load_file(spoiled / HEADS)
    save_file({**heads, f"{task}.weight": heads[f"{task}.weight"] * 1.1 + 0.01}, spoiled / HEADS)
    for kind in ("adapter", "merged"):
        with pytest.raises(ParityError, match=r"golden '\w+': (logits differ|label)"):
            replace(made, adapter=spoiled, out=tmp_path).export(kind, *ALL)
        assert not (tmp_path / "artifacts" / kind).exists()


def test_the_gate_says_how_the_tasks_were_compared(artifacts: dict[str, Artifact]) -> None:
    import govern_records

    report = govern_records.evaluation()
    line = next(iter(_parity_lines(govern_records.resolved(), report, [artifacts["adapter"]])))
    assert "greedy text or chosen label equal on" in line.observed
