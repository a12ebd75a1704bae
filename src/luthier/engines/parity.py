"""Does an artifact say the same as what was trained? Asked with the golden prompts, before it leaves the house."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from luthier.engines.protocol import LogitsEngine
from luthier.records import Golden, ParityCheck, RequestContract


def check_parity(
    reference: LogitsEngine,
    candidate: LogitsEngine,
    goldens: Sequence[Golden],
    *,
    contract: RequestContract,
    encode: Callable[[str], tuple[str, list[int]]],
    bound: float,
) -> ParityCheck:
    """Compare `candidate` with `reference` on every golden prompt.

    Args:
        reference: what was trained.
        candidate: the artifact, loaded again from disk.
        goldens: prompts chosen at prepare time.
        contract: for stop tokens and answer length.
        encode: user text -> (rendered prompt, ids) by the *artifact's own* tokenizer and chat template.
        bound: largest accepted absolute logit error over the largest absolute logit of the reference.

    Returns:
        The check; `first_difference` says in words what differed first.
    """
    worst, greedy_equal, problem, ids_equal = 0.0, 0, "", True
    for golden in goldens:
        text, ids = encode(golden.text)
        if text != golden.prompt or tuple(ids) != golden.prompt_ids:
            ids_equal = False
            problem = problem or _text_difference(golden, text, ids)
            continue
        expected, found = reference.logits(ids), candidate.logits(ids)
        error = _relative_error(expected, found)
        worst = max(worst, error)
        if not error <= bound:
            problem = (
                problem or f"golden {golden.name!r}: logits differ by {error:.2e} of the largest, bound {bound:.0e}"
            )
        settings = {"max_new_tokens": min(contract.max_new_tokens, 16), "stop_ids": contract.stop_ids}
        said, says = (engine.generate(ids, **settings) for engine in (reference, candidate))  # type: ignore[arg-type]
        greedy_equal += said == says
        if said != says:
            problem = problem or f"golden {golden.name!r}: greedy ids {says}, expected {said}"
    passed = bool(goldens) and not problem
    return ParityCheck(
        prompts=len(goldens),
        ids_equal=ids_equal,
        max_logit_error=worst,
        bound=bound,
        greedy_equal=greedy_equal,
        passed=passed,
        first_difference=problem or ("" if goldens else "there is no golden prompt to compare"),
    )


def _relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    if expected.shape != found.shape:
        return float("inf")
    error = float(np.abs(expected - found).max() / max(float(np.abs(expected).max()), np.finfo(np.float32).tiny))
    return error if error == error else float("inf")  # NaN is as far off as can be


def _text_difference(golden: Golden, text: str, ids: Sequence[int]) -> str:
    pairs = zip(golden.prompt_ids, ids, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(golden.prompt_ids), len(ids)))
    kind = "text and ids" if text != golden.prompt else "ids"
    return (
        f"golden {golden.name!r}: {kind} differ from token {place} on: "
        f"found {list(ids[place : place + 5])}, expected {list(golden.prompt_ids[place : place + 5])}"
    )
