"""What is trained: one module a type, of the same name as its descriptor in `luthier.spec.adapters`.

Each has `attach(model, adapter, *, base_name, seed)`, which gives what learns: the base, changed in place.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from luthier.spec.adapter_section import Adapter
from luthier.spec.plugins import ADAPTERS


class Tuner(Protocol):
    """One type."""

    def attach(self, model: Any, adapter: Adapter, *, base_name: str, seed: int) -> Any:
        """Let what the section says learn, and nothing else.

        Args:
            model: the frozen base; changed in place.
            adapter: a resolved section of this type.
            base_name: written into the adapter's config.
            seed: of what is drawn at the start.

        Raises:
            ModelError: the base has no such modules or layers.
        """
        ...


def load_tuner(name: str) -> Tuner:
    """The implementation of a type of the adapters table.

    Raises:
        RecipeError: it is not in the table.
    """
    ADAPTERS.get(name)
    return cast(Tuner, importlib.import_module(f"luthier.models.tuners.{name}"))
