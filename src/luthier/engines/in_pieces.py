"""The base asked about ids of a vocabulary that has grown: in its own tokenizer, of the same text.

A new token is one whole word, so with the base's pieces in its place the ids are exactly those that the base's own
tokenizer gives (`luthier.data.vocabulary`). What is said of a token is the sum over its pieces: the probability of the
same stretch of text, after the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.data.vocabulary import in_pieces
from luthier.engines.protocol import Engine, Item, Result, Score
from luthier.errors import ModelError


class InPieces:
    """An engine of the base that takes ids of the grown vocabulary."""

    name = "transformers, in the base's own tokens"

    def __init__(
        self,
        engine: Engine,
        pieces: Mapping[int, Sequence[int]],
        *,
        again: Callable[[Sequence[int]], list[int]],
        most: int,
    ) -> None:
        """Ask `engine`.

        Args:
            engine: the base.
            pieces: new id -> the base's ids in its place.
            again: the base's ids of a text -> those of the grown vocabulary.
            most: positions that the base has; a text of more of its own tokens is never asked about.
        """
        self._engine, self._pieces, self._again, self._most = engine, pieces, again, most

    def score(self, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Score]:
        """See `Engine`."""
        return self._engine.score(self._old(prompt_ids), [self._old(answer) for answer in answers])

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """Greedy continuation, as long a text as `max_new_tokens` of the grown vocabulary allow; ids of the base."""
        prompt, written = self._old(prompt_ids), list[int]()
        while (room := max_new_tokens - len(self._again(written))) > 0:
            more = self._engine.generate([*prompt, *written], max_new_tokens=room, stop_ids=stop_ids)
            written += more
            if len(more) < room:
                break
        return written

    def logprobs(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Log p of each token after the first, summed over its pieces, in nats; shape [T-1]."""
        lengths = [len(self._pieces.get(number, (number,))) for number in ids]
        if len(ids) < 2:
            return np.zeros(0)
        found = self._engine.logprobs(self._old(ids))
        starts = np.cumsum(lengths)[:-1] - 1  # the first piece of token t, among log-probabilities from the second on
        return np.add.reduceat(found, starts)

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """See `Engine`."""
        return self._engine.each(function, items)

    def _old(self, ids: Sequence[int]) -> list[int]:
        old = in_pieces(ids, self._pieces)
        if len(old) > self._most:
            raise ModelError(
                f"a text of {len(ids)} tokens is {len(old)} to the base's own tokenizer, and the base has {self._most} "
                "positions",
                way_out="lower train.max_length",
            )
        return old
