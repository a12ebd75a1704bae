"""Which errors are the machine's."""

from __future__ import annotations

import errno

from luthier.errors import DiskFull, MachineError, OutOfMemory


def as_machine_error(error: OSError | MemoryError) -> MachineError | None:
    """Out of memory or disk full in our words; None for anything else."""
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        return OutOfMemory("out of memory", way_out="lower train.micro_batch_tokens, or free memory; then run again")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"no space left on the disk{f' for {error.filename}' if error.filename else ''}",
                        way_out="free some space and run the same command again; what was made is kept")
    return None
