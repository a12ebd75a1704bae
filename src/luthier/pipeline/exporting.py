"""Whether the files for llama.cpp that a recipe asks for can be written and checked here, said before any work."""

from __future__ import annotations

from pathlib import Path

from luthier.engines.llama_cpp import refuse_missing_llama_cpp
from luthier.models.gguf_header import read_header
from luthier.models.gguf_tokenizer import read_json, refuse_unfit_pre, refuse_unfit_tokenizer
from luthier.models.gguf_write import refuse_unfit_config
from luthier.records import ModelShape
from luthier.spec.plugins import EXPORTS
from luthier.spec.resolve import ResolvedRecipe


def refuse_unready_exports(resolved: ResolvedRecipe, shape: ModelShape) -> None:
    """Look at tokenizer and config of the base, where the recipe asks for a file for llama.cpp.

    Raises:
        MissingExtra: xllamacpp is not installed, and what cannot be held to parity is not written.
        ModelError: llama.cpp would split texts, or compute, in another way.
    """
    if not any(EXPORTS.get(name).in_llama_cpp for name in resolved.recipe.export or ()):
        return
    refuse_missing_llama_cpp()
    path = Path(shape.path)
    if path.is_dir():
        refuse_unfit_config(read_json(path / "config.json"), f"model {shape.name!r}")
        refuse_unfit_tokenizer(path)
    else:
        values = read_header(path).values
        refuse_unfit_pre(values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.pre"), path)
