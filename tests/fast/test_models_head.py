"""Losses made chunk by chunk are those of the whole matrix of scores, and so are their gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Linear
from torch.nn.functional import cross_entropy

from luthier.models import head
from tiny import llama


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_losses_and_gradients_are_those_of_cross_entropy(
    bias: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_CHUNK", chunk)
    torch.manual_seed(0)
    layer, targets, weights = Linear(8, 31, bias=bias), torch.randint(31, (7,)), torch.rand(7)
    hidden = torch.randn(7, 8, requires_grad=True)
    inputs = [hidden, *layer.parameters()]
    found = head.token_losses(hidden, layer, targets)
    expected = cross_entropy(layer(hidden), targets, reduction="none")
    torch.testing.assert_close(found, expected)
    by_ours = torch.autograd.grad((found * weights).sum(), inputs)
    by_torch = torch.autograd.grad((expected * weights).sum(), inputs)
    for one, other in zip(by_ours, by_torch, strict=True):
        torch.testing.assert_close(one, other)


def test_the_whole_matrix_of_scores_is_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    widest = []
    real = head.product
    monkeypatch.setattr(head, "product", lambda *given: widest.append(len(given[0])) or real(*given))
    hidden = torch.randn(1000, 4, requires_grad=True)
    frozen = Linear(4, 9, bias=False).requires_grad_(False)
    head.token_losses(hidden, frozen, torch.zeros(1000, dtype=torch.int64)).sum().backward()
    assert max(widest) == 256
    assert sum(widest) == 1000


def test_a_head_that_does_more_than_a_product_is_noticed() -> None:
    from transformers import CohereConfig, CohereForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    scaled = CohereForCausalLM(CohereConfig(vocab_size=32, logit_scale=0.5, **sizes)).eval()
    assert head.has_plain_head(llama())
    assert not head.has_plain_head(scaled)
