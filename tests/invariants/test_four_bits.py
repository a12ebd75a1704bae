"""A base in four bits as a user would run it: trained beside it, judged against the original, exported, opened."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import yaml
from test_kill import pytestmark

from command import luthier
from luthier.eval_records import EvalReport
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.runs import RunFolder, weights_file
from tiny import write_model, write_recipe

__all__ = ["pytestmark"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("four")
    write_recipe(folder, write_model(folder / "model"))
    tree: dict[str, Any] = yaml.safe_load((folder / "tiny.yaml").read_text())
    tree["model"] |= {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
    tree["export"] = ["adapter", "merged"]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    done = luthier("run", "tiny.yaml", "--out", "out", cwd=folder, LUTHIER_HOME=str(folder / "home"))
    assert done.code in (0, 3), done  # the gate decides by what so few rows prove
    return RunFolder.open("tiny", out=folder / "out")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(3, 40).view(1, -1)).logits
    return found


def test_the_base_is_judged_as_it_is_and_the_export_says_what_learned(run: RunFolder) -> None:
    """The merged weights answer as the adapter beside four bits; the adapter beside the original does not."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from luthier.models.quantised import compute_as_trained

    folder = run.path.parents[2]
    systems = {one.system: one.metrics for one in EvalReport.read(run.eval_report).systems}
    assert systems["base"]["perplexity"].point != systems["tuned"]["perplexity"].point
    merged: Any = AutoModelForCausalLM.from_pretrained(run.artifacts / "merged")
    (held,) = (folder / "home" / "models").glob("*-nf4-double_quant-*")
    four: Any = AutoModelForCausalLM.from_pretrained(held, dtype=torch.float32, device_map={"": "cpu"})
    compute_as_trained(four)
    learned = logits(PeftModel.from_pretrained(four, str(run.artifacts / "adapter")))
    assert torch.allclose(logits(merged), learned, atol=1e-4)
    plain: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    assert not torch.allclose(logits(PeftModel.from_pretrained(plain, str(run.tuned))), learned, atol=1e-3)


def test_everything_that_people_read_says_how_the_base_was_held(run: RunFolder) -> None:
    words = "held in 4 bits (nf4, double_quant)"
    assert words in run.card.read_text()
    assert words in (run.artifacts / "adapter" / "README.md").read_text()
    assert "BitsAndBytesConfig" in (run.artifacts / "adapter" / "README.md").read_text()


def test_the_same_command_does_nothing_again_and_another_way_to_hold_it_is_another_run(run: RunFolder) -> None:
    folder = run.path.parents[2]
    before = weights_file(run.tuned).stat().st_mtime_ns
    again = luthier("run", "tiny.yaml", "--out", "out", cwd=folder, LUTHIER_HOME=str(folder / "home"))
    assert again.code in (0, 3)
    assert weights_file(run.tuned).stat().st_mtime_ns == before
    done = luthier(
        "plan", "tiny.yaml", "--out", "out", "--json", "--set", "model.bnb_4bit_use_double_quant=false", cwd=folder,
        LUTHIER_HOME=str(folder / "home"),
    ).succeeds()  # fmt: skip
    assert json.loads(done.out)["recipe_sha256"] != ResolvedRecipe.read(run.resolved).sha256


def test_what_learned_beside_four_bits_is_not_merged_into_another_run(run: RunFolder) -> None:
    folder = run.path.parents[2]
    tree: dict[str, Any] = yaml.safe_load((folder / "tiny.yaml").read_text())
    kept = {key: tree[key] for key in ("name", "objective", "data") if key in tree}
    tree = {**kept, "model": {"name": tree["model"]["name"]}, "merge": {"runs": [str(run.path), "tiny"]}}
    (folder / "merge.yaml").write_text(yaml.safe_dump(tree))
    luthier("plan", "merge.yaml", "--out", "out", cwd=folder, LUTHIER_HOME=str(folder / "home")).fails(
        2, "four bits", "load_in_4bit", "merged"
    )
