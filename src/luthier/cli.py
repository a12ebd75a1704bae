"""The command line: thin, and quick to start; what is heavy is imported inside the commands.

Results go to standard output (`--json`: one JSON document and nothing else there), progress and logs to standard error.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from luthier import __version__
from luthier.errors import GateRefused, LuthierError, UserError

if TYPE_CHECKING:
    from luthier.pipeline.drive import Session

app = typer.Typer(
    name="luthier",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fit a language model to one purpose, and prove that it did. Start with: luthier run support-intents",
    epilog="Exit codes: 0 done, 1 our fault, 2 yours (recipe, data, arguments), 3 the gate refused, "
    "4 kept for approvals, 5 stopped and resumable, 6 the machine's (memory, disk), 7 an artifact broke parity.",
)
recipes_app = typer.Typer(no_args_is_help=True, help="Recipes that are shipped: ls, cp.")
registry_app = typer.Typer(no_args_is_help=True, help="Versions and their aliases: ls, promote, rollback.")
data_app = typer.Typer(no_args_is_help=True, help="A data file by itself, without a recipe: inspect, mapping.")
doctor_app = typer.Typer(no_args_is_help=True, help="Put a promise to the test on this machine: resume.")
audit_app = typer.Typer(no_args_is_help=True, help="The audit log: verify, ls.")
app.add_typer(data_app, name="data")
app.add_typer(recipes_app, name="recipes")
app.add_typer(registry_app, name="registry")
app.add_typer(audit_app, name="audit")
app.add_typer(doctor_app, name="doctor")

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")]
Target = Annotated[
    str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, a shipped recipe's name, a run folder, or a run's name.")
]
Run = Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the name of a run (its newest).")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for run folders; default: the recipe's output_dir.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
DataName = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A data file, a folder of data files, or a URL (s3, gs, az, https, hf://datasets/OWNER/NAME, a database).",
    ),
]
Format = Annotated[str | None, typer.Option(help="csv, jsonl, ...; default: detected.")]
Sheet = Annotated[str | None, typer.Option(help="Of a workbook; default: the first with rows.")]
Query = Annotated[str | None, typer.Option(help="Of a database; default: the only table of a SQLite file.")]
Nproc = Annotated[int | None, typer.Option("--nproc", help="Processes that share the training on this machine.")]
Nnodes = Annotated[int | None, typer.Option("--nnodes", help="Machines; the same command is given on each.")]
Endpoint = Annotated[str | None, typer.Option("--rdzv-endpoint", help="HOST:PORT of machine 0, where all meet.")]
NodeRank = Annotated[int, typer.Option("--node-rank", min=0, help="Which machine this is; 0 leads, others join.")]
Offline = Annotated[bool, typer.Option("--offline", help="Let no socket leave this machine.")]


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _emit(document: Any, lines: list[str], *, as_json: bool) -> None:
    typer.echo(
        json.dumps(_strict(document), indent=2, ensure_ascii=False, allow_nan=False) if as_json else "\n".join(lines)
    )


def _strict(document: Any) -> Any:
    """The document with null for numbers that JSON does not have; a p-value that is not defined is one."""
    if isinstance(document, dict):
        return {key: _strict(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_strict(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document


def _go_offline(offline: bool) -> bool:
    from luthier.launch.offline import guard, is_offline

    if offline:
        os.environ["LUTHIER_OFFLINE"] = "1"
    if is_offline():
        os.environ["HF_HUB_OFFLINE"] = "1"
        guard()
    return is_offline()


def _work(
    target: str,
    last: str,
    overrides: list[str] | None,
    out: Path | None,
    offline: bool,
    launch: dict[str, Any] | None = None,
    node_rank: int = 0,
) -> Session:
    from luthier.pipeline.drive import begin, work_through
    from luthier.plan.make import lines

    session, plan, prepared = begin(
        target, overrides=overrides or (), out=out, offline=_go_offline(offline), say=_say, launch=launch or {}
    )
    if plan is not None:
        first = plan.candidates[0].technique
        if first != plan.chosen:
            _say(f"The plan ranks '{first}' first; '{plan.chosen}' is run all the same.\n")
        _say("\n".join(lines(plan)))
    _say(f"run folder: {session.run.path}")
    work_through(session, last, plan=plan, prepared=prepared, node_rank=node_rank)
    return session


def _work_on_run(where: str, last: str, offline: bool) -> Session:
    from luthier.pipeline.drive import begin, work_through
    from luthier.store.runs import RunFolder

    run = RunFolder.open(where)
    session, _, _ = begin(str(run.path), overrides=(), out=None, offline=_go_offline(offline), say=_say)
    work_through(session, last)
    return session


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


@app.command()
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

    path, found = write_recipe(Named(data, format, sheet, query), output=output, offline=_go_offline(offline))
    lines = [
        f"{path}: {found.task}, {found.num_rows} rows, input {found.input or 'chat turns'!r}, "
        f"answer {found.label or ('none' if found.task == 'domain' else 'chat turns')!r}",
        f"next: luthier check {path} --explain",
    ]
    _emit({"recipe": str(path), "profile": found.model_dump(mode="json")}, lines, as_json=as_json)


@app.command()
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

    prepared = look(recipe, overrides=overrides or (), offline=_go_offline(offline), say=_say)
    prepared.plan()  # a template or split that the plan cannot work with is a fault of the recipe too
    resolved = prepared.resolved
    lines = [
        *fine_lines(prepared),
    ]
    _emit(resolved.model_dump(mode="json"), lines + (explained(resolved) if explain else []), as_json=as_json)


@app.command()
def plan(recipe: Recipe, overrides: Overrides = None, offline: Offline = False, as_json: Json = False) -> None:
    """Rank the techniques and predict memory, time and what the data can prove, before anything is trained."""
    from luthier.pipeline.start import look
    from luthier.plan.make import lines

    made = look(recipe, overrides=overrides or (), offline=_go_offline(offline), say=_say).plan()
    _emit(made.model_dump(mode="json"), lines(made), as_json=as_json)


@app.command()
def prepare(
    target: Target, overrides: Overrides = None, out: Out = None, offline: Offline = False, as_json: Json = False
) -> None:
    """Clean, redact, split and tokenize the data; every row's fate is in the report."""
    from luthier.data_report import DataReport
    from luthier.pipeline.explain import by_task, data_lines

    session = _work(target, "prepare", overrides, out, offline)
    reports = {task: DataReport.read(task.data_report) for task in session.tasks}
    lines = [line for task, report in reports.items() for line in data_lines(report, task)]
    _emit(by_task(list(reports.values())), lines, as_json=as_json)


