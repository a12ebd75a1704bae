"""Packed rows never see each other: the same scores as separate rows, whatever the layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import ModelError
from luthier.models.forward import forward_logits
from luthier.models.packing import Segment, common_start, lay_out, lay_out_rows, num_laid_out
from tiny import llama

MODEL = llama()
TOKENS = st.lists(st.integers(3, 383), min_size=1, max_size=9)


def alone(ids: list[int]) -> torch.Tensor:
    """Plain transformers, one row, no mask of ours."""
    return MODEL(input_ids=torch.tensor([ids])).logits[0]


@settings(max_examples=25, deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=4))
def test_packed_rows_say_what_separate_rows_say(rows: list[list[int]]) -> None:
    layout = lay_out([Segment(row) for row in rows])
    with torch.no_grad():
        packed = forward_logits(MODEL, layout, torch.arange(sum(map(len, rows))))
        for start, row in zip(layout.starts, rows, strict=True):
            torch.testing.assert_close(packed[start : start + len(row)], alone(row), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(TOKENS, st.lists(TOKENS, min_size=1, max_size=4))
def test_branches_continue_their_parent_and_nothing_else(prompt: list[int], branches: list[list[int]]) -> None:
    layout = lay_out([Segment(prompt), *(Segment(branch, parent=0) for branch in branches)])
    with torch.no_grad():
        packed = forward_logits(MODEL, layout, torch.arange(layout.input_ids.shape[1]))
        for start, branch in zip(layout.starts[1:], branches, strict=True):
            expected = alone(prompt + branch)[len(prompt) :]
            torch.testing.assert_close(packed[start : start + len(branch)], expected, rtol=1e-4, atol=1e-5)


def test_changing_a_token_of_one_row_changes_no_other_row_at_all() -> None:
    rows = [[5, 6, 7], [8, 9, 10, 11], [12, 13]]
    changed = [rows[0], [8, 200, 10, 11], rows[2]]
    with torch.no_grad():
        before, after = (
            forward_logits(MODEL, lay_out([Segment(r) for r in some]), torch.arange(9)) for some in (rows, changed)
        )
    same = (before == after).all(dim=-1).tolist()
    assert same == [True] * 3 + [True] + [False] * 3 + [True] * 2


def test_grandchildren_see_their_whole_line() -> None:
    layout = lay_out([Segment([5, 6]), Segment([7], 0), Segment([8], 0), Segment([9, 10], 1)])
    assert layout.starts == (0, 2, 5, 3)  # depth first: what continues 7 stands behind it
    assert layout.position_ids.tolist() == [[0, 1, 2, 3, 4, 2]]
    expected = [  # one row a query: which keys it may look at
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],  # 9 continues 7
        [1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],  # the sibling 8 does not see 7
    ]
    assert layout.mask[0, 0].int().tolist() == expected


@pytest.mark.parametrize(
    "segments", [[], [Segment([])], [Segment([1], parent=0)], [Segment([1]), Segment([2], parent=3)]]
)
def test_impossible_layouts_are_refused(segments: list[Segment]) -> None:
    with pytest.raises(ValueError, match=r"lay out|empty|parent"):
        lay_out(segments)


def test_what_a_layer_adds_to_its_scores_is_never_left_out_silently() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    capped = Gemma2ForCausalLM(
        Gemma2Config(vocab_size=32, num_key_value_heads=1, head_dim=8, attn_logit_softcapping=50.0, **sizes)
    ).eval()
    with pytest.raises(ModelError, match="Gemma2Attention asks for attention with softcap"):
        forward_logits(capped, lay_out([Segment([1, 2, 3])]), torch.arange(3))


def test_sliding_windows_of_gemma3_are_respected() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        attn_implementation="sdpa",
    )
    model = Gemma3ForCausalLM(config).eval()
    rows = [list(range(3, 15)), list(range(40, 47))]
    layout = lay_out([Segment(row) for row in rows])
    with torch.no_grad():
        packed = forward_logits(model, layout, torch.arange(19)).numpy()
        expected = np.concatenate([model(input_ids=torch.tensor([row])).logits[0].numpy() for row in rows])
    np.testing.assert_allclose(packed, expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(3, 4), min_size=1, max_size=9), min_size=1, max_size=6), st.integers(1, 4))
def test_what_rows_begin_with_is_there_once(rows: list[list[int]], shared: int) -> None:
    layout, places = lay_out_rows(rows, shared=shared)
    assert num_laid_out(rows, shared=shared) == layout.input_ids.numel()
    ids, positions, mask = layout.input_ids[0], layout.position_ids[0], layout.mask[0, 0]
    for row, place in zip(rows, places, strict=True):
        assert ids[place].tolist() == row
        assert positions[place].tolist() == list(range(len(row)))
        for number, at in enumerate(place.tolist()):
            assert mask[at].nonzero()[:, 0].tolist() == sorted(place[: number + 1].tolist())
    assert sorted({int(at) for place in places for at in place}) == list(range(len(ids)))
    for one, place in zip(rows, places, strict=True):
        for other, where in zip(rows, places, strict=True):
            common, together = common_start(one, other), int((place[:, None] == where[None, :]).any(1).sum())
            assert common - shared < together <= common


@settings(max_examples=25, deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=4), st.lists(TOKENS, min_size=1, max_size=4))
def test_shared_rows_say_what_separate_rows_say(starts: list[list[int]], ends: list[list[int]]) -> None:
    rows = [start + end for start in starts for end in ends]
    layout, places = lay_out_rows(rows, shared=2)
    with torch.no_grad():
        packed = forward_logits(MODEL, layout, torch.arange(layout.input_ids.shape[1]))
        for row, place in zip(rows, places, strict=True):
            torch.testing.assert_close(packed[place], alone(row), rtol=1e-4, atol=1e-5)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_start_is_the_longest(one: list[int], other: list[int]) -> None:
    expected = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert common_start(one, other) == expected
