"""A GGUF file says what the folder says that it was written from: in llama.cpp, and read back by transformers."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from llama_cpp import TEXTS
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from luthier.engines.llama_cpp import LlamaCppEngine
from luthier.engines.next_token import distance, log_softmax
from luthier.engines.transformers import TransformersEngine
from luthier.errors import ModelError
from luthier.models.gguf_tokenizer import RULES, pre_tokenizer_of, read_tokenizer
from luthier.models.gguf_write import FAMILIES, refuse_unfit_config, write_gguf
from luthier.spec.plugins import EXPORTS, LLAMA_CPP_MODELS
from tiny import CHATML, SPECIAL, llama, write_tokenizer

IDS = [1, 70, 71, 72, 90, 100, 20, 33, 2, *range(5, 180, 7)]
SIZES: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.15, "pad_token_id": 2,
    "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(place)
    return place


def model_of(kind: str, **changes: Any) -> Any:
    """A random model, its norms and biases drawn too."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SIZES | changes))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            if name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model.requires_grad_(False)


@contextmanager
def in_llama_cpp(file: Path) -> Iterator[LlamaCppEngine]:
    engine = LlamaCppEngine(file, n_ctx=256, threads=1)
    try:
        yield engine
    finally:
        engine.close()


def written(folder: Path, out: Path, model: Any, float_type: Any = "f32") -> Path:
    tokenizer = read_tokenizer(folder, vocab_size=model.config.vocab_size)
    write_gguf(out, model, tokenizer=tokenizer, chat_template=CHATML, float_type=float_type)
    return out


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_theta": 100000.0}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases and wide heads": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "more rows than tokens": ("llama", {"vocab_size": 400}),
}


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_what_transformers_computes(folder: Path, tmp_path: Path, name: str) -> None:
    model = model_of(MODELS[name][0], **MODELS[name][1])
    reference = TransformersEngine(model)
    with in_llama_cpp(written(folder, tmp_path / "m.gguf", model)) as engine:
        assert engine.vocab_size == model.config.vocab_size
        for ids in (IDS, IDS[:2]):
            expected = log_softmax(reference.logits(ids)[-1])
            assert distance(expected, engine.next_logprobs(ids), measure="log_probabilities") <= 1e-5
        settings: dict[str, Any] = {"max_new_tokens": 8, "stop_ids": (2,)}
        assert engine.generate(IDS, **settings) == reference.generate(IDS, **settings)


