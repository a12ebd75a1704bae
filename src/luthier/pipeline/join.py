"""A machine that lends its processors to a training which another machine leads."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from luthier.errors import RecipeError, Stopped
from luthier.launch.child import run_stage
from luthier.pipeline.order import SHARED, STAGES
from luthier.store.stages import Stages

if TYPE_CHECKING:
    from luthier.pipeline.drive import Session

_LOOK_SECONDS = 0.5
JOIN_SECONDS = 4 * 3600
"""How long the first machine may take until it trains: it prepares the data before."""


def join(session: Session) -> None:
    """Start this machine's ranks as soon as the leading machine has come to training, and stay until it is done.

    The run folder is the leading machine's: it is shared, and locked and written by that machine alone.

    Raises:
        RecipeError: there is no other machine to join.
        Stopped, StageFailed, OutOfMemory: as the training ended.
    """
    launch = session.resolved.recipe.launch
    if launch.rdzv_endpoint is None:
        raise RecipeError(
            "--node-rank above 0 joins other machines, and there is one",
            way_out="say --nnodes and --rdzv-endpoint as on the first machine",
        )
    run, threads = session.run, session.resolved.recipe.train.threads or 1
    train, base = STAGES[SHARED], STAGES["base"]
    session.say(f"waiting for {launch.rdzv_endpoint}, where the ranks of {launch.nnodes} machines meet")
    deadline = time.monotonic() + JOIN_SECONDS
    while not _answers(launch.rdzv_endpoint):
        if time.monotonic() > deadline:
            raise Stopped(
                f"nobody answered at {launch.rdzv_endpoint} for {JOIN_SECONDS // 60} minutes",
                way_out="see what the first machine says, and run the same command on each of them again",
            )
        if Stages(run).marker(SHARED) and Stages(run).done(SHARED, train.key(run, session.resolved)):
            session.say("train: unchanged, not run again")
            return
        time.sleep(_LOOK_SECONDS)
    if not base.ready(run):
        run_stage(base.name, run.path, lock_fd=None, threads=threads, offline=session.offline)
    run_stage(SHARED, run.path, lock_fd=None, threads=threads, offline=session.offline, launch=launch)


def _answers(endpoint: str) -> bool:
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except socket.gaierror as error:
        raise RecipeError(
            f"launch.rdzv_endpoint: the name {host!r} is not known here ({error.strerror})",
            way_out="give the first machine's name or address as this machine knows it",
        ) from error
    except OSError:
        return False
    return True
