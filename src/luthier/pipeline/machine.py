"""What errors of the system mean: the machine's fault, or a file that the user may not touch."""

from __future__ import annotations

import errno

from luthier.errors import DiskFull, LuthierError, OutOfMemory, RunError

_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})


def as_known_error(error: OSError | MemoryError) -> LuthierError | None:
    """Out of memory, disk full or a place that may not be used, in our words; None for anything else."""
    if isinstance(error, MemoryError) or error.errno == errno.ENOMEM:
        return OutOfMemory("out of memory", way_out="lower train.micro_batch_tokens, or free memory; then run again")
    place = f" for {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"no space left on the disk{place}",
            way_out="free some space and run the same command again; what was made is kept",
        )
    if error.errno in _REFUSED and error.filename:
        return RunError(f"{error.filename}: {error.strerror}", way_out="give another place, or change its permissions")
    return None
