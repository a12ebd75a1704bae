"""The process between a run and its ranks: torchrun's elastic agent, which starts them and starts them again.

It is torchrun's own agent and c10d rendezvous, with three differences. A rank that ends by its own decision (a stop, a
recipe that cannot be done, a full disk) is not started again, for it would end the same way; only one that died is. A
signal to stop is handed to the ranks, which finish their step and write a checkpoint, however long that takes; torchrun
itself kills them after thirty seconds. And what happened is said once, in our words and with our exit codes.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, cast

from torch.distributed.elastic.agent.server.api import DEFAULT_ROLE, RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous import registry as rendezvous_registry

from luthier.errors import LuthierError, OutOfMemory, Stopped
from luthier.launch.child import StageFailed
from luthier.launch.offline import is_here
from luthier.spec.launch import Launch
from luthier.store.events import CANNOT_TRAIN, EventLog
from luthier.store.files import beside
from luthier.store.runs import RunFolder

Say = Callable[[str], None]
_JOIN_SECONDS = 900
"""How long machines wait for one another; each may still have to read its base model."""
_CLOSE_SECONDS = 60
"""What a rank may take to end when another has died."""
_GO_ON = "the same command goes on from the last checkpoint"


def rendezvous(launch: Launch) -> RendezvousParameters:
    """Where and how the machines meet. One machine alone meets itself, on a free port of its loopback."""
    alone = launch.nnodes == 1
    endpoint = "localhost:0" if alone else str(launch.rdzv_endpoint)
    here = is_here(endpoint.rpartition(":")[0])
    return RendezvousParameters(
        backend="c10d",
        endpoint=endpoint,
        run_id=uuid.uuid4().hex if alone else "luthier",  # what meets at one endpoint belongs together
        min_nodes=launch.nnodes,
        max_nodes=launch.nnodes,
        local_addr="localhost" if here else None,
        timeout=_JOIN_SECONDS,
        join_timeout=_JOIN_SECONDS,
        last_call_timeout=1,  # there are no more machines to wait for
    )


def worker_spec(stage: str, run: Path, launch: Launch, meeting: RendezvousParameters) -> WorkerSpec:
    """What the agent starts: `luthier _stage STAGE RUN`, once for each rank of this machine."""
    return WorkerSpec(
        role=stage,
        local_world_size=launch.nproc_per_node,
        entrypoint=sys.executable,
        args=("-P", "-m", "luthier.cli", "_stage", stage, str(run)),
        rdzv_handler=rendezvous_registry.get_rendezvous_handler(meeting),
        max_restarts=launch.max_restarts,
        local_addr=meeting.local_addr,
    )


def work_together(stage: str, run: Path, launch: Launch, *, say: Say) -> None:
    """Start the ranks of this machine with `luthier _stage STAGE RUN` and stay until the last of them has ended.

    Raises:
        StageFailed: a rank ended by its own decision; what it said has been said.
        Stopped: they were stopped before they could write a checkpoint, or another machine gave up.
        OutOfMemory: a rank was killed, more often than launch.max_restarts.
        LuthierError: it died in another way, more often than that.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # we say what happened
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    meeting = rendezvous(launch)
    if meeting.local_addr is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    words = beside(run / "ranks", "tmp")
    words.mkdir()
    try:
        agent = _Agent(worker_spec(stage, run, launch, meeting), DefaultLogsSpecs(log_dir=str(words)), say=say)
        result = agent.run()
        if result.is_failed():
            error = verdict(stage, result.failures, stop_asked=agent.stop_asked, say=say)
            if isinstance(error, OutOfMemory):  # what was killed could not say so itself
                EventLog(RunFolder(run).events).append(CANNOT_TRAIN, what=error.what)
            raise error
    except RendezvousError as error:
        raise Stopped(
            f"the machines did not meet at {meeting.endpoint}, or one of them gave up: {error}",
            way_out="see what the others say, and run the same command on each of them again",
        ) from error
    finally:
        shutil.rmtree(words, ignore_errors=True)


