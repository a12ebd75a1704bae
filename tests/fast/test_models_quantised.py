"""A base in four bits: what is learned beside it is what is learned beside the weights that its steps stand for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from test_train_loop import EXAMPLES, relative_error
from torch import Tensor

from luthier.errors import MissingExtra, ModelError
from luthier.models.adapters import attach, merge, save_adapter
from luthier.models.base import load_base
from luthier.models.classifier import open_classifier
from luthier.models.half import halve
from luthier.models.quantised import dense, holds_four_bits, is_quantised, quantise_base, quantised_folder
from luthier.models.shape import read_shape
from luthier.models.source import ModelSource, locate
from luthier.models.tuned import load_tuned
from luthier.plan.memory import GIB, four_bits_gib
from luthier.spec.adapters.ia3 import Ia3
from luthier.spec.adapters.lora import Lora
from luthier.spec.base import Model
from luthier.spec.recipe import Recipe
from luthier.train.methods.sft import Sft
from tiny import write_model, write_tokenizer

HELD = {
    "nf4": Model(name="m", load_in_4bit=True),
    "nf4, double": Model(name="m", load_in_4bit=True, bnb_4bit_use_double_quant=True),
    "fp4": Model(name="m", load_in_4bit=True, bnb_4bit_quant_type="fp4"),
}
ADAPTERS: dict[str, Any] = {
    "lora": Lora(r=4, alpha=8.0, dropout=0.0, target_modules="all-linear"),
    "rslora": Lora(r=4, alpha=8.0, dropout=0.0, target_modules="all-linear", use_rslora=True),
    "dora": Lora(r=4, alpha=8.0, dropout=0.0, target_modules="all-linear", use_dora=True),
    "ia3": Ia3(target_modules=("k_proj", "v_proj", "down_proj"), feedforward_modules=("down_proj",)),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    folder = write_model(tmp_path_factory.mktemp("base"), hidden_size=64, intermediate_size=128)
    return locate(str(folder), folder=folder, revision=None, offline=True, say=print)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path_factory.getbasetemp() / "quantised_home"))


def folder_of(source: ModelSource) -> Path:
    return Path(source.path)


def started(model: Any, name: str) -> Any:
    """An adapter that has left its start."""
    tuned = attach(model, ADAPTERS[name], base_name="tiny", seed=0)
    rng = torch.Generator().manual_seed(1)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return tuned


def gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    Sft().loss_sum(model, EXAMPLES[:6]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("held", HELD)
def test_layers_are_in_four_bits_and_near_the_weights_they_were(source: ModelSource, held: str) -> None:
    made = quantise_base(source, folder_of(source), HELD[held])
    assert made == quantised_folder(source, HELD[held])
    assert is_quantised(source, HELD[held])
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert quantise_base(source, folder_of(source), HELD[held]) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == before  # made once
    model, plain = load_base(made), load_base(folder_of(source))
    layers = {name for name, module in model.named_modules() if holds_four_bits(module)}
    assert layers == {n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    opened = dict(dense(model).named_parameters())
    for name, weight in plain.named_parameters():
        error = relative_error({"": opened[name]}, {"": weight})
        assert (0.01 < error < 0.2) if name.removesuffix(".weight") in layers else error == 0.0, name


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("held", HELD)
def test_gradients_are_those_beside_the_weights_that_the_steps_stand_for(
    source: ModelSource, held: str, name: str
) -> None:
    made = quantise_base(source, folder_of(source), HELD[held])
    four, whole = started(load_base(made), name), started(dense(load_base(made)), name)
    found, expected = gradients(four), gradients(whole)
    assert found.keys() == expected.keys()
    assert relative_error(found, expected) < 1e-5


def test_what_is_asked_without_gradients_is_computed_as_what_learns(source: ModelSource) -> None:
    """bitsandbytes rounds to bfloat16 there, on processors that have it, if it is let."""
    four = load_base(quantise_base(source, folder_of(source), HELD["nf4"]))
    ids = torch.arange(3, 40).view(1, -1)
    with torch.no_grad():
        asked = four.eval()(input_ids=ids).logits
    learning = four.train()(input_ids=ids).logits
    assert torch.equal(asked, learning)
    assert relative_error({"": asked}, {"": dense(four)(input_ids=ids).logits}) < 1e-6


@pytest.mark.parametrize("name", ADAPTERS)
def test_merged_weights_answer_as_the_base_in_four_bits_with_its_adapter(
    source: ModelSource, name: str, tmp_path: Path
) -> None:
    made = quantise_base(source, folder_of(source), HELD["nf4, double"])
    trained = started(load_base(made), name)
    save_adapter(trained, tmp_path)
    ids = torch.arange(3, 40).view(1, -1)
    with torch.no_grad():
        expected = trained.eval()(input_ids=ids).logits
        again = load_tuned(made, tmp_path)(input_ids=ids).logits
        whole = merge(load_tuned(made, tmp_path, as_dense=True))
        found = whole(input_ids=ids).logits
    assert torch.equal(again, expected)
    assert not any(map(holds_four_bits, whole.modules()))
    assert getattr(whole.config, "quantization_config", None) is None
    assert relative_error({"": found}, {"": expected}) < 1e-5


def test_the_adapter_opens_in_plain_peft_beside_a_base_that_transformers_quantises(
    source: ModelSource, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    trained = started(load_base(quantise_base(source, folder_of(source), HELD["nf4"])), "lora")
    save_adapter(trained, tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(
        folder_of(source), quantization_config=settings, dtype=torch.float32, device_map={"": "cpu"}
    )
    plain = PeftModel.from_pretrained(base, str(tmp_path))
    ids = torch.arange(3, 40).view(1, -1)
    found, expected = (model.train()(input_ids=ids).logits.detach() for model in (plain, trained))
    assert relative_error({"": found}, {"": expected}) < 1e-6


def test_a_classifier_in_four_bits_computes_as_what_learned(source: ModelSource) -> None:
    """Products that are asked without gradients are not rounded to bfloat16 by a processor that could."""
    made = quantise_base(source, folder_of(source), HELD["nf4"])
    classifier = open_classifier(made, num_labels=3)
    held = [module for module in classifier.modules() if holds_four_bits(module)]
    assert held
    assert not any(module.support_avx512bf16_for_cpu for module in held)
    ids = torch.arange(3, 40).view(1, -1)
    with torch.no_grad():
        asked = classifier.model(input_ids=ids).last_hidden_state
    learned = classifier.model(input_ids=ids).last_hidden_state
    assert torch.allclose(asked, learned, atol=1e-5)


def test_a_base_that_the_library_would_mostly_leave_alone_is_refused(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    write_tokenizer(tmp_path / "experts")
    experts = locate(str(tmp_path / "experts"), folder=tmp_path, revision=None, offline=True, say=print)
    with pytest.raises(ModelError, match=r"would hold .* weights in four bits: the others stand in no linear layer"):
        quantise_base(experts, tmp_path / "experts", HELD["nf4"])
    assert not is_quantised(experts, HELD["nf4"])


def test_families_with_fewer_linear_layers_are_not_planned_below_nothing(source: ModelSource) -> None:
    shape = read_shape(source)
    embeddings = shape.vocab_size * shape.hidden_size
    without_gate = shape.model_copy(update={"num_parameters": embeddings + 1000})
    assert four_bits_gib(without_gate, double_quant=False) * GIB == pytest.approx(4 * embeddings + 562.5, rel=1e-6)


def test_products_in_bfloat16_are_near_those_of_float32(source: ModelSource) -> None:
    made = quantise_base(source, folder_of(source), HELD["nf4"])
    plain, half = started(load_base(made), "lora"), started(load_base(made), "lora")
    assert halve(half) == 1  # the output head; of layers in four bits the product alone
    assert 1e-4 < relative_error(gradients(half), gradients(plain)) < 0.05


def test_what_learns_whole_cannot_be_in_four_bits(source: ModelSource) -> None:
    base = load_base(quantise_base(source, folder_of(source), HELD["nf4"]))
    for name in ("q_proj", "self_attn.q_proj", "layers.1", "model.layers.0.mlp"):
        with pytest.raises(ModelError, match=f"modules_to_save: '{name}' is held in four bits"):
            attach(base, ADAPTERS["lora"].model_copy(update={"modules_to_save": (name,)}), base_name="m", seed=0)
    base = load_base(quantise_base(source, folder_of(source), HELD["nf4"]))
    norms = ADAPTERS["lora"].model_copy(update={"modules_to_save": ("norm",), "bias": "lora_only"})
    assert gradients(attach(base, norms, base_name="m", seed=0))


def test_without_the_library_it_says_how_to_get_it(source: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="bitsandbytes") as said:
        quantise_base(source, folder_of(source), HELD["nf4"])
    assert "luthier[quantise]" in str(said.value) + said.value.way_out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"adapter": {"type": "vera"}}, "adapter.type vera has no layers beside model.load_in_4bit"),
        ({"adapter": {"type": "full"}}, "adapter.type full has no layers beside"),
        ({"adapter": {"init_lora_weights": "pissa"}}, "init_lora_weights takes a part out of the base"),
        ({"launch": {"strategy": "fsdp"}}, "fsdp divides weights"),
        ({"train": {"torch_compile": True}}, "torch_compile is not built for"),
        ({"merge": {"runs": ["a", "b"]}}, "merge adds weights up"),
        ({"model": {"name": "m", "bnb_4bit_quant_type": "fp4"}}, "add load_in_4bit: true"),
        ({"model": {"name": "m", "bnb_4bit_use_double_quant": True}}, "add load_in_4bit: true"),
    ],
)
def test_what_does_not_go_with_it_is_refused(more: dict[str, Any], words: str) -> None:
    model = {"name": "m", "load_in_4bit": True}
    with pytest.raises(ValidationError, match=words):
        Recipe.model_validate({"name": "r", "model": model, "data": {"train": [{"path": "d.csv"}]}, **more})


def test_the_memory_that_is_planned_is_what_the_tensors_take(source: ModelSource) -> None:
    for held in ("nf4", "nf4, double"):
        model = load_base(quantise_base(source, folder_of(source), HELD[held]))
        taken = sum(parameter.nbytes for parameter in model.parameters())
        for module in filter(holds_four_bits, model.modules()):
            state: Any = module.weight.quant_state
            taken += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
        planned = four_bits_gib(read_shape(source), double_quant=HELD[held].bnb_4bit_use_double_quant) * GIB
        assert planned == pytest.approx(taken, rel=0.01)


@pytest.mark.parametrize(("held", "seen"), [(Model(name="m"), False), (HELD["nf4"], True)])
def test_a_process_that_holds_nothing_in_four_bits_is_spared_the_library(held: Model, seen: bool) -> None:
    program = (
        "import sys; from luthier.models.quantised import leave_out_unless_needed as leave; "
        "from luthier.spec.base import Model; "
        f"leave(Model.model_validate({held.model_dump()!r})); import peft; "
        "sys.exit(0 if bool(sys.modules.get('bitsandbytes')) == "
        f"{seen} else 1)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
