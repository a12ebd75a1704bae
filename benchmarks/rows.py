"""What every row of a result says of its conditions, and how rows are kept."""

from __future__ import annotations

import csv
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent


def processor() -> str:
    """Model name of the processor, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.is_file()
        else []
    )
    return names[0] if names else platform.processor()


def commit() -> tuple[str, bool]:
    """Short hash, and whether tracked files differ from it."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True, cwd=HERE)
    dirty = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True, cwd=HERE
    )
    return head.stdout.strip(), bool(dirty.stdout.strip())


def append(path: Path, row: Mapping[str, object]) -> None:
    """Add a row to a CSV file, which gets its header with the first."""
    path.parent.mkdir(exist_ok=True)
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)
