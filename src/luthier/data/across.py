"""A test row that asks what another task of the same training learns has been seen too."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from pathlib import Path

from luthier.data.learned_before import compared_key
from luthier.data.shards import Shard, write_shard
from luthier.data_report import DataReport, Leakage
from luthier.records import RequestContract
from luthier.store.files import sha256_file, write_atomic


def mark_seen_elsewhere(folders: Mapping[str, Path]) -> dict[str, int]:
    """Mark test rows whose text stands among the training rows of another task. Letter case, white space and wording
    of templates do not tell texts apart.

    They do not count, like those that their own task has seen; shard and report of the task are written anew. Rows that
    are only nearly alike are looked for within a task alone.

    Args:
        folders: task -> its data folder, prepared.

    Returns:
        Task -> rows that were marked.
    """
    learned = {name: _learned_texts(folder) for name, folder in folders.items()}
    return {
        name: _mark_seen(folder, frozenset[str]().union(*(texts for other, texts in learned.items() if other != name)))
        for name, folder in folders.items()
    }


def _learned_texts(folder: Path) -> frozenset[str]:
    """The texts of the training rows in a data folder, as they are compared."""
    contract = RequestContract.read(folder / "contract.json")
    return frozenset(compared_key(row.text, contract) for row in Shard(folder / "train.arrow"))


def _mark_seen(folder: Path, learned: Set[str]) -> int:
    """Mark the test rows of a data folder whose text stands in `learned`; gives how many that are."""
    path, contract = folder / "test.arrow", RequestContract.read(folder / "contract.json")
    rows = list(Shard(path))
    seen = [not row.contaminated and compared_key(row.text, contract) in learned for row in rows]
    if any(seen):
        write_shard(path, [replace(r, contaminated="exact") if s else r for r, s in zip(rows, seen, strict=True)])
        _tell(folder / "report.json", path, sum(seen))
    return sum(seen)


def _tell(report_json: Path, shard: Path, marked: int) -> None:
    report = DataReport.read(report_json)
    test = report.splits["test"]
    changed = test.model_copy(update={"contaminated": test.contaminated + marked, "sha256": sha256_file(shard)})
    leakage = [one for one in report.leakage if one.split != "test"]
    before = next((one for one in report.leakage if one.split == "test"), Leakage(split="test", exact=0, group=0))
    told = before.model_copy(update={"exact": before.exact + marked})
    report = report.model_copy(update={"splits": {**report.splits, "test": changed}, "leakage": (*leakage, told)})
    write_atomic(report_json, report.to_json())
