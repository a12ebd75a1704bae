"""How strict a bound is the more often a test set was looked at: a budget of false passes, spent look by look.

A target that is not met in truth passes look k with a chance of at most alpha_k, as the gate's line is a one-sided
bound at 1 - alpha_k. Over all looks the chance of any false pass is at most the sum of the alphas, whatever the looks
share (Boole's inequality; as in alpha spending, Lan and DeMets 1983, Biometrika 70). With a = 1 - level, 0.05 mostly:

    alpha_1 = a / 2,    alpha_k = (a / 2) / (k (k - 1)) for k >= 2,    sum over all k = a

for 1 / (k (k - 1)) = 1 / (k - 1) - 1 / k. The first look is the worse end of the two-sided interval, as ever. A gate of
several lines needs no more: it passes falsely only if a line that does not hold passes (intersection-union test, Berger
1982, Technometrics 24).
"""

from __future__ import annotations


def alpha_of(look: int, level: float) -> float:
    """alpha_k of the k-th look, where `level` is the two-sided level of the first.

    Args:
        look: k, from 1.
        level: of `evaluate.level`.
    """
    assert look >= 1, "looks are counted from 1"
    half = (1.0 - level) / 2.0
    return half if look == 1 else half / (look * (look - 1))


def level_of(look: int, level: float) -> float:
    """Two-sided level of an interval of which the worse end is the bound of the k-th look."""
    return level if look == 1 else 1.0 - 2.0 * alpha_of(look, level)


def one_sided(look: int, level: float) -> str:
    """The bound's level in words: '97.5 %', '99.583 %'."""
    return f"{100.0 * (1.0 - alpha_of(look, level)):.5g} %"


def look_words(look: int, level: float) -> str:
    """A sentence on which look it is and what it is held to."""
    bounds = f"targets are held to one-sided bounds at {one_sided(look, level)}"
    if look == 1:
        return (
            f"This is the first look at these test rows under this name that this machine's ledger knows of: {bounds}, "
            "later looks to stricter ones."
        )
    return (
        f"This is look {look} at these test rows under this name: {bounds}, so that the chances of a false "
        f"pass add up to {100.0 * (1.0 - level):.4g} % over all looks, as far as each bound keeps what it promises."
    )
