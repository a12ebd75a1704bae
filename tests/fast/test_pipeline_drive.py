"""How the pipeline goes from stage to stage: stopping between them, what changed behind its back, whose fault it is."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from command import call, environment, paper_model
from luthier.errors import DiskFull, LuthierError, OutOfMemory, RecipeError, RunError, Stopped
from luthier.launch import child
from luthier.models.adapters import safetensors_disk_errors
from luthier.pipeline import drive, join, order
from luthier.pipeline.machine import as_known_error
from luthier.pipeline.order import STAGES
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder
from luthier.store.stages import Stages
from ranks_kit import free_port
from tiny import write_recipe


def test_a_wish_to_stop_that_came_when_a_stage_was_done_is_heeded_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recipe(tmp_path, paper_model(tmp_path / "model"))
    real = child.run_stage

    def asked(stage: str, run: Path, **settings: Any) -> child.StageUse:
        return replace(real(stage, run, **settings), stop_asked=True)

    monkeypatch.setattr(drive, "run_stage", asked)
    call("prepare", "tiny.yaml", cwd=tmp_path).fails(
        5, "stopped after stage 'base', which is done", "run the same command"
    )
    again = call("prepare", "tiny.yaml", cwd=tmp_path).fails(5, "stopped after stage 'prepare', which is done")
    assert "base: unchanged, not run again" in again.err
    assert "prepare: unchanged, not run again" in call("prepare", "tiny.yaml", cwd=tmp_path).succeeds().err


def test_what_a_killed_stage_is_advised_belongs_to_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path, paper_model(tmp_path / "model"))

    def killed(stage: str, run: Path, *, less_memory: str, **settings: Any) -> child.StageUse:
        if stage == "base":
            return child.run_stage(stage, run, **settings)
        raise OutOfMemory(f"stage {stage!r} was killed", way_out=less_memory)

    monkeypatch.setattr(drive, "run_stage", killed)
    call("prepare", "tiny.yaml", cwd=tmp_path).fails(6, "stage 'prepare' was killed", "-> prepare fewer rows")
    for name, stage in STAGES.items():
        assert ("train.micro_batch_tokens" in stage.less_memory) == (name == "train")


def test_a_run_is_opened_by_its_name_where_no_recipe_is_shipped_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = write_recipe(tmp_path, paper_model(tmp_path / "model")), tmp_path / "runs"
    settings: dict[str, Any] = {"out": out, "offline": False, "say": lambda line: None}
    made, plan, prepared = drive.begin(str(recipe), overrides=(), **settings)
    assert plan is not None
    assert prepared is not None
    drive.write_down(made.run, prepared, plan)
    for name in ("tiny", f"tiny/{made.run.id}"):
        opened, none, nothing = drive.begin(name, overrides=(), **settings)
        assert (opened.run.path, opened.resolved, none, nothing) == (made.run.path.resolve(), made.resolved, None, None)
    with pytest.raises(RunError, match="tiny is a run, its recipe is fixed"):
        drive.begin("tiny", overrides=["train.seed=1"], **settings)
    with pytest.raises(RecipeError, match="'small' is neither a file nor a shipped recipe"):
        drive.begin("small", overrides=(), **settings)
    monkeypatch.setattr(drive, "names", lambda: ("tiny",))
    with pytest.raises(RecipeError):  # the shipped recipe is meant, of which there is none of that name in truth
        drive.begin("tiny", overrides=(), **settings)


def test_a_signal_between_stages_ends_with_5() -> None:
    program = (
        "import os, signal, sys, time\n"
        "from luthier import cli\n"
        "cli.app = lambda **options: (os.kill(os.getpid(), int(sys.argv[1])), time.sleep(20))\n"
        "cli.main()\n"
    )
    for number, name in ((15, "SIGTERM"), (2, "SIGINT")):
        done = subprocess.run(
            [sys.executable, "-c", program, str(number)], env=environment(), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (
            5,
            f"error: stopped by {name}\n  -> run the same command again to go on\n",
        )


@pytest.mark.parametrize("error", ["KeyError('x')", "OSError(5, 'Input/output error')"])
def test_a_fault_of_our_own_shows_its_traceback_and_says_whose_it_is(error: str) -> None:
    program = f"from luthier import cli\ndef app(**options): raise {error}\ncli.app = app\ncli.main()\n"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: this is a fault of Luthier, not yours; please report it with the lines above\n")


def test_what_changed_since_a_stage_was_done_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "a", "1")
    stages = Stages(run)
    assert stages.changed("train") == []
    for name in ("one", "two", "three"):
        write_atomic(run.train / name, name)
    stages.mark("train", "key", [run.train], 1.0, 1.0)
    assert stages.changed("train") == []
    write_atomic(run.train / "one", "eno")
    (run.train / "two").unlink()
    assert stages.changed("train") == ["train/one", "train/two"]


def test_errors_of_the_system_in_our_words() -> None:
    full = as_known_error(OSError(errno.ENOSPC, "No space", "/x/y"))
    assert isinstance(full, DiskFull)
    assert full.what == "no space left on the disk for /x/y"
    for memory in (MemoryError(), OSError(errno.ENOMEM, "Cannot allocate memory")):
        assert isinstance(as_known_error(memory), OutOfMemory)
    refused = as_known_error(PermissionError(errno.EACCES, "Permission denied", "/x/y"))
    assert isinstance(refused, RunError)
    assert refused.what == "/x/y: Permission denied"
    assert as_known_error(OSError(errno.EIO, "Input/output error", "/x/y")) is None
    assert as_known_error(PermissionError(errno.EACCES, "Permission denied")) is None


SMALL_DISK = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from luthier.errors import DiskFull
from luthier.models.adapters import safetensors_disk_errors
from luthier.store.files import write_atomic_dir
place = Path(sys.argv[1])
try:
    with write_atomic_dir(place / "final") as folder, safetensors_disk_errors(folder):
        save_file({"a": torch.zeros(100_000)}, folder / "a.safetensors")
except DiskFull as error:
    assert "final: no space left on the disk" in str(error), error
else:
    sys.exit("not refused")
assert not list(place.iterdir())
"""


