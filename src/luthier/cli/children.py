"""What launchers start: one stage of a run, or the agent of its ranks."""

from __future__ import annotations

from pathlib import Path

from luthier.cli.shared import go_offline, say


def stage(name: str, run: Path) -> None:
    """One stage of a run, in this process; what launchers start."""
    from luthier.launch.child import die_on_signals, die_with_parent
    from luthier.pipeline.stages import work
    from luthier.store.runs import RunFolder

    die_on_signals()
    die_with_parent()
    go_offline(False)
    work(name, RunFolder(run))


def ranks(name: str, run: Path, launch: str) -> None:
    """The agent that starts a stage as several processes, and starts those again that died."""
    from luthier.launch.child import be_parent, die_with_parent
    from luthier.launch.torchrun import work_together
    from luthier.spec.launch import Launch

    die_with_parent()
    be_parent()
    work_together(name, run, Launch.model_validate_json(launch), say=say)
