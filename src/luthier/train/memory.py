"""Memory of this process, as the system counts it, and of the accelerator that it computes on."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from luthier.errors import OutOfMemory
from luthier.spec.recipe import Train


def peak_memory_gib() -> float:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def resident_gib() -> float:
    """Resident memory of this process now; its peak so far where the system does not tell."""
    pages = Path("/proc/self/statm")
    if not pages.is_file():
        return peak_memory_gib()
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30


def device_peak_gib() -> float:
    """Largest memory so far where this process computes: on its accelerator, else its own."""
    at_work = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
    return torch.cuda.max_memory_allocated() / 2**30 if at_work else peak_memory_gib()


@contextmanager
def memory_errors(settings: Train) -> Iterator[None]:
    """An accelerator or a machine without room, in our words.

    Raises:
        OutOfMemory: torch found none for what was to be computed.
    """
    try:
        yield
    except RuntimeError as error:  # torch has a kind of its own for accelerators alone
        on_device = isinstance(error, torch.OutOfMemoryError)
        if not on_device and "DefaultCPUAllocator: can't allocate memory" not in str(error):
            raise
        again = "" if settings.gradient_checkpointing else ", or set train.gradient_checkpointing: true"
        raise OutOfMemory(
            f"the {'accelerator' if on_device else 'memory'} is full with train.micro_batch_tokens "
            f"{settings.micro_batch_tokens} ({str(error).splitlines()[0]})",
            way_out=f"lower train.micro_batch_tokens{again}: the result stays the same",
        ) from error
