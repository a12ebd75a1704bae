"""Sets of interchangeable words, from the recipe or from a file with one set a line."""

from __future__ import annotations

import csv

from luthier.data.noise import Swaps
from luthier.errors import DataError
from luthier.spec.recipe import refuse_odd_sets
from luthier.spec.resolve import ResolvedRecipe


def read_swaps(resolved: ResolvedRecipe) -> Swaps | None:
    """The sets of `data.augment.swaps`; None where there are none.

    Raises:
        DataError: the file cannot be read, or its sets cannot be used.
    """
    rules = resolved.recipe.data.augment
    if rules is None or not rules.swaps:
        return None
    if not isinstance(rules.swaps, str):
        return Swaps.over(rules.swaps)
    path = resolved.file(rules.swaps)
    way_out = "write one set of words a line, with commas between them, as UTF-8 text"
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [[word for word in line if word.strip()] for line in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data.augment.swaps: {path} cannot be read: {error}", way_out=way_out) from error
    sets = [line for line in lines if line and not line[0].lstrip().startswith("#")]
    if not sets:
        raise DataError(f"data.augment.swaps: {path} holds no set", way_out=way_out)
    try:
        refuse_odd_sets(sets)
    except ValueError as error:
        raise DataError(f"data.augment.swaps: {path}: {error}", way_out=way_out) from error
    return Swaps.over(sets)
