"""What the verbs share: their options, and how they speak and set to work."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.pipeline.drive import Session

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
Key = Annotated[
    str | None,
    typer.Option(
        "--key", metavar="KEY", help="Private key that signs: a file, or a name; default: LUTHIER_SIGNING_KEY."
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Let no socket leave this machine.")]


def say(line: str) -> None:
    """Progress and logs: to standard error."""
    typer.echo(line, err=True)


def emit(document: Any, lines: list[str], *, as_json: bool) -> None:
    """The result: to standard output, as lines or as one JSON document."""
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


def go_offline(offline: bool) -> bool:
    """Shut the network where a flag or the environment says so; whether it is shut."""
    from luthier.launch.offline import guard, is_offline

    if offline:
        os.environ["LUTHIER_OFFLINE"] = "1"
    if is_offline():
        os.environ["HF_HUB_OFFLINE"] = "1"
        guard()
    return is_offline()


def work(
    target: str,
    last: str,
    overrides: list[str] | None,
    out: Path | None,
    offline: bool,
    launch: dict[str, Any] | None = None,
    node_rank: int = 0,
) -> Session:
    """Open or make the run of a recipe, say its plan, and do its stages up to `last`."""
    from luthier.pipeline.drive import begin, work_through
    from luthier.plan.lines import lines

    session, plan, prepared = begin(
        target, overrides=overrides or (), out=out, offline=go_offline(offline), say=say, launch=launch or {}
    )
    if plan is not None:
        first = plan.candidates[0].technique
        if first != plan.chosen:
            say(f"The plan ranks '{first}' first; '{plan.chosen}' is run all the same.\n")
        say("\n".join(lines(plan)))
    say(f"run folder: {session.run.path}")
    work_through(session, last, plan=plan, prepared=prepared, node_rank=node_rank)
    return session


def work_on_run(where: str, last: str, offline: bool) -> Session:
    """Do the stages of a run that is there, up to `last`."""
    from luthier.pipeline.drive import begin, work_through
    from luthier.store.runs import RunFolder

    run = RunFolder.open(where)
    session, _, _ = begin(str(run.path), overrides=(), out=None, offline=go_offline(offline), say=say)
    work_through(session, last)
    return session
