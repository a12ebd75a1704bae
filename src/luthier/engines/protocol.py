"""What an engine can do. Everything that asks a model asks through these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
Result = TypeVar("Result")


class Score(NamedTuple):
    """How a model finds one answer after a prompt."""

    logprob: float
    """Total log-probability in nats of all its tokens, the last one included."""
    is_greedy: bool
    """Whether greedy decoding would write exactly these tokens."""


class Engine(Protocol):
    """A model that answers token ids. Results do not depend on what else was asked before or at the same time.

    A remote server that takes messages, not ids, stands in the place of `Asker` instead.
    """

    name: str

    def score(self, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Score]:
        """How likely each answer is after the prompt, and whether it is what greedy decoding writes.

        Raises:
            ValueError: the prompt or an answer is empty.
        """
        ...

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """Greedy continuation, without the stop token; at most `max_new_tokens` ids."""
        ...

    def logprobs(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Log p(ids[t] | ids[:t]) for t = 1 .. T-1, in nats; shape [T-1]."""
        ...

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results of `function`, which asks this engine, in the order of the items; several at once where that pays.

        Every question of evaluation, `predict` and the server goes this way, so that the same is computed in the same
        way. An error of `function` is raised at its item's turn.
        """
        ...


@runtime_checkable
class HeadEngine(Protocol):
    """An engine whose model may have classification heads."""

    def class_logits(self, prompt_ids: Sequence[int], task: str = "") -> NDArray[np.float32]:
        """Score of each label after the prompt, in the order of the contract's labels; [C].

        Args:
            prompt_ids: the prompt.
            task: whose labels, where the model has a head for each of several tasks; else it has one for whatever it is
                asked.

        Raises:
            ModelError: the model has no such head.
        """
        ...

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """See `Engine`."""
        ...


class LogitsEngine(Engine, Protocol):
    """An engine that shows raw scores. Not all do: llama.cpp reports normalised log-probabilities only."""

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Raw next-token scores at every position; shape [T, vocabulary]."""
        ...
