"""Whether to keep what the frozen layers below the lowest that learns say of the training tokens (`train.cache_trunk`).

Decided from the recipe, the data's profile and the base's shape alone, so that a run that is taken up again decides the
same; what the disk has free is looked at when the states are written, and then refused rather than decided otherwise.
"""

from __future__ import annotations

UNASKED_GIB = 8.0
"""States that are kept unasked at most; `train.cache_trunk: true` is obeyed whatever the size."""

TOKENS_PER_CHAR = 0.27  # usual for English
_TURN_TOKENS = 10  # of a row's turns beside its text, what all rows share not counted
_FLOAT_BYTES = 4


def worth_caching(
    *,
    first: int,
    rows: int,
    row_chars: float,
    hidden_size: int,
    num_epochs: int,
    max_length: int,
    max_tokens: int | None,
) -> tuple[bool, str]:
    """Whether the states are kept where the recipe leaves it open, and why.

    Args:
        first: number of the lowest layer that learns.
        rows: that are learned at most.
        row_chars: mean length of a row's text.
        hidden_size: floats a token.
        num_epochs: passes over the rows.
        max_length: tokens of a row at most.
        max_tokens: that are trained at most; None for no limit.
    """
    if first == 0:
        return False, "layer 0 learns, so there is nothing frozen below"
    tokens = rows * min(max_length, row_chars * TOKENS_PER_CHAR + _TURN_TOKENS)
    if num_epochs == 1 or (max_tokens is not None and max_tokens <= tokens):
        return False, "each row is seen once"
    gib = tokens * hidden_size * _FLOAT_BYTES / 2**30
    if gib > UNASKED_GIB:
        return False, f"about {gib:.0f} GiB of states, more than the {UNASKED_GIB:.0f} GiB that are kept unasked"
    return True, f"the layers below {first} are frozen: computed once instead of {num_epochs} times"
