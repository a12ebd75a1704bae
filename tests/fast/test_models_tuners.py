"""Every type of adapter, and whole weights: what is saved opens in plain tools and says the same as what learned."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luthier.engines.transformers import TransformersEngine, base_and_tuned
from luthier.errors import ModelError
from luthier.models.adapters import attach, bare, merge
from luthier.models.base import load_base
from luthier.models.forward import is_noisy
from luthier.models.fused import FusedLoraLinear
from luthier.models.half import halve
from luthier.models.trunk import check_trunk, lowest_learning
from luthier.models.tuned import can_switch_off, is_adapted, kind_of, load_tuned, save_tuned, tuned_state
from luthier.plan.parameters import lowest_learning as planned_lowest
from luthier.plan.parameters import trainable_parameters
from luthier.records import ModelShape
from luthier.spec.adapter_section import Adapter
from luthier.spec.adapters.full import Full
from luthier.spec.adapters.ia3 import Ia3
from luthier.spec.adapters.loha import Loha
from luthier.spec.adapters.lokr import Lokr
from luthier.spec.adapters.lora import Lora
from luthier.spec.adapters.oft import Oft
from luthier.spec.adapters.vera import Vera
from luthier.spec.plugins import ADAPTERS
from luthier.store.runs import tuned_in, weights_file
from tiny import llama

IDS = torch.tensor([[5, 9, 20, 300, 7, 41]])
LORA: dict[str, Any] = {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": "all-linear"}
NORMS = ("input_layernorm", "post_attention_layernorm", "norm")
SECTIONS: dict[str, Adapter] = {
    "lora": Lora(**LORA),
    "rslora": Lora(**LORA, use_rslora=True),
    "dora": Lora(**LORA, use_dora=True),
    "pissa": Lora(**LORA, init_lora_weights="pissa"),
    "pissa, some rounds": Lora(**LORA, init_lora_weights="pissa_niter_4"),
    "olora": Lora(**LORA, init_lora_weights="olora"),
    "pissa, rslora": Lora(**LORA, init_lora_weights="pissa", use_rslora=True),
    "pissa, dora": Lora(**LORA, init_lora_weights="pissa", use_dora=True),
    "biases": Lora(**LORA, bias="lora_only"),
    "all biases": Lora(**LORA, bias="all"),
    "norms too": Lora(**LORA, modules_to_save=NORMS),
    "embeddings too": Lora(**LORA, modules_to_save=("embed_tokens",)),
    "a module whole": Lora(**LORA, modules_to_save=("mlp", "q_proj")),
    "ia3": Ia3(target_modules=("k_proj", "v_proj", "down_proj"), feedforward_modules=("down_proj",)),
    "ia3, all": Ia3(target_modules="all-linear", feedforward_modules=("down_proj",)),
    "loha": Loha(r=3, alpha=6.0, target_modules="all-linear"),
    "lokr": Lokr(r=2, alpha=4.0, target_modules="all-linear"),
    "vera": Vera(r=16, dropout=0.0, d_initial=0.1, target_modules="all-linear"),
    "oft": Oft(oft_block_size=8, target_modules="all-linear"),
    "ia3 and norms": Ia3(target_modules=("k_proj",), feedforward_modules=(), modules_to_save=("norm",)),
    "full": Full(),
}
STARTS_AS_BASE = set(SECTIONS) - {name for name in SECTIONS if "pissa" in name or name == "olora"}
every = pytest.mark.parametrize("name", SECTIONS)


def of(name: str, **changes: Any) -> Adapter:
    return SECTIONS[name].model_copy(update=changes)


def base(name: str = "", **settings: Any) -> Any:
    return llama(**({"attention_bias": True} if "biases" in name else {}), **settings)


def moved(model: Any) -> Any:
    """What learns, elsewhere."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tuned(name: str, **changes: Any) -> Any:
    return moved(attach(base(name), of(name, **changes), base_name="tiny", seed=0))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return bare(model)(input_ids=IDS).logits


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Over the largest, as exports are held to it."""
    return float((one - other).abs().max() / other.abs().max())


def saved(model: Any, folder: Path) -> Path:
    place = folder / kind_of(model)
    place.mkdir(parents=True)
    save_tuned(model, place, tuned_state(model))
    return place


@dataclass(frozen=True)
class Kept:
    """A model that learned, what it says, and what is on the disk."""

    model: Any
    said: torch.Tensor
    base: Path
    tuned: Path


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kept]:
    """Made once for each case."""

    @cache
    def make(name: str) -> Kept:
        place = tmp_path_factory.mktemp("kept")
        base(name).save_pretrained(place / "base")
        model = tuned(name)
        return Kept(model, logits(model), place / "base", saved(model, place / "train"))

    return make


def test_there_is_a_case_for_every_type() -> None:
    assert {section.type for section in SECTIONS.values()} == set(ADAPTERS.names())


@every
def test_at_the_start_nothing_is_changed(name: str) -> None:
    model = attach(base(name), of(name), base_name="tiny", seed=0)
    assert apart(logits(model), logits(base(name))) <= (0.0 if name in STARTS_AS_BASE else 1e-5)


@every
def test_what_is_saved_opens_in_plain_tools_and_says_the_same(name: str, kept: Callable[[str], Kept]) -> None:
    one = kept(name)
    assert one.tuned == tuned_in(one.tuned.parent)
    if is_adapted(one.model):
        plain = AutoModelForCausalLM.from_pretrained(one.base)
        theirs: Any = PeftModel.from_pretrained(plain, str(one.tuned)).eval()
    else:
        theirs = AutoModelForCausalLM.from_pretrained(one.tuned)
    assert apart(logits(theirs), one.said) < 1e-5
    assert apart(one.said, logits(base(name))) > 1e-3


@every
def test_the_base_is_still_there(name: str, kept: Callable[[str], Kept]) -> None:
    one, ids = kept(name), IDS[0].tolist()
    untuned, asked = base_and_tuned(one.base, one.tuned)
    plain = TransformersEngine(base(name)).logits(ids)
    assert abs(untuned.logits(ids) - plain).max() == 0
    assert abs(asked.logits(ids) - one.said[0].numpy()).max() < 1e-5 * abs(plain).max()
    assert (untuned.model is asked.model) == (name != "full" and "biases" not in name)
    assert can_switch_off(asked.whole) == (untuned.model is asked.model)


@every
def test_merged_says_the_same_and_once_is_enough(name: str, kept: Callable[[str], Kept], tmp_path: Path) -> None:
    one = kept(name)
    model = load_tuned(one.base, one.tuned)
    again = saved(model, tmp_path / "again")
    assert weights_file(again).read_bytes() == weights_file(one.tuned).read_bytes()
    merged = merge(model) if is_adapted(model) else model
    assert apart(logits(merged), one.said) < 1e-5
    assert not any(".lora_" in key or "modules_to_save" in key for key in merged.state_dict())
    merged.save_pretrained(tmp_path / "merged")
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert apart(logits(reopened), one.said) < 1e-5  # a tied head is still tied, or none that learned is lost


@every
def test_the_seed_decides_the_start(name: str) -> None:
    def start() -> dict[str, torch.Tensor]:
        torch.seed()
        model = attach(base(name), of(name), base_name="tiny", seed=3)
        return {key: p.detach() for key, p in model.named_parameters()}

    one, other = start(), start()
    assert all(torch.equal(one[key], other[key]) for key in one)


SHAPE = ModelShape(
    name="tiny", kind="folder", path="", sha256="", architecture="llama", hidden_size=32, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, intermediate_size=64, vocab_size=384, max_positions=512, tied_embeddings=True,
    num_parameters=sum(p.numel() for p in llama().parameters()), num_bytes=0, quantisation="", license="",
    license_source="",
)  # fmt: skip


@every
@pytest.mark.parametrize("layers", [None, (1,)], ids=["every layer", "the upper one"])
def test_the_plan_counts_what_learns(name: str, layers: tuple[int, ...] | None) -> None:
    adapter = of(name, layers_to_transform=layers)
    model = attach(base(name), adapter, base_name="tiny", seed=0)
    learning = sum(p.numel() for key, p in model.named_parameters() if p.requires_grad and not key.endswith("bias"))
    assert trainable_parameters(SHAPE, adapter) == learning
    if layers is None or not (adapter.whole_modules or name == "all biases"):
        assert planned_lowest(SHAPE, adapter) == lowest_learning(model)


@every
def test_layers_below_those_that_learn_are_kept_or_refused(name: str) -> None:
    """`check_trunk` compares what the model says above kept states with what it says as a whole."""
    model = moved(attach(base(name, num_hidden_layers=3), of(name, layers_to_transform=(2,)), base_name="b", seed=0))
    if SECTIONS[name].whole_modules or name == "all biases":  # something learns outside these layers
        with pytest.raises(ModelError, match="its lowest layer learns"):
            check_trunk(model)
        return
    assert check_trunk(model) == 2
    learning = {key for key, p in model.named_parameters() if p.requires_grad}
    assert learning
    assert all(".layers.2." in key for key in learning)


@every
def test_the_fused_layer_keeps_away_from_what_it_does_not_compute(name: str) -> None:
    """Gradients are those of PEFT's own layers."""

    def gradients(model: Any) -> dict[str, torch.Tensor]:
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}

    model, plain = tuned(name), tuned(name)
    for module in plain.modules():
        if type(module) is FusedLoraLinear:
            module.__class__ = FusedLoraLinear.__base__
    expected, found = gradients(plain), gradients(model)
    assert found.keys() == expected.keys() == {key for key, p in model.named_parameters() if p.requires_grad}
    for key, gradient in expected.items():
        assert float((found[key] - gradient).norm()) <= 1e-4 * float(gradient.norm()), key


