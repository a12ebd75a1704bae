"""One temperature for the scores of a head, so that what it calls likely is as likely as it says.

p = softmax(z / T), T fitted by the log loss of the validation rows (Guo et al. 2017, arXiv 1706.04599, section 4.2). No
label changes by it. As in Platt's scaling (1999, "Probabilistic outputs for support vector machines", eq. 2 and section
2.2) the target of a right label is not 1 but (N + 1) / (N + 2): N rows that are all right do not show that all will be,
and without it T would be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from luthier.train_records import Calibration

MIN_ITEMS = 20
"""With fewer rows their noise would choose the temperature."""

_SPAN = np.log(100.0)


def calibrate(scores: NDArray[np.float64], wanted: Sequence[int]) -> Calibration:
    """The temperature of N rows' scores, [N, C], whose labels stand at `wanted`."""
    places = np.asarray(wanted)
    count, labels = scores.shape
    targets = np.full(scores.shape, 1.0 / ((count + 2) * (labels - 1)))
    targets[np.arange(count), places] = (count + 1) / (count + 2)

    found = _fitted(lambda temperature: float(-(targets * _log_softmax(scores / temperature)).sum() / count))
    return Calibration(
        temperature=found,
        num_items=count,
        log_loss_before=_log_loss(scores, places),
        log_loss_after=_log_loss(scores / found, places),
    )


def calibrate_each(scores: NDArray[np.float64], has: NDArray[np.bool_]) -> Calibration:
    """The one temperature of N rows' scores, [N, C], each for a label that the row has or has not; p = sigmoid(z / T).

    Targets as above, of the N C answers yes and no together. Each probability stays on its side of one half, so with
    a threshold of one half no label changes by it.
    """
    count = has.size
    right = np.where(has, scores, -scores)
    sure = (count + 1) / (count + 2)

    def loss(temperature: float) -> float:
        return float(
            -(sure * _log_sigmoid(right / temperature) + (1 - sure) * _log_sigmoid(-right / temperature)).mean()
        )

    found = _fitted(loss)
    return Calibration(
        temperature=found,
        num_items=len(has),
        log_loss_before=float(-_log_sigmoid(right).mean()),
        log_loss_after=float(-_log_sigmoid(right / found).mean()),
    )


def _fitted(loss: Callable[[float], float]) -> float:
    """The temperature where a loss that is convex in 1 / T is least; it has one minimum in log T too."""
    found = minimize_scalar(lambda log: loss(float(np.exp(log))), bounds=(-_SPAN, _SPAN), method="bounded")
    return float(np.exp(found.x))


def _log_sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = -np.logaddexp(0.0, -scores)
    return found


def _log_loss(scores: NDArray[np.float64], places: NDArray[np.int64]) -> float:
    return float(-_log_softmax(scores)[np.arange(len(places)), places].mean())


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = scores - scores.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
