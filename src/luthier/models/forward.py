"""A forward pass over a packed row, through transformers' own modules: only their attention is replaced by ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from luthier.errors import ModelError
from luthier.models import flex
from luthier.models.half import is_halved
from luthier.models.neftune import Neftune
from luthier.models.packing import Layout, lay_out_rows
from luthier.models.tree_attention import attend

NAME = "luthier"
_CHECKING = Lock()
_checked: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # a cap on scores, sinks, a learned bias


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Layout | None = None,
    looks: flex.Looks | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer, as transformers' modules ask for it.

    Args:
        module: the asking layer.
        query: [n, H, T, d].
        key: [n, G, T, d].
        value: [n, G, T, d].
        attention_mask: of the library; not read with a layout.
        scaling: of the products; 1 / sqrt(d) where it is None.
        layout: of the packed row, n = 1; None in a call that is not ours (generation).
        looks: the same for an accelerator; None on a processor.
        kwargs: what a kind of layer adds (its window).

    Returns:
        [n, T, H, d], and no weights.

    Raises:
        ModelError: the layer adds something to the scores that would be left out; or see `flex.attend`.
    """
    strange = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if strange:
        raise ModelError(
            f"{type(module).__name__} asks for attention with {', '.join(strange)}, which is not computed here",
            way_out="choose a base whose attention is a softmax over keys alone (Llama, Qwen, Mistral, Gemma 3, ...)",
        )
    if layout is None:
        return _by_library(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    width = kwargs.get("sliding_window")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if looks is not None and not kwargs.get("dropout"):
        return flex.attend(query, key, value, looks, scale=scale, window=width).transpose(1, 2), None
    window = width if width is not None and layout.longest > width else None
    if kwargs.get("dropout") or window is not None:
        mask = layout.kept(
            ("mask", window, query.device),
            lambda: (layout.mask if window is None else layout.window(window)).to(query.device),
        )
        return _by_library(module, query, key, value, mask, scaling=scaling, **kwargs)
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return attend(queries, keys, values, layout.blocks, scale=scale)[None], None


def _by_library(*given: Any, **settings: Any) -> tuple[Tensor, None]:
    out, _ = sdpa_attention_forward(*given, **settings)
    return out, None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def is_noisy(model: Any) -> bool:
    """Whether noise makes every row its own at this moment, so that nothing may be computed for several."""
    if any(draws(part) and part.training for part in model.modules()):
        return True
    return bool(model.training) and drops_out_by_config(model)


def draws(part: nn.Module) -> bool:
    """Whether a module computes something else each time while it trains: dropout, or noise on embeddings."""
    return (isinstance(part, nn.Dropout) and part.p > 0) or isinstance(part, Neftune)


def drops_out_by_config(model: Any) -> bool:
    """Whether the base's own settings ask for dropout; some families have no module for it."""
    return any(
        isinstance(value, float) and value > 0
        for key, value in model.config.get_text_config().to_dict().items()
        if ("dropout" in key or key.endswith(("pdrop", "layerdrop")))
        and not key.startswith("classifier")  # of a head that a language model does not have
    )


def hidden_states(model: Any, layout: Layout) -> Tensor:
    """What the output head reads, for each token of the packed row; [T, hidden]."""
    output = model.get_decoder()(**_inputs(model, layout))
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def forward_logits(model: Any, layout: Layout, keep: Tensor) -> Tensor:
    """Next-token scores of the packed row at the indices `keep` [K]; shape [K, vocabulary].

    Only the kept positions pass through the output head.
    """
    return model(**_inputs(model, layout), logits_to_keep=keep).logits[0]  # type: ignore[no-any-return]


@contextmanager
def in_evaluation(model: Any) -> Iterator[None]:
    """Without dropout, which would also move the random state, and without gradients; as it was afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def check_packing(model: Any) -> None:
    """See once a model that packed rows say what the rows say alone, by the library's plain attention.

    Families differ in ways that no list keeps up with: layers that read across rows whatever the mask (convolutions,
    state spaces), models that do not hand our layout on, scores that attention adds to.

    Raises:
        ModelError: they do not, so nothing can be trained or asked of this base here.
    """
    with _CHECKING:
        if model in _checked:
            return
        shared = [3, 5, 7, 4, 6, 8, 3, 9, 5, 4]
        rows = [[*shared, 6, 7], [*shared, 8], [9, 3, 8]]
        try:
            with in_evaluation(model):
                model.set_attn_implementation("eager")
                device = model.device
                alone = [model(input_ids=torch.tensor([r], device=device), use_cache=False).logits[0] for r in rows]
                model.set_attn_implementation(NAME)
                layout, places = lay_out_rows(rows)
                packed = model(**_given(model, layout)).logits[0]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:  # as families say it
            raise _unfit(model, f"{type(error).__name__}: {error}") from error
        if not all(torch.isfinite(row).all() for row in alone):
            return  # broken weights: whoever computes with them will see it, and nothing can be compared
        apart = max(
            float((packed[place.to(packed.device)] - row).abs().max()) for place, row in zip(places, alone, strict=True)
        )
        scale = max(1.0, max(float(row.abs().max()) for row in alone))
        exact = packed.dtype == torch.float32 and not is_halved(model)
        if not apart <= (1e-3 if exact else 5e-2) * scale:
            raise _unfit(model, f"scores of packed rows are off by {apart:.2g}")
        _checked[model] = True


def _unfit(model: Any, why: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be computed in packed rows here ({why})",
        way_out="choose a base whose attention is a softmax over keys alone (Llama, Qwen 2 and 3, Mistral, Gemma 3)",
    )


def _inputs(model: Any, layout: Layout) -> dict[str, Any]:
    check_packing(model)
    if model.config._attn_implementation != NAME:  # any other would ignore the layout, and rows would see each other
        model.set_attn_implementation(NAME)
    return _given(model, layout)


def _given(model: Any, layout: Layout) -> dict[str, Any]:
    device = model.device
    config = model.config.get_text_config()
    return {
        "input_ids": layout.input_ids.to(device),
        "position_ids": layout.position_ids.to(device),
        # Of four dimensions, so that the library adds nothing to it; our attention goes by the layout.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
        "layout": layout,  # read by our attention, as `looks` is
        "looks": None
        if device.type == "cpu"
        else layout.kept(
            ("looks", device),
            lambda: flex.looks_of(
                layout,
                window=getattr(config, "sliding_window", None),
                dtype=torch.bfloat16 if is_halved(model) else None,
                device=device,
            ),
        ),
        "use_cache": False,
    }
