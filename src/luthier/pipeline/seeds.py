"""`luthier run --seeds N`: the same recipe trained with several seeds, judged on the same test rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from luthier.errors import RecipeError, RunError
from luthier.eval_records import SeedsReport
from luthier.evals.intervals import Bootstrap
from luthier.evals.observed import Observed
from luthier.evals.score import with_rewards
from luthier.evals.seeds import FEWEST_SEEDS, scores_over
from luthier.evals.stored import Stored, read_system, systems_of
from luthier.pipeline.against import stored
from luthier.pipeline.drive import Session, begin, work_through
from luthier.pipeline.start import Prepared, Say, open_run
from luthier.report.evidence import number, signed, title
from luthier.report.seeds import render_seeds
from luthier.spec.resolve import reseeded
from luthier.store.files import write_atomic
from luthier.store.runs import lock
from luthier.systems import system_title


def over_seeds(
    recipe: str, count: int, *, overrides: Sequence[str], out: Path | None, offline: bool, say: Say
) -> tuple[Session, tuple[SeedsReport, ...]]:
    """Train and evaluate with `train.seed` and the `count - 1` numbers after it; what is done already is taken over.

    The technique, the rows and every other setting are those of the first. Nothing is chosen by a score: the run that
    goes on to export and gate is the first.

    Returns:
        The first seed's session, and a report for each task, written beside each task's own as seeds.json and
        seeds.html.

    Raises:
        RecipeError: fewer than two seeds, or a recipe that trains nothing.
        RunError: a run folder was named, not a recipe.
        StageFailed, OutOfMemory, Stopped: as a training ended.
    """
    if count < FEWEST_SEEDS:
        raise RecipeError(f"--seeds {count}: the spread of one seed cannot be seen", way_out="ask for 2 or more")
    first, _, prepared = begin(recipe, overrides=overrides, out=out, offline=offline, say=say)
    if prepared is None:
        raise RunError(f"--seeds trains a recipe several times, and {recipe} is a run", way_out="name its recipe")
    if prepared.resolved.recipe.merge is not None:
        raise RecipeError("--seeds: a recipe with merge trains nothing", way_out="leave one of them out")
    seed = prepared.resolved.recipe.train.seed
    seeds = tuple(range(seed, seed + count))
    sessions = [_worked(prepared, one, first) for one in seeds]
    open_run(prepared, out=first.out)  # so that `latest` is what is exported
    reports = tuple(_report(seeds, sessions, place) for place in range(len(first.tasks)))
    with lock(first.run):
        for folder, report in zip(first.tasks, reports, strict=True):
            write_atomic(folder.seeds, report.to_json())
            write_atomic(folder.seeds_page, render_seeds(report))
    return first, reports


def _worked(prepared: Prepared, seed: int, first: Session) -> Session:
    """The session of a seed, evaluated."""
    first.say(f"--- seed {seed}")
    if seed != prepared.resolved.recipe.train.seed:  # the recipe's own stays as it was resolved, with its reasons
        prepared = replace(prepared, resolved=reseeded(prepared.resolved, seed))
    session = replace(first, run=open_run(prepared, out=first.out), resolved=prepared.resolved)
    work_through(session, "evaluate", plan=prepared.plan(), prepared=prepared)
    return session


def _report(seeds: tuple[int, ...], sessions: Sequence[Session], place: int) -> SeedsReport:
    """What the runs have stored of one task, put together."""
    stores = [stored(session.tasks[place]) for session in sessions]
    one, recipe = stores[0], sessions[0].resolved.parts[place].recipe
    assert len({other.contract.to_json() for other in stores}) == 1, "seeds share the prepared data"
    assert recipe.evaluate.resamples is not None  # resolved
    assert recipe.evaluate.level is not None  # resolved
    counted = [number for number, row in enumerate(one.test) if not row.contaminated]
    bootstrap = Bootstrap(
        [one.test[number].group for number in counted],
        resamples=recipe.evaluate.resamples,
        level=recipe.evaluate.level,
        rng=np.random.default_rng(recipe.train.seed),
    )
    scores, differences = scores_over([_said(store, counted) for store in stores], bootstrap)
    return SeedsReport(
        recipe=sessions[0].resolved.recipe.name,
        task=one.contract.name,
        seeds=seeds,
        runs=tuple(store.name for store in stores),
        num_items=bootstrap.num_items,
        num_groups=bootstrap.num_groups,
        level=bootstrap.level,
        scores=scores,
        differences=differences,
    )


def _said(store: Stored, counted: Sequence[int]) -> dict[str, Observed]:
    """System -> what it said to the rows that count."""
    return {
        system: with_rewards(read_system(store, system).only(counted), store.contract) for system in systems_of(store)
    }


def seeds_lines(reports: Sequence[SeedsReport]) -> list[str]:
    """The main metric of each task over the seeds, in words."""
    lines = []
    for report in reports:
        main = report.scores[0]
        lowest, highest = number(min(main.values)), number(max(main.values))
        lines.append(
            f"{report.task}: {title(main.metric)} {number(main.mean.point)} over {len(report.seeds)} seeds, from "
            f"{lowest} to {highest}; {main.mean.level:.0%} interval for other seeds on other test rows: "
            f"{main.mean.ends()}. Another seed moves it by {number(main.training_sd)}, other test rows by "
            f"{number(main.test_sd)} (standard deviations)."
        )
        for gap in report.differences:
            if gap.metric == main.metric:
                low, high = gap.mean.low, gap.mean.high
                verdict = "shown" if low > 0 or high < 0 else "no difference is shown"
                lines.append(f"  minus {system_title(gap.against)}: {signed(gap.mean, gap.metric)}: {verdict}")
    own = reports[0].seeds[0]
    return [
        *lines,
        f"Exported and gated is the run of seed {own}, the recipe's own: none was chosen by its score. Each seed was "
        "one more look at the test rows, the recipe's own the first of them.",
    ]
