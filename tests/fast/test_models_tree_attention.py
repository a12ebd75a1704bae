"""Attention over a tree is softmax attention over the pairs that may meet: against a plain float64 reference."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luthier.models.packing import Segment, lay_out
from luthier.models.tree_attention import attend

LENGTHS = st.sampled_from([1, 2, 5, 20, 70])


@st.composite
def trees(draw: st.DrawFn) -> list[Segment]:
    """Segments that each continue an earlier one or none."""
    made: list[Segment] = []
    for number in range(draw(st.integers(1, 9))):
        parent = draw(st.one_of(st.none(), st.integers(0, number - 1))) if number else None
        made.append(Segment([7] * draw(LENGTHS), parent))
    return made


def reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.einsum("ihd,jhd->hij", query, key) * scale
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(~mask, float("-inf")).softmax(-1), value)


@settings(max_examples=40, deadline=None)
@given(trees(), st.sampled_from([1, 2, 4]), st.integers(0, 2**31))
def test_output_and_gradients_are_those_of_the_dense_formula(segments: list[Segment], heads: int, seed: int) -> None:
    layout = lay_out(segments)
    total = layout.input_ids.shape[1]
    random = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randn(total, count, 16, generator=random).requires_grad_() for count in (4, heads, heads)
    ]  # query heads, key heads, value heads
    back = torch.randn(total, 4, 16, generator=random)
    out = attend(*inputs, layout.blocks, scale=0.3)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = reference(*exact, layout.mask[0, 0], 0.3)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad((out * back).sum(), inputs)
    wanted = torch.autograd.grad((expected * back).sum(), exact)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(trees())
def test_every_pair_that_may_meet_is_in_one_block_and_no_other_pair_is(segments: list[Segment]) -> None:
    layout = lay_out(segments)
    seen = torch.zeros(layout.input_ids.shape[1], layout.input_ids.shape[1], dtype=torch.int64)
    for squares in layout.blocks.squares:
        for number, (index, real) in enumerate(zip(squares.index, squares.real, strict=True)):
            places = index[real]
            size = len(places)
            allowed = torch.ones(size, size).tril() == 1
            if squares.mask is not None:
                allowed = squares.mask[number, 0, :size, :size] == 0
            seen[places[:, None], places[None, :]] += allowed.long()
    for rectangle in layout.blocks.rectangles:
        seen[rectangle.queries, rectangle.keys] += 1
    assert torch.equal(seen, layout.mask[0, 0].long())


@given(trees(), st.data())
@settings(max_examples=20, deadline=None)
def test_a_number_that_is_none_is_never_swallowed(segments: list[Segment], data: st.DataObject) -> None:
    layout = lay_out(segments)
    total = layout.input_ids.shape[1]
    query, key, value = (torch.randn(total, 2, 8) for _ in range(3))
    broken = data.draw(st.integers(0, total - 1))
    query[broken] = float("nan")
    assert attend(query, key, value, layout.blocks, scale=1.0)[broken].isnan().all()


def test_scores_of_any_size_leave_no_trace_in_what_fills_up() -> None:
    layout = lay_out([Segment([1] * 9), Segment([1] * 7), Segment([1])])  # computed together, the shorter filled up
    assert not all(squares.real.all() for squares in layout.blocks.squares)
    query, key, value = (torch.randn(17, 2, 8) for _ in range(3))
    query[9:16] *= 1e4
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    for gradient in torch.autograd.grad(attend(*inputs, layout.blocks, scale=1.0).sum(), inputs):
        assert torch.isfinite(gradient).all()
