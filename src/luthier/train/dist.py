"""The processes that share one training: which of them this is, and how they agree. One process is world size 1.

Every rank sees the whole shard and cuts a step into the same micro-batches; each computes those that are dealt to it.
A part's loss is divided by the count N of the whole step on every rank, so the gradient of the step is the plain sum
over ranks r of their parts m,

    grad = sum_r sum_{m in r} grad(L_m) / N,

where torch's DistributedDataParallel takes the mean of per-rank means, which is another number as soon as ranks have
different counts. The sum is taken once a step, in float32, over one flat tensor of the trainable gradients: adapters
are small, so there is nothing to gain by overlapping it with the backward pass, and one call costs one latency.

Started by torchrun, or by anything that sets its variables (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE,
MASTER_ADDR, MASTER_PORT): gloo carries what lies on processors, nccl what lies on accelerators.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from luthier.errors import RankLost

Made = TypeVar("Made")

_MEETING = timedelta(minutes=15)
"""How long ranks wait for one another to come at all."""

_PATIENCE = timedelta(hours=24)
"""How long ranks wait for one another. One that dies is noticed at once, by its connections and by torchrun's agent;
one that validates or writes may take long."""


@dataclass(frozen=True)
class Ranks:
    """Which process of those that share a training."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    """The connections they talk through; None for those that all have from the start."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Replace each gradient by its sum over all ranks; one that a rank has not computed counts as zero there.

        What no rank has computed stays without one, as in one process: the optimizer leaves it alone. Those of weights
        that are divided between ranks have been summed on the way (train/shard.py).
        """
        held = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        if self.size == 1 or not held:
            return
        flat = torch.cat([_flat(p.grad if p.grad is not None else torch.zeros_like(p)) for p in held])
        computed = torch.tensor([float(p.grad is not None) for p in held], device=flat.device)
        flat = torch.cat([flat, computed])
        self._sum(flat)
        start = 0
        for parameter, ranks in zip(held, flat[-len(held) :].tolist(), strict=True):
            part = flat[start : start + parameter.numel()]
            start += parameter.numel()
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if ranks else None

    def sum_numbers(self, *numbers: float) -> list[float]:
        """Each number's sum over all ranks, in float64."""
        if self.size == 1:
            return list(numbers)
        given = torch.tensor(numbers, dtype=torch.float64)
        self._sum(given)
        return [float(number) for number in given]

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        return self.sum_numbers(float(here))[0] > 0

    def told(self, text: str) -> str:
        """The text that the first rank gives; what the others give is not looked at."""
        if self.size == 1:
            return text
        letters = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if text else torch.empty(0).byte()
        length = torch.tensor(len(letters))
        with lost_ranks(self):
            dist.broadcast(length, src=0, group=self.group)
            sent = torch.zeros(int(length), dtype=torch.uint8)
            if self.is_first:
                sent.copy_(letters)
            dist.broadcast(sent, src=0, group=self.group)
        return bytes(sent.tolist()).decode()

    def same_weights(self, parameters: Iterable[Parameter]) -> None:
        """Give every rank the first one's weights: their starts are drawn alike, but perhaps not on alike machines."""
        if self.size == 1:
            return
        with lost_ranks(self), torch.no_grad():
            for parameter in parameters:
                if not isinstance(parameter, DTensor):
                    dist.broadcast(parameter, src=0, group=self.group)

    def meet(self) -> None:
        """Wait until every rank has come here."""
        self.sum_numbers(0.0)

    def first_first(self, work: Callable[[], Made]) -> Made:
        """What `work` gives, on the first rank before any other begins with it: the others find what it wrote."""
        if not self.is_first:
            self.meet()
            return work()
        made = work()
        self.meet()
        return made

    def apart(self) -> Ranks:
        """The same ranks with connections of their own, for a thread beside the main one; all ranks have to ask."""
        with lost_ranks(self):
            return Ranks(self.rank, self.size, dist.new_group(backend="gloo", timeout=_PATIENCE))

    def _sum(self, tensor: Tensor) -> None:
        with lost_ranks(self):
            dist.all_reduce(tensor, group=self.group)


def _flat(gradient: Tensor) -> Tensor:
    return gradient.detach().flatten().float()


@contextmanager
def lost_ranks(ranks: Ranks) -> Iterator[None]:
    """What torch says of a connection that broke, as the end of another rank that it is.

    Raises:
        RankLost: another rank has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise RankLost(
            f"rank {ranks.rank} of {ranks.size}: another rank has ended",
            way_out="run the same command again to go on from the last checkpoint",
        ) from error


def present() -> Ranks:
    """The place of this process among those that it has joined; alone where it has joined none."""
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()


@contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """Meet the other ranks that the environment tells of; no group is made for one process alone.

    Raises:
        RankLost: the others cannot be reached, or one ended while this one worked.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    accelerated = torch.cuda.is_available()
    if accelerated:
        torch.cuda.set_device(int(environment.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    # What is told and counted stays on the processor, so that no accelerator waits for it.
    backend = "cpu:gloo,cuda:nccl" if accelerated else "gloo"
    # Torch (2.13) keeps one store for all starts of an agent, and takes a rank's address there for that of the rank of
    # this number which died; names of this start's own keep them apart. To go when torch does so itself.
    start = environment.get("LUTHIER_START") or environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    with lost_ranks(Ranks(int(environment["RANK"]), size)):
        store, rank, size = next(iter(rendezvous("env://", timeout=_MEETING)))
        store = PrefixStore(f"luthier/{start}", store)
        store.set(f"here/{rank}", "")  # one that ended before this has no connection yet that would break
        store.wait([f"here/{other}" for other in range(size)], _MEETING)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    try:
        with lost_ranks(present()):  # divided weights are exchanged in the middle of a forward pass too
            yield present()
    finally:
        dist.destroy_process_group()
