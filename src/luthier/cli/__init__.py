"""The command line: thin, and quick to start; what is heavy is imported inside the commands.

Results go to standard output (`--json`: one JSON document and nothing else there), progress and logs to standard error.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Annotated, NoReturn

import typer

from luthier import __version__
from luthier.cli import children, groups, recipe, run
from luthier.cli.shared import say
from luthier.errors import LuthierError

app = typer.Typer(
    name="luthier",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Fit a language model to one purpose, and prove that it did. Start with: luthier run support-intents",
    epilog="Exit codes: 0 done, 1 our fault, 2 yours (recipe, data, arguments), 3 the gate refused, "
    "4 an approval is waited for, 5 stopped and resumable, 6 the machine's (memory, disk), 7 an artifact broke parity.",
)
app.add_typer(groups.data_app, name="data")
app.add_typer(groups.recipes_app, name="recipes")
app.add_typer(groups.registry_app, name="registry")
app.add_typer(groups.audit_app, name="audit")
app.add_typer(groups.keys_app, name="keys")
app.add_typer(groups.doctor_app, name="doctor")

VERBS: tuple[Callable[..., None], ...] = (
    recipe.init, recipe.check, recipe.plan, recipe.prepare, recipe.train, recipe.run,
    recipe.transfer,
    run.evaluate, run.export, run.gate, run.report, run.predict, run.serve,
)  # fmt: skip
"""In the order of `--help`."""

for verb in VERBS:
    app.command()(verb)
app.command(name="_stage", hidden=True)(children.stage)
app.command(name="_ranks", hidden=True)(children.ranks)


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
        say(f"error: {error}")
    sys.exit(error.exit_code)


def _crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What nobody expected is our own fault; the interpreter then ends with exit code 1."""
    sys.__excepthook__(kind, error, trace)
    say("error: this is a fault of Luthier, not yours; please report it with the lines above")
