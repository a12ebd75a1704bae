"""What a head chose in training it chooses everywhere: evaluated, predicted, served, exported, and in plain tools."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from classify_kit import LORA
from data_kit import resolved
from echo_engine import EchoEngine
from safetensors.torch import load_file, save_file
from test_serve_openai import serving

from luthier.compress.export import Asked, export, merged
from luthier.data.contract import Renderer
from luthier.data.goldens import read_goldens
from luthier.data.prepare import prepare
from luthier.data.shards import Shard
from luthier.data_report import DataReport
from luthier.engines.ask import Asker, in_words
from luthier.engines.classifier import ClassifierEngine
from luthier.engines.transformers import TransformersEngine
from luthier.errors import ModelError, ParityError, RunError
from luthier.eval_records import EvalReport
from luthier.evals.evaluate import Material, evaluate
from luthier.evals.score import score, validation_metrics
from luthier.models.adapters import attach, load_adapter, merge, save_adapter
from luthier.models.base import load_base
from luthier.models.classifier import head_of, put_head
from luthier.pipeline.answers import predict
from luthier.pipeline.named import Named, opened
from luthier.records import Artifact, Golden, Message, RequestContract
from luthier.spec.methods.classify import Classify
from luthier.spec.plugins import EXPORTS
from luthier.spec.recipe import Evaluate
from tiny import llama, write_messages, write_tokenizer

BAR = 0.7
TEXT = "Wood is light.\n\nThe bridge is maple.\n\nStrings are steel.\n\nA bow has hair.\n\nGlue is warm.\n\nIt dries.\n"


@dataclass(frozen=True)
class Run:
    """A tiny model with a head, and what it is asked."""

    base: Path
    adapter: Path
    data: Path
    contract: RequestContract
    goldens: tuple[Golden, ...]
    engine: TransformersEngine
    out: Path

    def asker(self, engine: Any = None, contract: RequestContract | None = None) -> Asker:
        renderer = Renderer.open(self.data / "contract.json", self.base / "tokenizer.json")
        made = contract or self.contract
        return Asker(made, renderer.under(made), engine or self.engine)

    def export(self, kind: str) -> Artifact:
        return export(
            kind, base=self.base, adapter=self.adapter, run=self.out, asked=[Asked(self.contract, self.goldens)],
            reference=self.engine, weights_sha256="w" * 64,
        )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("head")
    base, adapter, data = place / "base", place / "adapter", place / "data"
    write_tokenizer(base)
    llama(tie_word_embeddings=False).save_pretrained(base, safe_serialization=True)
    write_messages(place / "data.csv")
    given = resolved(place, input="{text}", label="kind", max_length=160)
    method = Classify(abstain_below=BAR)
    prepare(
        given.model_copy(update={"recipe": given.recipe.model_copy(update={"method": method})}),
        tokenizer_folder=base,
        out=data,
    )
    contract = RequestContract.read(data / "contract.json")
    tuned = attach(load_base(base), LORA, base_name="tiny", seed=0)
    put_head(tuned, len(contract.labels))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05, generator=generator)
        head = head_of(tuned)
        assert head is not None
        head.weight.normal_(std=0.4, generator=generator)
    adapter.mkdir()
    save_adapter(tuned, adapter)
    engine = TransformersEngine.open(base, adapter)
    return Run(base, adapter, data, contract, read_goldens(data / "goldens.json"), engine, place)


@pytest.fixture(scope="module")
def artifacts(made: Run) -> dict[str, Artifact]:
    return {kind: made.export(kind) for kind in ("adapter", "merged")}


# --- how it is asked ---


def test_the_contract_says_that_a_head_chooses(made: Run) -> None:
    train = Shard(made.data / "train.arrow")
    assert (made.contract.answered_by, made.contract.abstain_below) == ("head", BAR)
    answers = list(train.column("answer"))
    assert made.contract.label_rows == tuple(answers.count(label) for label in made.contract.labels)
    assert DataReport.read(made.data / "report.json").answered_by == "head"
    plain = in_words(made.contract)
    assert (plain.answered_by, plain.label_rows, plain.abstain_below) == ("words", (), None)


def test_a_label_has_the_share_that_softmax_gives_its_score(made: Run) -> None:
    said = made.asker().answer_text("my cello is late")
    renderer = made.asker().renderer
    prompt = renderer.prompt_ids(renderer.messages("my cello is late"))
    scores = made.engine.class_logits(prompt).astype(np.float64)
    expected = np.exp(scores) / np.exp(scores).sum()
    assert list(said.probabilities) == list(made.contract.labels)
    assert list(said.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-12)
    assert said.label == made.contract.labels[int(scores.argmax())]
    assert (said.greedy_label, said.log_mass, said.abstained) == (None, None, max(expected) < BAR)


def test_a_base_and_an_engine_without_a_head_are_not_asked_for_its_scores(made: Run) -> None:
    base = made.engine.without_adapter()
    with pytest.raises(ModelError, match="the base has no classification head"):
        base.class_logits([1, 2])
    assert made.asker(base, in_words(made.contract)).answer_text("late").log_mass is not None
    with pytest.raises(ModelError, match="no classification head, so no label") as caught:
        made.asker(TransformersEngine.open(made.base)).answer_text("late")
    assert "method classify" in caught.value.way_out
    with pytest.raises(RunError, match="engine 'echo' has no classification head") as refused:
        made.asker(EchoEngine(1.0)).answer_text("late")
    assert "with transformers" in refused.value.way_out


def test_evaluated_predicted_and_served_say_the_same(made: Run, tmp_path: Path) -> None:
    asker, rows = made.asker(), Shard(made.data / "test.arrow")
    seen = score(asker, rows)
    assert len(set(seen.answered)) == 2, "some are labelled and some are not"
    file, out = tmp_path / "asked.jsonl", tmp_path / "said.jsonl"
    file.write_text("".join(json.dumps({"text": row.text}) + "\n" for row in rows), encoding="utf-8")
    predict(asker, opened(Named(str(file)), offline=True), output=out, progress=lambda *_: None)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    with serving(asker) as address:
        sent = httpx.post(f"{address}/v1/classify", json={"input": [row.text for row in rows]}, timeout=60).json()
    for place, (line, served) in enumerate(zip(lines, sent["data"], strict=True)):
        label = seen.predicted[place] if seen.answered[place] else None
        assert (line["label"], line["abstained"]) == (label, not seen.answered[place])
        assert (served["label"], served["abstained"]) == (label, not seen.answered[place])
        assert line["probabilities"] == served["probabilities"] == seen.probabilities[place]


@pytest.fixture(scope="module")
def client(made: Run) -> Iterator[openai.OpenAI]:
    with serving(made.asker()) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="k", max_retries=0) as one:
        yield one


def test_in_a_chat_it_says_the_label_or_refuses_in_the_schemas_own_words(made: Run, client: openai.OpenAI) -> None:
    for row in Shard(made.data / "test.arrow"):
        turns: Any = [{"role": "user", "content": row.text}]
        answer = client.chat.completions.create(model="letters@production", messages=turns).choices[0].message
        expected = made.asker().answer_messages([Message(role="user", content=row.text)])
        streamed = client.chat.completions.create(model="letters@production", messages=turns, stream=True)
        deltas = [chunk.choices[0].delta for chunk in streamed]
        if expected.abstained:
            assert answer.content is None
            assert answer.refusal is not None
            assert f"{BAR:g} is asked for" in answer.refusal
            assert [one.refusal for one in deltas if one.refusal] == [answer.refusal]
            assert not any(one.content for one in deltas)
        else:
            assert (answer.content, answer.refusal) == (expected.label, None)
            assert "".join(one.content or "" for one in deltas) == expected.label


# --- how it is judged ---


def test_the_evaluation_compares_labels_and_says_nothing_of_words(made: Run, tmp_path: Path) -> None:
    base = made.asker(made.engine.without_adapter(), in_words(made.contract))
    rows = {split: Shard(made.data / f"{split}.arrow") for split in ("train", "validation", "test")}
    material = Material(
        contract=made.contract, **rows, general_text=TEXT, general_source="wood", data_sha256="d", weights_sha256="w"
    )
    report = evaluate(
        material, base=base, tuned=made.asker(), seed=0, out=tmp_path, progress=lambda *_: None,
        settings=Evaluate(baselines=("majority", "base"), resamples=200, level=0.95),
    )  # fmt: skip
    assert EvalReport.model_validate_json(report.to_json()).to_json() == report.to_json()
    metrics = {one.system: one.metrics for one in report.systems}
    assert set(metrics["base"]) == {"macro_f1", "accuracy", "log_loss", "calibration_error"}
    assert set(metrics["tuned"]) == {*metrics["base"], "coverage", "answered_accuracy"}
    seen = score(made.asker(), [row for row in rows["test"] if not row.contaminated])
    labelled = np.array(seen.answered)
    assert metrics["tuned"]["coverage"].point == pytest.approx(labelled.mean())
    assert metrics["tuned"]["answered_accuracy"].point == pytest.approx(seen.correct[labelled].mean())
    assert metrics["tuned"]["answered_accuracy"].n == labelled.sum()
    assert "it labels" in report.headline
    assert "perplexity" not in report.headline
    at = {one.threshold: one for one in report.coverage}
    assert (at[0.0].coverage, at[0.0].accuracy) == (1.0, pytest.approx(metrics["tuned"]["accuracy"].point))
    assert at[BAR].coverage == pytest.approx(labelled.mean())
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["abstained"] for line in lines] == [
        [] if one else ["tuned"] for one in score(made.asker(), rows["test"]).answered
    ]
    assert not any(line["greedy"] for line in lines)


def test_checkpoints_are_chosen_by_labels_and_log_loss(made: Run) -> None:
    rows = Shard(made.data / "validation.arrow")
    found = validation_metrics(made.asker(), rows)
    assert set(found) == {"accuracy", "macro_f1", "log_loss"}
    said = score(made.asker(), rows)
    pairs = zip(said.probabilities, said.expected, strict=True)
    assert found["log_loss"] == pytest.approx(-np.mean([np.log(p[label]) for p, label in pairs]))


# --- where it goes ---


def test_every_export_passes_parity_by_the_heads_scores(made: Run, artifacts: dict[str, Artifact]) -> None:
    assert set(artifacts) == {"adapter", "merged"} <= set(EXPORTS.names())
    for kind, artifact in artifacts.items():
        parity = artifact.parity
        assert (parity.passed, parity.ids_equal, parity.answered_by) == (True, True, "head")
        assert (parity.prompts, parity.greedy_equal) == (len(made.goldens),) * 2
        assert parity.max_logit_error <= EXPORTS.get(kind).logit_bound == 1e-4


def test_the_adapter_is_what_peft_itself_writes(made: Run, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    config = json.loads((made.adapter / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    base = AutoModelForSequenceClassification.from_pretrained(made.base, num_labels=len(made.contract.labels))
    theirs = get_peft_model(
        base, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=config["target_modules"])
    )
    theirs.save_pretrained(tmp_path)
    expected = load_file(tmp_path / "adapter_model.safetensors")
    found = load_file(made.adapter / "adapter_model.safetensors")
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}


def test_plain_tools_choose_the_same_also_in_a_padded_batch(made: Run, artifacts: dict[str, Artifact]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    count = len(made.contract.labels)
    adapter, folder = made.out / "artifacts/adapter", made.out / "artifacts/merged"
    base = AutoModelForSequenceClassification.from_pretrained(made.base, num_labels=count)
    models = {
        "adapter": PeftModel.from_pretrained(base, adapter),
        "merged": AutoModelForSequenceClassification.from_pretrained(folder),
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [
        [{"role": "system", "content": made.contract.system}, {"role": "user", "content": golden.text}]
        for golden in made.goldens
    ]
    texts = [tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=False) for one in turns]
    expected = np.stack([made.engine.class_logits(golden.prompt_ids) for golden in made.goldens])
    for model in models.values():
        for golden, scores in zip(made.goldens, expected, strict=True):
            with torch.no_grad():
                found = model.eval()(input_ids=torch.tensor([golden.prompt_ids])).logits[0].numpy()
            assert np.abs(found - scores).max() <= 1e-4 * np.abs(scores).max()
    config = models["merged"].config
    assert [config.id2label[place] for place in range(count)] == list(made.contract.labels)
    assert config.label2id == {label: place for place, label in enumerate(made.contract.labels)}
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            found = models["merged"](input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.numpy()
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    classify = pipeline("text-classification", model=models["merged"], tokenizer=tokenizer)
    for said, scores in zip(classify(texts, batch_size=3), expected.astype(np.float64), strict=True):
        assert said["label"] == made.contract.labels[int(scores.argmax())]
        assert said["score"] == pytest.approx(float((np.exp(scores) / np.exp(scores).sum()).max()), abs=1e-4)


ENDS_WITH_PAD = "{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}"


def test_no_prompt_ends_with_the_token_that_pads(made: Run) -> None:
    """Else plain tools would score the token before it."""
    assert merged.padding(made.base, made.contract)[1] == "<|im_end|>"
    contract = made.contract.model_copy(update={"chat_template": ENDS_WITH_PAD})
    renderer = Renderer.open_plain(contract, made.base / "tokenizer.json")
    number, token = merged.padding(made.base, contract)
    assert token != "<|im_end|>"
    assert renderer.prompt_ids(renderer.messages("late"))[-1] != number


def test_a_base_without_another_control_token_cannot_be_merged(made: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoTokenizer

    class OneToken:
        pad_token = None
        all_special_tokens = ("<|im_end|>",)
        convert_tokens_to_ids = staticmethod(lambda token: 2)
        convert_ids_to_tokens = staticmethod(lambda number: "<|im_end|>")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: OneToken())
    with pytest.raises(ModelError, match=r"no control token to pad with beside '<\|im_end\|>'") as caught:
        merged.padding(made.base, made.contract.model_copy(update={"chat_template": ENDS_WITH_PAD}))
    assert "pad_token" in caught.value.way_out


@pytest.mark.parametrize("what", ["head", "adapter"])
def test_an_export_with_other_weights_is_deleted(made: Run, tmp_path: Path, what: str) -> None:
    spoiled = tmp_path / "adapter"
    shutil.copytree(made.adapter, spoiled)
    tensors = load_file(spoiled / "adapter_model.safetensors")
    chosen = next(name for name in tensors if ("score" in name) == (what == "head") and "lora_A" not in name)
    tensors[chosen] = tensors[chosen] * 1.1 + 0.01
    save_file(tensors, spoiled / "adapter_model.safetensors", metadata={"format": "pt"})
    for kind in ("adapter", "merged"):
        with pytest.raises(ParityError, match=r"golden '\w+': (logits differ|label)"):
            replace(made, adapter=spoiled, out=tmp_path).export(kind)
        assert not (tmp_path / "artifacts" / kind).exists()


def test_every_tensor_of_a_head_is_accounted_for(made: Run, tmp_path: Path) -> None:
    shutil.copytree(made.adapter, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(one for one in tensors if "score" in one)
    save_file({**tensors, name: tensors[name][:, :-1].contiguous()}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="does not fit the base"):
        load_adapter(load_base(made.base), tmp_path / "adapter")


def test_loaded_saved_and_merged_it_is_the_same_head(made: Run, tmp_path: Path) -> None:
    again = load_adapter(load_base(made.base), made.adapter)
    save_adapter(again, tmp_path)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / name).read_bytes() == (made.adapter / name).read_bytes()
    ids = made.goldens[0].prompt_ids
    expected = made.engine.class_logits(ids)
    assert np.array_equal(TransformersEngine(again).class_logits(ids), expected)
    found = TransformersEngine(merge(again)).class_logits(ids)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_plain_engine_answers_one_after_the_other(made: Run, artifacts: dict[str, Artifact]) -> None:
    engine = ClassifierEngine.open(made.out / "artifacts/merged", num_labels=len(made.contract.labels))
    asked = [golden.prompt_ids for golden in made.goldens]
    together = list(engine.each(engine.class_logits, asked))
    assert all(np.array_equal(one, engine.class_logits(ids)) for one, ids in zip(together, asked, strict=True))