@pytest.mark.parametrize("name", ["llama", "llama, tied", "qwen2", "qwen3"])
def test_transformers_reads_back_the_same_weights(folder: Path, tmp_path: Path, name: str) -> None:
    wide = {"head_dim": 128} if name == "qwen3" else {}  # its reader takes no other from a file
    model = model_of(MODELS[name][0], **(MODELS[name][1] | wide))
    written(folder, tmp_path / "m.gguf", model)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    found, expected = again.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    same = ("hidden_size", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
    for key in same:
        assert getattr(again.config, key) == pytest.approx(getattr(model.config, key)), key
    assert again.config.rope_parameters["rope_theta"] == model.config.rope_parameters["rope_theta"]


def test_rounding_is_that_of_the_format(folder: Path, tmp_path: Path) -> None:
    model = model_of("llama")
    exact = {one.name: dequantize(one.data, one.tensor_type) for one in tensors(folder, tmp_path, model, "f32")}
    for float_type, kinds in (("f16", {"F16", "F32"}), ("q8_0", {"Q8_0", "F32"})):
        read = tensors(folder, tmp_path, model, float_type)
        assert {one.tensor_type.name for one in read} == kinds
        for one in read:
            value, found = exact[one.name], dequantize(one.data, one.tensor_type)
            if one.tensor_type.name == "F32":
                assert value.ndim == 1
                assert np.array_equal(value, found)
            elif float_type == "f16":
                assert np.array_equal(value.astype(np.float16).astype(np.float32), found)
            else:  # half a step of the largest of 32 over 127, and the rounding of that step to float16
                blocks, back = value.reshape(-1, 32), found.reshape(-1, 32)
                step = np.abs(blocks).max(axis=1, keepdims=True) / 127
                assert (np.abs(blocks - back) <= step * (0.5 + 127 * 2**-11)).all()
                assert not np.array_equal(blocks, back)


def tensors(folder: Path, out: Path, model: Any, float_type: str) -> Any:
    return GGUFReader(written(folder, out / f"{float_type}.gguf", model, float_type)).tensors


# --- tokenizers -------------------------------------------------------------------------------------------------------


def tokenizer_of(pre: str, out: Path) -> Tokenizer:
    """A tokenizer that splits as the name says, trained so that it shows where."""
    rules = RULES[pre]
    steps: list[Any] = []
    for kind, *more in rules.pieces:
        if kind == "Split":
            steps.append(pre_tokenizers.Split(Regex(more[0]), behavior="isolated"))
        elif kind == "Digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        else:
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=more[0] == "regex"))
    made = Tokenizer(models.BPE(ignore_merges=rules.ignore_merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)  # type: ignore[assignment]
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    if rules.normalizer:
        made.normalizer = normalizers.NFC()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([*TEXTS * 5, "2024 40912 1000 000 22 34 99 **2 ??? :// -- the order is late"] * 9, trainer)
    made.add_tokens(["<tool>"])
    made.save(str(out / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[0], "eos_token": SPECIAL[2]}
    (out / "tokenizer_config.json").write_text(json.dumps(facts))
    return made


@pytest.mark.parametrize("pre", RULES)
def test_llama_cpp_splits_as_the_name_says_that_is_written(tmp_path: Path, pre: str) -> None:
    ours = tokenizer_of(pre, tmp_path)
    model = llama(vocab_size=ours.get_vocab_size())
    tokenizer = read_tokenizer(tmp_path, vocab_size=model.config.vocab_size)
    assert (tokenizer.pre, tokenizer.special) == (pre, {"bos": 0, "eos": 2})
    template = "<|im_start|>user\nwhat is <tool>7 of 1234 x</tool>?<|im_end|>\n"
    with in_llama_cpp(written(tmp_path, tmp_path / "m.gguf", model)) as theirs:
        for text in (*TEXTS, template):
            plain = unicodedata.normalize("NFC", text)  # llama.cpp does none of that, see docs/gguf.md
            assert theirs._tokens(plain, special=True) == ours.encode(plain, add_special_tokens=False).ids, text


def change(tree: Any, *keys: Any, to: Any) -> Any:
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    return tree


@pytest.mark.parametrize(
    ("keys", "to", "what"),
    [
        (("model", "type"), "Unigram", "its model is 'Unigram', expected a byte-level BPE"),
        (("model", "byte_fallback"), True, "byte_fallback True"),
        (("model", "ignore_merges"), True, "taking tokens whole, which is none of the ways"),
        (("normalizer",), {"type": "Lowercase"}, "after Lowercase"),
        (("pre_tokenizer",), {"type": "Metaspace", "replacement": "_"}, 'it splits by Metaspace {"replacement": "_"}'),
        (("pre_tokenizer",), None, "it splits by nothing"),
        (("pre_tokenizer", "add_prefix_space"), True, "it splits by ByteLevel regex prefix_space"),
        (("added_tokens", 1, "rstrip"), True, "its token '<|im_start|>' is rstrip"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_llama_cpp_has_not_is_refused(folder: Path, keys: Any, to: Any, what: str) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text())
    assert pre_tokenizer_of(tree, folder / "tokenizer.json") == "gpt-2"
    with pytest.raises(ModelError) as caught:
        pre_tokenizer_of(change(tree, *keys, to=to), folder / "tokenizer.json")
    assert "tokenizer.json cannot go into a GGUF file: " in caught.value.what
    assert what in caught.value.what
    assert "split as gpt-2, smollm, llama-bpe, qwen2 do" in caught.value.way_out


def test_tokens_have_their_kinds_and_rows_without_a_token_are_unused(tmp_path: Path) -> None:
    ours = tokenizer_of("gpt-2", tmp_path)
    count = ours.get_vocab_size()
    read = read_tokenizer(tmp_path, vocab_size=count + 2)
    assert read.types == (3, 3, 3, *(1 for _ in range(count - 4)), 4, 5, 5)
    assert read.tokens[:3] == tuple(SPECIAL)
    assert read.tokens[-3:] == ("<tool>", f"[PAD{count}]", f"[PAD{count + 1}]")
    assert not read.adds_bos
    with pytest.raises(ModelError, match=f"has a token {count - 1}, and the model has 9 rows"):
        read_tokenizer(tmp_path, vocab_size=9)


# --- models that are refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "gemma3_text"}, "its model_type is 'gemma3_text', written are llama, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "its hidden_act is 'gelu'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "its attention has a sliding window"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "its rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2}}, "its rope_type is 'linear'"),
        ({"model_type": "qwen2", "rope_parameters": LLAMA3}, "it is a qwen2 with the rope_type of Llama 3"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "its partial_rotary_factor is 0.5"),
    ],
)  # fmt: skip
def test_a_model_that_llama_cpp_would_compute_otherwise_is_refused(changes: dict[str, Any], what: str) -> None:
    config = {"model_type": "llama", "hidden_act": "silu"}
    refuse_unfit_config(config, "m")
    with pytest.raises(ModelError) as caught:
        refuse_unfit_config(config | changes, "model 'm'")
    assert caught.value.what.startswith(f"model 'm' cannot be written as GGUF: {what}")
    assert caught.value.way_out == "leave gguf out of export"


def test_weights_that_do_not_fit_the_format_are_refused(folder: Path, tmp_path: Path) -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] = 70000.0
    with pytest.raises(ModelError, match=r"a weight of 'blk.1.ffn_up.weight' is 7e\+04, more than f16 holds") as caught:
        written(folder, tmp_path / "m.gguf", model, "f16")
    assert caught.value.way_out == "export gguf_f32 instead"
    written(folder, tmp_path / "m.gguf", model, "q8_0")
    model.model.layers[1].mlp.up_proj.weight[3, 5] = 1e7
    with pytest.raises(ModelError, match=r"is 1e\+07, more than q8_0 holds"):
        written(folder, tmp_path / "m.gguf", model, "q8_0")
    with pytest.raises(ModelError, match=r"rows of 'blk.0.ffn_down.weight' have 80 weights, and 32 share a scale"):
        written(folder, tmp_path / "m.gguf", model_of("llama", intermediate_size=80), "q8_0")


def test_the_table_knows_what_can_be_written() -> None:
    assert tuple(FAMILIES) == LLAMA_CPP_MODELS
    assert {name for name, facts in EXPORTS.entries().items() if facts.in_llama_cpp} == {
        "gguf", "gguf_f32", "gguf_q8_0",
    }  # fmt: skip


def test_a_file_that_llama_cpp_cannot_load_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF, cut short")
    with pytest.raises(ModelError, match=r"llama.cpp cannot load m.gguf: "):
        LlamaCppEngine(tmp_path / "m.gguf", n_ctx=64, threads=1)
