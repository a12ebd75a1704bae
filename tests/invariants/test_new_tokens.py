"""A vocabulary that grows, as a user would run it: found, learned, judged beside the base in its tokens, exported."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from command import call, luthier
from luthier.data.shards import Shard
from luthier.data.vocabulary import FILE
from luthier.data_report import DataReport
from luthier.eval_records import EvalReport
from luthier.plan_records import Plan
from luthier.recipes import general_text
from luthier.records import RequestContract
from luthier.store.runs import RunFolder
from luthier.vocabulary_records import Vocabulary
from tiny import write_model

pytestmark = pytest.mark.slow

WORDS = [
    "the",
    "order",
    "of",
    "guitar",
    "is",
    "late",
    "and",
    "not",
    "here",
    "purfling",
    "soundpost",
    "varnish",
    "bridge",
]
RECIPE: dict[str, Any] = {
    "name": "words",
    "objective": {"targets": {"domain.bits_per_byte": "<= 9"}, "non_regression": {"general.perplexity": "<= 3x"}},
    "model": {"name": "model", "new_tokens": {"count": 6, "terms": "terms.txt"}},
    "data": {
        "train": [{"path": "docs", "license": "CC0-1.0"}],
        "split": {"test": 0.3, "validation": 0.15},
        "privacy": {"action": "redact", "profile": "fast"},
    },
    "method": {"type": "pretrain"},
    "adapter": {"r": 4},
    "train": {
        "num_train_epochs": 1, "max_length": 64, "batch_size": 8, "micro_batch_tokens": 256, "threads": 1,
        "validations": 1, "learning_rate": 0.005, "embedding_learning_rate": 0.01,
    },
    "evaluate": {"resamples": 200},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("grown")
    write_model(folder / "model", tie_word_embeddings=False)
    rng = random.Random(0)
    (folder / "docs").mkdir()
    for number in range(24):
        parts = [" ".join(rng.choice(WORDS) for _ in range(40)) + f" {number}." for _ in range(rng.randrange(1, 5))]
        (folder / "docs" / f"{number}.md").write_text("# Part\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
    (folder / "terms.txt").write_text("varnish\n", encoding="utf-8")
    (folder / "words.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False), encoding="utf-8")
    luthier("run", "words.yaml", cwd=folder, LUTHIER_HOME=str(folder / "home")).succeeds()
    return RunFolder.open("words", out=folder / "runs")


def folder_of(run: RunFolder) -> Path:
    return run.path.parents[2]


def opened(place: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(place, local_files_only=True)


def nats(model: Any, ids: list[int], first: int) -> float:
    """Of the tokens from place `first` on, all before them given."""
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
    return -float(sum(scores[place - 1, ids[place]] for place in range(first, len(ids))))


def test_base_and_tuned_are_compared_on_the_same_text_each_in_its_own_tokens(run: RunFolder) -> None:
    """By plain transformers: bits per byte, perplexity a token of the base, and what was forgotten."""
    base, old = opened(folder_of(run) / "model")
    tuned, new = opened(run.artifacts / "merged")
    grown = Vocabulary.read(run.data / FILE)
    of_base = of_tuned = 0.0
    tokens = size = 0
    for row in Shard(run.data / "test.arrow"):
        first = row.supervised.index(True)
        before = [piece for number in row.input_ids[:first] for piece in grown.pieces.get(number, (number,))]
        after = [piece for number in row.input_ids[first:] for piece in grown.pieces.get(number, (number,))]
        whole = old.decode([*before, *after])
        assert old(whole, add_special_tokens=False)["input_ids"] == [*before, *after], "as the base itself cuts it"
        of_base += nats(base, [*before, *after], len(before))
        of_tuned += nats(tuned, row.input_ids, first)
        tokens, size = tokens + len(after), size + len(row.text.encode())
    systems = {one.system: one.metrics for one in EvalReport.read(run.eval_report).systems}
    for system, total in (("base", of_base), ("tuned", of_tuned)):
        assert systems[system]["bits_per_byte"].point == pytest.approx(total / math.log(2) / size, rel=1e-5)
        assert systems[system]["perplexity"].point == pytest.approx(math.exp(total / tokens), rel=1e-5)
    general = EvalReport.read(run.eval_report).general
    of_base = of_tuned = 0.0
    tokens = 0
    for part in general_text().split("\n\n"):
        ids = new(" ".join([part.strip()]), add_special_tokens=False)["input_ids"]
        for window in (ids[start : start + 64] for start in range(0, len(ids), 64)):
            pieces = [list(grown.pieces.get(number, (number,))) for number in window]
            of_base += nats(base, [one for part in pieces for one in part], len(pieces[0]))
            of_tuned += nats(tuned, window, 1)
            tokens += sum(map(len, pieces[1:]))
    assert general.num_tokens == tokens
    assert general.base.point == pytest.approx(math.exp(of_base / tokens), rel=1e-5)
    assert general.tuned.point == pytest.approx(math.exp(of_tuned / tokens), rel=1e-5)


def test_what_was_made_opens_elsewhere_and_old_rows_keep_their_bits(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForCausalLM, PeftModel

    base, old = opened(folder_of(run) / "model")
    tuned, new = opened(run.artifacts / "merged")
    grown = Vocabulary.read(run.data / FILE)
    text = "the varnish of the purfling is late, soundpost"
    ids = new(text)["input_ids"]
    assert len(ids) < len(old(text)["input_ids"])
    assert new.decode(ids) == text
    assert len(new) == len(old) + len(grown.tokens)
    rows = base.get_input_embeddings().weight.shape[0]
    for end in ("get_input_embeddings", "get_output_embeddings"):
        kept, was = getattr(tuned, end)().weight, getattr(base, end)().weight
        assert torch.equal(kept[: len(old)], was[: len(old)])
        assert not any(torch.equal(kept[one.id], was[list(one.pieces)].mean(dim=0)) for one in grown.tokens)
    base.resize_token_embeddings(max(rows, len(new)))
    adapted = PeftModel.from_pretrained(base, run.artifacts / "adapter").eval()
    monkeypatch.chdir(folder_of(run))  # the adapter names its base as the recipe does
    by_itself = AutoPeftModelForCausalLM.from_pretrained(run.artifacts / "adapter", dtype=torch.float32).eval()
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([ids])).logits[..., : len(new)] for model in (tuned, adapted, by_itself)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)
    assert torch.equal(found[1], found[2])
    readme = (run.artifacts / "adapter" / "README.md").read_text()
    assert "resize_token_embeddings(len(tokenizer))" in readme


def test_all_that_people_read_says_what_was_added(run: RunFolder) -> None:
    data = DataReport.read(run.data_report)
    assert data.new_tokens is not None
    cut = data.new_tokens.texts["test"]
    page, card = run.report.read_text(encoding="utf-8"), run.card.read_text(encoding="utf-8")
    assert f"{data.new_tokens.num_tokens} words of the training rows became tokens of their own" in page
    assert f"has {data.new_tokens.num_tokens} tokens that its base does not have" in card
    for number in cut.a_byte:
        assert f"{number:.4f}" in page
        assert f"{number:.4f}" in card
    assert "purfling" in card
    assert any(note.startswith("model.new_tokens: some words") for note in Plan.read(run.plan).notes)


def test_predict_goes_on_with_the_text_as_plain_transformers_does(run: RunFolder) -> None:
    folder = folder_of(run)
    (folder / "in.csv").write_text("text\nthe varnish of the guitar\n")
    out = folder / "out.jsonl"
    call("predict", "words", "in.csv", "--output", str(out), cwd=folder, LUTHIER_HOME=str(folder / "home")).succeeds()
    model, tokenizer = opened(run.artifacts / "merged")
    contract = RequestContract.read(run.contract)
    ids = torch.tensor([tokenizer("the varnish of the guitar")["input_ids"]])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=contract.max_new_tokens,
        eos_token_id=list(contract.stop_ids),
    )[0, ids.shape[1] :]  # fmt: skip
    said = json.loads(out.read_text(encoding="utf-8"))["text"]
    assert said == tokenizer.decode(made, skip_special_tokens=True).strip()


def test_rows_that_are_prepared_are_taken_over_with_their_words(run: RunFolder) -> None:
    folder = folder_of(run)
    done = luthier("prepare", "words.yaml", "--set", "train.seed=5", cwd=folder, LUTHIER_HOME=str(folder / "home"))
    assert "prepare: the same work was done by run" in done.succeeds().err


def test_the_same_command_does_nothing_again_and_a_lost_base_is_made_again(run: RunFolder) -> None:
    import shutil

    folder = folder_of(run)
    before = run.tuned.joinpath("adapter_model.safetensors").stat().st_mtime_ns
    shutil.rmtree(folder / "home" / "models")
    again = luthier("train", "words.yaml", cwd=folder, LUTHIER_HOME=str(folder / "home")).succeeds()
    assert "prepare: unchanged" not in again.err, "made before processes that share a training do it at once"
    assert run.tuned.joinpath("adapter_model.safetensors").stat().st_mtime_ns == before
    assert len(list((folder / "home" / "models").iterdir())) == 1
    (folder / "terms.txt").write_text("bridge\n", encoding="utf-8")
    done = luthier("plan", "words.yaml", "--json", cwd=folder, LUTHIER_HOME=str(folder / "home")).succeeds()
    assert json.loads(done.out)["recipe_sha256"] != json.loads(run.plan.read_text())["recipe_sha256"]
