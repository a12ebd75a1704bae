"""Tables by folder: every module of a descriptor folder is one entry, under its own file name.

A method, adapter, export or metric is two small files of one name: a descriptor here (torch-free, so that `check` and
`plan` know it) and an implementation in its room, imported by that room when it is used.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, Union

from pydantic import Discriminator, Tag

from luthier.errors import RecipeError
from luthier.spec.adapter_section import Adapter
from luthier.spec.section import Method, RewardRule, Section

PairReward = Literal["", "implicit", "per_token", "score"]
"""'implicit': the log-probability of an answer beyond what it was before training; 'per_token': its mean a token;
'score': what a head says of it."""


@dataclass(frozen=True)
class MethodFacts:
    """How a model learns."""

    name: str
    summary: str
    section: type[Method]
    """Of the recipe: its settings."""
    tasks: tuple[str, ...]
    learning_rates: tuple[tuple[float, float], ...]
    """(billions of parameters, rate): the first row that the base does not exceed counts."""
    backward_factor: float
    """Cost of forward and backward over the cost of the forward alone, with a frozen base and an adapter."""
    has_head: bool = False
    """Whether labels are chosen by a classification head, one score a label at one position, not written as words.

    Its unit is then the row: nothing but the prompt is computed, and no label is scored token by token.
    """
    reward: PairReward = ""
    """What it makes larger for the answer that is preferred, and is judged by; '' where it learns no preferences."""
    is_taught: bool = False
    """Whether it learns from a teacher that the recipe names."""
    by_rewards: bool = False
    """Whether it learns from what verifies answers that it writes itself."""

    reads_steps: bool = False
    """Whether it measures the rows of each step before it learns from them."""

    @property
    def scores_answers(self) -> bool:
        """Whether it learns to score answers that others write, and writes none itself."""
        return self.reward == "score"

    @property
    def only_if_asked(self) -> bool:
        """Whether it needs what only a recipe can name, or answers another question than the task's other methods, so
        that nothing else may choose it.
        """
        return self.is_taught or self.by_rewards or self.scores_answers


ParityMeasure = Literal["logits", "log_probabilities", "kl"]

ALL_LINEAR = "every linear layer of the base but the output head"
"""Why it is usual to adapt 'all-linear'."""


@dataclass(frozen=True)
class AdapterFacts:
    """What is trained: something beside the frozen base, or the base itself."""

    name: str
    summary: str
    section: type[Adapter]
    """Of the recipe: its settings."""
    usual: tuple[tuple[str, Any, str], ...] = ()
    """(key, value, reason) of what is filled in, in this order; a function makes value and reason from the section."""
    parameters: Callable[[Any, str, int, int], int] | None = None
    """Trained beside a linear layer: (section, last part of its name, fan_in, fan_out) -> their number."""
    trains_base: bool = False
    """Whether the base's own weights learn, so that gradients are made of all of them; there are no others then."""
    considered: bool = False
    """Whether the plan weighs it where the recipe names no adapter."""
    over_four_bits: bool = False
    """Whether it has layers for weights in four bits (peft/tuners/*/bnb.py)."""
    rate_factor: float = 1.0
    """Usual learning rate over the method's, which is that of LoRA."""
    dense_copies: float = 0.0
    """Copies of an adapted layer's weight that are made and kept for the backward pass."""


@dataclass(frozen=True)
class ExportFacts:
    """A form in which the tuned model leaves the house."""

    name: str
    summary: str
    logit_bound: float | None = None
    """Largest accepted error of logits, or of log-probabilities, over the largest absolute one."""
    kl_bound: float | None = None
    """Largest accepted KL divergence of the next token in nats, where weights are rounded."""
    in_llama_cpp: bool = False
    """Whether it is a file for llama.cpp: for answers in words alone, of `LLAMA_CPP_MODELS`, and asked there."""
    block: int = 1
    """Weights of a row that share a scale."""

    @property
    def measure(self) -> ParityMeasure:
        """What it is compared by.

        'logits': largest absolute difference over the largest absolute logit; 'log_probabilities': the same of those of
        the next token; 'kl': D(trained || artifact) of the next token, in nats.
        """
        return "kl" if self.kl_bound is not None else "log_probabilities" if self.in_llama_cpp else "logits"

    @property
    def bound(self) -> float:
        """Largest accepted of `measure`."""
        bound = self.logit_bound if self.kl_bound is None else self.kl_bound
        assert bound is not None, "an export has a bound"
        return bound


