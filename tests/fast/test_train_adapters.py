"""Every type of adapter learns, resumes to the bit and is kept; learning rates and noise are those that were asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_models_tuners import base, of
from test_train_loop import EXAMPLES, SETTINGS, reference_gradients, relative_error, run
from transformers import AutoModelForCausalLM

from luthier.errors import ModelError, Stopped
from luthier.models.adapters import attach, bare
from luthier.models.forward import hidden_states, is_noisy
from luthier.models.neftune import Neftune, add_noise, row_lengths
from luthier.models.packing import lay_out_rows
from luthier.models.trunk import check_trunk
from luthier.spec.adapters.full import Full
from luthier.store.runs import tuned_in, weights_file
from luthier.train.dist import Ranks
from luthier.train.methods.sft import Sft
from luthier.train.optim import make_optimizer, rate_factors
from luthier.train.shard import shard
from ranks_kit import together
from tiny import llama

TRAINED = ["dora", "pissa, some rounds", "biases", "embeddings too", "ia3", "loha", "lokr", "vera", "oft", "full"]


@pytest.fixture(autouse=True)
def _deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def fresh(name: str, **changes: Any) -> Any:
    return attach(base(name), of(name, **changes), base_name="tiny", seed=0)


@pytest.mark.parametrize("name", TRAINED)
def test_it_learns_and_a_run_that_was_stopped_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"weight_decay": 0.0, "lr_scheduler_type": "constant"})
    whole = run(tmp_path / "whole", model=fresh(name), settings=settings)
    losses = [event.loss for event in whole.history]
    assert sum(losses[5:]) < sum(losses[:5])
    torch.seed()  # as every process begins
    with pytest.raises(Stopped):
        run(tmp_path / "cut", model=fresh(name), settings=settings, stop_after=4)
    torch.seed()
    resumed = run(tmp_path / "cut", model=fresh(name), settings=settings)
    assert resumed.resumed_from == (4,)
    assert resumed.weights_sha256 == whole.weights_sha256
    one, other = (load_file(weights_file(tuned_in(tmp_path / place))) for place in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert whole.trainable_parameters == sum(p.numel() for p in fresh(name).parameters() if p.requires_grad)


def test_full_tuning_leaves_a_transformers_folder_and_checkpoints_of_what_learns(tmp_path: Path) -> None:
    model = fresh("full", layers_to_transform=(1,))
    result = run(tmp_path, model=model)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    assert not (tmp_path / "adapter").exists()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([EXAMPLES[0].input_ids])
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
    (newest,) = (tmp_path / "checkpoints").glob("step-000010")
    floats = sum(t.numel() for t in load_file(newest / "tensors.safetensors").values() if t.dtype == torch.float32)
    learning = result.trainable_parameters
    assert floats == 3 * learning + sum(p.requires_grad for p in model.parameters())  # and AdamW's count of steps


def test_the_gradient_of_all_weights_is_that_of_a_float64_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows as for LoRA, one at a time through plain transformers."""
    import test_train_loop

    monkeypatch.setattr(test_train_loop, "fresh", lambda: llama().requires_grad_(True))
    expected = reference_gradients(EXAMPLES[:8])
    model = attach(llama(), Full(), base_name="tiny", seed=0)
    count = sum(map(Sft().count, EXAMPLES[:8]))
    (Sft().loss_sum(model, EXAMPLES[:8]) / count).backward()
    found = {name: p.grad for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    assert relative_error(found, expected) < 1e-5


def test_the_best_weights_are_kept_also_where_all_learn(tmp_path: Path) -> None:
    from test_train_loop import scripted

    settings = SETTINGS.model_copy(update={"validations": 5, "patience": 9})
    kept = run(tmp_path / "a", model=fresh("full"), settings=settings, validation=scripted([0.1, 0.9, 0.3, 0.4, 0.2]))
    shorter = run(tmp_path / "b", model=fresh("full"), settings=settings, validation=scripted([0.1, 0.9, 0, 0, 0]))
    last = run(tmp_path / "c", model=fresh("full"), settings=settings, validation=scripted([0.1, 0.2, 0.3, 0.4, 0.5]))
    assert kept.best_step == 4
    assert kept.weights_sha256 == shorter.weights_sha256 != last.weights_sha256


# --- learning rates ---------------------------------------------------------------------------------------------------


def factors(model: Any, **changes: Any) -> dict[str, float]:
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    return rate_factors(names, SETTINGS.model_copy(update=changes))


def test_each_layer_learns_more_slowly_than_the_one_above_it() -> None:
    made = factors(attach(llama(num_hidden_layers=4, tie_word_embeddings=False), Full(), base_name="", seed=0),
                   layer_lr_decay=0.5)  # fmt: skip
    for name, factor in made.items():
        layer = next((int(part) for part in name.split(".") if part.isdecimal()), None)
        expected = 0.5 ** (3 - layer) if layer is not None else 0.5**4 if "embed" in name else 1.0
        assert factor == expected, name
    upper = factors(fresh("full", layers_to_transform=(0,)), layer_lr_decay=0.5)
    assert set(upper.values()) == {1.0}  # the highest that learns is the top
    assert set(factors(fresh("lora"), layer_lr_decay=0.5).values()) == {1.0, 0.5}


def test_embeddings_have_a_rate_of_their_own_and_b_another_than_a() -> None:
    made = factors(fresh("full"), embedding_learning_rate=0.001, layer_lr_decay=0.5)
    assert made["model.embed_tokens.weight"] == pytest.approx(0.1)
    assert made["model.norm.weight"] == 1.0
    plus = factors(fresh("lora"), loraplus_lr_ratio=16.0)
    assert {(("lora_B" in name), factor) for name, factor in plus.items()} == {(True, 16.0), (False, 1.0)}
    assert any("embed_tokens" in name for name in factors(fresh("embeddings too")))


def test_the_first_step_moves_each_weight_by_its_own_rate(tmp_path: Path) -> None:
    """AdamW's first step is the rate times the sign of the gradient, for whatever is not about zero."""
    settings = SETTINGS.model_copy(
        update={"layer_lr_decay": 0.5, "warmup_ratio": 0.0, "weight_decay": 0.0, "lr_scheduler_type": "constant",
                "num_train_epochs": 1, "batch_size": 18, "embedding_learning_rate": 0.004}
    )  # fmt: skip
    model, before = fresh("full"), dict(llama().named_parameters())
    result = run(tmp_path, model=model, settings=settings)
    assert result.steps == 1
    expected = {"layers.1.": 0.01, "layers.0.": 0.005, "embed_tokens": 0.004, "model.norm": 0.01}
    for name, parameter in model.named_parameters():
        step = float((parameter.detach() - before[name]).abs().max())
        assert step == pytest.approx(next(rate for part, rate in expected.items() if part in name), rel=1e-3), name
    assert result.history[0].learning_rate == 0.01


def test_vectors_do_not_decay() -> None:
    parameters = dict(fresh("full").named_parameters())
    optimizer = make_optimizer(parameters, SETTINGS.model_copy(update={"weight_decay": 0.1}))
    decayed = {id(p) for group in optimizer.param_groups for p in group["params"] if group["weight_decay"]}
    assert {name for name, p in parameters.items() if id(p) not in decayed} == {
        name for name in parameters if "norm" in name
    }


# --- NEFTune ----------------------------------------------------------------------------------------------------------


def noisy(alpha: float = 5.0, name: str = "lora") -> Any:
    model = fresh(name)
    add_noise(model, alpha)
    return model


def test_noise_has_the_size_of_the_paper_for_each_row() -> None:
    """Against alpha / sqrt(L d) of each row, and evenly spread within it."""
    rows = [[7, 8, 9], [7, 8, 9, *range(20, 40)], [9, 5]]
    model = noisy(alpha=3.0).train()
    layout, places = lay_out_rows(rows, shared=99)
    embeddings = bare(model).get_input_embeddings()
    seen: list[torch.Tensor] = []
    hidden_states(bare(model), layout)  # the first one checks how rows are packed
    embeddings.register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    torch.manual_seed(0)
    for _ in range(40):
        hidden_states(bare(model), layout)
    added = torch.stack(seen)[:, 0] - embeddings.weight[layout.input_ids[0]]  # [40, T, d]
    lengths = row_lengths(layout)
    for row, place in zip(rows, places, strict=True):
        assert lengths[place].tolist() == [len(row)] * len(row)
        size = 3.0 / math.sqrt(len(row) * 32)
        found = added[:, place] / size
        assert float(found.abs().max()) <= 1.0 + 1e-4
        assert float(found.std()) == pytest.approx(1 / math.sqrt(3), rel=0.03)
        assert float(found.mean().abs()) < 0.03


def test_with_noise_nothing_is_shared_and_nothing_is_kept_below() -> None:
    model = noisy().train()
    assert is_noisy(model)
    layout, _ = lay_out_rows([[3, 4, 5, 6, 7, 8, 9, 10, 11, 1], [3, 4, 5, 6, 7, 8, 9, 10, 11, 2]])
    with pytest.raises(AssertionError, match="with noise every row is computed by itself"):
        hidden_states(bare(model), layout)
    assert not is_noisy(model.eval())
    upper = attach(llama(num_hidden_layers=3), of("lora", layers_to_transform=(2,)), base_name="", seed=0)
    add_noise(upper, 5.0)
    with pytest.raises(ModelError, match="has dropout or noise of its own"):
        check_trunk(upper)


def test_noise_follows_from_seed_and_step_and_is_gone_in_evaluation(tmp_path: Path) -> None:
    def go(out: Path, model: Any, **more: Any) -> Any:
        torch.seed()
        return run(out, model=model, **more)

    whole = go(tmp_path / "whole", noisy())
    with pytest.raises(Stopped):
        go(tmp_path / "cut", noisy(), stop_after=4)
    assert go(tmp_path / "cut", noisy()).weights_sha256 == whole.weights_sha256
    other = SETTINGS.model_copy(update={"seed": 1})
    assert go(tmp_path / "other", noisy(), settings=other).weights_sha256 != whole.weights_sha256
    assert go(tmp_path / "none", fresh("lora")).weights_sha256 != whole.weights_sha256
    assert go(tmp_path / "more", noisy(alpha=10.0)).weights_sha256 != whole.weights_sha256
    # Every row was computed alone: what rows begin with alike was counted for each.
    computed = sum(len(Sft().computed(row)[0]) for row in EXAMPLES)
    assert sum(event.computed_tokens for event in whole.history) == 2 * computed
    ids = torch.tensor([EXAMPLES[0].input_ids])
    with torch.no_grad():
        quiet, plain = noisy().eval()(input_ids=ids).logits, fresh("lora").eval()(input_ids=ids).logits
    assert torch.equal(quiet, plain)


def test_the_names_of_parameters_are_as_without_noise() -> None:
    assert [name for name, _ in noisy(name="full").named_parameters()] == [
        name for name, _ in fresh("full").named_parameters()
    ]
    assert any(isinstance(part, Neftune) for part in noisy().modules())
    assert noisy(name="full").state_dict().keys() == fresh("full").state_dict().keys()


# --- several processes ------------------------------------------------------------------------------------------------


def trained(ranks: Ranks, out: Path, name: str, sharded: bool) -> list[float]:
    """Losses of this rank."""
    model = fresh(name)
    if sharded:
        shard(model, ranks)
    settings = SETTINGS.model_copy(update={"num_train_epochs": 1, "micro_batch_tokens": 20})
    return [event.loss for event in run(out, model=model, settings=settings).history]


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["full", "embeddings too", "pissa"])
def test_two_ranks_train_like_one_process(tmp_path: Path, name: str, sharded: bool) -> None:
    settings = SETTINGS.model_copy(update={"num_train_epochs": 1, "micro_batch_tokens": 20})
    alone = run(tmp_path / "alone", model=fresh(name), settings=settings)
    for losses in together(2, trained, tmp_path / "two", name, sharded):
        assert losses == pytest.approx([event.loss for event in alone.history], rel=1e-4)
    one, other = (load_file(weights_file(tuned_in(tmp_path / place))) for place in ("alone", "two"))
    assert one.keys() == other.keys()
    assert relative_error(other, one) < 1e-3
