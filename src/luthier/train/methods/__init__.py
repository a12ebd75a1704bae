"""How a model learns: one module a method, of the same name as its descriptor in `luthier.spec.methods`.

Each has `open_method(settings, contract) -> Method`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from torch import Tensor

from luthier.data.shards import Example
from luthier.records import RequestContract
from luthier.spec.plugins import METHODS
from luthier.spec.section import Method as Settings

if TYPE_CHECKING:
    from luthier.train.trunk import Trunk


class Method(Protocol):
    """What the loop needs. Sum and count are in the method's own unit; the loop divides once, over the whole step."""

    def count(self, example: Example) -> int:
        """Units that this row adds to the step's count, e.g. its supervised tokens."""
        ...

    def computed(self, example: Example) -> Sequence[Sequence[int]]:
        """The token sequences that this row's loss is computed from; what they begin with alike is computed once."""
        ...

    def loss_sum(
        self,
        model: Any,
        examples: Sequence[Example],
        weights: Sequence[float] | None = None,
        trunk: Trunk | None = None,
    ) -> Tensor:
        """Sum of the loss over the units of these rows, computed in one forward pass; scalar, in nats.

        Where there are weights, one for each row, the loss of each of its units is multiplied by its row's. Where there
        is a trunk, the layers that learn start at its states.
        """
        ...


def load_method(settings: Settings, contract: RequestContract) -> Method:
    """The method that a resolved section asks for, for a task that is asked as the contract says.

    Raises:
        RecipeError: its type is not in the table.
    """
    METHODS.get(settings.type)
    module = importlib.import_module(f"luthier.train.methods.{settings.type}")
    return cast(Method, module.open_method(settings, contract))