LLAMA_CPP_MODELS = ("llama", "qwen2", "qwen3")
"""Model types that are written for llama.cpp."""


@dataclass(frozen=True)
class MetricFacts:
    """A number about predictions."""

    name: str
    title: str
    """What people call it."""
    summary: str
    tasks: tuple[str, ...]
    higher_is_better: bool
    is_proportion: bool
    """Whether a binomial model may predict its interval before training."""


@dataclass(frozen=True)
class ReaderFacts:
    """A format of data files."""

    name: str
    summary: str
    suffixes: tuple[str, ...] = ()
    """Ends of names that say so, where the content does not."""
    magic: tuple[bytes, ...] = ()
    """What such a file begins with."""
    is_text: bool = False
    """Whether it has an encoding, and may be compressed (.gz, .zst)."""
    is_document: bool = False
    """Whether its rows are parts of a running text."""
    holds: str = ""
    """A part that tells it from other archives that begin alike."""
    options: tuple[str, ...] = ()
    """Keys of a data entry that only such formats have."""


@dataclass(frozen=True)
class SinkFacts:
    """A place that shows the events of training."""

    name: str
    summary: str
    packages: tuple[str, ...]
    """What must be importable."""
    extra: str
    """Of this package; it brings them."""


@dataclass(frozen=True)
class RewardFacts:
    """A way to verify an answer without a person."""

    name: str
    summary: str
    section: type[RewardRule]
    """Of the recipe: its settings."""
    package: str = ""
    """What must be importable; the extra `rewards` brings it."""


Facts = TypeVar("Facts", MethodFacts, AdapterFacts, ExportFacts, MetricFacts, ReaderFacts, SinkFacts, RewardFacts)


class Table(Generic[Facts]):
    """The entries of one descriptor folder, read once on first use."""

    def __init__(self, folder: str, what: str) -> None:
        self._folder = folder
        self._what = what
        self._entries: dict[str, Facts] | None = None

    def entries(self) -> dict[str, Facts]:
        """Name -> facts, sorted by name."""
        if self._entries is None:
            package = importlib.import_module(f"luthier.spec.{self._folder}")
            names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
            self._entries = {
                name: importlib.import_module(f"luthier.spec.{self._folder}.{name}").FACTS for name in names
            }
        return self._entries

    def names(self) -> tuple[str, ...]:
        return tuple(self.entries())

    def get(self, name: str) -> Facts:
        """The facts of `name`.

        Raises:
            RecipeError: the name is not in the table; the message lists those that are.
        """
        if name not in self.entries():
            raise RecipeError(
                f"unknown {self._what} {name!r}", way_out=f"known in this version: {', '.join(self.names())}"
            )
        return self.entries()[name]


def union_of(sections: Sequence[type[Section]]) -> Any:
    """The type of a section whose key `type` says which of these it is; without that key it is the first."""
    usual = sections[0].model_fields["type"].default

    def tag(value: Any) -> str:
        return str(value.get("type", usual) if isinstance(value, dict) else getattr(value, "type", usual))

    tagged = tuple(Annotated[section, Tag(section.model_fields["type"].default)] for section in sections)
    return Annotated[Union[tagged], Discriminator(tag)]  # noqa: UP007 (made from a table)


METHODS: Table[MethodFacts] = Table("methods", "method")
ADAPTERS: Table[AdapterFacts] = Table("adapters", "adapter")
EXPORTS: Table[ExportFacts] = Table("exports", "export")
METRICS: Table[MetricFacts] = Table("metrics", "metric")
READERS: Table[ReaderFacts] = Table("readers", "format")
SINKS: Table[SinkFacts] = Table("sinks", "sink")
REWARDS: Table[RewardFacts] = Table("rewards", "reward")
