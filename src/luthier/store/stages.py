"""Content-addressed stages: one whose inputs have not changed is not run again, in this run or in another of its name.

The key of a stage is a hash over everything that decides its outputs. Its marker is written last, so that it never says
more than is on disk.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from pydantic import Field, ValidationError

from luthier.records import Record
from luthier.store.files import beside, disk_errors, sha256_file, sync, write_atomic
from luthier.store.runs import RunFolder

HASHED_BYTES = 64 * 2**20
"""Files of this size and more are told apart by size alone, so that looking at a finished run stays quick."""


class StageOutput(Record):
    path: str = Field(description="Relative to the run folder.")
    num_bytes: int
    sha256: str = Field(description="'' for a file of 64 MiB or more.")


class StageMarker(Record):
    """Says that a stage is done, with what it wrote and what it took."""

    stage: str
    key: str
    outputs: tuple[StageOutput, ...]
    seconds: float
    peak_memory_gib: float
    reused_from: str = Field(default="", description="Id of the run that did the work; '' where this run did.")


class Stages:
    """The stages of one run; whoever changes them holds the run's lock."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def marker(self, stage: str) -> StageMarker | None:
        """What is known of a stage; None where there is no marker, or none that this version can read."""
        try:
            return StageMarker.model_validate_json(self._marker_path(stage).read_bytes())
        except (FileNotFoundError, ValidationError):  # either way the stage is not known to be done, so it runs
            return None

    def done(self, stage: str, key: str) -> bool:
        """Whether the stage has run with this key and its outputs are still what it wrote."""
        marker = self.marker(stage)
        return marker is not None and marker.key == key and all(map(self._is_intact, marker.outputs))

    def changed(self, stage: str) -> list[str]:
        """Outputs of a stage that are not what it wrote, relative to the run folder; none where it is not done."""
        marker = self.marker(stage)
        return [output.path for output in marker.outputs if not self._is_intact(output)] if marker else []

    def clear(self, stage: str) -> None:
        """Forget that a stage was done; call it before its outputs are touched."""
        with disk_errors(self._marker_path(stage)):
            self._marker_path(stage).unlink(missing_ok=True)

    def mark(self, stage: str, key: str, outputs: Sequence[Path], seconds: float, peak_memory_gib: float) -> None:
        """Record that the stage is done, as the last thing it does.

        Args:
            stage: name of the stage.
            key: hash of its inputs.
            outputs: files in the run folder, or folders for all files in them.
            seconds: wall time.
            peak_memory_gib: of its process.

        Raises:
            DiskFull: no space; the stage is not marked.
        """
        described = tuple(map(self._describe, _files(outputs)))
        marker = StageMarker(stage=stage, key=key, outputs=described, seconds=seconds, peak_memory_gib=peak_memory_gib)
        write_atomic(self._marker_path(stage), marker.to_json())

    def reuse(self, stage: str, key: str) -> RunFolder | None:
        """Take the outputs of a sibling run that has done this stage with this key.

        They are hard-linked (copied where the file system cannot): outputs are replaced, never written in place.

        Returns:
            The sibling, or None where no sibling has them.

        Raises:
            DiskFull: no space to copy.
        """
        for path in sorted(self.run.path.parent.iterdir()):
            sibling = Stages(RunFolder(path))
            if not path.is_dir() or path.is_symlink() or path == self.run.path or not sibling.done(stage, key):
                continue
            with suppress(FileNotFoundError):  # the sibling may be at work, or deleted, while its files are taken
                self._take_from(sibling, stage)
            if self.done(stage, key):
                return sibling.run
            self.clear(stage)
        return None

    def _take_from(self, sibling: Stages, stage: str) -> None:
        marker = sibling.marker(stage)
        if marker is None:
            return
        self.clear(stage)
        for output in marker.outputs:
            _link_or_copy(sibling.run.path / output.path, self.run.path / output.path)
        origin = marker.reused_from or sibling.run.id
        write_atomic(self._marker_path(stage), marker.model_copy(update={"reused_from": origin}).to_json())

    def _marker_path(self, stage: str) -> Path:
        return self.run.stages / f"{stage}.json"

    def _describe(self, path: Path) -> StageOutput:
        assert path.is_file(), f"a stage says that it wrote {path}, which is not there"
        sync(path)  # the marker must not reach the disk before what it speaks of
        num_bytes = path.stat().st_size
        return StageOutput(
            path=path.relative_to(self.run.path).as_posix(),
            num_bytes=num_bytes,
            sha256=sha256_file(path) if num_bytes < HASHED_BYTES else "",
        )

    def _is_intact(self, output: StageOutput) -> bool:
        path = self.run.path / output.path
        if not path.is_file() or path.stat().st_size != output.num_bytes:
            return False
        return not output.sha256 or sha256_file(path) == output.sha256


def _files(outputs: Iterable[Path]) -> list[Path]:
    """The outputs with folders replaced by the files in them, sorted, each once."""
    found: set[Path] = set()
    for path in outputs:
        found.update([file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path])
    return sorted(found)


def _link_or_copy(source: Path, target: Path) -> None:
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            temporary = beside(target, "tmp")
            try:
                shutil.copy(source, temporary)  # its mode too: some files are for their owner only
                sync(temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
