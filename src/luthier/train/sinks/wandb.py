"""A Weights & Biases run. It stays in the run folder, to be sent with `wandb sync`, unless WANDB_MODE says otherwise.

Neither code, host, command line, environment nor console is recorded.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

from luthier.store.files import write_atomic
from luthier.train.sinks import Start, numbers
from luthier.train_records import LossSpike, StepEvent


class LoggedRun:
    """One id for all sessions of one run of ours; every offline session is a folder of its own."""

    def __init__(self, run: Any, kept: Path, logged: dict[str, int]) -> None:
        self._run, self._kept, self._logged = run, kept, logged

    def write(self, event: StepEvent | LossSpike) -> None:
        if event.step <= self._logged.get(event.kind, 0):
            return
        self._run.log(numbers(event), step=event.step)
        self._logged[event.kind] = event.step
        _keep(self._kept, self._run.id, self._logged)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


def begin(start: Start) -> LoggedRun:
    """A session of the run that an earlier one began, or of a new one."""
    os.environ.update(WANDB_ERROR_REPORTING="false", WANDB_SILENT="true")  # read when it is imported
    import wandb

    kept = Path(start.folder) / "run.json"
    before: dict[str, Any] = {"id": uuid.uuid4().hex[:12], "logged": {}}
    if kept.is_file():
        before = json.loads(kept.read_text())
    mode: Any = "offline" if start.offline else os.environ.get("WANDB_MODE", "offline")
    run = wandb.init(
        project=start.recipe,
        name=start.run,
        id=before["id"],
        resume=None if mode == "offline" else "allow",
        dir=start.folder,
        config=start.parameters,
        mode=mode,
        settings=wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        ),
    )
    _keep(kept, before["id"], before["logged"])
    return LoggedRun(run, kept, before["logged"])


def _keep(path: Path, run_id: str, logged: dict[str, int]) -> None:
    write_atomic(path, json.dumps({"id": run_id, "logged": logged}) + "\n")