@app.command()
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
    """Train the adapter; after an interruption the same command goes on, exact to the bit."""
    from luthier.records import TrainResult

    launch = {"nproc_per_node": nproc, "nnodes": nnodes, "rdzv_endpoint": rdzv_endpoint}
    session = _work(target, "train", overrides, out, offline, launch=launch, node_rank=node_rank)
    result = TrainResult.read(session.run.train_result)
    best = (
        f", best step {result.best_step} ({result.best_metric} {result.best_value:.3f})" if result.best_metric else ""
    )
    lines = [f"{result.steps} steps, {result.trained_tokens} tokens{best}", f"adapter: {session.run.train / 'adapter'}"]
    _emit(result.model_dump(mode="json"), lines, as_json=as_json)


@app.command()
def run(
    target: Target,
    overrides: Overrides = None,
    out: Out = None,
    nproc: Nproc = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """All six steps, from plan to report. A refusal by the gate is a result too (exit 0)."""
    from luthier.pipeline.drive import finish
    from luthier.pipeline.report import closing_lines, evaluation_document

    session = _work(target, "export", overrides, out, offline, launch={"nproc_per_node": nproc})
    evidence, gate = finish(session)
    document = {"run": str(session.run.path), "gate": gate.model_dump(mode="json"), **evaluation_document(evidence)}
    _emit(document, ["", *closing_lines(evidence, gate)], as_json=as_json)


@app.command()
def evaluate(
    run: Run,
    against: Annotated[
        str | None, typer.Option(metavar="RUN", help="An evaluated run over the same test rows, to compare with.")
    ] = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Base against tuned against baselines, on the test split, with intervals; or one run against another."""
    from luthier.pipeline.explain import by_task, score_lines
    from luthier.records import EvalReport

    if against is not None:
        _compare(run, against, as_json=as_json)
        return
    session = _work_on_run(run, "evaluate", offline)
    reports = [EvalReport.read(task.eval_report) for task in session.tasks]
    lines = [line for report in reports for line in score_lines(report)]
    _emit(by_task(reports), lines, as_json=as_json)


def _compare(run: str, against: str, *, as_json: bool) -> None:
    from luthier.pipeline.against import compare, comparison_lines
    from luthier.store.runs import RunFolder

    compared = compare(RunFolder.open(run), RunFolder.open(against))
    _emit(compared.model_dump(mode="json"), comparison_lines(compared), as_json=as_json)


@app.command()
def export(run: Run, offline: Offline = False, as_json: Json = False) -> None:
    """Write the forms that the recipe asks for; each is loaded again and held to parity (exit 7 if it breaks it)."""
    from luthier.pipeline.verdict import read_artifacts

    session = _work_on_run(run, "export", offline)
    made = read_artifacts(session.run)
    lines = [
        f"{one.kind}: {session.run.path / one.path} ({one.num_bytes / 2**20:.1f} MiB), {one.parity.prompts} golden "
        f"prompts equal, largest logit error {one.parity.max_logit_error:.1e} of {one.parity.bound:.0e}"
        for one in made
    ]
    _emit([one.model_dump(mode="json") for one in made], lines, as_json=as_json)


@app.command()
def gate(run: Run, offline: Offline = False, as_json: Json = False) -> None:
    """Decide, with evidence; exit 3 when refused. Brings the run up to date first."""
    from luthier.pipeline.drive import finish
    from luthier.report.summary import gate_lines_of

    session = _work_on_run(run, "export", offline)
    _, decision = finish(session)
    _emit(decision.model_dump(mode="json"), gate_lines_of(decision), as_json=as_json)
    if not decision.passed:
        refused = ", ".join(line.line for line in decision.lines if not line.passed)
        raise GateRefused(
            f"the gate refused {session.run.path}: {refused}", way_out="see gate.json and report.html there"
        )


@app.command()
def report(run: Run, as_json: Json = False) -> None:
    """Write report.html anew and say where it is."""
    from luthier.pipeline.report import closing_lines, write_report

    path, evidence, gate = write_report(run)
    _emit({"report": str(path)}, [*closing_lines(evidence, gate), "", f"report: {path}"], as_json=as_json)


@app.command()
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

    offline = _go_offline(offline)
    chosen = choose(target, out=out)
    refuse_untrained(chosen.run)
    asked = chosen.one_task()
    rows = opened(Named(data, format, sheet, query), offline=offline)
    goal = output or rows.named.folder / f"{rows.named.name}.predictions.jsonl"
    with Progress() as progress:
        counts = predict(open_asker(asked), rows, output=goal, progress=progress)
    lines = [f"{goal}: {counts['answered']} answered, {counts['faults']} faulty rows"]
    _emit({"output": str(goal), **counts}, lines, as_json=as_json)


@app.command()
def serve(
    target: Annotated[str, typer.Argument(metavar="NAME@ALIAS|RUN", help="A registered version or a run folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback only with keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="File of API keys, one a line; or LUTHIER_API_KEYS.")
    ] = None,
    allow_refused: Annotated[
        bool, typer.Option("--allow-refused", help="Serve although the gate refused; audited.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder of runs and registry.")] = Path("runs"),
    offline: Offline = False,
) -> None:
    """Serve a version with an OpenAI-compatible API; one that its gate refused is refused here too (exit 3)."""
    from luthier.pipeline.serve import serve_version

    _go_offline(offline)
    serve_version(target, host=host, port=port, keys=keys, allow_refused=allow_refused, out=out, say=_say)


@app.command(name="_stage", hidden=True)
def stage(name: str, run: Path) -> None:
    """One stage of a run, in this process; what launchers start."""
    from luthier.launch.child import die_on_signals, die_with_parent
    from luthier.pipeline.stages import work
    from luthier.store.runs import RunFolder

    die_on_signals()
    die_with_parent()
    _go_offline(False)
    work(name, RunFolder(run))


@app.command(name="_ranks", hidden=True)
def ranks(name: str, run: Path, launch: str) -> None:
    """The agent that starts a stage as several processes, and starts those again that died."""
    from luthier.launch.child import be_parent, die_with_parent
    from luthier.launch.torchrun import work_together
    from luthier.spec.recipe import Launch

    die_with_parent()
    be_parent()
    work_together(name, run, Launch.model_validate_json(launch), say=_say)


@data_app.command("inspect")
def data_inspect(
    data: DataName,
    format: Format = None,
    sheet: Sheet = None,
    query: Query = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Show format, columns, faults, detected shape, some rows with personal data masked, and the recipe for it."""
    from luthier.pipeline.inspect import inspect, inspect_lines
    from luthier.pipeline.named import Named

    seen = inspect(Named(data, format, sheet, query), offline=_go_offline(offline))
    _emit(seen.model_dump(mode="json"), inspect_lines(seen), as_json=as_json)


@data_app.command("mapping")
def data_mapping(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What data.privacy.keep_mapping wrote.")],
    surrogate: Annotated[str | None, typer.Option(help="Only what this stands for.")] = None,
    as_json: Json = False,
) -> None:
    """Open the mapping of pseudonyms: kind, surrogate, value. Its passphrase stands in LUTHIER_MAPPING_PASSPHRASE."""
    from luthier.data.privacy.pseudonyms import look_up, mapping_passphrase, read_mapping

    mapping = read_mapping(file, passphrase=mapping_passphrase(opening=file))
    rows = look_up(mapping, surrogate, file=file)
    lines = ["\t".join(json.dumps(one, ensure_ascii=False)[1:-1] for one in row.values()) for row in rows]
    _emit(rows, lines, as_json=as_json)


@recipes_app.command("ls")
def recipes_ls(as_json: Json = False) -> None:
    """Names of the shipped recipes."""
    from luthier.recipes import names

    _emit(list(names()), list(names()), as_json=as_json)


@recipes_app.command("cp")
def recipes_cp(
    name: str, destination: Annotated[Path | None, typer.Argument(help="A new folder; default: NAME")] = None
) -> None:
    """Copy a shipped recipe and its data, to make it yours."""
    from luthier.pipeline.start import copy_recipe

    path = copy_recipe(name, destination or Path(name))
    typer.echo(f"{path}\nnext: luthier run {path}")


@registry_app.command("ls")
def registry_ls(out: Annotated[Path, typer.Option("--out")] = Path("runs"), as_json: Json = False) -> None:
    """All versions with gate and aliases."""
    from luthier.pipeline.verdict import registry_of

    versions = registry_of(out).versions()
    lines = [
        f"{one.name}@{one.version}  gate {'passed' if one.gate_passed else 'REFUSED'}  "
        f"{', '.join('@' + alias for alias in one.aliases) or '-'}  {one.created_at}  {one.run}"
        for one in versions
    ]
    _emit([one.model_dump(mode="json") for one in versions], lines or ["no versions yet"], as_json=as_json)


@registry_app.command("promote")
def registry_promote(
    version: Annotated[str, typer.Argument(metavar="NAME@NUMBER")],
    alias: Annotated[str, typer.Option(help="The alias that is to point to it.")] = "production",
    allow_refused: Annotated[bool, typer.Option("--allow-refused", help="Although the gate refused; audited.")] = False,
    out: Annotated[Path, typer.Option("--out")] = Path("runs"),
) -> None:
    """Let an alias point to a version."""
    from luthier.pipeline.serve import promote

    typer.echo(promote(version, alias=alias, allow_refused=allow_refused, out=out))


@registry_app.command("rollback")
def registry_rollback(
    name: str,
    alias: Annotated[str, typer.Option()] = "production",
    out: Annotated[Path, typer.Option("--out")] = Path("runs"),
) -> None:
    """Let an alias point to the version that had it before."""
    from luthier.pipeline.serve import rollback

    typer.echo(rollback(name, alias=alias, out=out))


@audit_app.command("verify")
def audit_verify(out: Annotated[Path, typer.Option("--out")] = Path("runs"), as_json: Json = False) -> None:
    """Check the chain of hashes; names the first broken entry, or the log that should be there (exit 2)."""
    from luthier.pipeline.verdict import verify_audit

    verdict = verify_audit(out)
    sound = verdict.first_broken is None
    whole = [f"{verdict.entries} entries, the chain is whole"] if verdict.entries or not verdict.problem else []
    said = [verdict.problem] if verdict.problem else []
    lines = [*whole, *said] if sound else [f"entry {verdict.first_broken} is broken: {verdict.problem}"]
    _emit(verdict.model_dump(mode="json"), lines, as_json=as_json)
    if not sound:
        raise UserError(
            f"{out / 'audit.jsonl'}: entry {verdict.first_broken} is broken: {verdict.problem}",
            way_out="compare with a backup; entries before it can be trusted",
        )


@audit_app.command("ls")
def audit_ls(out: Annotated[Path, typer.Option("--out")] = Path("runs"), as_json: Json = False) -> None:
    """All entries."""
    from luthier.pipeline.verdict import audit_of

    entries = audit_of(out).entries()
    lines = [f"{one.seq}  {one.time}  {one.actor}  {one.action}  {one.subject}" for one in entries]
    _emit([one.model_dump(mode="json") for one in entries], lines, as_json=as_json)


@doctor_app.command("resume")
def doctor_resume(
    target: Target,
    kills: Annotated[int, typer.Option(min=1, help="How often the run is killed.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
    overrides: Overrides = None,
    out: Out = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Train twice, once killed (kill -9) at random moments and resumed: both must end in the same bits."""
    from luthier.pipeline.doctor import certify_resume, resume_lines

    session = _work(target, "prepare", overrides, out, offline)
    certificate = certify_resume(session, kills=kills, seed=seed)
    _emit(certificate.model_dump(mode="json"), resume_lines(certificate, session.run), as_json=as_json)
    if not certificate.equal:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: turns errors into exit codes; a traceback is shown only where the fault is ours."""
    from luthier.launch.child import StageFailed, stop_on_signals

    stop_on_signals()
    sys.excepthook = _crash
    try:
        with contextlib.suppress(BrokenPipeError):
            app(prog_name="luthier", standalone_mode=True)
    except StageFailed as error:  # the stage has said why
        sys.exit(error.exit_code)
    except LuthierError as error:
        _end(error)
    except (MemoryError, OSError) as error:
        from luthier.pipeline.machine import as_known_error

        known = as_known_error(error)
        if known is None:
            raise
        _end(known)


def _end(error: LuthierError) -> NoReturn:
    """Say what was wrong, here or, of several ranks, through their agent."""
    from luthier.launch.ranks import leave_word

    if not leave_word(error):
        _say(f"error: {error}")
    sys.exit(error.exit_code)


def _crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What nobody expected is our own fault; the interpreter then ends with exit code 1."""
    sys.__excepthook__(kind, error, trace)
    _say("error: this is a fault of Luthier, not yours; please report it with the lines above")


if __name__ == "__main__":
    main()
