"""One finished run against another on the same test rows, from what both have on disk."""

from __future__ import annotations

from luthier.data.shards import Shard
from luthier.errors import RunError
from luthier.eval_records import RunComparison
from luthier.evals.against import compare_runs
from luthier.evals.stored import Stored
from luthier.records import RequestContract
from luthier.report.evidence import title
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.runs import RunFolder


def compare(run: RunFolder, other: RunFolder) -> RunComparison:
    """Paired differences of the two tuned models; level, resamples and seed are those of `run`.

    Raises:
        RunError: see `luthier.evals.against.compare_runs`.
    """
    for one in (run, other):
        refuse_several(one)
    recipe = ResolvedRecipe.read(run.resolved).recipe
    assert recipe.evaluate.resamples is not None  # resolved
    assert recipe.evaluate.level is not None  # resolved
    return compare_runs(
        stored(run),
        stored(other),
        resamples=recipe.evaluate.resamples,
        level=recipe.evaluate.level,
        seed=recipe.train.seed,
    )


def refuse_several(run: RunFolder) -> None:
    """One task is compared at a time.

    Raises:
        RunError: the run has several.
    """
    names = ResolvedRecipe.read(run.resolved).names
    if len(names) > 1:
        raise RunError(
            f"{run.path} is a run of {len(names)} tasks, and one task is compared at a time",
            way_out=f"name the folder of one: {', '.join(str(folder.path) for folder in run.tasks(names))}",
        )


def stored(run: RunFolder) -> Stored:
    """What an evaluated run, or a task of one, keeps of its evaluation."""
    return Stored(
        name=f"{run.name}/{run.id}",
        contract=RequestContract.read(run.contract),
        test=Shard(run.data / "test.arrow"),
        predictions=run.eval / "predictions.jsonl",
    )


def comparison_lines(compared: RunComparison) -> list[str]:
    """The differences in words, one metric a line; what the interval does not show is not claimed."""
    seen = f", {compared.not_counted} more that training has seen do not count" if compared.not_counted else ""
    lines = [f"{compared.run} against {compared.against} on {compared.num_items} test rows{seen}:"]
    for one in compared.differences:
        gap = one.interval
        verdict = "more" if gap.low > 0 else "less" if gap.high < 0 else "no difference is shown"
        p_value = "" if one.p_value != one.p_value else f", p = {one.p_value:.3g}"  # NaN where there is no test
        lines.append(
            f"  {title(one.metric)}: {gap.point:+.3f} ({gap.level:.0%} interval {gap.ends('+.3f')}{p_value}): {verdict}"
        )
    return [*lines, *(f"  not compared: {reason}" for reason in compared.left_out)]
