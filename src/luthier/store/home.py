"""Where things that outlive a run are kept, such as imported base models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from luthier.store.files import disk_errors


def home(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder named by LUTHIER_HOME, else ~/.cache/luthier; made where it is missing.

    Raises:
        RunError: the folder cannot be made.
    """
    folder = place_of(environment)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def place_of(environment: Mapping[str, str] = os.environ) -> Path:
    """Where that folder is, or would be."""
    return Path(environment.get("LUTHIER_HOME") or "~/.cache/luthier").expanduser()
