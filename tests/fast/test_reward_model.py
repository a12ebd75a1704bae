"""What a reward model scores in training it scores everywhere: judged, predicted, served, exported, by plain tools."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from classify_kit import LORA
from echo_engine import EchoEngine
from safetensors.torch import load_file, save_file
from test_compress_classifier import TEXT
from test_data_preference import chat, resolved, row
from test_serve_openai import serving

from luthier.compress.export import Asked, export, merged
from luthier.data.contract import Renderer
from luthier.data.goldens import read_goldens
from luthier.data.prepare import prepare
from luthier.data.shards import Shard
from luthier.data_report import DataReport
from luthier.engines.ask import Asker, in_words
from luthier.engines.transformers import TransformersEngine
from luthier.errors import DataError, ModelError, ParityError, RunError, UserError
from luthier.eval_records import EvalReport
from luthier.evals.evaluate import Material, evaluate
from luthier.evals.preference import pair_metrics, read_pairs, scored_leads, unwritten_end
from luthier.models.adapters import attach, save_adapter
from luthier.models.base import load_base
from luthier.models.classifier import head_of, put_head
from luthier.pipeline.answers import predict
from luthier.pipeline.named import Named, opened
from luthier.pipeline.reference import pair_measure
from luthier.pipeline.scores import refuse_padded_ends
from luthier.records import Artifact, Golden, Message, RequestContract
from luthier.spec.plugins import EXPORTS
from luthier.spec.recipe import Evaluate
from luthier.train.over_prompts import scores_at_ends
from tiny import llama, write_tokenizer

ROWS = [row(n) for n in range(60)]
REWARD = {"type": "reward"}


@dataclass(frozen=True)
class Run:
    """A tiny reward model, and what it is asked."""

    base: Path
    adapter: Path
    data: Path
    contract: RequestContract
    goldens: tuple[Golden, ...]
    engine: TransformersEngine
    out: Path

    def asker(self, engine: Any = None, **changes: Any) -> Asker:
        made = self.contract.model_copy(update=changes)
        return Asker(made, self.renderer.under(made), engine or self.engine)

    @property
    def renderer(self) -> Renderer:
        return Renderer.open(self.data / "contract.json", self.base / "tokenizer.json")

    def base_asker(self) -> Asker:
        made = in_words(self.contract)
        return Asker(made, self.renderer.under(made), self.engine.without_adapter())

    def export(self, kind: str) -> Artifact:
        return export(
            kind, base=self.base, adapter=self.adapter, run=self.out, asked=[Asked(self.contract, self.goldens)],
            reference=self.engine, weights_sha256="w" * 64,
        )  # fmt: skip


def make(place: Path, rows: list[dict[str, Any]], **more: Any) -> Run:
    base, adapter, data = place / "base", place / "adapter", place / "out"
    write_tokenizer(base)
    llama(tie_word_embeddings=False).save_pretrained(base, safe_serialization=True)
    given = resolved(place, rows, method=REWARD, **more)
    prepare(given, tokenizer_folder=base, out=data)
    tuned = attach(load_base(base), LORA, base_name="tiny", seed=0)
    put_head(tuned, 1)
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
    contract = RequestContract.read(data / "contract.json")
    engine = TransformersEngine.open(base, adapter)
    return Run(base, adapter, data, contract, read_goldens(data / "goldens.json"), engine, place)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(tmp_path_factory.mktemp("pairs"), ROWS, data={"clean": ["strip_control", "collapse_whitespace"]})


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(tmp_path_factory.mktemp("chats"), [chat(n) for n in range(40)])


@pytest.fixture(scope="module")
def artifacts(made: Run) -> dict[str, Artifact]:
    return {kind: made.export(kind) for kind in ("adapter", "merged")}


def scored(run: Run, ids: list[int]) -> float:
    return float(run.engine.class_logits(ids, run.contract.name)[0])


# --- how it is asked ---


def test_the_contract_says_that_answers_are_scored_and_keeps_the_whole_end_of_a_turn(made: Run, chats: Run) -> None:
    for run in (made, chats):
        contract = run.contract
        assert (contract.answered_by, contract.scores_answers) == ("head", True)
        assert contract.head_rows == (contract.name,)
        assert contract.end_of_turn == "<|im_end|>\n"
        assert (len(contract.end_of_turn_ids), unwritten_end(contract), len(contract.stop_ids)) == (2, 1, 1)
        assert DataReport.read(run.data / "report.json").answered_by == "head"
        assert not in_words(contract).scores_answers
    assert (made.contract.answer_columns, chats.contract.answer_columns) == (("chosen", "rejected"), ())


@pytest.mark.parametrize("rows", ["made", "chats"])
def test_rows_are_what_the_plain_template_makes_of_question_and_answer(
    rows: str, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoTokenizer

    run: Run = request.getfixturevalue(rows)
    tokenizer = AutoTokenizer.from_pretrained(run.base)
    for example in Shard(run.data / "train.arrow"):
        for answer, ids in (
            (example.answer, example.input_ids),
            (example.rejected, example.prompt_ids + example.rejected_ids),
        ):
            turns = [{"role": "user", "content": example.text}, {"role": "assistant", "content": answer}]
            assert tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False) == ids


def test_an_answer_has_one_score_however_it_is_asked(made: Run, chats: Run) -> None:
    """As training reads it, from a row with a text to clean, and from a conversation."""
    for example in list(Shard(made.data / "test.arrow"))[:4]:
        expected = scored(made, example.input_ids)
        with torch.no_grad():
            learned = scores_at_ends(made.engine.model, [example.input_ids], made.contract.name)
        by_row = made.asker().score_values({"prompt": f" {example.text} "}, f"{example.answer}\n")
        turns = [Message(role="user", content=example.text), Message(role="assistant", content=example.answer)]
        assert by_row.value == made.asker().score_messages(turns).value == expected
        assert float(learned[0, 0]) == pytest.approx(expected, abs=1e-5)
        assert (by_row.answer_tokens, by_row.prompt_tokens) == (0, len(example.input_ids))
        assert chats.asker().score_messages(turns).value is not None


def test_what_cannot_be_scored_is_said(made: Run, chats: Run) -> None:
    user, answer = Message(role="user", content="hello"), Message(role="assistant", content="yes")
    long = "late " * 4000
    refused: list[tuple[Any, str]] = [
        (lambda: made.asker().score_values({"prompt": "hello"}, "  "), "nothing is left of the answer"),
        (lambda: made.asker().score_values({"prompt": " "}, "yes"), "nothing is left of the text"),
        (lambda: made.asker().score_values({"prompt": "hello"}, long), r"prompt and answer have \d+ \+ \d+ tokens"),
        (lambda: made.asker().score_values({"prompt": long}, "yes"), r"the prompt has \d+ tokens"),
        (lambda: made.asker().score_messages([user]), "does not end with a user message and the answer"),
        (lambda: made.asker().score_messages([answer]), "does not end with a user message and the answer"),
        (lambda: made.asker().score_messages([]), "does not end with a user message and the answer"),
        (lambda: made.asker().answer_text("hello"), "scores answers and writes none"),
        (lambda: made.asker().answer_values({"prompt": "hello"}), "scores answers and writes none"),
        (lambda: made.asker().answer_messages([user]), "scores answers and writes none"),
        (lambda: chats.asker().score_values({"prompt": "hello"}, "yes"), "scores the ends of conversations, not rows"),
        (lambda: made.asker(answered_by="words").score_values({"prompt": "hello"}, "yes"), "scores no answers"),
    ]
    for ask, words in refused:
        with pytest.raises(UserError, match=words):
            ask()
    with pytest.raises(RunError, match="engine 'echo' has no classification head"):
        made.asker(EchoEngine(1.0)).score_values({"prompt": "hello"}, "yes")


# --- how it is judged ---


def test_the_higher_score_is_what_is_preferred_beside_the_baselines_of_dpo(made: Run, tmp_path: Path) -> None:
    rows = {split: Shard(made.data / f"{split}.arrow") for split in ("train", "validation", "test")}
    material = Material(
        contract=made.contract, **rows, general_text=TEXT, general_source="wood", data_sha256="d", weights_sha256="w",
        reward="score",
    )  # fmt: skip
    report = evaluate(
        material, base=made.base_asker(), tuned=made.asker(), seed=0, out=tmp_path, progress=lambda *_: None,
        settings=Evaluate(baselines=("length", "base"), resamples=200, level=0.95),
    )  # fmt: skip
    assert EvalReport.model_validate_json(report.to_json()).to_json() == report.to_json()
    metrics = {one.system: one.metrics for one in report.systems}
    assert list(metrics) == ["length", "base", "base_per_token", "tuned"]
    assert set(metrics["base"]) == {"preference_accuracy"}
    assert set(metrics["tuned"]) == {"preference_accuracy", "preference_margin"}
    leads = [scored(made, one.input_ids) - scored(made, one.prompt_ids + one.rejected_ids) for one in rows["test"]]
    assert metrics["tuned"]["preference_accuracy"].point == pytest.approx(np.mean(np.array(leads) > 0))
    assert metrics["tuned"]["preference_margin"].point == pytest.approx(np.mean(leads))
    assert "perplexity" not in report.headline
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["leads"]["tuned"] for line in lines] == pytest.approx(leads)


def test_the_base_is_asked_about_what_it_would_write_as_beside_dpo(made: Run, tmp_path: Path) -> None:
    given = resolved(tmp_path, ROWS, data={"clean": ["strip_control", "collapse_whitespace"]})
    prepare(given, tokenizer_folder=made.base, out=tmp_path / "dpo")
    theirs = Renderer.open(tmp_path / "dpo" / "contract.json", made.base / "tokenizer.json")
    assert theirs.contract.end_of_turn == "<|im_end|>"
    engine = made.engine.without_adapter()
    dpo = read_pairs(Asker(theirs.contract, theirs, engine), Shard(tmp_path / "dpo" / "test.arrow"))
    ours = read_pairs(made.base_asker(), Shard(made.data / "test.arrow"), unwritten=unwritten_end(made.contract))
    assert np.array_equal(dpo.logprobs_N2, ours.logprobs_N2)
    assert np.array_equal(dpo.tokens_N2, ours.tokens_N2)


def test_checkpoints_are_chosen_by_accuracy_and_the_loss_of_the_choices(made: Run, tmp_path: Path) -> None:
    rows = Shard(made.data / "validation.arrow")
    found = pair_metrics(made.asker(), rows, reward="score", before=None, scale=1.0)
    assert set(found) == {"preference_accuracy", "preference_margin", "preference_loss"}
    leads = scored_leads(made.asker(), rows)
    task: Any = type("Task", (), {
        "resolved": resolved(tmp_path, ROWS, method=REWARD), "asker": staticmethod(lambda engine: made.asker(engine)),
    })  # fmt: skip
    headless = TransformersEngine.open(made.base)  # as it is where merged runs are tried: nothing is asked yet
    assert pair_measure(task, rows, headless)(made.engine) == found
    assert found["preference_loss"] == pytest.approx(np.mean(np.log1p(np.exp(-leads))))


# --- where it goes ---


def test_every_export_scores_golden_pairs_alike(made: Run, chats: Run, artifacts: dict[str, Artifact]) -> None:
    assert all(golden.answer for golden in made.goldens if golden.name.startswith("real"))
    assert len({golden.answer for golden in made.goldens}) > 5
    found = {kind: one.parity for kind, one in artifacts.items()} | {"chats": chats.export("merged").parity}
    for kind, parity in found.items():
        assert (parity.passed, parity.ids_equal, parity.answered_by) == (True, True, "head"), kind
        assert (parity.prompts, parity.greedy_equal) == (len(made.goldens),) * 2
        assert parity.max_logit_error <= EXPORTS.get("merged").logit_bound


def test_plain_tools_score_the_same_also_in_a_padded_batch(made: Run, artifacts: dict[str, Artifact]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

    folder = made.out / "artifacts/merged"
    base = AutoModelForSequenceClassification.from_pretrained(made.base, num_labels=1)
    beside = PeftModel.from_pretrained(base, made.out / "artifacts/adapter").eval()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = list(Shard(made.data / "test.arrow"))
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": one.text}, {"role": "assistant", "content": one.answer}], tokenize=False
        )
        for one in rows
    ]
    expected = np.array([scored(made, one.input_ids) for one in rows])
    assert np.ptp(expected) > 0.1
    bound = 1e-4 * np.abs(expected).max()
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        for one in (model, beside):
            with torch.no_grad():
                found = one(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, 0].numpy()
            assert np.abs(found - expected).max() <= bound
    score = pipeline("text-classification", model=model, tokenizer=tokenizer)
    assert [one["score"] for one in score(texts, batch_size=4)] == pytest.approx(expected.tolist(), abs=bound)


ENDS_WITH_PAD = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""Prompts end otherwise than answers do."""


