"""Labels of unequal number: what a row of each counts in the loss, or how often it is drawn. Pure functions of counts.

Notation: label l has n_l training rows, N = sum n_l, K labels.

Weights (`train.class_weight`), one for all rows of a label, scaled so that sum_l n_l w_l = N, which leaves the size of
the loss, and so the learning rate, as it was:

- balanced: w_l proportional to 1 / n_l (inverse frequency);
- effective: w_l proportional to (1 - b) / (1 - b^n_l), the inverse effective number of samples, with b =
  `class_weight_beta` (Cui et al. 2019, arXiv:1901.05555, eq. 2); b -> 0 leaves all alike, b -> 1 is `balanced`;
- a mapping: the given numbers, 1 for labels that it does not name.

Samplers (`train.sampler`): an epoch is N rows, of which label l has the share n_l^(1/T) / sum_k n_k^(1/T): T = 1 leaves
the shares as they are, `sqrt` is T = 2, `balanced` is T without end, all labels alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from luthier.data_report import LabelBalance
from luthier.errors import DataError
from luthier.spec.fill_training import EFFECTIVE_BETA
from luthier.spec.recipe import ClassWeight, Sampler, Train


def label_weights(counts: Mapping[str, int], asked: ClassWeight, *, beta: float = EFFECTIVE_BETA) -> dict[str, float]:
    """What a row of each label counts in the loss.

    Raises:
        DataError: a mapping names a label that no row has.
    """
    if isinstance(asked, dict):
        if unknown := sorted(set(asked) - set(counts)):
            raise DataError(
                f"train.class_weight names the label {unknown[0]!r}, which no training row has",
                way_out=f"labels of the training rows: {', '.join(sorted(counts))}",
            )
        raw = {label: float(asked.get(label, 1.0)) for label in counts}
    elif asked == "balanced":
        raw = {label: 1.0 / rows for label, rows in counts.items()}
    else:
        raw = {label: (1.0 - beta) / (1.0 - beta**rows) for label, rows in counts.items()}
    scale = sum(counts.values()) / sum(rows * raw[label] for label, rows in counts.items())
    return {label: scale * weight for label, weight in raw.items()}


def row_weights(labels: Sequence[str], settings: Train) -> list[float] | None:
    """What each row counts in the loss; None where all count alike. Shape [N]."""
    if settings.class_weight is None:
        return None
    weights = label_weights(Counter(labels), settings.class_weight, beta=settings.class_weight_beta or EFFECTIVE_BETA)
    return [weights[label] for label in labels]


def quotas(counts: Mapping[str, int], sampler: Sampler) -> dict[str, int]:
    """Rows of each label in an epoch of as many rows as there are: largest remainders, ties by name; at least one."""
    total, names = sum(counts.values()), sorted(counts)
    power = {"shuffle": 1.0, "sqrt": 0.5, "balanced": 0.0}[sampler] if isinstance(sampler, str) else 1.0 / sampler
    # Relative to the largest, so that no power overflows; for T >= 1 the rarest label never gets less than it has.
    most = max(counts.values(), default=1)
    raw = np.array([(counts[name] / most) ** power for name in names])
    exact = total * raw / raw.sum()
    found = np.floor(exact + 1e-9).astype(int)
    for place in np.argsort(-(exact - found), kind="stable")[: total - int(found.sum())]:
        found[place] += 1
    return dict(zip(names, found.tolist(), strict=True))


def drawn_epoch(labels: Sequence[str], sampler: Sampler, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Rows of one epoch in order; it follows from seed and epoch alone, so a resumed run draws the same.

    Each label deals its rows from shuffled decks, one after the other and over all epochs: none comes a second time
    before all of its label have come once.
    """
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    drawn = [np.zeros(0, np.int64)]
    for number, (label, take) in enumerate(quotas({label: len(own) for label, own in rows.items()}, sampler).items()):
        own = np.array(rows[label])
        first, last = epoch * take, (epoch + 1) * take
        decks = range(first // len(own), -(-last // len(own)))
        dealt = [own[np.random.default_rng([seed, 1, number, deck]).permutation(len(own))] for deck in decks]
        start = first - decks.start * len(own)
        drawn.append(np.concatenate(dealt)[start : start + take] if dealt else own[:0])
    every = np.concatenate(drawn)
    return every[np.random.default_rng([seed, epoch]).permutation(len(every))]


def balance(counts: Mapping[str, int], settings: Train) -> tuple[LabelBalance, ...]:
    """What each label of the training rows counts, the commonest first; empty where nothing was asked for."""
    asked = settings.class_weight
    if (asked is None and settings.sampler == "shuffle") or not counts:
        return ()
    weights = dict.fromkeys(counts, 1.0)
    if asked is not None:
        weights = label_weights(counts, asked, beta=settings.class_weight_beta or EFFECTIVE_BETA)
    rows = quotas(counts, settings.sampler)
    total = sum(counts.values())
    return tuple(
        LabelBalance(
            label=label,
            rows=counts[label],
            share=counts[label] / total,
            weight=weights[label],
            rows_an_epoch=rows[label],
            effective_share=rows[label] * weights[label] / total,
        )
        for label in sorted(counts, key=lambda label: (-counts[label], label))
    )
