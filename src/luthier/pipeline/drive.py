"""Run the stages of a run in order, each only when its inputs have changed; then decide, write down and register."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from luthier.errors import RecipeError, RunError, Stopped
from luthier.govern.keys import PrivateKey
from luthier.launch.child import StageUse, run_stage
from luthier.launch.offline import is_here
from luthier.pipeline.join import join
from luthier.pipeline.order import BEFORE_TRAINING, SHARED, STAGES, Stage, up_to
from luthier.pipeline.start import Prepared, Say, is_recipe_folder, look, open_run, write_down
from luthier.pipeline.verdict import conclude
from luthier.plan_records import Plan
from luthier.recipes import names
from luthier.records import GateDecision
from luthier.report.evidence import Evidence
from luthier.spec.launch import Launch
from luthier.spec.resolve import ResolvedRecipe, relaunched
from luthier.store.events import EventLog
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder, lock
from luthier.store.stages import Stages
from luthier.train_records import TrainResult


@dataclass(frozen=True)
class Session:
    """A run, and how to work on it."""

    run: RunFolder
    resolved: ResolvedRecipe
    offline: bool
    say: Say

    @property
    def tasks(self) -> list[RunFolder]:
        """What the run holds of each task; of one task that is the run."""
        return self.run.tasks(self.resolved.names)

    @property
    def out(self) -> Path:
        """The folder above all runs, where registry and audit log are."""
        return self.run.path.parent.parent


def begin(
    target: str,
    *,
    overrides: Sequence[str],
    out: Path | None,
    offline: bool,
    say: Say,
    launch: Mapping[str, object] = MappingProxyType({}),
) -> tuple[Session, Plan | None, Prepared | None]:
    """Open a run by its folder or name, or look at a recipe and open the run that belongs to it.

    A name that a recipe is shipped under means that recipe; a run of it is opened by its folder. `launch` are keys of
    the section of that name, which may change from one start of a run to the next.

    Returns:
        The session; for a recipe also the plan and what was looked at, which `work_through` writes down.

    Raises:
        RunError: `--set` was given with a run folder, whose recipe is fixed.
        RecipeError: what is said of `launch` cannot be, or is elsewhere while offline.
    """
    place = out or Path("runs")
    if _is_run(target, place):
        if overrides:
            raise RunError(f"{target} is a run, its recipe is fixed", way_out="use --set with the recipe")
        run = RunFolder.open(target, out=place)
        if run.whole != run:
            raise RunError(
                f"{target} is one task of a run, whose steps are done for all of them",
                way_out=f"name the run: {run.whole.path}",
            )
        resolved = relaunched(ResolvedRecipe.read(run.resolved), launch)
        refuse_meeting_elsewhere(resolved.recipe.launch, offline=offline)
        return Session(run, resolved, offline, say), None, None
    said = [f"launch.{key}={value}" for key, value in launch.items() if value is not None]
    prepared = look(target, overrides=[*overrides, *said], offline=offline, say=say, out=out)
    refuse_meeting_elsewhere(prepared.resolved.recipe.launch, offline=offline)
    run = open_run(prepared, out=out or Path(prepared.resolved.recipe.output_dir))
    return Session(run, prepared.resolved, offline, say), prepared.plan(), prepared


def refuse_meeting_elsewhere(launch: Launch, *, offline: bool) -> None:
    """Offline, machines cannot meet; torch's own sockets are not seen by the guard, so this is said first."""
    if offline and launch.rdzv_endpoint is not None and not is_here(launch.rdzv_endpoint.rpartition(":")[0]):
        raise RecipeError(
            f"launch.rdzv_endpoint: offline, and {launch.rdzv_endpoint} is not on this machine",
            way_out="drop --offline",
        )


def _is_run(target: str, out: Path) -> bool:
    if is_recipe_folder(target) or Path(target).is_file():
        return False
    return Path(target).is_dir() or (target not in names() and (out / target).is_dir())


