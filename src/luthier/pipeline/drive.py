"""Run the stages of a run in order, each only when its inputs have changed; then decide, write down and register."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import RunError, Stopped
from luthier.launch.child import run_stage
from luthier.pipeline.order import Stage, up_to
from luthier.pipeline.start import Prepared, Say, is_recipe_folder, look, open_run, write_down
from luthier.pipeline.verdict import conclude
from luthier.recipes import names
from luthier.records import GateDecision, Plan
from luthier.report.evidence import Evidence
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.events import EventLog
from luthier.store.runs import RunFolder, lock
from luthier.store.stages import Stages


@dataclass(frozen=True)
class Session:
    """A run, and how to work on it."""

    run: RunFolder
    resolved: ResolvedRecipe
    offline: bool
    say: Say

    @property
    def out(self) -> Path:
        """The folder above all runs, where registry and audit log are."""
        return self.run.path.parent.parent


def begin(
    target: str, *, overrides: Sequence[str], out: Path | None, offline: bool, say: Say
) -> tuple[Session, Plan | None, Prepared | None]:
    """Open a run by its folder or name, or look at a recipe and open the run that belongs to it.

    A name that a recipe is shipped under means that recipe; a run of it is opened by its folder.

    Returns:
        The session; for a recipe also the plan and what was looked at, which `work_through` writes down.

    Raises:
        RunError: `--set` was given with a run folder, whose recipe is fixed.
    """
    place = out or Path("runs")
    if _is_run(target, place):
        if overrides:
            raise RunError(f"{target} is a run, its recipe is fixed", way_out="use --set with the recipe")
        run = RunFolder.open(target, out=place)
        return Session(run, ResolvedRecipe.read(run.resolved), offline, say), None, None
    prepared = look(target, overrides=overrides, offline=offline, say=say)
    run = open_run(prepared, out=out or Path(prepared.resolved.recipe.output_dir))
    return Session(run, prepared.resolved, offline, say), prepared.plan(), prepared


def _is_run(target: str, out: Path) -> bool:
    if is_recipe_folder(target) or Path(target).is_file():
        return False
    return Path(target).is_dir() or (target not in names() and (out / target).is_dir())


def work_through(session: Session, last: str, *, plan: Plan | None = None, prepared: Prepared | None = None) -> None:
    """Do the stages up to and including `last` that are not done yet, under the run's lock.

    Raises:
        StageFailed, OutOfMemory, Stopped: as the stage ended.
    """
    with lock(session.run) as fd:
        if plan is not None and prepared is not None:
            write_down(session.run, prepared, plan)
        for stage in up_to(last):
            _bring_up_to_date(session, stage, fd)


def finish(session: Session) -> tuple[Evidence, GateDecision]:
    """Decide, write card, lineage and report, and register the version; all stages must be done.

    Raises:
        RunError: a stage has not been done, or its outputs have changed since.
    """
    with lock(session.run):
        _refuse_stale(session)
        return conclude(session.run, session.resolved, actor=getpass.getuser())


def _bring_up_to_date(session: Session, stage: Stage, lock_fd: int) -> None:
    run, stages, say = session.run, Stages(session.run), session.say
    key = stage.key(run, session.resolved)
    ready = stage.ready(run)
    if ready and stages.done(stage.name, key):
        say(f"{stage.name}: unchanged, not run again")
        return
    if ready and (sibling := stages.reuse(stage.name, key)) is not None:
        say(f"{stage.name}: the same work was done by run {sibling.id}, its result is taken over")
        return
    stages.clear(stage.name)
    events = EventLog(run.events)
    events.append("stage_started", stage=stage.name, key=key)
    say(f"{stage.name}: {stage.doing}")
    use = run_stage(
        stage.name,
        run.path,
        lock_fd=lock_fd,
        threads=session.resolved.recipe.train.threads or 1,
        offline=session.offline,
        less_memory=stage.less_memory,
    )
    stages.mark(stage.name, stage.key(run, session.resolved), stage.outputs(run), use.seconds, use.peak_memory_gib)
    events.append("stage_done", stage=stage.name, seconds=use.seconds, peak_memory_gib=use.peak_memory_gib)
    if use.stop_asked:
        raise Stopped(
            f"stopped after stage {stage.name!r}, which is done", way_out="run the same command again to go on"
        )


def _refuse_stale(session: Session) -> None:
    stages = Stages(session.run)
    for stage in up_to("export"):
        marker = stages.marker(stage.name)
        if marker is None or not stages.done(stage.name, stage.key(session.run, session.resolved)):
            state = "has not been done" if marker is None else "no longer fits its inputs, or its files were changed"
            raise RunError(
                f"{session.run.path}: stage {stage.name!r} {state}", way_out=f"luthier run {session.run.path}"
            )