@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in ("full", "oft")])
def test_with_half_of_the_frozen_weights_it_learns_the_same_way(name: str) -> None:
    model, half = tuned(name), tuned(name)
    assert halve(half) > 0
    said = logits(half)
    assert apart(said, logits(model)) < 0.05
    assert said.dtype == torch.float32
    half(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in half.parameters() if p.requires_grad)


@pytest.mark.filterwarnings("ignore:Could not find a config file in tiny", "ignore:PiSSA changes the base weights")
@pytest.mark.filterwarnings("ignore:OLoRA changes the base weights")
def test_a_start_taken_from_the_base_is_saved_for_the_whole_base(tmp_path: Path) -> None:
    """As PEFT converts it, by its own code."""
    for start in ("pissa", "olora"):
        model = attach(base(), of("lora", init_lora_weights=start), base_name="tiny", seed=0)
        assert all(isinstance(part, FusedLoraLinear) for part in model.modules() if hasattr(part, "lora_A"))
        model.peft_config["default"].init_lora_weights = True  # else PEFT would take the start out of the base again
        model.save_pretrained(tmp_path / start / "first")
        model.peft_config["default"].init_lora_weights = start
        moved(model)
        ours = saved(model, tmp_path / start)
        model.save_pretrained(
            tmp_path / start / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / start / "first")
        )
        one, other = (load_file(place / "adapter_model.safetensors") for place in (ours, tmp_path / start / "theirs"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
        config = json.loads((ours / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["init_lora_weights"]) == (8, 16.0, True)


def test_embeddings_that_are_also_the_head_learn_as_one(tmp_path: Path) -> None:
    model = tuned("embeddings too")
    assert logits(model).shape[-1] == 384
    embeddings, head = bare(model).get_input_embeddings(), bare(model).get_output_embeddings()
    assert torch.equal(embeddings.modules_to_save.default.weight, head.modules_to_save.default.weight)
    with pytest.raises(ModelError, match=r"are one weight, which PEFT keeps as one with adapter.type lora only") as no:
        attach(base(), of("ia3", modules_to_save=("lm_head",)), base_name="tiny", seed=0)
    assert no.value.way_out == "leave embed_tokens and lm_head out, or take adapter.type lora or full"
    untied = attach(base(tie_word_embeddings=False), of("ia3", modules_to_save=("lm_head",)), base_name="tiny", seed=0)
    assert any("lm_head" in key for key, p in untied.named_parameters() if p.requires_grad)


def test_modules_and_layers_that_the_base_does_not_have_are_refused() -> None:
    with pytest.raises(ModelError, match=r"adapter.modules_to_save: 'ln_f' is no module of LlamaForCausalLM") as caught:
        attach(base(), of("lora", modules_to_save=("ln_f",)), base_name="tiny", seed=0)
    assert "input_layernorm" in caught.value.way_out
    with pytest.raises(ModelError, match=r"layers_to_transform \[1, 2\]: LlamaForCausalLM has 2 layers"):
        attach(base(), Full(layers_to_transform=(1, 2)), base_name="tiny", seed=0)


def test_of_full_tuning_with_layers_nothing_outside_them_learns(tmp_path: Path) -> None:
    model = tuned("full", layers_to_transform=(1,))
    model.save_pretrained(tmp_path / "plain")
    before = dict(base().named_parameters())
    for key, parameter in load_base(tmp_path / "plain").named_parameters():
        assert torch.equal(parameter, before[key]) == (".layers.1." not in key)


CHANGES: list[tuple[str, str, object]] = [
    ("lora", "r", 3),
    ("lora", "alpha", 3.0),
    ("lora", "target_modules", ("q_proj",)),
    ("lora", "use_rslora", True),
    ("lora", "use_dora", True),
    ("lora", "init_lora_weights", "olora"),
    ("biases", "bias", "none"),
    ("lora", "modules_to_save", ("norm",)),
    ("ia3", "target_modules", "all-linear"),
    ("ia3", "feedforward_modules", ("v_proj",)),
    ("ia3", "layers_to_transform", (1,)),
    ("loha", "r", 2),
    ("loha", "alpha", 3.0),
    ("lokr", "r", 1),
    ("lokr", "alpha", 3.0),
    ("vera", "r", 8),
    ("vera", "d_initial", 0.5),
    ("oft", "oft_block_size", 4),
    ("full", "layers_to_transform", (1,)),
]


@pytest.mark.parametrize(("name", "key", "value"), CHANGES)
def test_each_setting_of_a_type_is_obeyed(name: str, key: str, value: object) -> None:
    """What learned the same way says something else."""
    assert type(SECTIONS[name]).model_validate({**SECTIONS[name].model_dump(), key: value})
    assert not torch.equal(logits(tuned(name, **{key: value})), logits(tuned(name)))


@pytest.mark.parametrize("name", ["lora", "vera"])
def test_dropout_of_an_adapter_is_obeyed(name: str) -> None:
    model = tuned(name, dropout=0.5)
    assert is_noisy(model.train())
    assert not torch.equal(logits(model), logits(model))


def test_the_scale_is_that_of_the_papers() -> None:
    for settings, scale in (({}, 8 / 4), ({"use_rslora": True}, 8 / 4**0.5)):
        model = tuned("lora", **settings)
        assert {part.scaling["default"] for part in model.modules() if hasattr(part, "lora_A")} == {scale}
