"""Agreement of degrees beyond chance, mistakes counted by the square of their distance.

Of N items with degrees x expected and y predicted (Cohen 1968, "Weighted kappa", Psychological Bulletin 70(4), with
weights (x - y)^2):

    kappa = 1 - sum (x - y)^2 / (1/N sum over all pairs of items n, m of (x_n - y_m)^2)
          = 1 - sum (x - y)^2 / (sum x^2 + sum y^2 - 2/N sum x sum y)

so that six sums are all that it needs. Where all x and all y are one degree it is 1: none is off.
"""

from __future__ import annotations

import numpy as np

from luthier.evals.observed import Floats, Observed


def statistics(observed: Observed) -> Floats:
    """(x, x^2, y, y^2, (x - y)^2, 1) of each item; shape [N, 6]."""
    x, y = observed.degrees.T
    return np.stack([x, x**2, y, y**2, (x - y) ** 2, np.ones_like(x)], axis=1)


def worst(observed: Observed) -> Floats:
    """The lowest label, taken for the highest."""
    far = len(observed.order) - 1.0
    return np.array([0.0, 0.0, far, far**2, far**2, 1.0])


def value(sums: Floats) -> Floats:
    """See above."""
    x, squares_x, y, squares_y, off, count = np.moveaxis(np.asarray(sums), -1, 0)
    by_chance = np.asarray(squares_x + squares_y - 2 * x * y / count)
    return np.asarray(1.0 - np.divide(off, by_chance, out=np.zeros_like(by_chance), where=by_chance > 1e-9))
