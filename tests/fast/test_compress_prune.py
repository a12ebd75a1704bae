"""Pruning: what does nothing goes first and nothing changes; scores are those of direct float64 computation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.compress.prune.choose import choose
from luthier.compress.prune.depth import choose_layers, mean_loss
from luthier.compress.prune.rows import Rows, drawn, packed
from luthier.compress.prune.width import Part, kept_units, unit_scores
from luthier.compress.prune.write import Kept, refuse_family, write_smaller
from luthier.data.shards import Example
from luthier.errors import ModelError
from luthier.models.base import load_base
from luthier.models.shape import read_shape
from luthier.models.source import ModelSource
from luthier.spec.prune import FAMILIES, LayerMeasure, Prune, UnitMeasure, pruned_shape
from tiny import llama, write_tokenizer

SIZES = {
    "vocab_size": 384, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.15,
    "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 16},
    "qwen2": {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2, "tie_word_embeddings": True},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2},
}
"""model_type -> what is special in its config."""
LAYER_MEASURES: tuple[LayerMeasure, ...] = ("block_influence", "angular", "loss")
UNIT_MEASURES: tuple[UnitMeasure, ...] = ("taylor", "magnitude")


def config_of(kind: str, **changes: Any) -> Any:
    name = {"gemma3_text": "Gemma3Text"}.get(kind, kind.capitalize())
    return getattr(transformers, f"{name}Config")(**(SIZES | MODELS[kind] | changes))


def model_of(kind: str, folder: Path, **changes: Any) -> Any:
    """A random model of a family, saved with a tokenizer and opened as a base is."""
    torch.manual_seed(0)
    write_tokenizer(folder)
    model = AutoModelForCausalLM.from_config(config_of(kind, **changes))
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):  # these begin as zeros and ones, and would hide a mistake
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return load_base(folder)


def silence(model: Any, *, layer: int | None = None, channels: Sequence[int] = (), groups: Sequence[int] = ()) -> None:
    """Let a layer, or channels and key-value heads of every layer, write nothing to the residual stream."""
    with torch.no_grad():
        for number, one in enumerate(model.get_decoder().layers):
            width = 2 * one.self_attn.head_dim  # two queries a key-value head
            for group in groups:
                one.self_attn.o_proj.weight[:, group * width : (group + 1) * width] = 0
            one.mlp.down_proj.weight[:, list(channels)] = 0
            if number == layer:
                one.self_attn.o_proj.weight.zero_()
                one.mlp.down_proj.weight.zero_()


def rows_of(model: Any, *, number: int = 4, length: int = 24) -> list[Example]:
    """What the model itself finds likely, so that its loss there is least with all that it has."""
    torch.manual_seed(1)
    made = model.generate(
        torch.randint(3, 300, (number, 6)), max_new_tokens=length - 6, do_sample=False, eos_token_id=None
    )
    return [
        Example(n, "", "", "", 6, ids, [place >= 6 for place in range(length)]) for n, ids in enumerate(made.tolist())
    ]


def batches_of(model: Any, **given: Any) -> list[Rows]:
    return packed(rows_of(model, **given), whole=False, at_once=60)


def quiet(*said: object) -> None:
    """Progress that nobody reads."""


@pytest.mark.parametrize(
    ("by", "kind"),  # of a random Gemma no layer is worth anything to the loss
    [*((by, "llama") for by in LAYER_MEASURES), ("block_influence", "gemma3_text"), ("angular", "gemma3_text")],
)
@pytest.mark.parametrize("contiguous", [True, False])
def test_a_layer_that_does_nothing_goes_first_and_nothing_changes(
    by: LayerMeasure, contiguous: bool, kind: str, tmp_path: Path
) -> None:
    model = model_of(kind, tmp_path)
    silence(model, layer=1)
    batches = batches_of(model)
    depth = choose_layers(model, batches, by=by, remove=1, contiguous=contiguous, tick=quiet)
    assert depth.removed == (1,)
    assert depth.scores[1] == pytest.approx(0.0, abs=1e-6)
    out = tmp_path / "out"
    out.mkdir()
    smaller = write_smaller(model, Kept([0, 2, 3]), base=tmp_path, out=out)
    ids = torch.tensor([rows_of(model)[0].input_ids])
    if kind == "llama":
        torch.testing.assert_close(smaller(ids).logits, model(ids).logits, rtol=0, atol=1e-6)
    else:  # a layer keeps its kind, and those above move down
        assert smaller.config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
        torch.testing.assert_close(smaller(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("by", "kind"),
    [*(("activation", kind) for kind in FAMILIES), *((by, "llama") for by in UNIT_MEASURES), ("taylor", "gemma3_text")],
)
def test_units_that_write_nothing_go_first_and_nothing_changes(by: UnitMeasure, kind: str, tmp_path: Path) -> None:
    model = model_of(kind, tmp_path)
    silent = [3, 17, *range(34, 64)]
    silence(model, channels=silent, groups=[0, 2])
    settings = Prune.model_validate({"mlp": {"keep": 0.5, "by": by}, "heads": {"keep": 0.5, "by": by}})
    shape = read_shape(ModelSource("m", "folder", tmp_path))
    chosen = choose(model, batches_of(model), settings, shape, quiet)
    for layer in range(4):
        assert sorted({*range(64)} - {*chosen.kept.channels[layer]}) == silent
        assert list(chosen.kept.groups[layer]) == [1, 3]
    for told in (chosen.mlp, chosen.heads):
        assert told is not None
        assert all(one.share == pytest.approx(0.0, abs=1e-12) for one in told.layers)
    out = tmp_path / "out"
    out.mkdir()
    smaller = write_smaller(model, chosen.kept, base=tmp_path, out=out)
    ids = torch.tensor([rows_of(model)[0].input_ids])
    torch.testing.assert_close(smaller(ids).logits, model(ids).logits, rtol=0, atol=1e-5)


def test_biases_go_and_stay_with_their_weights(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path, attention_bias=True, mlp_bias=True)
    assert float(model.model.layers[0].mlp.up_proj.bias.abs().max()) > 0
    out = tmp_path / "out"
    out.mkdir()
    kept = Kept([1, 2], dict.fromkeys((1, 2), range(1, 64, 2)), dict.fromkeys((1, 2), (0, 3)))
    smaller = write_smaller(model, kept, base=tmp_path, out=out)
    ids = torch.tensor([rows_of(model)[0].input_ids])
    torch.testing.assert_close(smaller(ids).logits, by_hand(model, kept, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_written_is_a_plain_model_of_the_shape_that_the_plan_says(kind: str, tmp_path: Path) -> None:
    """Reloaded it says the same, with a cache too; its parameters are those of a config made anew."""
    model = model_of(kind, tmp_path)
    shape = read_shape(ModelSource("m", "folder", tmp_path))
    settings = Prune.model_validate({"layers": {"remove": 2}, "mlp": {"keep": 0.5}, "heads": {"keep": 0.5}})
    settings = settings.model_copy(update={"layers": settings.layers.model_copy(update={"contiguous": False})})  # type: ignore[union-attr]
    chosen = choose(model, batches_of(model), settings, shape, quiet)
    out = tmp_path / "out"
    out.mkdir()
    write_smaller(model, chosen.kept, base=tmp_path, out=out)
    opened: Any = AutoModelForCausalLM.from_pretrained(out).eval()
    ids = torch.tensor([rows_of(model)[0].input_ids])
    torch.testing.assert_close(opened(ids).logits, by_hand(model, chosen.kept, ids), rtol=1e-4, atol=1e-4)
    cached = opened.generate(ids[:, :8], max_new_tokens=24, do_sample=False, eos_token_id=None)
    alone = opened.generate(ids[:, :8], max_new_tokens=24, do_sample=False, eos_token_id=None, use_cache=False)
    assert cached.tolist() == alone.tolist()
    fresh = AutoModelForCausalLM.from_config(
        config_of(
            kind, num_hidden_layers=2, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2,
            **({"layer_types": opened.config.layer_types} if kind == "gemma3_text" else {}),
        )
    )  # fmt: skip
    counted = sum(one.numel() for one in fresh.parameters())
    assert sum(one.numel() for one in opened.parameters()) == counted
    planned, found = pruned_shape(shape, settings), read_shape(ModelSource("m", "folder", out))
    for key in ("num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size", "num_parameters"):
        assert getattr(planned, key) == getattr(found, key), key
    assert found.num_parameters == counted
    assert [layer.self_attn.layer_idx for layer in opened.model.layers] == [0, 1]


def by_hand(model: Any, kept: Kept, ids: Tensor) -> Tensor:
    """The whole model with the outputs of what goes set to zero; what is left of it is what it says."""
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            width, attention = 2 * layer.self_attn.head_dim, layer.self_attn
            for group in range(4):
                if number not in kept.layers or group not in kept.groups[number]:
                    attention.o_proj.weight[:, group * width : (group + 1) * width] = 0
            gone = [j for j in range(64) if number not in kept.layers or j not in kept.channels[number]]
            layer.mlp.down_proj.weight[:, gone] = 0
            for linear in (attention.o_proj, layer.mlp.down_proj):
                if linear.bias is not None and number not in kept.layers:
                    linear.bias.zero_()
        found: Tensor = model(ids).logits
    return found


def test_layer_scores_are_those_of_a_float64_reference(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    rows, batches = rows_of(model), batches_of(model)
    assert len(batches) == 2
    double = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager")
    states: list[Tensor] = [[] for _ in range(5)]  # type: ignore[misc]
    for layer, block in enumerate(double.model.layers):
        block.register_forward_pre_hook(lambda module, given, layer=layer: states[layer].append(given[0][0]))  # type: ignore[attr-defined]
    double.model.layers[-1].register_forward_hook(lambda module, given, out: states[4].append(out[0]))  # type: ignore[attr-defined]
    with torch.no_grad():
        for row in rows:
            double(torch.tensor([row.input_ids]), use_cache=False)
    cos = [
        [
            (one * two).sum(-1) / one.norm(dim=-1) / two.norm(dim=-1)
            for one, two in zip(states[a], states[b], strict=True)
        ]
        for a, b in ((0, 1), (1, 2), (2, 3), (3, 4), (0, 2), (1, 3), (2, 4))
    ]
    influence = [1 - float(torch.cat(one).mean()) for one in cos]
    angles = [sum(math.acos(float(row[-1])) / math.pi for row in one) / len(rows) for one in cos]

    def scores(by: LayerMeasure, **given: Any) -> list[float]:
        return [one for one in choose_layers(model, batches, by=by, tick=quiet, **given).scores if one is not None]

    assert scores("block_influence", remove=1, contiguous=False) == pytest.approx(influence[:4], abs=1e-5)
    assert scores("block_influence", remove=2, contiguous=True) == pytest.approx(influence[4:], abs=1e-5)
    assert scores("angular", remove=1, contiguous=True) == pytest.approx(angles[:4], abs=1e-5)
    assert scores("angular", remove=2, contiguous=True) == pytest.approx(angles[4:], abs=1e-5)


def loss_by_hand(folder: Path, rows: Sequence[Example], gone: Sequence[int]) -> float:
    """Mean over supervised tokens, in float64, of the model without some layers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    model.model.layers = torch.nn.ModuleList([one for n, one in enumerate(model.model.layers) if n not in gone])
    losses = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor(row.input_ids)
            chances = model(ids[None], use_cache=False).logits[0].log_softmax(-1)
            losses += [-chances[place - 1, ids[place]] for place in range(1, len(ids)) if row.supervised[place]]
    return float(torch.stack(losses).mean())


