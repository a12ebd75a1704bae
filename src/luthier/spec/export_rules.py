"""What a form of export cannot hold, said before anything is read."""

from __future__ import annotations

from luthier.errors import RecipeError
from luthier.records import ModelShape
from luthier.spec.plugins import EXPORTS, LLAMA_CPP_MODELS, METHODS
from luthier.spec.prune import pruned_shape
from luthier.spec.recipe import Recipe


def refuse_unfit_exports(recipe: Recipe, shape: ModelShape) -> None:
    """Hold the files for llama.cpp among the exports of a resolved recipe against method and base.

    Raises:
        RecipeError: labels are chosen by a head, or the base is a model that is not written so.
    """
    for place, name in enumerate(recipe.export or ()):
        facts, problem = EXPORTS.get(name), ""
        if not facts.in_llama_cpp:
            continue
        way_out = f"leave {name} out of export"
        left = pruned_shape(shape, recipe.prune)
        rows = (left.hidden_size, left.intermediate_size, left.num_heads * left.head_dim)
        if METHODS.get(recipe.method.type).has_head:
            problem = f"method {recipe.method.type} answers by a head, and llama.cpp asks a GGUF file for words"
            way_out = "export adapter and merged, or take a method that answers in words"
        elif recipe.model.new_tokens is not None:
            problem = "llama.cpp would cut words that model.new_tokens added in pieces again"
            way_out = "export merged, or leave model.new_tokens out"
        elif shape.architecture not in LLAMA_CPP_MODELS:
            problem = f"{shape.name} is a {shape.architecture}, written for llama.cpp are {', '.join(LLAMA_CPP_MODELS)}"
        elif odd := [row for row in rows if row % facts.block]:
            problem = f"{shape.name} has rows of {odd[0]} weights, and {facts.block} share a scale"
            way_out = "export gguf instead"
        if problem:
            raise RecipeError(f"export: {name}: {problem}", way_out=way_out, key=f"export.{place}")