class _Agent(LocalElasticAgent):
    def __init__(self, spec: WorkerSpec, logs: DefaultLogsSpecs, *, say: Say) -> None:
        super().__init__(spec, logs, shutdown_timeout=_CLOSE_SECONDS)
        self.stop_asked = False
        self._say = say
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Hand the signal to the ranks; without any there is nothing to wait for."""
        self.stop_asked, self._remaining_restarts = True, 0
        context = self._pcontext
        handlers = context.subprocess_handlers.values() if isinstance(context, SubprocessContext) else ()
        started = [handler.proc for handler in handlers]
        if all(process.poll() is not None for process in started):
            raise Stopped("stopped before the ranks had started", way_out="run the same command again to go on")
        for process in started:
            process.send_signal(signal.SIGTERM)

    def run(self, role: str = DEFAULT_ROLE) -> RunResult:
        """Until every rank has ended; the other machines then hear that there is nothing more to meet for."""
        try:
            result = cast("RunResult | None", super().run(role))
        finally:
            self._rdzv_handler.shutdown()
        if result is None:
            raise Stopped(
                "the other machines were complete without this one",
                way_out="give --nnodes the number of machines, and each its own --node-rank",
            )
        return result

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        """Meet the other machines' agents, and agree with them on a name for this start of the ranks.

        Where the ranks meet, those of an earlier start have left their addresses (train/dist.py).
        """
        super()._rendezvous(worker_group)
        met: Any = worker_group  # torch types as None what is not known before they meet
        if met.group_rank == 0:
            met.store.set("luthier/start", uuid.uuid4().hex)  # a store of this meeting alone
        os.environ["LUTHIER_START"] = met.store.get("luthier/start").decode()

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            if any(map(_word, result.failures.values())):
                self._remaining_restarts = 0
            if self._remaining_restarts:
                most = worker_group.spec.max_restarts
                number = most - self._remaining_restarts + 1
                self._say(f"  warning: {_deaths(result.failures)}; start {number} of {most} again, {_GO_ON}")
        return result


def verdict(stage: str, failures: Mapping[int, ProcessFailure], *, stop_asked: bool, say: Say) -> LuthierError:
    """The error that stands for those of all ranks; what a rank has left word of is said here, once."""
    words = sorted(filter(None, map(_word, failures.values())), key=lambda word: word["timestamp"])
    if words:
        say(f"error: {words[0]['message']}")
        return StageFailed(stage, words[0]["exit_code"])
    if stop_asked:
        return Stopped(f"stage {stage!r} was stopped", way_out="run the same command again to go on")
    if any(failure.exitcode == -signal.SIGKILL for failure in failures.values()):
        return OutOfMemory(
            f"stage {stage!r}: {_deaths(failures)}; most often the kernel does this when memory runs out",
            way_out=f"lower train.micro_batch_tokens or launch.nproc_per_node, or free memory; {_GO_ON}",
        )
    return LuthierError(f"stage {stage!r}: {_deaths(failures)}", way_out=f"run the same command again; {_GO_ON}")


def _word(failure: ProcessFailure) -> dict[str, Any] | None:
    """What a rank has left word of before it ended."""
    word: dict[str, Any] = failure.error_file_data
    return word if "exit_code" in word else None


def _deaths(failures: Mapping[int, ProcessFailure]) -> str:
    """Who died, and how; those that only noticed are left out where one is known that did not."""
    died = {rank: failure.exitcode for rank, failure in failures.items() if failure.exitcode not in (5, -15)}
    said = [
        f"rank {rank} was killed (signal {-code})" if code < 0 else f"rank {rank} ended with exit code {code}"
        for rank, code in sorted((died or {rank: one.exitcode for rank, one in failures.items()}).items())
    ]
    return ", ".join(said)
