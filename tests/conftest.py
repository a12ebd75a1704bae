"""Every test is offline and has a cache of its own; torch computes on one thread, so that tests do not fight."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("luthier", settings.default, deadline=None)  # how long a case takes says the machine's load
settings.load_profile("luthier")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of a kernel on a hub, said where PEFT imports it
os.environ["LUTHIER_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _no_socket_leaves() -> None:
    from luthier.launch.offline import guard

    guard()


@pytest.fixture
def shared_data() -> Path:
    """The real data sets, which are not part of the project."""
    if not DATA.is_dir():
        pytest.skip("the real data sets (../shared/data) are not on this machine")
    return DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random model."""
    from tiny import write_model

    return write_model(tmp_path_factory.mktemp("model"))
