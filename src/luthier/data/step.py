"""What a refining step is, and what steps share: the rows under way and what was found out about them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from luthier.data.by_meaning import Meanings
from luthier.data.contract import Renderer
from luthier.data.crew import Crew
from luthier.data.items import Item, Ledger
from luthier.data.likeness import Comparison, Likeness
from luthier.data.shards import Shard
from luthier.records import RequestContract
from luthier.spec.resolve import ResolvedRecipe

Facts = Mapping[str, object]
"""What a step has to say in the data report: field -> value."""


@dataclass
class Flow:
    """The rows on their way through the steps."""

    resolved: ResolvedRecipe
    renderer: Renderer
    """Of the request contract, as far as it is known."""
    ledger: Ledger
    crew: Crew
    out: Path
    part_rows: int
    """Rows of a part that is looked into for personal data."""
    items: list[Item] = field(default_factory=list)
    likeness: Likeness | None = None
    """Of the rows as they are; there for steps that compare, and only until the last of them."""
    meanings: Meanings | None = None
    """There where the recipe compares by meaning, until the last step that does."""

    @property
    def contract(self) -> RequestContract:
        return self.renderer.contract


class Step:
    """A named step; what it sets aside it tells the ledger, with counts before and after."""

    changes_texts: ClassVar[bool] = False
    """Whether rows must be named and signed anew before they are compared."""

    @classmethod
    def of(cls, flow: Flow) -> Self:
        """The step for the recipe of the flow."""
        return cls()

    def tell(self, train: Shard, flow: Flow) -> Facts:
        """What can be told only once the rows are tokens."""
        return {}


class RowStep(Step, ABC):
    """Looks at each row by itself. Such steps in a row are one pass over the parts, in whatever process.

    An object of it goes to other processes, as does what `sift` makes.
    """

    looks: ClassVar[bool] = False
    """Whether it needs the detector of the recipe, which the ledger then has."""

    @abstractmethod
    def sift(self, items: list[Item], ledger: Ledger) -> tuple[list[Item], Any]:
        """The rows of a part that stay, and what `gather` is to know of it; nothing may depend on other parts."""

    def gather(self, made: Sequence[Any], flow: Flow) -> Facts:
        """Put together what was made of the parts, once all of them are through the pass."""
        return {}


class WholeStep(Step, ABC):
    """Looks at all rows together."""

    needs_names: ClassVar[bool] = True
    """Whether it reads groups and digests."""
    by_meaning: ClassVar[bool] = False
    """Whether it may ask `flow.meanings`."""

    @abstractmethod
    def sift(self, flow: Flow) -> Facts:
        """Replace the rows of the flow by those that stay."""

    def comparison(self, flow: Flow) -> Comparison | None:
        """How it compares rows by likeness; None where it does not."""
        return None
