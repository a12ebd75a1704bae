"""Where the rules' method does not go with a recipe's other settings, another one is taken, and that is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import samples

from luthier.errors import RecipeError
from luthier.pipeline.choose import Choice, techniques
from luthier.pipeline.known import Earlier
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe
from luthier.spec.plugins import METHODS
from luthier.spec.resolve import ResolvedRecipe, resolve


def found(*, refused: set[str], method: str, **sections: object) -> Choice:
    """Techniques of the sample recipe, of which some methods are refused for what else it says."""

    def again(loaded: LoadedRecipe) -> ResolvedRecipe:
        if loaded.recipe.method.type in refused:
            raise RecipeError(f"canaries do not go with {loaded.recipe.method.type}")
        return resolve(
            loaded,
            samples.profile(),
            samples.shape(),
            machine=Machine(threads=1),
            data_sha256={},
            luthier_version="0",
        )

    loaded = LoadedRecipe(samples.recipe(method={"type": method}, **sections), Path("r.yaml"), "", ())
    return techniques(loaded, again, known=lambda resolved: Earlier(), alone=True)


def test_another_method_is_taken_and_the_reason_stands_in_the_notes() -> None:
    made = found(refused={"auto"}, method="auto")
    able = [name for name, facts in METHODS.entries().items() if "classification" in facts.tasks]
    assert made.resolved.recipe.method.type == able[0]
    assert made.resolved.reasons["method.type"] == "the first that the recipe's other settings go with"
    assert made.left_out[0] == "What suits best is not weighed: canaries do not go with auto"


def test_what_is_asked_for_and_does_not_go_is_refused() -> None:
    with pytest.raises(RecipeError, match="canaries do not go with sft"):
        found(refused={"sft"}, method="sft")
    with pytest.raises(RecipeError, match="canaries do not go with auto"):
        found(refused={"auto", *METHODS.names()}, method="auto")


@pytest.mark.parametrize("asked", [{"train": {"bf16": True}}, {"model": {"name": "m", "load_in_4bit": True}}])
def test_what_an_adapter_does_not_go_with_leaves_it_out_of_the_plan(asked: dict[str, object]) -> None:
    made = found(refused=set(), method="sft", **asked)
    assert {one.recipe.adapter.type for one in (made.resolved, *made.others)} == {"lora"}
    (said,) = [line for line in made.left_out if line.startswith("'full sft' is not weighed")]
    assert "full" in said.partition(": ")[2]
