"""Looks at test rows: counted before they are answered, and told before a run begins."""

from __future__ import annotations

import getpass

from luthier.data.shards import Shard
from luthier.eval_records import Look
from luthier.pipeline.context import Context
from luthier.plan.looks import level_of, one_sided
from luthier.plan.power import must_observe
from luthier.plan_records import Plan
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_json
from luthier.store.home import home, place_of
from luthier.store.looks import Looks, test_rows_sha256


def take_look(context: Context, weights_sha256: str) -> Look:
    """Count that the tuned model is judged on the test rows of a task, before anything of that is known.

    The same weights that are asked in the same way are the look that they were.

    Raises:
        RunError: the ledger was changed.
    """
    rows = Shard(context.run.data / "test.arrow")
    found = test_rows_sha256((row.text, row.answer, row.rejected) for row in rows)
    number = Looks(home()).take(
        context.resolved.recipe.name,
        context.contract.name,
        test_sha256=found,
        model_sha256=sha256_json([weights_sha256, context.contract.model_dump(mode="json")]),
        actor=getpass.getuser(),
    )
    return Look(number=number, test_sha256=found)


def next_looks(resolved: ResolvedRecipe, plan: Plan) -> list[str]:
    """What the ledger says of the next look at the test rows that were last looked at under a name, a line each task.

    Whether a run would ask those rows is known once its data is prepared; the plan does not prepare.

    Raises:
        RunError: the ledger was changed.
    """
    level = resolved.recipe.evaluate.level or 0.95
    found = Looks(place_of()).latest(resolved.recipe.name)
    lines = []
    for task, (_, looks) in found.items():
        line = (
            f"{task}: {looks} {'models were' if looks > 1 else 'model was'} judged on its test rows under this name; "
            f"another one on the same rows is look {looks + 1}, with one-sided bounds at {one_sided(looks + 1, level)}"
        )
        if len(found) == 1 and plan.detectable.must_observe is not None:
            target, _, value = plan.detectable.target.rpartition(" ")
            needed = must_observe(float(value), plan.detectable.num_test, level=level_of(looks + 1, level))
            seen = f"about {needed:.3f} must be seen" if needed else "no score is high enough"
            line += f"; for {target} {value} {seen}"
        lines.append(f"{line}.")
    return lines


def refuse_broken_ledger() -> None:
    """Check the ledger before anything is trained.

    Raises:
        RunError: it was changed.
    """
    Looks(place_of()).latest("")
