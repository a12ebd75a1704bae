"""Words of the training rows that become tokens of their own: which, and what goes with a vocabulary that has grown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from luthier.spec.adapter_section import EMBEDDINGS
from luthier.spec.section import Section

if TYPE_CHECKING:
    from luthier.spec.filler import Filler
    from luthier.spec.recipe import Recipe

Term = Annotated[str, Field(min_length=1)]

METHODS_WITH = ("pretrain", "sft")
"""Methods that learn words from given rows: what they supervise is read again from the text, whatever the tokens."""
ADAPTERS_WITH = ("lora", "full")
"""PEFT trains rows of embeddings beside LoRA alone; where all weights learn, so do these."""

USUAL_COUNT = 500


class NewTokens(Section):
    """Beside the tokens of the base, whose ids stay as they are."""

    count: int | None = Field(
        None, ge=0, le=50_000, description="Words of the training rows, at most; those that save most."
    )
    min_count: int = Field(10, ge=2, description="Times that a word must occur.")
    min_documents: int = Field(
        5, ge=2, description="Groups of rows that it must occur in, so that it is no name of one."
    )
    terms: str | tuple[Term, ...] | None = Field(
        None, description="Words that become tokens whatever their number, or a file with one a line."
    )

    @field_validator("terms", mode="before")
    @classmethod
    def _are_words_or_a_file(cls, value: object) -> object:
        """One message for a union."""
        words = isinstance(value, list | tuple) and value and all(isinstance(one, str) and one.strip() for one in value)
        if value is None or words or (isinstance(value, str) and value.strip()):
            return value
        raise ValueError("is a list of words, none of them empty, or the name of a file with one a line")

    @property
    def file(self) -> str | None:
        """The file of terms; None where they stand in the recipe, or there are none."""
        return self.terms if isinstance(self.terms, str) else None

    @property
    def most(self) -> int:
        """Tokens that are added at most: a word that is named is one behind a blank and one without."""
        return (self.count or 0) + (0 if self.terms is None or self.file else 2 * len(self.terms))


def fill_new_tokens(filler: Filler) -> None:
    """How many words are looked for, where the recipe leaves it open."""
    given: dict[str, Any] | None = filler.tree["model"]["new_tokens"]
    if given is None:
        return
    filler.reasons.pop("model.new_tokens", None)
    if given["terms"] is None:
        filler.fill("model.new_tokens.count", USUAL_COUNT, "about a hundredth of a usual vocabulary")
    else:
        filler.fill("model.new_tokens.count", 0, "the words are named in model.new_tokens.terms")


def refuse_beside_new_tokens(recipe: Recipe) -> None:
    """What is not built for a vocabulary that has grown.

    Raises:
        ValueError: the recipe asks for it.
    """
    given = recipe.model.new_tokens
    if given is None:
        return
    if given.count == 0 and given.terms is None:
        raise ValueError("model.new_tokens looks for no word (count: 0) and names none; leave it out, or raise count")
    kind, method, train = recipe.adapter.type, recipe.method.type, recipe.train
    if method != "auto" and method not in METHODS_WITH:
        raise ValueError(
            f"model.new_tokens is built for method {' and '.join(METHODS_WITH)}, not for {method}; leave it out, or "
            "learn the domain first (method: pretrain) and take its merged folder as model.name"
        )
    if kind not in ADAPTERS_WITH:
        raise ValueError(f"adapter.type {kind} cannot learn model.new_tokens; take {' or '.join(ADAPTERS_WITH)}")
    odd = {
        "several tasks (data.train)": len(recipe.data.train) > 1,
        "merge, which adds up weights of one vocabulary": recipe.merge is not None,
        "prune": recipe.prune is not None,
        "model.load_in_4bit": recipe.model.load_in_4bit,
        "launch.strategy fsdp": recipe.launch.strategy == "fsdp",
        "train.bf16": bool(train.bf16),
        "train.torch_compile": bool(train.torch_compile),
        "train.cache_trunk, below which embeddings learn": bool(train.cache_trunk),
        "train.neftune_noise_alpha": train.neftune_noise_alpha is not None,
        "data.too_long: cut": recipe.data.too_long != "drop",
        "adapter.init_lora_weights": bool(getattr(recipe.adapter, "starts_from_base", False)),
        "adapter.layers_to_transform with adapter.type full, which leaves embeddings out": kind == "full"
        and recipe.adapter.layers_to_transform is not None,
        "embeddings in adapter.modules_to_save": any(one.endswith(EMBEDDINGS) for one in recipe.adapter.whole_modules),
        "embeddings in adapter.target_modules": _targets_embeddings(recipe),
    }
    for what, is_asked in odd.items():
        if is_asked:
            raise ValueError(f"model.new_tokens is not built together with {what}; leave one of them out")


def _targets_embeddings(recipe: Recipe) -> bool:
    targets = getattr(recipe.adapter, "target_modules", None)
    if isinstance(targets, str):  # an expression may mean anything
        return targets != "all-linear"
    return any(one.endswith(EMBEDDINGS) for one in targets or ())