def test_no_answer_ends_with_the_token_that_pads(made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else plain tools would score the token before it."""
    assert merged.padding(made.base, made.contract)[1] == "<|im_end|>"
    (made.out / "ends").mkdir()
    shutil.copytree(made.base, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").write_text(ENDS_WITH_PAD)
    prepare(resolved(tmp_path, ROWS, method=REWARD), tokenizer_folder=tmp_path / "base", out=tmp_path / "out")
    contract = RequestContract.read(tmp_path / "out" / "contract.json")
    assert contract.end_of_turn_ids == (2,)
    ends = replace(
        made, base=tmp_path / "base", data=tmp_path / "out", contract=contract, out=tmp_path,
        goldens=read_goldens(tmp_path / "out" / "goldens.json"),
    )  # fmt: skip
    assert ends.export("merged").parity.passed
    assert json.loads((tmp_path / "artifacts/merged/config.json").read_text())["pad_token_id"] != 2
    with pytest.raises(ParityError, match="logits differ"):  # beside the base as it is
        ends.export("adapter")


@pytest.mark.parametrize(
    ("pads", "forms", "fine"), [(201, ["adapter"], False), (201, ["merged"], True), (2, ["adapter"], True)]
)
def test_an_adapter_beside_which_plain_tools_would_score_too_early_is_refused_before_training(
    made: Run, tmp_path: Path, pads: int, forms: list[str], fine: bool
) -> None:
    assert made.contract.end_of_turn_ids[-1] == 201
    (tmp_path / "config.json").write_text(json.dumps({"pad_token_id": pads}))
    given = resolved(tmp_path, ROWS, method=REWARD, export=forms)
    context: Any = type("Context", (), {
        "contract": made.contract, "resolved": given, "original": tmp_path, "shape": type("Shape", (), {"name": "b"}),
    })  # fmt: skip
    if fine:
        refuse_padded_ends(context)
        return
    with pytest.raises(ModelError, match="b pads with token 201, with which every answer ends") as refused:
        refuse_padded_ends(context)
    assert "leave 'adapter' out of export" in refused.value.way_out


def test_beside_words_it_leaves_the_house_as_a_model_of_its_own(made: Run, tmp_path: Path) -> None:
    writes = resolved(tmp_path, ROWS, entry={"task": "generation", "input": "{prompt}", "label": "chosen"})
    prepare(writes, tokenizer_folder=made.base, out=tmp_path / "writes")
    contract = RequestContract.read(tmp_path / "writes" / "contract.json")
    tuned = attach(load_base(made.base), LORA, base_name="tiny", seed=0)
    put_head(tuned, 1, task=made.contract.name, beside_words=True)
    head = head_of(tuned, made.contract.name)
    assert head is not None
    torch.nn.init.normal_(head.weight, std=0.4)
    (tmp_path / "both").mkdir()
    save_adapter(tuned, tmp_path / "both")
    reference = TransformersEngine.open(made.base, tmp_path / "both")
    asked = [Asked(made.contract, made.goldens), Asked(contract, read_goldens(tmp_path / "writes" / "goldens.json"))]
    for kind in ("adapter", "merged"):
        artifact = export(
            kind, base=made.base, adapter=tmp_path / "both", run=tmp_path, asked=asked, reference=reference,
            weights_sha256="w" * 64,
        )  # fmt: skip
        assert (artifact.parity.passed, artifact.parity.answered_by) == (True, "both")
        assert (tmp_path / "artifacts" / kind / made.contract.name / "contract.json").is_file()


@pytest.mark.parametrize("what", ["head", "adapter"])
def test_an_export_with_other_weights_is_deleted(made: Run, tmp_path: Path, what: str) -> None:
    spoiled = tmp_path / "adapter"
    shutil.copytree(made.adapter, spoiled)
    tensors = load_file(spoiled / "adapter_model.safetensors")
    chosen = next(name for name in tensors if ("score" in name) == (what == "head") and "lora_A" not in name)
    tensors[chosen] = tensors[chosen] * 1.1 + 0.01
    save_file(tensors, spoiled / "adapter_model.safetensors", metadata={"format": "pt"})
    for kind in ("adapter", "merged"):
        with pytest.raises(ParityError, match=r"golden '\w+': logits differ"):
            replace(made, adapter=spoiled, out=tmp_path).export(kind)
        assert not (tmp_path / "artifacts" / kind).exists()


# --- how it is used ---


def answers(run: Run, folder: Path, rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    (folder / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    data = opened(Named(str(folder / "asked.jsonl")), offline=True)
    predict(run.asker(**changes), data, output=folder / "said.jsonl", progress=lambda *_: None)
    return [json.loads(line) for line in (folder / "said.jsonl").read_text().splitlines()]


def test_a_file_of_pairs_or_of_answers_is_scored_and_the_server_says_the_same(made: Run, tmp_path: Path) -> None:
    pairs = answers(made, tmp_path, ROWS[:6])
    alone = answers(made, tmp_path, [{"prompt": one["prompt"], "answer": one["chosen"]} for one in ROWS[:6]])
    for place, (pair, one) in enumerate(zip(pairs, alone, strict=True)):
        assert set(pair) == {"line", "scores", "preferred"}
        assert one == {"line": place + 1, "score": pair["scores"]["chosen"]}
        assert pair["preferred"] == max(pair["scores"], key=pair["scores"].get)
    turns = [{"role": "user", "content": ROWS[0]["prompt"]}, {"role": "assistant", "content": ROWS[0]["chosen"]}]
    asked = [*ROWS[:6], {"prompt": ROWS[0]["prompt"], "answer": ROWS[0]["chosen"]}, {"messages": turns}]
    with serving(made.asker()) as address:
        said = httpx.post(f"{address}/v1/classify", json={"input": asked}, timeout=60).json()
        refused = [
            httpx.post(f"{address}/v1/classify", json={"input": one}, timeout=60).json()["error"]
            for one in (
                "a text", {"prompt": "a"}, {"prompt": "a", "answer": " "}, {"answer": "b"}, {"messages": turns[:1]},
                {"messages": [{"role": "user", "text": "x"}]}, [{"prompt": "a", "answer": "b"}, {"prompt": "a"}],
            )
        ]  # fmt: skip
        chat = httpx.post(
            f"{address}/v1/chat/completions", json={"model": "letters@production", "messages": turns[:1]}, timeout=60
        )
    for place, one in enumerate(said["data"]):
        assert one.pop("index") == place
    expected = [{key: value for key, value in one.items() if key != "line"} for one in pairs]
    assert said["data"] == [*expected, {"score": alone[0]["score"]}, {"score": alone[0]["score"]}]
    assert said["usage"]["completion_tokens"] == 0
    words = (
        "a text alone has no answer", "found prompt", "nothing is left of the answer", "names the column 'prompt'",
        "does not end with a user message", "Field required", "input.1: this version scores answers",
    )  # fmt: skip
    for error, expects in zip(refused, words, strict=True):
        assert expects in error["message"], error
        assert error["param"].startswith("input")
    assert '"prompt": ..., "answer": ...' in refused[0]["message"]
    assert chat.status_code == 400
    assert "scores answers and writes none" in chat.json()["error"]["message"]


def test_rows_of_a_file_that_cannot_be_scored_have_their_reason(made: Run, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": ""}, {"prompt": "", "answer": "b"}, {"prompt": "a", "answer": "b"}]
    said = answers(made, tmp_path, rows)
    assert [one.get("error") for one in said] == ["cannot_be_asked", "cannot_be_asked", None]
    for rows in ([{"prompt": "a"}], [{"prompt": "a", "chosen": "b"}]):
        with pytest.raises(DataError, match="this version scores answers, and there is none: found ") as refused:
            answers(made, tmp_path, rows)
        assert refused.value.way_out == "give the answer as 'answer', or both 'chosen' and 'rejected'"
    with pytest.raises(DataError, match="names the column 'prompt'"):
        answers(made, tmp_path, [{"answer": "b"}])


def test_a_question_with_a_column_of_that_name_is_not_taken_for_the_answer(made: Run, tmp_path: Path) -> None:
    row = {"prompt": "a", "answer": "b"}
    asks_it = {"input": "{prompt} {answer}"}
    with pytest.raises(DataError, match="there is none") as refused:
        answers(made, tmp_path, [row], **asks_it)
    assert refused.value.way_out == "give both 'chosen' and 'rejected'"
    with pytest.raises(DataError, match="there is none"):
        answers(made, tmp_path, [row | {"": "c"}], **asks_it)
    (said,) = answers(made, tmp_path, [row | {"chosen": "c", "rejected": "d"}], **asks_it)
    (alone,) = answers(made, tmp_path, [{"prompt": "a b", "answer": "c"}])
    assert said["scores"]["chosen"] == alone["score"]


def test_scores_that_are_alike_prefer_nothing_and_those_that_are_no_numbers_are_none(made: Run, tmp_path: Path) -> None:
    (same,) = answers(made, tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    assert same["preferred"] is None
    assert same["scores"]["chosen"] == same["scores"]["rejected"]

    class Broken:
        name = "broken"

        def class_logits(self, prompt_ids: Any, task: str = "") -> Any:
            return np.array([np.nan], dtype=np.float32)

        def each(self, function: Any, items: Any) -> Any:
            return map(function, items)

    (said,) = answers(made, tmp_path, ROWS[:1], engine=Broken())
    assert (said["scores"], said["preferred"]) == ({"chosen": None, "rejected": None}, None)


def test_a_reward_model_over_conversations_is_asked_through_the_server(chats: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trained on conversations"):
        answers(chats, tmp_path, ROWS[:1])
    with serving(chats.asker()) as address:
        said = httpx.post(f"{address}/v1/classify", json={"input": {"messages": chat(1)["chosen"]}}, timeout=60).json()
        refused = httpx.post(f"{address}/v1/classify", json={"input": ROWS[0]}, timeout=60).json()
    assert isinstance(said["data"][0]["score"], float)
    assert "this version scores answers, and there is none" in refused["error"]["message"]
    assert "a conversation that ends with the answer" in refused["error"]["message"]
