"""Memory of this process, as the system counts it."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


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
