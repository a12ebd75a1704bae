"""Ranks for tests: processes of this machine that meet over loopback, as torchrun would start them, but quickly."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

HEAVY = [
    "luthier.train.loop",
    "luthier.train.methods.sft",
    "transformers.models.llama.modeling_llama",
    "peft.tuners.lora",
]
HEAVY += ["pytest", "hypothesis.strategies", "test_train_loop"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def together(size: int, work: Callable[..., Any], *given: Any) -> list[Any]:
    """What `work(ranks, *given)` gives on each of `size` ranks; an error of one that is raised on purpose is given.

    `work` is a function of a module and gives no tensors, whose memory would be gone with their process; a rank that
    gives nothing (it was killed) gives None.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    port, pipes, processes = free_port(), [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        settings = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        environment = {name: str(value) for name, value in settings.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
        process = context.Process(target=_one, args=(environment, theirs, work, given))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return [_received(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.join(10)
            process.kill()
            process.join()


def _received(pipe: Connection) -> Any:
    try:
        return pipe.recv() if pipe.poll(120) else None
    except EOFError:
        return None


def _one(environment: dict[str, str], pipe: Connection, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    import torch

    from luthier.errors import LuthierError
    from luthier.train.dist import joined

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        with joined() as ranks:
            made = work(ranks, *given)
    except LuthierError as error:
        made = error
    pipe.send(made)
