"""The accelerator's attention looks at exactly the pairs of the layout; its gradient is tried where there is one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask
from torch.nn.functional import scaled_dot_product_attention

from luthier.errors import ModelError
from luthier.models.flex import Looks, attend, block_mask, looks_of
from luthier.models.packing import Layout, Segment, lay_out
from luthier.models.tree_attention import attend as attend_here


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Trees of up to eight segments; some longer than a block of the kernel."""
    segments = []
    for number in range(draw(st.integers(1, 8))):
        parent = draw(st.none() | st.integers(0, number - 1)) if number else None
        segments.append(Segment([3] * draw(st.integers(1, 12) | st.integers(120, 140)), parent))
    return lay_out(segments)


def looks(layout: Layout, device: str = "cpu") -> Looks:
    return looks_of(layout, window=None, dtype=None, device=torch.device(device))


@settings(max_examples=30, deadline=None)
@given(layouts(), st.none() | st.integers(1, 30))
def test_the_pairs_and_the_blocks_are_those_of_the_dense_mask(layout: Layout, window: int | None) -> None:
    mask = (layout.mask if window is None else layout.window(window))[0, 0]
    blocks, length = block_mask(layout, window, torch.device("cpu")), len(mask)
    assert torch.equal(create_mask(blocks.mask_mod, 1, 1, length, length, device="cpu")[0, 0], mask)
    padded = torch.zeros(-(-length // 128) * 128, -(-length // 128) * 128, dtype=torch.bool)
    padded[:length, :length] = mask
    inhabited = padded.unfold(0, 128, 128).unfold(1, 128, 128).any(-1).any(-1)
    found = blocks.to_dense()[0, 0].bool()
    assert torch.equal(found, inhabited) if window is None else bool((found | ~inhabited).all())
    assert blocks.full_kv_num_blocks is not None
    assert blocks.full_kv_indices is not None
    for query, count in enumerate(blocks.full_kv_num_blocks[0, 0]):  # of these the kernel asks for no pair
        for key in blocks.full_kv_indices[0, 0, query, :count]:
            assert padded[query * 128 : (query + 1) * 128, key * 128 : (key + 1) * 128].all()


@pytest.mark.filterwarnings("ignore:.*without torch.compile")  # said once a process, if at all
@pytest.mark.parametrize("size", [16, 8])
def test_it_says_what_the_dense_mask_says(size: int) -> None:
    torch.manual_seed(0)
    layout = lay_out([Segment([3] * 130), Segment([4] * 5, 0), Segment([5] * 9, 0), Segment([6] * 4)])
    query, key, value = (torch.randn(1, heads, 148, size) for heads in (6, 2, 2))
    expected = scaled_dot_product_attention(query, key, value, attn_mask=layout.mask, scale=0.3, enable_gqa=True)
    found = attend(query, key, value, looks(layout), scale=0.3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_layer_with_a_window_of_its_own_is_refused() -> None:
    rows = lay_out([Segment([3] * 12)])
    query = torch.randn(1, 2, 12, 16)
    narrow = looks_of(rows, window=8, dtype=None, device=torch.device("cpu"))
    with pytest.raises(ModelError, match=r"looks back 4 tokens, and sliding_window of the model's config.json is 8"):
        attend(query, query, query, narrow, scale=1.0, window=4)


def test_blocks_in_which_nobody_looks_are_left_out() -> None:
    rows = lay_out([Segment([3] * 256) for _ in range(4)])  # four rows of two blocks: 4 x 3 of 64 blocks are looked at
    blocks = block_mask(rows, None, torch.device("cpu"))
    looked_at = int(blocks.kv_num_blocks.sum()) + int(blocks.full_kv_num_blocks.sum())  # type: ignore[union-attr]
    assert looked_at == 12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: the kernel has no gradient elsewhere")
@pytest.mark.parametrize("size", [64, 8])
def test_gradients_on_an_accelerator_are_those_of_the_processor(size: int) -> None:
    torch.manual_seed(0)
    layout = lay_out([Segment([3] * 300), Segment([4] * 50, 0), Segment([5] * 170, 0), Segment([6] * 40)])
    length = layout.input_ids.numel()
    here = [torch.randn(length, heads, size, requires_grad=True) for heads in (6, 2, 2)]
    there = [one.detach().cuda().transpose(0, 1)[None].requires_grad_() for one in here]
    weight = torch.randn(length, 6, size)
    (attend_here(*here, layout.blocks, scale=0.125) * weight).sum().backward()
    (attend(*there, looks(layout, "cuda"), scale=0.125)[0].transpose(0, 1) * weight.cuda()).sum().backward()
    for one, other in zip(here, there, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(other.grad[0].transpose(0, 1).cpu(), one.grad, rtol=1e-3, atol=1e-4)
