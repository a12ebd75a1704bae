"""Starting above the frozen layers is the same training; what is kept on disk is whole, of this run, or not read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_models_trunk
import test_train_loop
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train_loop import EXAMPLES, INPUTS, SETTINGS, relative_error

from luthier.data.shards import Example
from luthier.errors import DiskFull, Stopped
from luthier.models.adapters import bare
from luthier.models.half import halve
from luthier.models.packing import num_laid_out
from luthier.train import trunk as room
from luthier.train.batches import micro_batches
from luthier.train.dist import Ranks
from luthier.train.methods import sft
from luthier.train.methods.sft import Sft
from luthier.train.trunk import OnTrunk, Trunk, learned_rows, open_trunk
from ranks_kit import together
from rows_kit import inputs_of

FIRST = 2
LIKE = {"vocab_size": 384, "max_position_embeddings": 512}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Gemma3Text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "Granite": {"attention_multiplier": 0.35},  # scaled embeddings, and scores that are no plain head's
}


def model_of(name: str = "Llama", **more: Any) -> Any:
    base = test_models_trunk.family(name, **LIKE, **FAMILIES[name])
    return test_models_trunk.tuned(base, *range(FIRST, test_models_trunk.LAYERS), **more)


SHARED_MODEL = model_of()


def rows_of(examples: list[Example]) -> list[tuple[int, ...]]:
    return list(dict.fromkeys(tuple(ids) for one in examples for ids in Sft().computed(one)))


def open_at(folder: Path, model: Any, rows: Any, **changes: Any) -> Trunk:
    usual: dict[str, Any] = {
        "first": FIRST, "base_sha256": "b", "max_tokens": 40, "progress": lambda done, total: None,
        "stop_asked": lambda: False,
    }  # fmt: skip
    return open_trunk(model, rows, folder=folder, **(usual | changes))


def gradients(model: Any, examples: list[Example], budget: int, trunk: Trunk | None) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    total = sum(map(Sft().count, examples))
    tokens = [Sft().computed(one) for one in examples]
    method = Sft() if trunk is None else OnTrunk(Sft(), trunk)
    for part in micro_batches(range(len(examples)), tokens, max_tokens=budget):
        (method.loss_sum(model, [examples[row] for row in part.rows]) / total).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def reference(model: Any, examples: list[Example]) -> dict[str, torch.Tensor]:
    """Plain transformers, one row at a time, all layers, in float64."""
    model = model.double()
    bare(model).set_attn_implementation("eager")
    total = sum(map(Sft().count, examples))
    for one in examples:
        labels = [token if on else -100 for token, on in zip(one.input_ids, one.supervised, strict=True)]
        loss = model(input_ids=torch.tensor([one.input_ids]), labels=torch.tensor([labels])).loss
        (loss * Sft().count(one) / total).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def sharing(count: int) -> list[Example]:
    """Rows with a long start in common, some of them a longer one, one twice."""
    start = list(range(3, 30))
    rows = [[*start, *([60] * 9 if n % 2 else []), 100 + n, 50, 2] for n in range(count)]
    return [Example(n, "", "", "", 30, ids, [False] * (len(ids) - 2) + [True, True]) for n, ids in enumerate(rows)] + [
        Example(99, "", "", "", 30, rows[0], [False] * (len(rows[0]) - 2) + [True, True])
    ]


@pytest.mark.parametrize("examples", [EXAMPLES[:8], sharing(6)], ids=["little shared", "much shared"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_gradient_is_that_of_a_float64_reference_of_all_layers(
    tmp_path: Path, name: str, examples: list[Example]
) -> None:
    expected = reference(model_of(name), examples)
    for at_once, budget in ((1, 1), (40, 60), (10_000, 10_000)):
        model = model_of(name)
        trunk = open_at(tmp_path / str(budget), model, rows_of(examples), max_tokens=at_once)
        assert relative_error(gradients(model, examples, budget, trunk), expected) < 1e-5


START = st.lists(st.integers(3, 380), min_size=9, max_size=12)
TREES = st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(3, 380), min_size=1, max_size=6)), min_size=1)


@settings(max_examples=12, deadline=None)
@given(starts=st.lists(START, min_size=3, max_size=3), ends=TREES, kept=st.integers(1, 60), budget=st.integers(1, 60))
def test_neither_the_tree_nor_the_cut_matters(
    starts: list[list[int]], ends: list[tuple[int, list[int]]], kept: int, budget: int
) -> None:
    rows = [sum(starts[:depth], [1]) + end + [2] for depth, end in ends]
    examples = [Example(n, "", "", "", 1, ids, [False] + [True] * (len(ids) - 1)) for n, ids in enumerate(rows)]
    model = SHARED_MODEL
    expected = gradients(model, examples, 10_000, None)
    with tempfile.TemporaryDirectory() as folder:
        trunk = open_at(Path(folder), model, rows_of(examples), max_tokens=kept)
        assert trunk.about.num_tokens == num_laid_out(rows_of(examples))
        assert relative_error(gradients(model, examples, budget, trunk), expected) < 1e-5


def test_what_is_kept_is_what_plain_transformers_says_below(tmp_path: Path) -> None:
    model, rows = model_of(), rows_of(sharing(4))
    trunk = open_at(tmp_path, model, rows)
    assert trunk.about.num_tokens == num_laid_out(rows) < sum(map(len, rows))
    kept = torch.from_file(str(trunk.folder / "states.f32"), size=trunk.num_bytes // 4, dtype=torch.float32).view(
        trunk.about.num_tokens, -1
    )
    bare(model).set_attn_implementation("eager")
    for row in rows:
        with torch.no_grad():
            below = bare(model)(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[FIRST][0]
        found = torch.cat([kept[start : start + length] for start, length in trunk.runs[room._digest(row)]])
        torch.testing.assert_close(found, below, rtol=1e-4, atol=1e-5)


def test_with_dropout_above_the_states_stay_right(tmp_path: Path) -> None:
    model = model_of(dropout=0.4).train()
    trunk = open_at(tmp_path, model, rows_of(EXAMPLES))
    assert model.training
    found = []
    for one in (None, trunk, None):
        torch.manual_seed(3)
        found.append(gradients(model, EXAMPLES[:6], 10_000, one))
    assert relative_error(found[1], found[0]) < 1e-5
    assert relative_error(found[2], found[0]) == 0
    torch.manual_seed(4)
    assert relative_error(gradients(model, EXAMPLES[:6], 10_000, trunk), found[0]) > 0.1


def test_layers_computed_again_going_backward_start_at_the_same_states(tmp_path: Path) -> None:
    model = model_of().train()
    expected = gradients(model, EXAMPLES[:6], 10_000, None)
    bare(model).activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    computed: list[int] = []
    for number, layer in enumerate(bare(model).get_decoder().layers):
        layer.mlp.register_forward_pre_hook(lambda module, given, number=number: computed.append(number))
    trunk = open_at(tmp_path, model, rows_of(EXAMPLES[:6]), max_tokens=10_000)
    computed.clear()
    assert relative_error(gradients(model, EXAMPLES[:6], 10_000, trunk), expected) < 1e-5
    assert sorted(computed) == [2, 2, 3, 3], "once forward, once again"


def test_states_of_a_halved_base_are_those_that_it_computes(tmp_path: Path) -> None:
    model = model_of()
    whole = gradients(model, EXAMPLES[:6], 10_000, None)
    assert halve(model) > 0
    halved = gradients(model, EXAMPLES[:6], 10_000, None)
    assert relative_error(halved, whole) > 1e-4
    trunk = open_at(tmp_path, model, rows_of(EXAMPLES[:6]), max_tokens=10_000)
    assert relative_error(gradients(model, EXAMPLES[:6], 10_000, trunk), halved) < 1e-6


def test_a_whole_training_ends_where_it_ends_without(tmp_path: Path) -> None:
    """And no layer below is computed on the way."""
    plain, model = model_of(), model_of()
    test_train_loop.run(tmp_path / "plain", model=plain)
    trunk = open_at(tmp_path / "states", model, learned_rows(INPUTS, SETTINGS))
    computed: list[int] = []
    for number, layer in enumerate(bare(model).get_decoder().layers):
        layer.register_forward_hook(lambda module, given, out, number=number: computed.append(number))
    bare(model).get_decoder()  # hooks are counted from here on
    sft.has_plain_head(bare(model))
    computed.clear()
    result = test_train_loop.run(tmp_path / "kept", model=model, method=OnTrunk(Sft(), trunk))
    assert set(computed) == set(range(FIRST, test_models_trunk.LAYERS))
    assert result.steps == 10
    for (name, one), (_, other) in zip(plain.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=name)


def trained_above(ranks: Ranks, folder: Path) -> tuple[bool, list[float]]:
    model, method = model_of(), Sft()
    trunk = ranks.first_first(lambda: open_at(folder / "trunk", model, learned_rows(INPUTS, SETTINGS)))
    result = test_train_loop.run(folder / "out", model=model, method=OnTrunk(method, trunk))
    return trunk.reused, [event.loss for event in result.history]


@pytest.mark.slow
def test_the_first_of_several_ranks_computes_it_and_all_start_above(tmp_path: Path) -> None:
    alone = test_train_loop.run(tmp_path, model=model_of())
    first, second = together(2, trained_above, tmp_path / "both")
    assert (first[0], second[0]) == (False, True)
    assert first[1] == second[1] == pytest.approx([event.loss for event in alone.history], rel=1e-4)


def test_another_base_layer_token_or_format_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = model_of(), rows_of(EXAMPLES[:4])
    first = open_at(tmp_path, model, rows)
    assert (first.reused, open_at(tmp_path, model, rows).reused) == (False, True)
    changed = [(*rows[0][:-1], rows[0][-1] + 1), *rows[1:]]
    others = [
        open_at(tmp_path, model, rows, base_sha256="c"),
        open_at(tmp_path, model, rows, first=1),
        open_at(tmp_path, model, changed),
        open_at(tmp_path, model, rows[:-1]),
        open_at(tmp_path, model, [rows[0] + rows[1], *rows[2:]]),
    ]
    monkeypatch.setattr(room, "FORMAT", room.FORMAT + 1)
    others.append(open_at(tmp_path, model, rows))
    assert not any(one.reused for one in others)
    assert len({one.folder for one in [first, *others]}) == 7


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(128))


@pytest.mark.parametrize("name", ["states.f32", "about.json"])
@pytest.mark.parametrize("damage", [cut, flip, lengthen, Path.unlink])
def test_what_is_damaged_is_computed_again_and_never_read(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    model, rows = model_of(), rows_of(EXAMPLES[:4])
    whole = open_at(tmp_path, model, rows)
    content = (whole.folder / "states.f32").read_bytes()
    damage(whole.folder / name)
    again = open_at(tmp_path, model, rows)
    assert not again.reused
    assert (again.folder / "states.f32").read_bytes() == content
    assert open_at(tmp_path, model, rows).reused


def test_a_description_of_another_size_is_not_believed(tmp_path: Path) -> None:
    model, rows = model_of(), rows_of(EXAMPLES[:4])
    whole = open_at(tmp_path, model, rows)
    half = whole.about.model_copy(update={"num_tokens": whole.about.num_tokens * 2, "hidden_size": 16})
    (whole.folder / "about.json").write_text(half.to_json())
    assert not open_at(tmp_path, model, rows).reused


def test_a_stop_leaves_nothing_and_says_how_far_it_was(tmp_path: Path) -> None:
    done: list[int] = []
    with pytest.raises(Stopped, match=r"stopped after \d+ of 18 rows had gone through the frozen layers") as caught:
        open_at(
            tmp_path, model_of(), rows_of(EXAMPLES), progress=lambda now, total: done.append(now),
            stop_asked=lambda: len(done) == 2,
        )  # fmt: skip
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 100, 100))
    with pytest.raises(DiskFull, match=r"states of the frozen layers take [\d.]+ kB, 100 bytes are free") as caught:
        open_at(tmp_path, model_of(), rows_of(EXAMPLES))
    assert "train.cache_trunk: false" in caught.value.way_out
    assert caught.value.exit_code == 6


def test_only_rows_that_some_step_sees_are_kept() -> None:
    assert learned_rows(INPUTS, SETTINGS) == rows_of(EXAMPLES)
    few = learned_rows(INPUTS, SETTINGS.model_copy(update={"max_tokens": 120}))
    assert 4 <= len(few) < len(EXAMPLES)
    assert set(few) < set(rows_of(EXAMPLES))
    assert learned_rows(inputs_of(EXAMPLES + EXAMPLES), SETTINGS) == rows_of(EXAMPLES)
