"""What a training learns from: the rows of one task, or of several that share its steps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from luthier.data.shards import Example
from luthier.spec.multi_task import MultiTask
from luthier.train.methods import Method
from luthier.train.over_prompts import learns_by_head


@dataclass(frozen=True)
class TaskRows:
    """One task: its rows, and how they are learned."""

    name: str
    method: Method
    examples: Sequence[Example]
    weight: float = 1.0
    """What it counts in the loss beside others."""


@dataclass(frozen=True)
class Inputs:
    """What is trained on, and what it was made from. Rows are numbered through, task after task."""

    tasks: tuple[TaskRows, ...]
    model_sha256: str
    data_sha256: str
    recipe_sha256: str
    mix: MultiTask = field(default_factory=MultiTask)
    own: Mapping[int, Example] = field(default_factory=dict)
    """Rows as one step sees them, whose answers the model wrote itself."""

    @property
    def key(self) -> str:
        return f"{self.recipe_sha256}:{self.data_sha256}:{self.model_sha256}"

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Number of each task's first row; last, how many rows there are."""
        return tuple(accumulate((len(task.examples) for task in self.tasks), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def task_of(self, row: int) -> int:
        """The place of the task that a row is of."""
        return bisect_right(self.starts, row, hi=len(self.tasks)) - 1

    def example(self, row: int) -> Example:
        """The row itself."""
        if row in self.own:
            return self.own[row]
        place = self.task_of(row)
        return self.tasks[place].examples[row - self.starts[place]]

    def examples(self, rows: Sequence[int]) -> list[Example]:
        """These rows."""
        return [self.example(row) for row in rows]

    def learned(self, row: int) -> int:
        """Supervised tokens of a row, of a pair those of both answers; 1 where a head learns, which learns no token."""
        by_head = learns_by_head(self.tasks[self.task_of(row)].method)
        return 1 if by_head else self.example(row).num_supervised

    def all(self) -> list[Example]:
        """Every row, in the order of the numbers."""
        return self.examples(range(len(self)))

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row; of a pair, of the prompt and both answers."""
        return [example.num_tokens for example in self.all()]