def test_the_loss_without_layers_is_measured_again_after_each_that_went(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    rows, batches = rows_of(model), batches_of(model)
    whole = loss_by_hand(tmp_path, rows, [])
    assert mean_loss(model, batches) == pytest.approx(whole, rel=1e-5)
    alone = [loss_by_hand(tmp_path, rows, [layer]) - whole for layer in range(4)]
    first = min(range(4), key=alone.__getitem__)
    then = {layer: loss_by_hand(tmp_path, rows, [first, layer]) - whole for layer in range(4) if layer != first}
    second = min(then, key=then.__getitem__)
    depth = choose_layers(model, batches, by="loss", remove=2, contiguous=False, tick=quiet)
    assert depth.removed == (first, second)
    assert depth.scores == pytest.approx([then.get(layer, alone[first]) for layer in range(4)], rel=1e-3, abs=1e-4)
    blocks = choose_layers(model, batches, by="loss", remove=2, contiguous=True, tick=quiet)
    expected = [loss_by_hand(tmp_path, rows, [layer, layer + 1]) - whole for layer in range(3)]
    assert blocks.scores[:3] == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert blocks.scores[3] is None
    assert blocks.removed == tuple(range(blocks.removed[0], blocks.removed[0] + 2))


def test_unit_scores_are_those_of_a_float64_reference(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    rows, batches = rows_of(model), batches_of(model)
    double = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, attn_implementation="eager")
    layer = double.model.layers[2]
    seen: dict[str, list[Tensor]] = {"mlp": [], "heads": []}
    for name, module in (("mlp", layer.mlp.down_proj), ("heads", layer.self_attn.o_proj)):

        def keep(module: Any, given: Any, name: str = name) -> None:
            given[0].retain_grad()
            seen[name].append(given[0])

        module.register_forward_pre_hook(keep)
    for row in rows:
        ids = torch.tensor(row.input_ids)
        chances = double(ids[None], use_cache=False).logits[0].log_softmax(-1)
        sum(-chances[at - 1, ids[at]] for at in range(1, len(ids)) if row.supervised[at]).backward()  # type: ignore[union-attr]

    def pieces(name: str, units: int) -> tuple[Tensor, Tensor]:
        """Activations and slopes, [rows, T, units, w]."""
        return tuple(
            torch.cat(one).reshape(len(rows), 24, units, -1) for one in (seen[name], [s.grad for s in seen[name]])
        )  # type: ignore[misc,arg-type,return-value]

    for part, units, weight in (("mlp", 64, layer.mlp.down_proj.weight), ("heads", 4, layer.self_attn.o_proj.weight)):
        made, slopes = pieces(part, units)
        columns = weight.reshape(32, units, -1)
        added = torch.einsum("rtuw,huw->rtuh", made, columns)  # what a unit adds to the residual stream
        expected = {
            "activation": added.square().sum(-1).mean(dim=(0, 1)).sqrt(),
            "taylor": (made * slopes).sum(dim=(1, 3)).abs().mean(dim=0),
            "magnitude": layer.mlp.gate_proj.weight.norm(dim=1)
            * layer.mlp.up_proj.weight.norm(dim=1)
            * weight.norm(dim=0)
            if part == "mlp"
            else layer.self_attn.v_proj.weight.reshape(4, -1).norm(dim=1)
            * columns.permute(1, 0, 2).flatten(1).norm(dim=1),
        }
        for by, right in expected.items():
            asked: dict[Part, UnitMeasure] = {part: by}  # type: ignore[dict-item]
            found = unit_scores(model, batches, by=asked, layers=[2], tick=quiet)[part][2]  # type: ignore[index]
            torch.testing.assert_close(found, right.detach(), rtol=1e-4, atol=1e-7)


def test_units_are_scored_without_the_layers_that_go(tmp_path: Path) -> None:
    """They are those of the model that stays; and of both measures in one pass those of each alone."""
    model = model_of("llama", tmp_path)
    rows = rows_of(model)
    out = tmp_path / "out"
    out.mkdir()
    smaller = write_smaller(model, Kept([0, 1, 3]), base=tmp_path, out=out)
    settings = Prune.model_validate(
        {"layers": {"remove": 1}, "mlp": {"keep": 0.5, "by": "taylor"}, "heads": {"keep": 0.5, "by": "activation"}}
    )
    silence(model, layer=2)
    chosen = choose(model, packed(rows, whole=False), settings, read_shape(ModelSource("m", "folder", tmp_path)), quiet)
    assert chosen.kept.layers == [0, 1, 3]
    for part, by in (("mlp", "taylor"), ("heads", "activation")):
        alone = unit_scores(smaller, packed(rows, whole=False), by={part: by}, layers=[0, 1, 2], tick=quiet)  # type: ignore[dict-item]
        for place, layer in enumerate([0, 1, 3]):
            torch.testing.assert_close(chosen.scores[part][layer], alone[part][place], rtol=1e-5, atol=1e-9)  # type: ignore[index]


def test_scoring_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    layers = list(model.model.layers)
    settings = Prune.model_validate({"layers": {"remove": 1, "by": "loss"}, "mlp": {"keep": 0.5, "by": "taylor"}})
    choose(model, batches_of(model), settings, read_shape(ModelSource("m", "folder", tmp_path)), quiet)
    assert list(model.model.layers) == layers
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(one.requires_grad for one in model.parameters())


def test_of_equal_scores_the_lowest_numbers_go() -> None:
    assert kept_units(torch.tensor([1.0, 0.5, 0.5, 0.5, 2.0]), 3) == (0, 3, 4)


def test_rows_are_drawn_by_seed_until_there_are_tokens_enough() -> None:
    rows = [Example(n, "", "", "", 1, [3] * (10 + n), [True] * (10 + n)) for n in range(20)]
    one, two, other = (drawn(rows, 60, seed=seed) for seed in (0, 0, 1))
    assert one == two != other
    assert sum(len(row.input_ids) for row in one[:-1]) < 60 <= sum(len(row.input_ids) for row in one)
    assert len(drawn(rows, 10_000, seed=0)) == 20


def test_where_a_head_answers_every_token_has_a_loss() -> None:
    row = Example(1, "", "", "", 3, [5, 6, 7, 8], [False, False, False, True])
    (learned,), (every,) = packed([row], whole=False), packed([row], whole=True)
    assert (learned.read.tolist(), learned.targets.tolist()) == ([2], [8])
    assert (every.read.tolist(), every.targets.tolist()) == ([0, 1, 2], [6, 7, 8])


def test_families_and_weights_that_are_not_known_are_refused() -> None:
    torch.manual_seed(0)
    small = {key: value for key, value in SIZES.items() if key != "head_dim"}
    granite = AutoModelForCausalLM.from_config(transformers.GraniteConfig(**small))
    with pytest.raises(ModelError, match=r"GraniteForCausalLM \(granite\) cannot be pruned") as error:
        refuse_family(granite)
    assert "gemma3_text, llama, mistral, qwen2, qwen3" in str(error.value.way_out)
    strange = llama()
    strange.model.layers[0].mlp.extra = torch.nn.Linear(4, 4)
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.extra\.weight is no weight that pruning knows"):
        refuse_family(strange)


def test_a_list_with_an_entry_for_every_layer_is_not_passed_over(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    model.config.per_layer_scale = [1.0, 2.0, 3.0, 4.0]
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ModelError, match=r"config\.per_layer_scale has an entry for each of the 4 layers"):
        write_smaller(model, Kept([0, 1, 3]), base=tmp_path, out=out)
