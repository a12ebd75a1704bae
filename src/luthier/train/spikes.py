"""A step whose loss lies far above those of the steps before it, for its rows are worth a look. Training goes on.

With x[i] = log(loss[i] + 0.01) of the last 50 steps, m = median of the last 10 x and
s = max(1.4826 / sqrt(2) median(|x[i] - x[i-1]|), 0.05), a loss is far outside where log(loss + 0.01) > m + 6 s.

- Medians, since spikes must not move what they are measured by. 1.4826 makes a median deviation the standard deviation
  of normal noise (Hampel 1974); a difference of two steps has sqrt(2) times that of one.
- Differences and a short level, since a loss that falls is not noise: around one median of 50 steps its fall would
  count as spread, and hide spikes.
- The logarithm, since a loss near its end varies by factors and not by amounts; the 0.01 nats keep changes of almost
  nothing from counting, and 0.05 asks for a third more than usual however calm the steps were.
- No alarm before step 21: of fewer differences the median is too often near zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from luthier.train_records import LossSpike, StepEvent

RECENT, LEVEL, FEWEST, BOUND = 50, 10, 20, 6.0
_NOTHING_NATS, _CALMEST = 0.01, 0.05


def usual_losses(losses: Sequence[float]) -> tuple[float, float] | None:
    """From where to where a loss after these goes, in nats; None where they are too few to tell, or no likelihoods: a
    loss below 0 is one of advantages, which jumps by chance.
    """
    if len(losses) < FEWEST or min(losses) < 0.0:
        return None
    logs = [math.log(loss + _NOTHING_NATS) for loss in losses[-RECENT:]]
    change = statistics.median(abs(later - earlier) for earlier, later in pairwise(logs))
    spread = max(1.4826 / math.sqrt(2) * change, _CALMEST)
    level = statistics.median(logs[-LEVEL:])
    low, high = (math.exp(level + side * BOUND * spread) - _NOTHING_NATS for side in (-1, 1))
    return max(0.0, low), high


def find_spike(event: StepEvent, history: Sequence[StepEvent], lines: Sequence[int]) -> LossSpike | None:
    """Whether a step is one.

    Args:
        event: of the step.
        history: of the run before it; the last ones count.
        lines: of the data file, where the step's rows stand.
    """
    recent = [before.loss for before in history[-2 * RECENT :] if before.kind == "step"]
    usual = usual_losses(recent)
    if usual is None or event.loss <= usual[1]:
        return None
    return LossSpike(
        step=event.step, loss=event.loss, usual_low=usual[0], usual_high=usual[1], lines=tuple(sorted(set(lines)))
    )