def work_through(
    session: Session, last: str, *, plan: Plan | None = None, prepared: Prepared | None = None, node_rank: int = 0
) -> None:
    """Do the stages up to and including `last` that are not done yet, under the run's lock.

    A machine of several with a `node_rank` above 0 only joins the training that machine 0 leads.

    Raises:
        StageFailed, OutOfMemory, Stopped: as the stage ended.
    """
    if node_rank > 0:
        join(session)
        return
    with lock(session.run) as fd:
        if plan is not None and prepared is not None:
            write_down(session.run, prepared, plan)
        elif session.resolved != ResolvedRecipe.read(session.run.resolved):  # it is started in another way
            write_atomic(session.run.resolved, session.resolved.to_json())
        for stage in up_to(last, session.resolved):
            bring_up_to_date(session, stage, fd)


def train_until(session: Session, validation: int, *, plan: Plan, prepared: Prepared) -> float:
    """Do what comes before training where that is not done, and train up to a validation, whose number it is; training
    later goes on.

    Returns:
        Seconds that training took now.

    Raises:
        StageFailed, OutOfMemory, Stopped: as a stage ended.
    """
    with lock(session.run) as fd:
        write_down(session.run, prepared, plan)
        for stage in up_to(BEFORE_TRAINING, session.resolved):
            bring_up_to_date(session, stage, fd)
        use = _start(session, STAGES[SHARED], fd, pause_after=validation)
    if use.stop_asked:
        raise Stopped("stopped after a rung was done", way_out="run the same command again to go on")
    return use.seconds


def finish(session: Session, key: PrivateKey | None = None) -> tuple[tuple[Evidence, ...], GateDecision]:
    """Decide, write card, lineage and report, and register the version; all stages must be done. `key` signs.

    Raises:
        RunError: a stage has not been done, or its outputs have changed since.
    """
    with lock(session.run):
        _refuse_stale(session)
        return conclude(session.run, session.resolved, actor=getpass.getuser(), key=key)


def bring_up_to_date(session: Session, stage: Stage, lock_fd: int) -> None:
    """Do a stage, unless its outputs are there and its inputs as they were."""
    run, stages, say = session.run, Stages(session.run), session.say
    key = stage.key(run, session.resolved)
    ready = stage.ready(run)
    if ready and stages.done(stage.name, key):
        say(f"{stage.name}: unchanged, not run again")
        return
    if ready and (sibling := stages.reuse(stage.name, key)) is not None and stage.ready(run):
        say(f"{stage.name}: the same work was done by run {sibling.id}, its result is taken over")
        return
    stages.clear(stage.name)
    events = EventLog(run.events)
    events.append("stage_started", stage=stage.name, key=key)
    use = _start(session, stage, lock_fd)
    peak = use.peak_memory_gib
    if stage.name == SHARED:  # the system counts the largest process, the ranks count those of all machines together
        machines = session.resolved.recipe.launch.nnodes
        peak = max(peak, TrainResult.read(run.train_result).peak_memory_gib / machines)
    stages.mark(stage.name, stage.key(run, session.resolved), stage.outputs(run, session.resolved), use.seconds, peak)
    events.append("stage_done", stage=stage.name, seconds=use.seconds, peak_memory_gib=peak)
    if use.stop_asked:
        raise Stopped(
            f"stopped after stage {stage.name!r}, which is done", way_out="run the same command again to go on"
        )


def _start(session: Session, stage: Stage, lock_fd: int, *, pause_after: int | None = None) -> StageUse:
    """Its process, waited for."""
    merges = stage.name == SHARED and session.resolved.recipe.merge is not None
    session.say(f"{stage.name}: {'merging runs' if merges else stage.doing}")
    return run_stage(
        stage.name,
        session.run.path,
        lock_fd=lock_fd,
        threads=session.resolved.recipe.train.threads or 1,
        offline=session.offline,
        less_memory="merge fewer runs" if merges else stage.less_memory,
        launch=session.resolved.recipe.launch if stage.name == SHARED else None,
        pause_after=pause_after,
        short_lived=session.resolved.recipe.model.load_in_4bit,  # weights that the four bits stand for, layer by layer
    )


def _refuse_stale(session: Session) -> None:
    stages = Stages(session.run)
    for stage in up_to("export", session.resolved):
        marker = stages.marker(stage.name)
        if marker is None or not stages.done(stage.name, stage.key(session.run, session.resolved)):
            state = "has not been done" if marker is None else "no longer fits its inputs, or its files were changed"
            raise RunError(
                f"{session.run.path}: stage {stage.name!r} {state}", way_out=f"luthier run {session.run.path}"
            )
