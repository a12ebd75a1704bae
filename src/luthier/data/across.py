"""Several tasks in one training: a test row whose text another task learns has been seen too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from luthier.data.shards import Shard, write_shard
from luthier.data_report import DataReport, Leakage
from luthier.store.files import sha256_file, write_atomic


def mark_seen_elsewhere(folders: Mapping[str, Path]) -> dict[str, int]:
    """Mark test rows whose text stands, word for word, among the training rows of another task.

    They do not count, like those that their own task has seen; shard and report of the task are written anew. Rows that
    are only nearly alike are looked for within a task alone.

    Args:
        folders: task -> its data folder, prepared.

    Returns:
        Task -> rows that were marked.
    """
    learned = {name: set(Shard(folder / "train.arrow").column("text")) for name, folder in folders.items()}
    marked = {}
    for name, folder in folders.items():
        path = folder / "test.arrow"
        rows = list(Shard(path))
        elsewhere: set[str] = set().union(*(texts for other, texts in learned.items() if other != name))
        seen = [not row.contaminated and row.text in elsewhere for row in rows]
        marked[name] = sum(seen)
        if marked[name]:
            write_shard(path, [replace(r, contaminated="exact") if s else r for r, s in zip(rows, seen, strict=True)])
            _tell(folder / "report.json", path, marked[name])
    return marked


def _tell(report_json: Path, shard: Path, marked: int) -> None:
    report = DataReport.read(report_json)
    test = report.splits["test"]
    changed = test.model_copy(update={"contaminated": test.contaminated + marked, "sha256": sha256_file(shard)})
    leakage = [one for one in report.leakage if one.split != "test"]
    before = next((one for one in report.leakage if one.split == "test"), Leakage(split="test", exact=0, group=0))
    told = before.model_copy(update={"exact": before.exact + marked})
    report = report.model_copy(update={"splits": {**report.splits, "test": changed}, "leakage": (*leakage, told)})
    write_atomic(report_json, report.to_json())
