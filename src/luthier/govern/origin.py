"""What a model was made from, in words: for the card, and for a folder of weights that goes its own way."""

from __future__ import annotations

import json
import re

from luthier.records import ModelShape
from luthier.spec.base import Model
from luthier.spec.prune import pruned_shape
from luthier.spec.resolve import ResolvedRecipe

_GROWN = (
    "Its vocabulary has grown: words of the training rows are tokens that the base does not have. Take the tokenizer "
    "of this folder. Merged weights have the rows of these tokens; an adapter brings them, and needs room for them: "
    "`AutoPeftModelForCausalLM.from_pretrained` makes it, elsewhere call "
    "`model.resize_token_embeddings(len(tokenizer))` before `PeftModel.from_pretrained`, where the base has fewer rows "
    "than that."
)


def artifact_readme(resolved: ResolvedRecipe, shape: ModelShape, *, weights_sha256: str) -> str:
    """What an exported folder says of itself, so that whoever takes it as a base finds license and origin."""
    recipes = [part.recipe for part in resolved.parts]
    learned = "; ".join(f"task `{recipe.entry.task}` by method `{recipe.method.type}`" for recipe in recipes)
    if resolved.parents:
        parents = ", ".join(f"{one.run} ({one.weights_sha256[:12]})" for one in resolved.parents)
        learned += f"; merged from {parents}"
    if (prune := resolved.recipe.prune) is not None:
        smaller = pruned_shape(shape, prune)
        learned += (
            f"; it was pruned before that to {smaller.num_layers} layers, {smaller.intermediate_size:,} feed-forward "
            f"channels and {smaller.num_heads} heads a layer"
        )
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(shape.name)}",
            f"license: {json.dumps(shape.license.lower())}",
            f"tags: {json.dumps(['luthier'])}",
            "---",
            "",
            f"# {resolved.recipe.name}",
            "",
            f"Made from `{shape.name}` ({shape.sha256[:12]}) by Luthier {resolved.luthier_version}: {learned}. "
            f"Trained weights {weights_sha256[:12]}. The card of the run says what it can do.",
            "",
            *([_held(recipes[0].model), ""] if recipes[0].model.held else []),
            *([_GROWN, ""] if recipes[0].model.new_tokens is not None else []),
        ]
    )


def base_lines(shape: ModelShape, model: Model) -> list[str]:
    """The base, how it came here, and how it was held while it was trained on."""
    lines = [f"`{shape.name}` ({shape.architecture}, {shape.num_parameters:,} parameters, {shape.num_layers} layers)."]
    if shape.quantisation:
        bits = re.search(r"\d+", shape.quantisation)
        size = f" ({bits[0]} bits)" if bits else ""
        lines += [
            "",
            f"This base was dequantised from {shape.quantisation}{size} to float32 before training; "
            "what its rounding had lost is not restored by that.",
        ]
    return [*lines, "", _held(model)] if model.held else lines


def _held(model: Model) -> str:
    """In words, where the base was not trained as it is."""
    return (
        f"While the adapter learned, its linear layers were held in 4 bits ({', '.join(model.held)}), and what it says "
        "is measured beside them; the base it is compared with is the original. Merged weights are the sum that was "
        "measured. The adapter belongs beside a base that transformers loads with "
        f"`BitsAndBytesConfig({_settings_of(model)})`; on processors with AVX-512 BF16 set "
        "`support_avx512bf16_for_cpu = False` on its `Linear4bit` layers, or bitsandbytes rounds what is asked without "
        "gradients to bfloat16."
    )


def _settings_of(model: Model) -> str:
    settings = ("load_in_4bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
    return ", ".join([*(f"{key}={getattr(model, key)!r}" for key in settings), "bnb_4bit_compute_dtype=torch.float32"])
