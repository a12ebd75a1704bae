"""Verbs that begin with a run: evaluate, export, gate, report, predict, serve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.shared import (
    DataName,
    Format,
    Json,
    Key,
    Offline,
    Query,
    Run,
    Sheet,
    emit,
    go_offline,
    say,
    work_on_run,
)
from luthier.errors import RunError, UserError


def evaluate(
    run: Run,
    against: Annotated[
        str | None, typer.Option(metavar="RUN", help="An evaluated run over the same test rows, to compare with.")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Base against tuned against baselines, on the test split, with intervals; or one run against another."""
    from luthier.eval_records import EvalReport
    from luthier.pipeline.explain import by_task, score_lines

    if against is not None:
        _compare(run, against, as_json=as_json)
        return
    session = work_on_run(run, "evaluate", offline)
    reports = [EvalReport.read(task.eval_report) for task in session.tasks]
    lines = [line for report in reports for line in score_lines(report)]
    emit(by_task(reports), lines, as_json=as_json)


def _compare(run: str, against: str, *, as_json: bool) -> None:
    from luthier.pipeline.against import compare, comparison_lines
    from luthier.store.runs import RunFolder

    compared = compare(RunFolder.open(run), RunFolder.open(against))
    emit(compared.model_dump(mode="json"), comparison_lines(compared), as_json=as_json)


def export(run: Run, offline: Offline = False, as_json: Json = False) -> None:
    """Write the forms that the recipe asks for; each is loaded again and held to parity (exit 7 if it breaks it)."""
    from luthier.govern.gate import MEASURED
    from luthier.pipeline.verdict import read_artifacts

    session = work_on_run(run, "export", offline)
    made = read_artifacts(session.run)
    lines = [
        f"{one.kind}: {session.run.path / one.path} ({one.num_bytes / 2**20:.1f} MiB), {one.parity.prompts} golden "
        f"prompts equal, largest {MEASURED[one.parity.measure][0]} {one.parity.max_logit_error:.1e} of "
        f"{one.parity.bound:.0e}{''.join(f'; {listed}' for listed in one.parity.listed)}"
        for one in made
    ]
    emit([one.model_dump(mode="json") for one in made], lines, as_json=as_json)


def gate(
    run: Run,
    request: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Ask for an approval although the gate refuses; signed with --key."),
    ] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="Approve what another one asked for; signed with --key.")
    ] = False,
    key: Key = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Decide, with evidence; exit 3 when refused, 4 while an approval is waited for. Brings the run up to date."""
    from luthier.pipeline.approvals import approve as approve_it
    from luthier.pipeline.approvals import ask, refused
    from luthier.pipeline.authority import own_key
    from luthier.pipeline.drive import finish
    from luthier.pipeline.standing import refuse_faulty
    from luthier.records import GateDecision
    from luthier.report.summary import gate_lines_of
    from luthier.store.runs import RunFolder

    if approve and request is not None:
        raise UserError("--request and --approve are two people's", way_out="give one of them")
    mine = own_key(key)
    if approve:
        folder = RunFolder.open(run).whole
        standing, decision = approve_it(folder, key=mine), GateDecision.read(folder.gate)
    else:
        session = work_on_run(run, "export", offline)
        evidence, decision = finish(session, mine if request is None else own_key(None))
        folder, standing = session.run, evidence[0].where_it_stands
        if request is not None:
            standing = ask(folder, request, key=mine)
    document = {**decision.model_dump(mode="json"), "standing": standing.model_dump(mode="json")}
    emit(document, [*gate_lines_of(decision), *([standing.words] if standing.words else [])], as_json=as_json)
    refuse_faulty(folder, standing)
    if not standing.may_be_used:
        raise refused(folder, decision, standing)


def report(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="A run; or several over the same test rows, to be ranked.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Page of several runs; default: leaderboard.html.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write report.html anew and say where it is; of several runs, a leaderboard with every pair compared."""
    from luthier.pipeline.report import closing_lines, write_report

    if len(runs) > 1:
        _rank(runs, output, as_json=as_json)
        return
    if output is not None:
        raise RunError("--output names the page of several runs; that of one is its report.html", way_out="drop it")
    path, evidence, gate = write_report(runs[0])
    emit({"report": str(path)}, [*closing_lines(evidence, gate), "", f"report: {path}"], as_json=as_json)


def _rank(runs: list[str], output: Path | None, *, as_json: bool) -> None:
    from luthier.pipeline.leaderboard import PAGE, leaderboard, leaderboard_lines

    goal = output or Path(PAGE)
    board = leaderboard(runs, output=goal)
    emit(
        {"page": str(goal), **board.model_dump(mode="json")},
        [*leaderboard_lines(board), "", f"page: {goal}"],
        as_json=as_json,
    )


def predict(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|NAME@ALIAS", help="A run folder or a registered version; of several tasks NAME@ALIAS/TASK."
        ),
    ],
    data: DataName,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: DATA.predictions.jsonl")] = None,
    format: Format = None,
    sheet: Sheet = None,
    query: Query = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of runs and registry.")] = Path("runs"),
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Answer every row of a file that has the input's columns, as the server would."""
    from luthier.pipeline.answers import choose, open_asker, predict, refuse_untrained
    from luthier.pipeline.named import Named, opened
    from luthier.pipeline.progress import Progress

    offline = go_offline(offline)
    chosen = choose(target, out=out)
    refuse_untrained(chosen.run)
    asked = chosen.one_task()
    rows = opened(Named(data, format, sheet, query), offline=offline)
    goal = output or rows.named.folder / f"{rows.named.name}.predictions.jsonl"
    with Progress() as progress:
        counts = predict(open_asker(asked), rows, output=goal, progress=progress)
    lines = [f"{goal}: {counts['answered']} answered, {counts['faults']} faulty rows"]
    emit({"output": str(goal), **counts}, lines, as_json=as_json)


def serve(
    target: Annotated[str, typer.Argument(metavar="NAME@ALIAS|RUN", help="A registered version or a run folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback only with keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="File of API keys, one a line; or LUTHIER_API_KEYS.")
    ] = None,
    allow_refused: Annotated[
        bool,
        typer.Option("--allow-refused", help="Serve although the gate refused, where nobody may approve; audited."),
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder of runs and registry.")] = Path("runs"),
    offline: Offline = False,
) -> None:
    """Serve a version with an OpenAI-compatible API; one that its gate refused (3) needs an approval (4)."""
    from luthier.pipeline.serve import serve_version

    go_offline(offline)
    serve_version(target, host=host, port=port, keys=keys, allow_refused=allow_refused, out=out, say=say)
