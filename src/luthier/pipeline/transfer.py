"""Which tasks help each other and which take from each other: each alone, in pairs and all, on the same test rows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from luthier.errors import RecipeError
from luthier.eval_records import TransferCell, TransferMatrix
from luthier.evals.intervals import holm
from luthier.pipeline.against import compare
from luthier.pipeline.drive import Session, work_through
from luthier.pipeline.start import Say, look_at, open_run, recipe_path
from luthier.report.evidence import signed, title
from luthier.report.transfer import render_transfer
from luthier.spec.load import load_recipe
from luthier.spec.plugins import METRICS
from luthier.spec.tasks import of_tasks, refuse_strange_targets
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder

JSON, PAGE = "transfer.json", "transfer.html"


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Each task alone, every pair, all of them."""
    alone, pairs = [(name,) for name in names], list(combinations(names, 2))
    return [*alone, *pairs, *([tuple(names)] if len(names) > 2 else [])]


def transfer(
    recipe: str, *, overrides: Sequence[str], out: Path | None, offline: bool, say: Say
) -> tuple[TransferMatrix, Path]:
    """Train and evaluate every subset, and compare each task with its training alone, paired by item.

    A subset that was trained before is not trained again. Nothing is decided or registered.

    Returns:
        The matrix, and the folder that holds it as transfer.json and transfer.html.

    Raises:
        RecipeError: the recipe has one task, or trains nothing.
        StageFailed, OutOfMemory, Stopped: as a training ended.
    """
    loaded = load_recipe(recipe_path(recipe), overrides=overrides)
    refuse_strange_targets(loaded)
    names = [entry.name or "" for entry in loaded.recipe.data.train]
    if len(names) < 2:
        raise RecipeError(
            f"{loaded.path}: transfer is measured between tasks, and data.train has one entry",
            way_out="add an entry with a name of its own",
        )
    if loaded.recipe.merge is not None:
        raise RecipeError(
            f"{loaded.path}: transfer compares trainings, and a recipe with merge trains nothing",
            way_out="leave merge out",
        )
    if loaded.recipe.has_own_adapters:
        raise RecipeError(
            f"{loaded.path}: transfer is what tasks do to each other in one adapter, and with multi_task.adapters: "
            "per_task they do nothing",
            way_out="set multi_task.adapters: shared, with which it shows what sharing one would gain or lose",
        )
    if loaded.recipe.prune is not None:
        raise RecipeError(
            f"{loaded.path}: transfer compares trainings of one base, and with prune each would have its own, pruned "
            "by the rows of its tasks",
            way_out="leave prune out",
        )
    place = out or Path(loaded.recipe.output_dir)
    runs: dict[tuple[str, ...], RunFolder] = {}
    for subset in subsets(names):
        say(f"--- {' + '.join(subset)}")
        prepared = look_at(of_tasks(loaded, subset), offline=offline, say=say, out=place, of_several=True)
        run = open_run(prepared, out=place)
        session = Session(run, prepared.resolved, offline, say)
        work_through(session, "evaluate", plan=prepared.plan(), prepared=prepared)
        runs[subset] = run
    matrix = TransferMatrix(
        recipe=loaded.recipe.name,
        tasks=tuple(names),
        cells=_corrected([_cell(name, subset, runs) for subset in runs if len(subset) > 1 for name in subset]),
        runs={" + ".join(subset): str(run.path) for subset, run in runs.items()},
    )
    folder = place / loaded.recipe.name
    write_atomic(folder / JSON, matrix.to_json())
    write_atomic(folder / PAGE, render_transfer(matrix))
    return matrix, folder


def _cell(name: str, subset: tuple[str, ...], runs: dict[tuple[str, ...], RunFolder]) -> TransferCell:
    alone = runs[name,]
    compared = compare(runs[subset].task(name), alone)
    first = compared.differences[0]  # of the task's main metric
    return TransferCell(
        task=name,
        together=subset,
        metric=first.metric,
        higher_is_better=METRICS.get(first.metric).higher_is_better,
        alone=compared.against_points[first.metric],
        difference=first.interval,
        num_items=compared.num_items,
        not_counted=compared.not_counted,
        p_value=first.p_value,
    )


def _corrected(cells: Sequence[TransferCell]) -> tuple[TransferCell, ...]:
    """With p-values corrected by Holm over all cells that have one."""
    tested = [cell for cell in cells if cell.p_value == cell.p_value]
    corrected = dict(zip(map(id, tested), holm([cell.p_value for cell in tested]), strict=True))
    return tuple(cell.model_copy(update={"p_value": corrected.get(id(cell), cell.p_value)}) for cell in cells)


def _left_out(cell: TransferCell) -> str:
    return f", {cell.not_counted} more that training has seen do not count" if cell.not_counted else ""


def transfer_lines(matrix: TransferMatrix) -> list[str]:
    """One line a cell; what the interval does not show is not claimed."""
    lines = []
    for cell in matrix.cells:
        others = ", ".join(name for name in cell.together if name != cell.task)
        gap = cell.difference
        better = gap.low > 0 if cell.higher_is_better else gap.high < 0
        worse = gap.high < 0 if cell.higher_is_better else gap.low > 0
        verdict = "gains" if better else "loses" if worse else "no difference is shown"
        p_value = f", p = {cell.p_value:.3g}" if cell.p_value == cell.p_value else ""
        lines.append(
            f"{cell.task} with {others}: {title(cell.metric)} {signed(gap, cell.metric)}{p_value}: {verdict} "
            f"(alone {cell.alone:.3f}; {cell.num_items} rows{_left_out(cell)})"
        )
    return lines
