"""A GGUF export says in llama.cpp what was trained; one spoiled on the way is deleted and its fault named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_kit import resolved
from test_compress_export import (
    Run,
    a_doubled_scale,
    a_perturbed_weight,
    a_tokenizer_with_other_merges,
    a_trailing_blank_in_the_template,
    a_zeroed_adapter_tensor,
    another_system_prompt,
    another_template,
    copied,
    no_golden_prompt,
    swapped_special_tokens,
    with_json,
)

from luthier.compress.export import Asked, export
from luthier.data.contract import PLAIN_TEMPLATE, TEXT_TEMPLATE, Renderer
from luthier.data.goldens import read_goldens
from luthier.data.prepare import prepare
from luthier.engines import llama_cpp, next_token
from luthier.engines.next_token import check_next_token, distance
from luthier.engines.transformers import TransformersEngine
from luthier.errors import MissingExtra, ModelError, ParityError
from luthier.govern.gate import MEASURED
from luthier.models import gguf_write
from luthier.models.adapters import attach, save_adapter
from luthier.models.gguf_header import read_header
from luthier.records import Artifact, Golden, Message, RequestContract
from luthier.spec.adapters.lora import Lora
from luthier.spec.plugins import EXPORTS
from luthier.store.files import sha256_files
from tiny import CHATML, SPECIAL, llama, write_messages, write_tokenizer

KINDS = tuple(name for name, facts in EXPORTS.entries().items() if facts.in_llama_cpp)
FILES = {"gguf": "model-f16.gguf", "gguf_f32": "model-f32.gguf", "gguf_q8_0": "model-q8_0.gguf"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny model that is sure of what it says, and an adapter that changes it."""
    place = tmp_path_factory.mktemp("gguf")
    base, adapter, data = place / "base", place / "adapter", place / "data"
    write_tokenizer(base)
    model = llama(tie_word_embeddings=False, initializer_range=0.2)
    model.save_pretrained(base, safe_serialization=True)
    lora = Lora(type="lora", r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")
    tuned = attach(model, lora, base_name="tiny", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=generator)
    adapter.mkdir()
    save_adapter(tuned, adapter)
    data.mkdir()
    write_messages(place / "data.csv")
    prepare(resolved(place, input="{text}", label="kind", max_length=160), tokenizer_folder=base, out=data)
    contract, goldens = RequestContract.read(data / "contract.json"), read_goldens(data / "goldens.json")
    return Run(base, adapter, contract, goldens, TransformersEngine.open(base, adapter), place)


@pytest.fixture(scope="module")
def artifacts(made: Run) -> dict[str, Artifact]:
    return {kind: made.export(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_passes_parity_and_is_one_file_with_all_that_is_needed(
    made: Run, artifacts: dict[str, Artifact], kind: str
) -> None:
    artifact, folder, facts = artifacts[kind], made.out / "artifacts" / kind, EXPORTS.get(kind)
    parity = artifact.parity
    assert (parity.passed, parity.ids_equal, parity.prompts) == (True, True, len(made.goldens))
    assert (parity.measure, parity.bound) == (facts.measure, facts.bound)
    assert 0 < parity.max_logit_error <= parity.bound
    assert parity.greedy_equal + len(parity.listed) == len(made.goldens)
    assert {path.name for path in folder.iterdir()} == {FILES[kind], "contract.json", "chat_template.jinja"}
    assert artifact.sha256 == sha256_files(folder)
    assert parity.measure in MEASURED


def test_the_chat_endpoint_of_llama_cpp_answers_as_the_trained_model(made: Run, artifacts: dict[str, Artifact]) -> None:
    engine = llama_cpp.LlamaCppEngine(made.out / "artifacts/gguf_f32/model-f32.gguf", n_ctx=512, threads=1)
    try:
        golden = made.goldens[0]
        turns = [Message(role="system", content=made.contract.system), Message(role="user", content=golden.text)]
        messages = [turn.model_dump(include={"role", "content"}) for turn in turns]
        body = {"messages": messages, "max_tokens": 6, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        reply = engine._ask("/v1/chat/completions", body)
        ours = made.reference.generate(golden.prompt_ids, max_new_tokens=6, stop_ids=made.contract.stop_ids)
        assert reply["usage"]["prompt_tokens"] == len(golden.prompt_ids)
        from transformers import AutoTokenizer

        said = AutoTokenizer.from_pretrained(made.base).decode(ours)
        assert reply["choices"][0]["message"]["content"].strip() == said.strip()
    finally:
        engine.close()


def test_exporting_again_gives_the_same_files(made: Run, artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    assert replace(made, out=tmp_path).export("gguf_q8_0").sha256 == artifacts["gguf_q8_0"].sha256


@pytest.mark.parametrize("bos", [False, True])
def test_documents_are_gone_on_with_and_keep_the_template_of_the_base(
    made: Run, with_bos: Run, tmp_path: Path, bos: bool
) -> None:
    run = with_bos if bos else made
    token = SPECIAL[0] if bos else ""
    of_text = {"task": "domain", "labels": (), "chat_template": TEXT_TEMPLATE, "system": "", "bos_token": token}
    contract = run.contract.model_copy(update={**of_text, "max_new_tokens": 4})
    renderer = Renderer.open_plain(contract, run.base / "tokenizer.json")
    goldens = tuple(_asked_by(renderer, golden) for golden in run.goldens if golden.text)
    assert all((golden.prompt_ids[0] == 0) == bos for golden in goldens)
    artifact = replace(run, contract=contract, goldens=goldens, out=tmp_path).export("gguf")
    assert artifact.parity.passed
    template = (tmp_path / "artifacts/gguf/chat_template.jinja").read_text()
    assert template == (run.base / "chat_template.jinja").read_text()


def test_several_tasks_in_words_are_one_file(made: Run, tmp_path: Path) -> None:
    other = made.contract.model_copy(update={"name": "other"})
    artifact = export(
        "gguf", base=made.base, adapter=made.adapter, run=tmp_path, reference=made.reference, weights_sha256="w" * 64,
        asked=[Asked(made.contract, made.goldens), Asked(other, made.goldens[:2])],
    )  # fmt: skip
    assert artifact.parity.prompts == len(made.goldens) + 2
    assert {Path(name).name for name in artifact.sha256} == {
        "model-f16.gguf", "chat_template.jinja", "contract.intent.json", "contract.other.json",
    }  # fmt: skip


@pytest.fixture(scope="module")
def with_bos(made: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same weights, whose tokenizer puts a BOS token and whose template writes it; a turn ends before the end."""
    place = tmp_path_factory.mktemp("bos")
    base, data = copied(made.base, place), place / "data"
    with_json(base / "tokenizer.json", lambda tree: {**tree, "post_processor": {
        "type": "TemplateProcessing", "pair": [],
        "single": [{"SpecialToken": {"id": SPECIAL[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {SPECIAL[0]: {"id": SPECIAL[0], "ids": [0], "tokens": [SPECIAL[0]]}},
    }})  # fmt: skip
    with_json(base / "tokenizer_config.json", lambda tree: {**tree, "eos_token": SPECIAL[0]})
    (base / "chat_template.jinja").write_text("{{ bos_token }}" + CHATML, encoding="utf-8")
    data.mkdir()
    write_messages(place / "data.csv")
    prepare(resolved(place, input="{text}", label="kind", max_length=160), tokenizer_folder=base, out=data)
    contract, goldens = RequestContract.read(data / "contract.json"), read_goldens(data / "goldens.json")
    return replace(made, base=base, contract=contract, goldens=goldens, out=place)


def test_one_bos_token_stands_before_a_prompt_and_the_end_of_a_turn_ends_an_answer(with_bos: Run) -> None:
    assert with_bos.contract.stop_ids == (2, 0)
    assert all(golden.prompt_ids[:2] == (0, 1) for golden in with_bos.goldens)
    assert with_bos.export("gguf").parity.passed
    values = read_header(with_bos.out / "artifacts/gguf/model-f16.gguf").values
    keys = ("bos_token_id", "eos_token_id", "eot_token_id", "padding_token_id", "add_bos_token")
    assert [values[f"tokenizer.ggml.{key}"] for key in keys] == [0, 0, 2, 2, True]


def test_a_bos_token_that_the_template_leaves_out_is_left_out(with_bos: Run, tmp_path: Path) -> None:
    contract = with_bos.contract.model_copy(update={"chat_template": CHATML})
    renderer = Renderer.open_plain(contract, with_bos.base / "tokenizer.json")
    goldens = [_asked_by(renderer, golden) for golden in with_bos.goldens]
    assert replace(with_bos, contract=contract, goldens=tuple(goldens), out=tmp_path).export("gguf").parity.passed
    assert read_header(tmp_path / "artifacts/gguf/model-f16.gguf").values["tokenizer.ggml.add_bos_token"] is False


def test_a_base_without_a_template_has_the_plain_one(made: Run, tmp_path: Path) -> None:
    contract = made.contract.model_copy(update={"chat_template": PLAIN_TEMPLATE})
    renderer = Renderer.open_plain(contract, made.base / "tokenizer.json")
    goldens = tuple(_asked_by(renderer, golden) for golden in made.goldens)
    assert replace(made, contract=contract, goldens=goldens, out=tmp_path).export("gguf").parity.passed


def _asked_by(renderer: Renderer, golden: Golden) -> Golden:
    """A golden prompt under another contract."""
    messages = renderer.messages(golden.text)
    prompt, ids = renderer.prompt_text(messages), tuple(renderer.prompt_ids(messages))
    return golden.model_copy(update={"prompt": prompt, "prompt_ids": ids})


# --- spoiled on the way -----------------------------------------------------------------------------------------------


def rows_in_the_order_of_transformers(run: Run, out: Path, patch: pytest.MonkeyPatch) -> Run:
    patch.setattr(gguf_write, "neighbors", lambda rows, heads: rows)
    return run


def _with_tensor(patch: pytest.MonkeyPatch, name: str, factor: float) -> None:
    whole = gguf_write._tensors

    def scaled(*args: Any) -> Any:
        return ((one, value * np.float32(factor) if one == name else value) for one, value in whole(*args))

    patch.setattr(gguf_write, "_tensors", scaled)


def a_scaled_tensor_of_the_file(run: Run, out: Path, patch: pytest.MonkeyPatch) -> Run:
    _with_tensor(patch, "blk.1.attn_output.weight", 1.1)
    return run


def another_end_of_turn(run: Run, out: Path, patch: pytest.MonkeyPatch) -> Run:
    """The ids of two control tokens of the file, exchanged."""
    whole = gguf_write._add_tokenizer

    def exchanged(writer: Any, tokenizer: Any, *args: Any, **more: Any) -> None:
        one, two, three, *rest = tokenizer.tokens
        whole(writer, replace(tokenizer, tokens=(one, three, two, *rest)), *args, **more)

    patch.setattr(gguf_write, "_add_tokenizer", exchanged)
    return run


def a_token_read_as_text(run: Run, out: Path, patch: pytest.MonkeyPatch) -> Run:
    whole = gguf_write._add_tokenizer

    def plain(writer: Any, tokenizer: Any, *args: Any, **more: Any) -> None:
        whole(writer, replace(tokenizer, types=(1,) * len(tokenizer.types)), *args, **more)

    patch.setattr(gguf_write, "_add_tokenizer", plain)
    return run


def a_bos_token_too_many(run: Run, out: Path, patch: pytest.MonkeyPatch) -> Run:
    whole = gguf_write._add_tokenizer

    def added(writer: Any, *args: Any, **more: Any) -> None:
        whole(writer, *args, **(more | {"adds_bos": True}))

    patch.setattr(gguf_write, "_add_tokenizer", added)
    return run


def another_base_of_rope(run: Run, out: Path, patch: pytest.MonkeyPatch) -> Run:
    whole = gguf_write.rope_of
    patch.setattr(gguf_write, "rope_of", lambda config: {**whole(config), "rope_theta": 500.0})
    return run


def a_weight_that_is_no_number(run: Run, out: Path, patch: pytest.MonkeyPatch) -> Run:
    _with_tensor(patch, "blk.0.ffn_down.weight", float("nan"))
    return run


TEXT, IDS, NEXT = (
    r"golden 'real_1': text and ids differ from token \d+ on: found \[",
    r"golden 'real_1': ids differ from token \d+ on: found \[",
    r"golden '\w+': the KL divergence of the next token is \S+ nats, bound 1e-03",
)
Spoil = Callable[[Run, Path], Run] | Callable[[Run, Path, pytest.MonkeyPatch], Run]
SPOILED: dict[Spoil, str] = {
    rows_in_the_order_of_transformers: NEXT,
    a_scaled_tensor_of_the_file: NEXT,
    another_base_of_rope: NEXT,
    another_end_of_turn: IDS,
    a_token_read_as_text: IDS,
    a_bos_token_too_many: TEXT,
    a_weight_that_is_no_number: NEXT,
    another_template: TEXT,
    a_trailing_blank_in_the_template: TEXT,
    another_system_prompt: TEXT,
    swapped_special_tokens: IDS,
    a_tokenizer_with_other_merges: IDS,
    a_doubled_scale: NEXT,
    a_zeroed_adapter_tensor: NEXT,
    no_golden_prompt: "there is no golden prompt to compare",
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_file_is_deleted_and_its_first_fault_named(
    made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any
) -> None:
    more = (monkeypatch,) if spoil.__module__ == __name__ else ()
    run = replace(spoil(made, tmp_path, *more), out=tmp_path / "run")
    run.out.mkdir()
    with pytest.raises(ParityError, match=f"export 'gguf' broke parity and was deleted: {SPOILED[spoil]}") as caught:
        run.export("gguf")
    assert caught.value.exit_code == 7
    assert not [path for path in run.out.rglob("*") if path.is_file()]


def test_float32_is_held_to_what_float16_is_not(made: Run, tmp_path: Path) -> None:
    run = replace(a_perturbed_weight(made, tmp_path), out=tmp_path / "run")
    run.out.mkdir()
    with pytest.raises(ParityError, match=r"log-probabilities of the next token differ by \S+ of the largest"):
        run.export("gguf_f32")


def test_what_llama_cpp_cannot_be_asked_is_deleted(made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = made.contract.model_copy(update={"chat_template": "{{ raise_exception('no') }}"})
    with pytest.raises(ParityError, match=r"export 'gguf' cannot be asked and was deleted: llama.cpp ") as caught:
        replace(made, contract=names, out=tmp_path).export("gguf")
    assert caught.value.exit_code == 7
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_nothing_is_written_that_cannot_be_checked(made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="needs the package 'xllamacpp'") as caught:
        replace(made, out=tmp_path).export("gguf")
    assert caught.value.way_out == "pip install 'luthier[gguf]'"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# --- what is listed and what is refused -------------------------------------------------------------------------------


class Says:
    """An engine of a fixed distribution after each prefix, and a fixed text."""

    def __init__(self, made: Run, said: list[int], *, off: Callable[[int], float] = lambda length: 0.0) -> None:
        self.texts = {golden.text: (golden.prompt, list(golden.prompt_ids)) for golden in made.goldens}
        self.said, self.off = said, off

    def encode(self, contract: Any, text: str) -> tuple[str, list[int]]:
        return self.texts[text]

    def logits(self, ids: Any) -> Any:
        return np.zeros((len(ids), 2), dtype=np.float32)

    def next_logprobs(self, ids: Any) -> Any:
        return next_token.log_softmax(np.array([0.0, self.off(len(ids))], dtype=np.float32))

    def generate(self, prompt_ids: Any, *, max_new_tokens: int, stop_ids: Any) -> list[int]:
        return self.said

    def each(self, function: Any, items: Any) -> Any:
        return map(function, items)

    def close(self) -> None:
        pass


def test_a_greedy_text_may_turn_only_where_the_models_agree(made: Run) -> None:
    golden = made.goldens[0]
    length = len(golden.prompt_ids)

    def check(candidate: Says) -> Any:
        return check_next_token(
            Says(made, [7, 8, 9]), candidate, [golden], contract=made.contract, measure="kl", bound=1e-3  # type: ignore[arg-type]
        )  # fmt: skip

    same = check(Says(made, [7, 8, 9]))
    assert (same.passed, same.greedy_equal, same.listed, same.max_logit_error) == (True, 1, (), 0.0)
    turned = check(Says(made, [7, 5]))
    assert (turned.passed, turned.greedy_equal, turned.first_difference) == (True, 0, "")
    assert turned.listed == ("golden 'real_1': greedy ids [7, 5], expected [7, 8, 9]",)
    shorter = check(Says(made, [7]))
    assert (shorter.passed, shorter.greedy_equal, len(shorter.listed)) == (True, 0, 1)
    apart = check(Says(made, [7, 5], off=lambda count: 1.0 if count == length + 1 else 0.0))
    assert not apart.passed
    assert "greedy ids [7, 5], expected [7, 8, 9]; from token 1 on, where the KL divergence" in apart.first_difference
    before = check(Says(made, [7, 8, 9], off=lambda count: 1.0))
    assert not before.passed
    assert before.max_logit_error == pytest.approx(np.log(2 * np.cosh(0.5)) - np.log(2), rel=1e-6)


def test_distances() -> None:
    one, two = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    assert distance(one, two, measure="kl") == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert distance(one, one, measure="kl") == 0.0
    assert distance(one, two, measure="log_probabilities") == pytest.approx(1.0)
    for odd in (np.log([0.2, 0.3, 0.5]), np.array([0.0, float("nan")]), np.array([0.0, -float("inf")])):
        for measure in ("kl", "log_probabilities"):
            assert distance(one, odd, measure=measure) == float("inf")  # type: ignore[arg-type]


def test_the_server_listens_here_alone_and_to_its_key(made: Run, artifacts: dict[str, Artifact]) -> None:
    import http.client

    engine = llama_cpp.LlamaCppEngine(made.out / "artifacts/gguf/model-f16.gguf", n_ctx=512, threads=1)
    try:
        assert engine._host == "127.0.0.1"
        connection = http.client.HTTPConnection(engine._host, engine._port, timeout=30)
        connection.request("POST", "/completion", json.dumps({"prompt": [1], "n_predict": 1}))
        assert connection.getresponse().status == 401
        connection.close()
    finally:
        engine.close()
    with pytest.raises(ModelError, match=r"llama.cpp does not answer /completion: .*refused"):
        engine.next_logprobs([1])


def test_what_was_not_found_equal_does_not_stay_whatever_happens(
    made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("luthier.compress.export.check_next_token", stopped)
    with pytest.raises(KeyboardInterrupt):
        replace(made, out=tmp_path).export("gguf")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
