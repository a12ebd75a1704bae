"""Verbs that begin with a recipe or a data file: init, check, plan, prepare, train, run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.shared import (
    DataName,
    Endpoint,
    Format,
    Json,
    Nnodes,
    NodeRank,
    Nproc,
    Offline,
    Out,
    Overrides,
    Query,
    Recipe,
    Sheet,
    Target,
    emit,
    go_offline,
    say,
    work,
)

if TYPE_CHECKING:
    from luthier.eval_records import SeedsReport
    from luthier.pipeline.drive import Session


def init(
    data: DataName,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the recipe goes.")] = None,
    format: Format = None,
    sheet: Sheet = None,
    query: Query = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Write a recipe for a data file: format, columns and task are detected."""
    from luthier.pipeline.init import init as write_recipe
    from luthier.pipeline.named import Named

    path, found = write_recipe(Named(data, format, sheet, query), output=output, offline=go_offline(offline))
    lines = [
        f"{path}: {found.task}, {found.num_rows} rows, input {found.input or 'chat turns'!r}, "
        f"answer {found.label or ('none' if found.task == 'domain' else 'chat turns')!r}",
        f"next: luthier check {path} --explain",
    ]
    emit({"recipe": str(path), "profile": found.model_dump(mode="json")}, lines, as_json=as_json)


def check(
    recipe: Recipe,
    overrides: Overrides = None,
    offline: Offline = False,
    as_json: Json = False,
    explain: Annotated[bool, typer.Option("--explain", help="Every resolved value with its reason.")] = False,
) -> None:
    """Read a recipe, its data and its base model, and say what is wrong or how it is understood."""
    from luthier.pipeline.explain import explained, fine_lines
    from luthier.pipeline.start import look

    prepared = look(recipe, overrides=overrides or (), offline=go_offline(offline), say=say)
    prepared.plan()  # a template or split that the plan cannot work with is a fault of the recipe too
    resolved = prepared.resolved
    lines = [
        *fine_lines(prepared),
    ]
    emit(resolved.model_dump(mode="json"), lines + (explained(resolved) if explain else []), as_json=as_json)


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="First train some steps, to measure this machine; takes about a minute.")
    ] = False,
    out: Out = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Rank the techniques and predict memory, time and what the data can prove, before anything is trained."""
    from luthier.pipeline.looks import next_looks
    from luthier.pipeline.start import look
    from luthier.plan.lines import lines

    offline = go_offline(offline)
    prepared = look(recipe, overrides=overrides or (), offline=offline, say=say, out=out)
    if probe:
        from luthier.pipeline.probing import probe as try_out

        made = try_out(prepared, out=out, offline=offline, say=say)
    else:
        made = prepared.plan()
    emit(made.model_dump(mode="json"), [*lines(made), *next_looks(prepared.resolved, made)], as_json=as_json)


def prepare(
    target: Target, overrides: Overrides = None, out: Out = None, offline: Offline = False, as_json: Json = False
) -> None:
    """Clean, redact, split and tokenize the data; every row's fate is in the report."""
    from luthier.data_report import DataReport
    from luthier.pipeline.explain import by_task, data_lines

    session = work(target, "prepare", overrides, out, offline)
    reports = {task: DataReport.read(task.data_report) for task in session.tasks}
    lines = [line for task, report in reports.items() for line in data_lines(report, task)]
    emit(by_task(list(reports.values())), lines, as_json=as_json)


