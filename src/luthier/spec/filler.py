"""Fill open fields of a recipe, each with its reason; what is given wins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from luthier.records import Record
from luthier.spec.recipe import Recipe


class Machine(Record):
    """What the resolution may know of this machine."""

    threads: int = Field(description="Processors this process may use.")
    accelerator: Literal["cuda"] | None = Field(None, description="What the driver and the installed torch can use.")
    missing_for_privacy: str = Field(
        "presidio-analyzer", description="The first package of the extra 'privacy' that is not installed; '' for none."
    )


GIVEN = "given in the recipe"


class Filler:
    """Collects values and reasons; what is given wins."""

    def __init__(self, recipe: Recipe) -> None:
        self.tree = recipe.model_dump(mode="json")
        given = dict(leaves(recipe.model_dump(mode="json", exclude_unset=True)))
        self.reasons = {
            key: GIVEN if key in given else "open on purpose" if value is None else "the default"
            for key, value in leaves(self.tree)
        }

    def fill(self, key: str, value: object, reason: str) -> Any:
        *path, leaf = key.split(".")
        place: Any = self.tree
        for part in path:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if place.get(leaf) is None:
            place[leaf] = value
            self.reasons[key] = reason
        return place[leaf]


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Key path -> value of everything that is not a section; items of a list of sections are `key.0`."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else key)
    elif isinstance(tree, list) and tree and isinstance(tree[0], dict):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{prefix}.{index}")
    else:
        yield prefix, tree
