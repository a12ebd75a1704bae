"""What of the adapter's section and of `train` does not go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.spec.adapter_section import EMBEDDINGS, Adapter
from luthier.spec.plugins import ADAPTERS, METHODS

if TYPE_CHECKING:
    from luthier.spec.recipe import Recipe, Train


def refuse_unfit_cache(adapter: Adapter, train: Train) -> None:
    """Only what frozen layers say is the same in every epoch.

    Raises:
        ValueError: train.cache_trunk is asked for where it is not.
    """
    layers = adapter.layers_to_transform
    if not train.cache_trunk:
        return
    if layers is None or layers[0] == 0:
        raise ValueError(
            "train.cache_trunk keeps the output of the layers below those that learn, and layer 0 learns; "
            "set adapter.layers_to_transform to the upper layers, or leave train.cache_trunk out"
        )
    if train.neftune_noise_alpha is not None:
        raise ValueError(
            "train.cache_trunk keeps what frozen layers say of a token, and with train.neftune_noise_alpha they say "
            "something else each time; leave one of them out"
        )
    if adapter.whole_modules:
        raise ValueError(
            "train.cache_trunk keeps the output of frozen layers, and adapter.modules_to_save may learn in them; "
            "leave one of them out"
        )


def refuse_unfit_settings(adapter: Adapter, train: Train, *, rows_learn: bool = False) -> None:
    """Settings of what does not learn would change nothing; `rows_learn` where the rows of new tokens do.

    Raises:
        ValueError: there is one.
    """
    kind = adapter.type
    if train.loraplus_lr_ratio is not None and kind != "lora":
        raise ValueError(f"train.loraplus_lr_ratio is for the matrices of LoRA, and adapter.type is {kind}")
    if train.embedding_learning_rate is not None and not (rows_learn or embeddings_learn(adapter)):
        raise ValueError(
            "train.embedding_learning_rate is for embeddings that learn; take adapter: {type: full} for all layers, "
            "name embed_tokens or lm_head in adapter.modules_to_save, or leave it out"
        )
    if train.bf16 and kind in ("full", "oft"):
        why = "no weight is frozen" if kind == "full" else "turned inputs would be rounded"
        raise ValueError(f"train.bf16 is for products with frozen weights, and with adapter.type {kind} {why}")


def refuse_beside_four_bits(recipe: Recipe) -> None:
    """What cannot be learned, or not be computed, where the base's linear layers are held in four bits.

    Raises:
        ValueError: the recipe asks for it.
    """
    kind = recipe.adapter.type
    if not ADAPTERS.get(kind).over_four_bits:
        known = ", ".join(name for name, facts in ADAPTERS.entries().items() if facts.over_four_bits)
        raise ValueError(f"adapter.type {kind} has no layers beside model.load_in_4bit: true; take one of {known}")
    if getattr(recipe.adapter, "starts_from_base", False):
        raise ValueError(
            "adapter.init_lora_weights takes a part out of the base's weights, and what model.load_in_4bit holds "
            "cannot be changed; leave one of them out"
        )
    if recipe.merge is not None:
        raise ValueError("merge adds weights up, and model.load_in_4bit holds them for training; leave one of them out")
    if recipe.launch.strategy == "fsdp":
        raise ValueError("launch.strategy fsdp divides weights, and model.load_in_4bit holds them whole; take ddp")
    if recipe.train.torch_compile:
        raise ValueError("train.torch_compile is not built for model.load_in_4bit; leave one of them out")


def refuse_unfit_measures(recipe: Recipe) -> None:
    """Methods that measure how far the model is from its base would measure noise too, and need the whole base.

    Raises:
        ValueError: the recipe has noise, or divides its layers.
    """
    method = recipe.method
    if method.type == "auto":
        return
    facts = METHODS.get(method.type)
    implicit = facts.reward == "implicit"
    if implicit and recipe.launch.strategy == "fsdp":
        raise ValueError(
            f"method.type {method.type} asks the base before training, which is not built for layers that "
            "launch.strategy fsdp divides; take ddp, or a method without a reference (orpo, simpo)"
        )
    held = method.is_held
    if recipe.train.neftune_noise_alpha is not None and (held or implicit):
        key = "method.beta" if held else f"method.type {method.type}"
        raise ValueError(
            f"{key} measures how far the model has gone from its base, and train.neftune_noise_alpha would be part of "
            "that; leave one of them out"
        )


def refuse_unfit_own_adapters(recipe: Recipe) -> None:
    """What needs weights that tasks share, or leaves no base for the adapters of several tasks to stand beside.

    Raises:
        ValueError: the recipe asks for it.
    """
    kind = recipe.adapter.type
    if ADAPTERS.get(kind).trains_base:
        raise ValueError(
            f"multi_task.adapters: per_task keeps one base for all tasks, and adapter.type {kind} trains the base "
            "itself; take an adapter, or give each task a run of its own"
        )
    if getattr(recipe.adapter, "bias", None) not in (None, "none"):
        raise ValueError(
            "multi_task.adapters: per_task keeps one base for all tasks, and adapter.bias trains biases of the base; "
            "leave adapter.bias out"
        )
    for place, entry in enumerate(recipe.data.train):
        if entry.weight != 1.0:
            raise ValueError(
                f"data.train.{place}.weight says what a task counts beside others, and with multi_task.adapters: "
                "per_task it has an adapter to itself; leave it out"
            )


def embeddings_learn(adapter: Adapter) -> bool:
    """Whether embeddings of tokens or the output head are among what is trained."""
    if ADAPTERS.get(adapter.type).trains_base:
        return adapter.layers_to_transform is None
    return any(name.endswith(EMBEDDINGS) for name in adapter.whole_modules)