def train(
    target: Target,
    overrides: Overrides = None,
    out: Out = None,
    nproc: Nproc = None,
    nnodes: Nnodes = None,
    rdzv_endpoint: Endpoint = None,
    node_rank: NodeRank = 0,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Train, or merge runs; after an interruption the same command goes on, exact to the bit."""
    from luthier.report.evidence import merged_words
    from luthier.train_records import TrainResult

    launch = {"nproc_per_node": nproc, "nnodes": nnodes, "rdzv_endpoint": rdzv_endpoint}
    session = work(target, "train", overrides, out, offline, launch=launch, node_rank=node_rank)
    result, own = TrainResult.read(session.run.train_result), session.resolved.recipe.has_own_adapters
    trained = {task: TrainResult.read(task.train_result) for task in (session.tasks if own else [session.run])}
    lines = []
    for run, one in trained.items():
        best = f", best step {one.best_step} ({one.best_metric} {one.best_value:.3f})" if one.best_metric else ""
        said = merged_words(one.merge) if one.merge else f"{one.steps} steps, {one.trained_tokens} tokens{best}"
        lines += [f"{run.path.name}: {said}" if own else said, f"{run.tuned.name}: {run.tuned}"]
    tasks = {"tasks": {run.path.name: one.model_dump(mode="json") for run, one in trained.items()}} if own else {}
    emit(result.model_dump(mode="json") | tasks, lines, as_json=as_json)


def run(
    target: Target,
    overrides: Overrides = None,
    out: Out = None,
    nproc: Nproc = None,
    search: Annotated[
        bool, typer.Option("--search", help="First try what `search` of the recipe says; the best becomes the run.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", metavar="N", help="Train with N seeds, to tell the noise of training from the test's."),
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """All six steps, from plan to report; exit 3 when the gate refuses, 4 while an approval is waited for."""
    from luthier.pipeline.approvals import refused
    from luthier.pipeline.authority import own_key
    from luthier.pipeline.drive import finish
    from luthier.pipeline.looks import refuse_broken_ledger
    from luthier.pipeline.report import closing_lines, evaluation_document
    from luthier.pipeline.standing import refuse_faulty

    key = own_key(None)  # a key that cannot be opened is told before hours of training, and so is a ledger
    refuse_broken_ledger()
    over: tuple[SeedsReport, ...] = ()
    if seeds is not None:
        session, over = _over_seeds(target, seeds, overrides or [], out, nproc, search=search, offline=offline)
    elif search:
        session = _searched(target, overrides or [], out, nproc, offline)
    else:
        session = work(target, "export", overrides, out, offline, launch={"nproc_per_node": nproc})
    evidence, gate = finish(session, key)
    standing = evidence[0].where_it_stands
    document = {
        "run": str(session.run.path),
        "gate": gate.model_dump(mode="json"),
        "standing": standing.model_dump(mode="json"),
        **evaluation_document(evidence),
    }
    if (pruned := evidence[0].pruned) is not None:
        document["pruned"] = pruned.model_dump(mode="json")
    lines = ["", *closing_lines(evidence, gate)]
    if over:
        from luthier.pipeline.seeds import seeds_lines

        document["seeds"] = [one.model_dump(mode="json") for one in over]
        lines += ["", *seeds_lines(over), *(f"page: {task.seeds_page}" for task in session.tasks)]
    emit(document, lines, as_json=as_json)
    refuse_faulty(session.run, standing)
    if not standing.may_be_used:
        raise refused(session.run, gate, standing)


def _over_seeds(
    recipe: str, count: int, overrides: list[str], out: Path | None, nproc: int | None, *, search: bool, offline: bool
) -> tuple[Session, tuple[SeedsReport, ...]]:
    """The run of the recipe's own seed with all its stages done, and what all seeds have in common."""
    from luthier.errors import RecipeError
    from luthier.pipeline.drive import work_through
    from luthier.pipeline.seeds import over_seeds

    if search:
        raise RecipeError(
            "--seeds and --search cannot be one command: a search ends with other settings each time",
            way_out="search first, then give what it took in the recipe, with --seeds",
        )
    launch = [] if nproc is None else [f"launch.nproc_per_node={nproc}"]
    session, reports = over_seeds(
        recipe, count, overrides=[*overrides, *launch], out=out, offline=go_offline(offline), say=say
    )
    work_through(session, "export")
    return session, reports


def _searched(recipe: str, overrides: list[str], out: Path | None, nproc: int | None, offline: bool) -> Session:
    """The run of the best trial, with all its stages done."""
    from luthier.pipeline.drive import work_through
    from luthier.pipeline.search import search

    launch = [] if nproc is None else [f"launch.nproc_per_node={nproc}"]
    session, _ = search(recipe, overrides=[*overrides, *launch], out=out, offline=go_offline(offline), say=say)
    work_through(session, "export")
    return session


def transfer(
    recipe: Recipe, overrides: Overrides = None, out: Out = None, offline: Offline = False, as_json: Json = False
) -> None:
    """Which tasks help each other: each alone, in pairs and all together, compared on the same test rows."""
    from luthier.pipeline.transfer import PAGE, transfer_lines
    from luthier.pipeline.transfer import transfer as measure

    matrix, folder = measure(recipe, overrides=overrides or (), out=out, offline=go_offline(offline), say=say)
    emit(matrix.model_dump(mode="json"), [*transfer_lines(matrix), f"page: {folder / PAGE}"], as_json=as_json)
