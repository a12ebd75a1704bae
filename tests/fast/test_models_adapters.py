"""Adapters: PEFT opens what is saved, what does not fit is refused, merging changes no answer, the seed decides A."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import ModelError
from luthier.models.adapters import adapter_state, attach, bare, load_adapter, merge, save_adapter
from luthier.spec.adapters.lora import Lora
from tiny import llama

LORA = Lora(type="lora", r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IDS = torch.tensor([[5, 9, 20, 300, 7, 41]])


def tuned(*, seed: int = 0, std: float = 0.1, base: dict[str, Any] | None = None, **changes: Any) -> Any:
    """A model with an adapter that does something."""
    model = attach(llama(**(base or {})), LORA.model_copy(update=changes), base_name="tiny", seed=seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std, generator=generator)
    return model.eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return bare(model)(input_ids=IDS).logits


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    save_adapter(tuned(), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained() -> None:
    model = attach(llama(), LORA, base_name="tiny", seed=0)
    torch.testing.assert_close(logits(model), logits(llama()), rtol=0, atol=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * 7 * 2  # A and B of seven linear layers in two blocks, none at the output head


def test_the_seed_decides_a_and_leaves_the_random_state_alone() -> None:
    def start(seed: int) -> dict[str, torch.Tensor]:
        return adapter_state(attach(llama(), LORA, base_name="tiny", seed=seed))

    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = llama()
    torch.set_rng_state(before)
    attach(model, LORA, base_name="tiny", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    one, same, other = start(1), start(1), start(2)
    for name in one:
        assert torch.equal(one[name], same[name])
        assert torch.equal(one[name], other[name]) == ("lora_B" in name)


def test_plain_peft_opens_what_is_saved_and_says_the_same(saved: Path) -> None:
    from peft import PeftModel

    assert sorted(path.name for path in saved.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    theirs = PeftModel.from_pretrained(llama(), str(saved)).eval()
    torch.testing.assert_close(logits(theirs), logits(tuned()), rtol=0, atol=0)
    config = json.loads((saved / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"], config["lora_alpha"], config["bias"]) == (
        "tiny",
        4,
        8.0,
        "none",
    )
    ours = load_adapter(llama(), saved)
    torch.testing.assert_close(logits(ours), logits(tuned()), rtol=0, atol=0)
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("modules", ["all-linear", ("q_proj", "down_proj")], ids=str)
def test_an_adapter_of_some_layers_opens_in_plain_peft_and_says_the_same(tmp_path: Path, modules: Any) -> None:
    from peft import PeftModel

    base: dict[str, Any] = {"num_hidden_layers": 4}
    model = tuned(base=base, target_modules=modules, layers_to_transform=(1, 3))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {int(re.search(r"layers\.(\d+)", name)[1]) for name in trained} == {1, 3}  # type: ignore[index]
    assert len(trained) == 2 * 2 * (7 if modules == "all-linear" else 2)
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [1, 3]
    assert set(config["target_modules"]) == set(modules if modules != "all-linear" else LINEARS)
    theirs = PeftModel.from_pretrained(llama(**base), str(tmp_path)).eval()
    torch.testing.assert_close(logits(theirs), logits(model), rtol=0, atol=0)
    torch.testing.assert_close(logits(load_adapter(llama(**base), tmp_path)), logits(model), rtol=0, atol=0)
    assert not torch.equal(logits(llama(**base)), logits(model))


def test_saving_what_was_loaded_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    save_adapter(load_adapter(llama(), saved), tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


@pytest.mark.parametrize("changes", [{}, {"r": 1, "alpha": 3.0}, {"target_modules": ("q_proj", "down_proj")}], ids=str)
def test_merging_is_adding_the_product_and_changes_no_answer(changes: dict[str, Any]) -> None:
    model, base = tuned(**changes), dict(llama().named_parameters())
    said, state, scale = logits(model), adapter_state(model), changes.get("alpha", 8.0) / changes.get("r", 4)
    merged = merge(model)
    largest = float(said.abs().max())
    assert float((logits(merged) - said).abs().max()) < 1e-5 * largest
    assert float((logits(llama()) - said).abs().max()) > 1e-3 * largest
    for name, parameter in merged.named_parameters():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        expected = base[name]
        if f"{key}.lora_A.weight" in state:
            expected = expected + scale * state[f"{key}.lora_B.weight"] @ state[f"{key}.lora_A.weight"]
        torch.testing.assert_close(parameter, expected, rtol=1e-6, atol=1e-6)
    assert not hasattr(merged, "peft_config") or type(merged).__name__ == "LlamaForCausalLM"
    assert not any("lora" in name for name, _ in merged.named_parameters())


def rewrite(folder: Path, change: Any) -> Path:
    """The adapter with other tensors."""
    state = load_file(folder / "adapter_model.safetensors")
    change(state)
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def drop(state: dict[str, torch.Tensor]) -> None:
    state.pop(next(iter(state)))


def add(state: dict[str, torch.Tensor]) -> None:
    name = next(iter(state))
    state[name.replace("layers.0", "layers.9").replace("layers.1", "layers.9")] = state[name].clone()


def reshape(state: dict[str, torch.Tensor]) -> None:
    name = next(iter(state))
    state[name] = torch.zeros(3, 3)


@pytest.mark.parametrize("change", [drop, add, reshape], ids=lambda change: change.__name__)
def test_tensors_that_do_not_fit_are_refused(saved: Path, change: Any) -> None:
    with pytest.raises(ModelError, match=r"do(es)? not fit the base") as caught:
        load_adapter(llama(), rewrite(saved, change))
    assert caught.value.way_out == "use the base model that the adapter was trained on, and both of its files"


@pytest.mark.parametrize(
    "base",
    [{"hidden_size": 64}, {"num_hidden_layers": 1}, {"intermediate_size": 48}],
    ids=str,
)
def test_an_adapter_of_another_base_is_refused(saved: Path, base: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"do(es)? not fit the base"):
        load_adapter(llama(**base), saved)


def test_files_of_an_adapter_that_are_damaged_or_missing(saved: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        part = tmp_path / f"without-{name}"
        shutil.copytree(saved, part)
        (part / name).unlink()
        with pytest.raises(ModelError, match=r"holds no PEFT adapter\n  -> give a folder with adapter_config"):
            load_adapter(llama(), part)
    whole = (saved / "adapter_model.safetensors").read_bytes()
    for content in (b"", whole[:50], whole[:-20]):
        (saved / "adapter_model.safetensors").write_bytes(content)
        with pytest.raises(ModelError, match="does not fit the base"):
            load_adapter(llama(), saved)
    (saved / "adapter_model.safetensors").write_bytes(whole)
    for text in ("{", "[]", '{"peft_type": "NONE"}'):
        (saved / "adapter_config.json").write_text(text)
        with pytest.raises(ModelError, match="does not fit the base"):
            load_adapter(llama(), saved)


@pytest.mark.parametrize("modules", [("qq_proj",), "no-such.*", ("embed_tokens_x",)], ids=str)
def test_modules_that_the_base_does_not_have_are_refused(modules: Any) -> None:
    with pytest.raises(ModelError, match=r"adapter.target_modules .*: .*") as caught:
        attach(llama(), LORA.model_copy(update={"target_modules": modules}), base_name="tiny", seed=0)
    assert caught.value.way_out == "use 'all-linear' or names of modules of this base"