def test_tensors_on_a_full_disk(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=64k small {tmp_path} && exec "$@"'
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c", mount, "sh"]
    if sys.platform != "linux" or subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    subprocess.run([*unshare, sys.executable, "-c", SMALL_DISK, str(tmp_path)], check=True)


def test_other_faults_of_the_tensor_writer_pass_through(tmp_path: Path) -> None:
    with pytest.raises(SafetensorError), safetensors_disk_errors(tmp_path):
        save_file({"a": torch.zeros(1)}, tmp_path / "no" / "such" / "folder")


def test_a_machine_that_joins_needs_another_to_join(tmp_path: Path) -> None:
    write_recipe(tmp_path, paper_model(tmp_path / "model"))
    call("train", "tiny.yaml", "--node-rank", "1", cwd=tmp_path).fails(
        2, "--node-rank above 0 joins other machines, and there is one", "--nnodes and --rdzv-endpoint"
    )


def test_a_training_that_was_done_already_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_recipe(tmp_path, paper_model(tmp_path / "model"))
    said: list[str] = []
    session, _, _ = drive.begin(
        str(tmp_path / "tiny.yaml"), overrides=(), out=tmp_path / "runs", offline=True, say=said.append,
        launch={"nnodes": 2, "rdzv_endpoint": f"127.0.0.1:{free_port()}"},
    )  # fmt: skip
    monkeypatch.setattr(Stages, "marker", lambda self, stage: object())
    monkeypatch.setattr(Stages, "done", lambda self, stage, key: True)
    monkeypatch.setattr(order.Stage, "key", lambda self, run, resolved: "key")
    drive.work_through(session, "train", node_rank=1)
    assert said[-1] == "train: unchanged, not run again"
    assert not session.run.lock_file.exists()


def test_machines_do_not_meet_offline(tmp_path: Path) -> None:
    write_recipe(tmp_path, paper_model(tmp_path / "model"))
    launch = ("--set", "launch.nnodes=2", "--rdzv-endpoint", "10.0.0.7:29400", "--offline")
    call("train", "tiny.yaml", *launch, cwd=tmp_path).fails(
        2, "launch.rdzv_endpoint: offline, and 10.0.0.7:29400 is not on this machine", "drop --offline"
    )


def test_a_run_that_is_started_in_another_way_keeps_that(tmp_path: Path) -> None:
    write_recipe(tmp_path, paper_model(tmp_path / "model"))
    call("prepare", "tiny.yaml", cwd=tmp_path).succeeds()
    run = RunFolder.open("tiny", out=tmp_path / "runs")
    settings: dict[str, Any] = {"overrides": (), "out": None, "offline": True, "say": lambda line: None}
    session, _, _ = drive.begin(str(run.path), **settings, launch={"nproc_per_node": 3})
    drive.work_through(session, "base")
    assert ResolvedRecipe.read(run.resolved).recipe.launch.nproc_per_node == 3
    again, _, _ = drive.begin(str(run.path), **settings)
    assert again.resolved == session.resolved


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (socket.gaierror(-2, "unknown"), RecipeError, "the name 'localhost' is not known here \\(unknown\\)"),
        (ConnectionRefusedError(), Stopped, "nobody answered at localhost:29400 for"),
    ],
)
def test_a_machine_does_not_wait_for_ever_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError, kind: type[LuthierError], words: str
) -> None:
    def refused(*given: Any, **more: Any) -> None:
        raise fault

    monkeypatch.setattr(join, "JOIN_SECONDS", 1)
    monkeypatch.setattr(socket, "create_connection", refused)
    write_recipe(tmp_path, paper_model(tmp_path / "model"))
    session, _, _ = drive.begin(
        str(tmp_path / "tiny.yaml"), overrides=(), out=tmp_path / "runs", offline=True, say=lambda _: None,
        launch={"nnodes": 2, "rdzv_endpoint": "localhost:29400"},
    )  # fmt: skip
    with pytest.raises(kind, match=words):
        join.join(session)
