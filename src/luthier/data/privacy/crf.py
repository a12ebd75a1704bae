"""A linear-chain conditional random field over hashed features, on numpy and scipy.

J. Lafferty, A. McCallum, F. Pereira, "Conditional Random Fields", ICML 2001. Of a text with features x_1 ... x_T and
tags y_1 ... y_T, with one row of weights a feature, W, and one weight a pair of tags, M:

    score(y) = sum_t W[x_t].sum(0)[y_t] + sum_t M[y_t-1, y_t],    log p(y | x) = score(y) - log sum_y' exp score(y')

and what is made least is - sum log p + (l2 / 2) (|W|^2 + |M|^2). The sums over all ways to tag are the forward and
backward recursions, scaled at each token (L. Rabiner, Proc. IEEE 77, 1989, section V.A), for many texts at once.
Tags are O, B-0, I-0, B-1, ...; shapes: T tokens, F features a token, K tags, n texts of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Floats = NDArray[np.float64]
Tags = NDArray[np.intp]
Rows = NDArray[np.int64]

L2 = 0.5
ROUNDS = 50
"""Steps of L-BFGS; more fit the sample, and not the texts that come later."""
FORBIDDEN = -30.0
"""Weight of what may not be; exp(-30) is small and no underflow."""
_AT_ONCE = 64


def allowed(num_kinds: int) -> Floats:
    """I-x may follow only B-x and I-x."""
    size = 2 * num_kinds + 1
    wall = np.zeros((size, size))
    for inside in range(2, size, 2):
        wall[:, inside] = FORBIDDEN
        wall[[inside - 1, inside], inside] = 0
    return wall


def fit(sample: Sequence[tuple[Rows, Tags]], *, num_kinds: int, num_features: int) -> tuple[Floats, Floats]:
    """W (features, K) and M (K, K) of texts with their right tags; one thread, so that the same comes out each time."""
    from scipy.optimize import minimize  # would cost every command a third of a second

    likelihood = _Likelihood(sample, num_kinds, num_features)
    with threadpool_limits(limits=1):
        best = minimize(
            likelihood, np.zeros(likelihood.num_weights), jac=True, method="L-BFGS-B",
            options={"maxiter": ROUNDS, "maxcor": 6},
        )  # fmt: skip
    W, M = likelihood.parts(best.x)
    table = np.zeros((num_features, W.shape[1]))
    table[likelihood.used] = W
    return table, M


class _Likelihood:
    """The function of all weights that is made least, and its gradient."""

    def __init__(self, sample: Sequence[tuple[Rows, Tags]], num_kinds: int, num_features: int) -> None:
        from scipy.sparse import csr_matrix

        sample = sorted((one for one in sample if len(one[1])), key=lambda one: len(one[1]))  # alike lengths in a batch
        flat = np.concatenate([rows.ravel() for rows, _ in sample])
        self.used = np.unique(flat)
        """Features that the sample has; the others keep the weight 0."""
        self.tags = np.concatenate([tags for _, tags in sample])
        self.lengths = np.array([len(tags) for _, tags in sample])
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self.num_tags = 2 * num_kinds + 1
        self.num_weights = (len(self.used) + self.num_tags) * self.num_tags
        tokens, width = len(self.tags), sample[0][0].shape[1]
        index = (np.searchsorted(self.used, flat), np.arange(0, tokens * width + 1, width))
        self.x = csr_matrix((np.ones(len(flat)), *index), shape=(tokens, len(self.used)))
        self.x_turned = self.x.T.tocsr()
        self.allowed = allowed(num_kinds)
        self.pairs = np.zeros((self.num_tags, self.num_tags))
        for _, tags in sample:
            np.add.at(self.pairs, (tags[:-1], tags[1:]), 1)

    def parts(self, weights: Floats) -> tuple[Floats, Floats]:
        """W of the used features, and M."""
        cut = len(self.used) * self.num_tags
        return weights[:cut].reshape(-1, self.num_tags), weights[cut:].reshape(self.num_tags, self.num_tags)

    def __call__(self, weights: Floats) -> tuple[float, Floats]:
        W, M = self.parts(weights)
        scores = self.x @ W
        moves = np.exp(M + self.allowed)
        expected, pairs, log_sums = np.zeros_like(scores), np.zeros_like(M), 0.0
        for batch in self._batches():
            log_sums += _expect(scores, moves, batch, expected, pairs)
        right = scores[np.arange(len(self.tags)), self.tags].sum() + (M * self.pairs).sum()
        expected[np.arange(len(self.tags)), self.tags] -= 1
        slope = np.concatenate([(self.x_turned @ expected).ravel(), (pairs - self.pairs).ravel()])
        return float(log_sums - right + L2 / 2 * (weights @ weights)), slope + L2 * weights

    def _batches(self) -> Iterator[tuple[Rows, NDArray[np.bool_]]]:
        """Places of tokens (n, T), and which of them there are: the texts of a batch end at different tokens."""
        for first in range(0, len(self.lengths), _AT_ONCE):
            starts, lengths = self.starts[first : first + _AT_ONCE], self.lengths[first : first + _AT_ONCE]
            steps = np.arange(lengths.max())
            live = steps < lengths[:, None]
            yield np.where(live, starts[:, None] + steps, 0), live


def _expect(
    scores: Floats, moves_KK: Floats, batch: tuple[Rows, NDArray[np.bool_]], expected: Floats, pairs_KK: Floats
) -> float:
    """Sum of log Z of a batch; adds the expected tags and pairs of tags to `expected` and `pairs_KK`."""
    places, live = batch
    scores_nTK = scores[places]
    scores_nTK[:, 0, 2::2] += FORBIDDEN  # a text does not begin inside a find
    highest = scores_nTK.max(2, keepdims=True)
    e_nTK = np.exp(scores_nTK - highest)
    alpha_nTK, scale_nT = np.zeros_like(e_nTK), np.ones(live.shape)
    for step in range(live.shape[1]):
        alpha_nK = e_nTK[:, step] * (alpha_nTK[:, step - 1] @ moves_KK if step else 1)
        scale_nT[:, step] = np.where(live[:, step], alpha_nK.sum(1), 1)
        alpha_nTK[:, step] = np.where(live[:, step, None], alpha_nK / scale_nT[:, step, None], 0)
    beta_nK = np.ones_like(alpha_nTK[:, 0])
    for step in range(live.shape[1] - 1, -1, -1):
        if step + 1 < live.shape[1]:
            goes_on = live[:, step + 1, None]
            ahead_nK = np.where(goes_on, e_nTK[:, step + 1] * beta_nK / scale_nT[:, step + 1, None], 0)
            pairs_KK += (alpha_nTK[:, step].T @ ahead_nK) * moves_KK
            beta_nK = np.where(goes_on, ahead_nK @ moves_KK.T, 1)
        here = live[:, step]
        expected[places[here, step]] = (alpha_nTK[:, step] * beta_nK)[here]
    return float(np.log(scale_nT).sum() + highest[..., 0][live].sum())


def marginals(scores_TK: Floats, moves_KK: Floats) -> Floats:
    """P(y_t = k | x), (T, K)."""
    chances_TK = np.zeros_like(scores_TK)
    batch = (np.arange(len(scores_TK))[None], np.ones((1, len(scores_TK)), bool))
    _expect(scores_TK, np.exp(moves_KK), batch, chances_TK, np.zeros_like(moves_KK))
    return chances_TK


def decode(scores_TK: Floats, moves_KK: Floats) -> Tags:
    """The best path (Viterbi)."""
    length, size = scores_TK.shape
    best_K = scores_TK[0].copy()
    best_K[2::2] += FORBIDDEN
    back = np.zeros((length, size), np.intp)
    for place in range(1, length):
        through_KK = best_K[:, None] + moves_KK
        back[place] = through_KK.argmax(0)
        best_K = through_KK[back[place], np.arange(size)] + scores_TK[place]
    path = np.zeros(length, np.intp)
    path[-1] = best_K.argmax()
    for place in range(length - 1, 0, -1):
        path[place - 1] = back[place, path[place]]
    return path
