"""Does a file say the same in another engine, which shows no logits? Compared by the distribution of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from luthier.engines.parity import _MAX_GREEDY, _text_difference
from luthier.engines.protocol import LogitsEngine
from luthier.records import Golden, ParityCheck, RequestContract

Vector = NDArray[np.float64]


@runtime_checkable
class NextTokenEngine(Protocol):
    """Another engine, with a tokenizer and a chat template of its own."""

    def encode(self, contract: RequestContract, user_text: str) -> tuple[str, list[int]]:
        """User text -> (prompt, ids), as a user of that engine would have it."""
        ...

    def next_logprobs(self, ids: Sequence[int]) -> Vector:
        """Log-probability of every token after `ids`, in nats; [vocabulary]."""
        ...

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """See `Engine`; it may end at other tokens too."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def check_next_token(
    reference: LogitsEngine,
    candidate: NextTokenEngine,
    goldens: Sequence[Golden],
    *,
    contract: RequestContract,
    measure: Literal["log_probabilities", "kl"],
    bound: float,
) -> ParityCheck:
    """Compare `candidate` with `reference` on every golden prompt: text and ids, the next token, the greedy text.

    Rounding may turn a greedy text where two tokens are nearly as likely. Such a prompt is listed, not refused, where
    both models, asked at the place at which they part, are within the bound there too.

    Args:
        reference: what was trained.
        candidate: the file, opened.
        goldens: prompts chosen at prepare time.
        contract: for stop tokens and answer length.
        measure: 'log_probabilities': largest difference over the largest log-probability of the reference; 'kl':
            D(reference || candidate) = sum p (log p - log q) in nats.
        bound: largest accepted of it.
    """
    limit = min(contract.max_new_tokens, _MAX_GREEDY)

    def apart(ids: Sequence[int]) -> float:
        return distance(log_softmax(reference.logits(ids)[-1]), candidate.next_logprobs(ids), measure=measure)

    def compare(golden: Golden) -> _Compared:
        text, ids = candidate.encode(contract, golden.text)
        if text != golden.prompt or tuple(ids) != golden.prompt_ids:
            return _Compared(False, 0.0, False, problem=_text_difference(golden, text, ids))
        error = apart(ids)
        if not error <= bound:
            said = _SAID[measure].format(error=error, bound=bound)
            return _Compared(True, error, False, problem=f"golden {golden.name!r}: {said}")
        ours, theirs = (
            engine.generate(ids, max_new_tokens=limit, stop_ids=contract.stop_ids) for engine in (reference, candidate)
        )
        if ours == theirs:
            return _Compared(True, error, True)
        pairs = zip(ours, theirs, strict=False)
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
        there = apart([*ids, *ours[:place]])
        difference = f"golden {golden.name!r}: greedy ids {theirs}, expected {ours}"
        if not there <= bound:
            said = _SAID[measure].format(error=there, bound=bound)
            return _Compared(True, there, False, problem=f"{difference}; from token {place} on, where {said}")
        return _Compared(True, max(error, there), False, listed=difference)

    compared = list(reference.each(compare, goldens))
    problem = next((one.problem for one in compared if one.problem), "")
    return ParityCheck(
        prompts=len(goldens),
        ids_equal=all(one.ids_equal for one in compared),
        max_logit_error=max((one.error for one in compared), default=0.0),
        bound=bound,
        measure=measure,
        greedy_equal=sum(one.greedy_equal for one in compared),
        listed=tuple(one.listed for one in compared if one.listed),
        passed=bool(goldens) and not problem,
        first_difference=problem or ("" if goldens else "there is no golden prompt to compare"),
        answered_by=contract.answered_by,
    )


_SAID = {
    "log_probabilities": "log-probabilities of the next token differ by {error:.2e} of the largest, bound {bound:.0e}",
    "kl": "the KL divergence of the next token is {error:.2e} nats, bound {bound:.0e}",
}


def log_softmax(logits: NDArray[np.float32]) -> Vector:
    """Of raw scores [vocabulary], in float64."""
    wide = logits.astype(np.float64)
    normalised: Vector = wide - np.logaddexp.reduce(wide)
    return normalised


def distance(expected: Vector, found: Vector, *, measure: Literal["log_probabilities", "kl"]) -> float:
    """Between two distributions given by log-probabilities [vocabulary]; infinite where one is none, or of others."""
    if expected.shape != found.shape:
        return float("inf")
    if measure == "kl":
        error = max(0.0, float((np.exp(expected) * (expected - found)).sum()))  # below 0 by rounding alone
    else:
        error = float(np.abs(expected - found).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
    return error if np.isfinite(found).all() and np.isfinite(error) else float("inf")


class _Compared(NamedTuple):
    """One golden prompt; at most one of `problem` and `listed` is not empty."""

    ids_equal: bool
    error: float
    greedy_equal: bool
    problem: str = ""
    listed: str = ""
