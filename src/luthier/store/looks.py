"""The ledger of looks: which models were judged on which test rows under a name. Chained, as the audit log is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from luthier.errors import RunError
from luthier.store.audit import AuditEntry, AuditLog
from luthier.store.clock import Clock, utc_now
from luthier.store.files import disk_errors, sha256_json
from luthier.store.runs import lock_folder

FOLDER, ACTION = "looks", "look"


def test_rows_sha256(rows: Iterable[tuple[str, ...]]) -> str:
    """Hash of test rows, by what is asked and expected of each; their order, and white space and case, do not count."""
    return sha256_json(sorted([" ".join(part.split()).casefold() for part in row] for row in rows))


class Looks:
    """The ledger in a Luthier home."""

    def __init__(self, home: Path, *, clock: Clock = utc_now) -> None:
        self._folder = home / FOLDER
        self._log = AuditLog(self._folder / "looks.jsonl", clock=clock)

    def take(self, name: str, task: str, *, test_sha256: str, model_sha256: str, actor: str) -> int:
        """Note that a model is judged on these rows; the same model again is the look that it was.

        Args:
            name: of the recipe.
            task: name of the data entry.
            test_sha256: see `test_rows_sha256`.
            model_sha256: of what answers.
            actor: who looks.

        Returns:
            Which look it is, from 1.

        Raises:
            RunError: the ledger was changed, or the place may not be written.
        """
        with disk_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        with lock_folder(self._folder, wait_seconds=60):
            seen = self._models(name, task, test_sha256)
            if model_sha256 not in seen:
                details = {"task": task, "test_sha256": test_sha256, "model_sha256": model_sha256}
                self._log.append(ACTION, actor=actor, subject=name, details=details)
                seen.append(model_sha256)
            return seen.index(model_sha256) + 1

    def latest(self, name: str) -> dict[str, tuple[str, int]]:
        """Task -> the test rows that were looked at last under a name, by hash, and how often they were.

        Raises:
            RunError: the ledger was changed.
        """
        last = {entry.details["task"]: entry.details["test_sha256"] for entry in self._of(name)}
        return {task: (rows, len(self._models(name, task, rows))) for task, rows in last.items()}

    def _of(self, name: str) -> list[AuditEntry]:
        verdict = self._log.verify()
        if verdict.first_broken is not None:
            raise RunError(
                f"{self._log.path}: the ledger of looks was changed: {verdict.problem}",
                way_out=f"restore it and {self._log.head_path.name} from a backup; without them no look can be counted",
            )
        return [entry for entry in self._log.entries() if entry.subject == name]

    def _models(self, name: str, task: str, test_sha256: str) -> list[str]:
        """Models that were judged on these rows, in their order."""
        wanted = {"task": task, "test_sha256": test_sha256}
        return [entry.details["model_sha256"] for entry in self._of(name) if wanted.items() <= entry.details.items()]
