"""A recipe whose base learns itself, as a user would run it: trained, judged, exported, asked; opened without us."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_kill import pytestmark

from command import luthier
from luthier.eval_records import EvalReport
from luthier.records import RequestContract
from luthier.store.events import EventLog
from luthier.store.files import sha256_file
from luthier.store.runs import RunFolder, weights_file
from luthier.train_records import TrainResult
from tiny import write_model, write_recipe

__all__ = ["pytestmark"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("full")
    write_recipe(folder, write_model(folder / "model"), neftune_noise_alpha=5.0, layer_lr_decay=0.9)
    tree: dict[str, Any] = yaml.safe_load((folder / "tiny.yaml").read_text())
    del tree["export"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**tree, "adapter": {"type": "full"}}))
    done = luthier("run", "tiny.yaml", "--out", "out", cwd=folder, LUTHIER_HOME=str(folder / "home"))
    assert done.code in (0, 3), done  # the gate decides by what so few rows prove
    assert "noise is on: every row is computed by itself" in done.err
    return RunFolder.open("tiny", out=folder / "out")


def test_the_run_holds_whole_weights_and_every_stage_is_about_them(run: RunFolder) -> None:
    assert run.tuned == run.train / "model"
    assert not (run.train / "adapter").exists()
    weights = sha256_file(weights_file(run.tuned))
    assert (
        weights == TrainResult.read(run.train_result).weights_sha256 == EvalReport.read(run.eval_report).weights_sha256
    )
    assert [path.name for path in run.artifacts.iterdir() if path.is_dir()] == ["merged"]
    assert any(event["kind"] == "sharing_off" and event["reason"] == "noise" for event in EventLog.read(run.events))
    assert "adapter `full`" in run.card.read_text()


def test_base_and_tuned_were_judged_as_two_models(run: RunFolder) -> None:
    systems = {one.system: one.metrics for one in EvalReport.read(run.eval_report).systems}
    assert systems["base"]["perplexity"].point != systems["tuned"]["perplexity"].point


def test_what_it_answers_is_what_plain_transformers_says_of_the_export(run: RunFolder) -> None:
    """The label whose tokens are likeliest, read off plain logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run.path.parents[2]
    luthier("predict", run.path, "messages.csv", "--output", "said.jsonl", cwd=folder).succeeds()
    said = [json.loads(line) for line in (folder / "said.jsonl").read_text().splitlines()]
    contract = RequestContract.read(run.contract)
    model: Any = AutoModelForCausalLM.from_pretrained(run.artifacts / "merged")
    tokenizer: Any = AutoTokenizer.from_pretrained(run.artifacts / "merged")
    texts = [line.split(",")[1:-1] for line in Path(folder / "messages.csv").read_text().splitlines()[1:]]
    for row, text in list(zip(said, texts, strict=True))[:5]:
        turns = [{"role": "system", "content": contract.system}, {"role": "user", "content": ",".join(text).strip('"')}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        scores = {}
        for label in contract.labels:
            ids = [*prompt, *tokenizer.encode(label), contract.stop_ids[0]]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            scores[label] = sum(float(logits[place - 1, ids[place]]) for place in range(len(prompt), len(ids)))
        assert max(scores, key=lambda label: scores[label]) == row["label"]
