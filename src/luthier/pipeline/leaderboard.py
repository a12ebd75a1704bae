"""`luthier report RUN RUN ...`: several runs over the same test rows on one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.errors import RunError
from luthier.eval_records import Contender, EvalReport, Leaderboard
from luthier.evals.against import SharedRows, shared_rows
from luthier.evals.board import ranked
from luthier.evals.observed import Observed
from luthier.evals.score import with_rewards
from luthier.evals.stored import Stored, read_system, systems_of
from luthier.pipeline.against import refuse_several, stored
from luthier.plan.predict import technique_of
from luthier.plan.words import duration
from luthier.records import Interval
from luthier.report.evidence import number, title
from luthier.report.leaderboard import claim, render_leaderboard
from luthier.report.summary import columns
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder
from luthier.systems import is_in_first_line, system_title
from luthier.train_records import TrainResult

PAGE = "leaderboard.html"


def leaderboard(targets: Sequence[str], *, output: Path) -> Leaderboard:
    """Rank the runs by their task's main metric, beside the strong baselines of the first, and write the page.

    Level, resamples and seed are those of the first run.

    Raises:
        RunError: a run is named twice, holds several tasks, was not evaluated, or was asked other rows than the first.
    """
    folders = [RunFolder.open(target) for target in targets]
    for place, folder in enumerate(folders):
        refuse_several(folder)
        if folder in folders[:place]:
            raise RunError(f"{targets[place]} is named twice: {folder.path}", way_out="name each run once")
    stores = [stored(folder) for folder in folders]
    names = [one.name for one in stores]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise RunError(
            f"two of the runs are called {twice}", way_out="rename the folder of one: a page names each once"
        )
    shared = shared_rows(stores)
    beside = _baselines(stores[0], shared)
    said = dict(zip(names, shared.said, strict=True))
    said |= {system_title(system): seen for system, seen in beside.items()}
    recipe = ResolvedRecipe.read(folders[0].resolved).recipe
    assert recipe.evaluate.resamples is not None  # resolved
    assert recipe.evaluate.level is not None  # resolved
    ranking = ranked(
        said,
        shared.groups,
        resamples=recipe.evaluate.resamples,
        level=recipe.evaluate.level,
        seed=recipe.train.seed,
    )
    by_name = dict(zip(names, folders, strict=True))
    systems = {system_title(system): system for system in beside}
    board = Leaderboard(
        task=stores[0].contract.task,
        metric=ranking.metric,
        num_items=len(shared.groups),
        num_groups=ranking.num_groups,
        not_counted=shared.not_counted,
        level=recipe.evaluate.level,
        pair_level=ranking.pair_level,
        contenders=tuple(
            _run(name, by_name[name], metrics) if name in by_name else _baseline(systems[name], folders[0], metrics)
            for name, metrics in ranking.scores.items()
        ),
        pairs=ranking.pairs,
        left_out=shared.left_out,
    )
    write_atomic(output, render_leaderboard(board))
    return board


def _baselines(first: Stored, shared: SharedRows) -> dict[str, Observed]:
    """Those of the first run that would be told first where they win."""
    return {
        system: with_rewards(read_system(first, system).only(shared.places), first.contract)
        for system in systems_of(first)
        if is_in_first_line(system)
    }


def _run(name: str, run: RunFolder, metrics: dict[str, Interval]) -> Contender:
    resolved, trained = ResolvedRecipe.read(run.resolved), TrainResult.read(run.train_result)
    return Contender(
        name=name,
        base=resolved.recipe.model.name,
        technique=technique_of(resolved),
        metrics=metrics,
        trainable_parameters=trained.trainable_parameters,
        train_seconds=trained.seconds,
        answer_seconds=_answer_seconds(run, "tuned"),
    )


def _baseline(system: str, first: RunFolder, metrics: dict[str, Interval]) -> Contender:
    return Contender(
        name=system_title(system), is_baseline=True, metrics=metrics, answer_seconds=_answer_seconds(first, system)
    )


def _answer_seconds(run: RunFolder, system: str) -> float:
    """For a test row, those that do not count among them."""
    report = EvalReport.read(run.eval_report)
    items = report.with_contaminated.num_items if report.with_contaminated is not None else report.num_items
    return next(one.seconds for one in report.systems if one.system == system) / items


def leaderboard_lines(board: Leaderboard) -> list[str]:
    """The claim, and a line a contender."""
    rows = [["", title(board.metric), "interval", "technique", "trained", "a row"]]
    for one in board.contenders:
        value = one.metrics.get(board.metric)
        rows.append(
            [
                one.name,
                number(value.point) if value is not None else "–",
                value.ends() if value is not None else "",
                one.technique,
                "" if one.is_baseline else duration(one.train_seconds),
                f"{1000 * one.answer_seconds:.3g} ms",
            ]
        )
    return [claim(board), "", *columns(rows), *(f"not compared: {reason}" for reason in board.left_out)]
