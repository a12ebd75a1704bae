"""Does an artifact say the same as what was trained? Asked with the golden prompts, before it leaves the house."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import numpy as np

from luthier.engines.protocol import HeadEngine, LogitsEngine
from luthier.records import Golden, ParityCheck, RequestContract

_MAX_GREEDY = 16  # tokens of greedy text that are compared


def check_parity(
    reference: LogitsEngine | HeadEngine,
    candidate: LogitsEngine | HeadEngine,
    goldens: Sequence[Golden],
    *,
    contract: RequestContract,
    encode: Callable[..., tuple[str, list[int]]],
    bound: float,
) -> ParityCheck:
    """Compare `candidate` with `reference` on every golden prompt.

    Where a head chooses the labels, its scores and the chosen label are compared; else all next-token scores and the
    greedy text.

    Args:
        reference: what was trained.
        candidate: the artifact, loaded again from disk.
        goldens: prompts chosen at prepare time.
        contract: for stop tokens and answer length.
        encode: user text, and the answer where these are scored, -> (rendered prompt, ids) by the *artifact's own*
            tokenizer and chat template.
        bound: largest accepted absolute logit error over the largest absolute logit of the reference.

    Returns:
        The check; `first_difference` says in words what differed first.
    """
    limit = min(contract.max_new_tokens, _MAX_GREEDY)

    def asked(engine: LogitsEngine | HeadEngine, ids: list[int]) -> tuple[np.ndarray, object]:
        """Scores, and what follows from them."""
        if contract.answered_by == "head":
            assert isinstance(engine, HeadEngine)
            scores = engine.class_logits(ids, contract.name)
            fits = scores.shape == (len(contract.head_rows),)
            return scores, _said(scores, contract) if fits else f"{scores.size} scores"
        writer = cast(LogitsEngine, engine)
        return writer.logits(ids), writer.generate(ids, max_new_tokens=limit, stop_ids=contract.stop_ids)

    def compare(golden: Golden) -> _Compared:
        text, ids = encode(golden.text, golden.answer) if contract.scores_answers else encode(golden.text)
        if text != golden.prompt or tuple(ids) != golden.prompt_ids:
            return _Compared(False, 0.0, False, _text_difference(golden, text, ids))
        (expected, said), (found, says) = asked(reference, ids), asked(candidate, ids)
        least = 0.0 if contract.labels or contract.answered_by == "words" else 1.0
        error = _relative_error(expected, found, least=least)
        if contract.tags and error <= bound:  # a label whose score is at the threshold may fall on either side
            near = np.abs(expected - _bar(contract)) <= bound * np.abs(expected).max()
            says = _said(np.where(near, expected, found), contract)
        what = "" if contract.answered_by == "head" else "greedy ids "
        problem = "" if said == says else f"golden {golden.name!r}: {what}{says}, expected {said}"
        if not error <= bound and expected.shape == found.shape:
            problem = f"golden {golden.name!r}: logits differ by {error:.2e} of the largest, bound {bound:.0e}"
        return _Compared(True, error, said == says, problem)

    compared = list(reference.each(compare, goldens))
    problem = next((one.problem for one in compared if one.problem), "")
    return ParityCheck(
        prompts=len(goldens),
        ids_equal=all(one.ids_equal for one in compared),
        max_logit_error=max((one.error for one in compared), default=0.0),
        bound=bound,
        greedy_equal=sum(one.greedy_equal for one in compared),
        passed=bool(goldens) and not problem,
        first_difference=problem or ("" if goldens else "there is no golden prompt to compare"),
        answered_by=contract.answered_by,
    )


def _said(scores: np.ndarray, contract: RequestContract) -> str:
    """What a head's scores come to."""
    if contract.scale is not None or contract.scores_answers:
        return "number"  # equal as far as the scores are, which are compared
    if contract.tags:
        return f"labels {[tag for tag, score in zip(contract.tags, scores, strict=True) if score >= _bar(contract)]}"
    return f"label {contract.labels[int(scores.argmax())]!r}"


def _bar(contract: RequestContract) -> float:
    """The score from which on a label of several is given."""
    assert contract.threshold is not None, "a head for several labels has a threshold"
    return math.log(contract.threshold / (1.0 - contract.threshold))


def together(checks: Sequence[ParityCheck]) -> ParityCheck:
    """The checks of several tasks as one: it passes where all do."""
    if len(checks) == 1:
        return checks[0]
    return ParityCheck(
        prompts=sum(check.prompts for check in checks),
        ids_equal=all(check.ids_equal for check in checks),
        max_logit_error=max(check.max_logit_error for check in checks),
        bound=min(check.bound for check in checks),
        measure=checks[0].measure,
        listed=tuple(listed for check in checks for listed in check.listed),
        greedy_equal=sum(check.greedy_equal for check in checks),
        passed=all(check.passed for check in checks),
        first_difference=next((check.first_difference for check in checks if check.first_difference), ""),
        answered_by=checks[0].answered_by if len({check.answered_by for check in checks}) == 1 else "both",
    )


class _Compared(NamedTuple):
    """One golden prompt; `problem` is empty where all is the same."""

    ids_equal: bool
    error: float
    greedy_equal: bool
    problem: str


def _relative_error(expected: np.ndarray, found: np.ndarray, *, least: float) -> float:
    """Over the largest of the expected, or `least`: of standard deviations or log odds 1, as 0 is a usual answer."""
    if expected.shape != found.shape:
        return float("inf")
    error = float(np.abs(expected - found).max() / max(float(np.abs(expected).max()), np.finfo(np.float32).tiny, least))
    return error if error == error else float("inf")  # NaN is as far off as can be


def _text_difference(golden: Golden, text: str, ids: Sequence[int]) -> str:
    pairs = zip(golden.prompt_ids, ids, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(golden.prompt_ids), len(ids)))
    kind = "text and ids" if text != golden.prompt else "ids"
    return (
        f"golden {golden.name!r}: {kind} differ from token {place} on: "
        f"found {list(ids[place : place + 5])}, expected {list(golden.prompt_ids[place : place + 5])}"
    )
