"""What merging runs takes: reading them, adding them up, asking the validation rows of a greedy soup."""

from __future__ import annotations

from luthier.plan import cost, memory
from luthier.plan.parameters import linear_parameters
from luthier.plan.workload import Workload
from luthier.records import ModelShape
from luthier.spec.resolve import ResolvedRecipe

ADD_SECONDS_PER_VALUE = 25e-9
"""Adding up one value of one run, a cut and an election included: a handful of passes through memory on one thread."""

SVD_FACTOR = 20.0
"""Operations of a singular value decomposition over m n min(m, n) (Golub & Van Loan 2013, figure 8.6.1)."""


def technique(resolved: ResolvedRecipe) -> str:
    """What the plan calls it, 'merge ties of 3 runs'."""
    assert resolved.recipe.merge is not None, "the recipe trains"
    count = len(resolved.recipe.merge.runs)
    return f"merge {resolved.recipe.merge.method} of {count} run{'s' if count > 1 else ''}"


def merging_seconds(resolved: ResolvedRecipe, shape: ModelShape, work: Workload, rates: cost.Rates) -> float:
    """Time of the stage, from the start of its process."""
    settings = resolved.recipe.merge
    assert settings is not None, "the recipe trains"
    count = len(settings.runs)
    whole = settings.into == "weights"
    values = shape.num_parameters if whole or settings.method == "greedy" else 0
    if not whole and settings.method not in ("linear", "greedy"):
        values = linear_parameters(shape)
    seconds = rates.start_seconds * (1 + count if whole else 1) + ADD_SECONDS_PER_VALUE * values * count
    if not whole and settings.method not in ("linear", "greedy"):
        smaller = min(shape.hidden_size, shape.intermediate_size)
        seconds += SVD_FACTOR * linear_parameters(shape) * smaller / (rates.train * 1e9)
    if settings.method == "greedy":
        asked = (2 * count - 1) * work.validation_rows
        seconds += asked * cost.tuned_seconds(shape, work, rates)
        seconds += ADD_SECONDS_PER_VALUE * values * count * count
    return seconds


def asking_seconds(resolved: ResolvedRecipe, shape: ModelShape, work: Workload, rates: cost.Rates) -> float:
    """Time of asking every merged run the test rows; 0 where the recipe trains."""
    if resolved.recipe.merge is None:
        return 0.0
    each = rates.start_seconds + work.test_rows * cost.tuned_seconds(shape, work, rates)
    return len(resolved.recipe.merge.runs) * each


def merging_gib(resolved: ResolvedRecipe, shape: ModelShape) -> float:
    """Peak of the stage: what the runs learned, the base, what is written, and one model that is read."""
    settings = resolved.recipe.merge
    assert settings is not None, "the recipe trains"
    wholes = sum(parent.rank is None for parent in resolved.parents)
    if settings.into == "weights":
        wholes += 3
    elif settings.method == "greedy":
        wholes += 2
    return memory.RESIDENT_GIB + wholes * memory.weights_gib(shape)
