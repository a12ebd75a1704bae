"""Rows that a run has learned which is merged now, or teaches: they are no test of what comes out of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path

from luthier.data.dedupe import text_key, without_wording
from luthier.data.near import NearPairs
from luthier.data.shards import Example, Shard, write_shard
from luthier.data.tokenise import split_reports
from luthier.data_report import DataReport, Leakage, RowFate
from luthier.records import Contamination, RequestContract, SplitName, is_closed
from luthier.store.files import write_atomic

REASON = "learned_before"


_MET: dict[SplitName, tuple[str, ...]] = {"validation": ("train",), "test": ("train", "validation")}
"""Split of ours -> splits of such a run whose rows give it away."""


@dataclass
class _Seen:
    """What runs have met."""

    keys: dict[str, set[str]] = field(default_factory=dict)
    """Text, as texts are compared -> its answers."""
    groups: set[str] = field(default_factory=set)
    """Groups of ours to which their rows belong."""


def set_aside_learned(
    folder: Path, learned: Mapping[str, Path], *, file: str, rows_file: Path, threshold: float | None
) -> Counter[str]:
    """Mark test rows that such a run has met, and set validation rows aside that it has learned.

    A run has met the rows it was validated with too, because its weights were chosen by them. Texts are compared
    without letter case and white space, and by likeness at `threshold` where that is asked for; of a closed set a
    like text gives away rows of its own label only. Groups stand in shards as numbers, so they are compared where a run
    read the very file that this recipe reads: by the lines. Shards and report are written anew.

    Args:
        folder: data folder of the task, prepared.
        learned: name of a run and task -> its data folder.
        file: the task's file, as the recipe names it.
        rows_file: where it is.
        threshold: Jaccard index from which on texts are alike; None for equal ones only.

    Returns:
        Split -> rows that were marked or set aside.
    """
    contract = RequestContract.read(folder / "contract.json")
    report = DataReport.read(folder / "report.json")
    by_line = _groups_by_line(folder, report) if rows_file.is_file() else {}
    counts: Counter[str] = Counter()
    leakage = {one.split: one for one in report.leakage}
    fates: list[RowFate] = []
    for split, met in _MET.items():
        seen = _seen(learned, met, by_line, source=(file, report.source_sha256.get(file, "")))
        path = folder / f"{split}.arrow"
        rows = list(Shard(path))
        kinds = [
            row.contaminated or kind for row, kind in zip(rows, _kinds(rows, seen, contract, threshold), strict=True)
        ]
        fresh: Counter[Contamination] = Counter(
            kind for row, kind in zip(rows, kinds, strict=True) if kind and not row.contaminated
        )
        if not fresh:
            continue
        counts[split] = fresh.total()
        if split == "test":
            write_shard(path, [replace(row, contaminated=kind) for row, kind in zip(rows, kinds, strict=True)])
        else:
            write_shard(path, [row for row, kind in zip(rows, kinds, strict=True) if not kind])
            gone = [row for row, kind in zip(rows, kinds, strict=True) if kind]
            fates += [
                RowFate(file=file, line=row.line, reason=REASON, detail="a run behind this one learned it")
                for row in gone
            ]
        leakage[split] = _added(leakage.get(split) or Leakage(split=split, exact=0, group=0), fresh)
    if counts:
        _tell(folder, report, contract, leakage, fates)
    return counts


def _groups_by_line(folder: Path, report: DataReport) -> dict[int, str]:
    """Line of the task's file -> our group of it; splits that have files of their own have other lines."""
    splits = [split for split in ("train", "validation", "test") if split not in report.own_files]
    return {row.line: row.group for split in splits for row in Shard(folder / f"{split}.arrow") if not row.made_by}


def _seen(
    learned: Mapping[str, Path], splits: Sequence[str], by_line: Mapping[int, str], *, source: tuple[str, str]
) -> _Seen:
    found = _Seen()
    for folder in learned.values():
        contract = RequestContract.read(folder / "contract.json")
        report = DataReport.read(folder / "report.json")
        same = next(iter(report.source_sha256.values()), None) == source[1]
        for split in splits:
            same_file = same and split not in report.own_files
            for row in Shard(folder / f"{split}.arrow"):
                found.keys.setdefault(compared_key(row.text, contract), set()).add(row.answer)
                if same_file and not row.made_by and row.line in by_line:
                    found.groups.add(by_line[row.line])
    return found


def compared_key(text: str, contract: RequestContract) -> str:
    """What a prepared text asks, as it is compared with what other runs and tasks ask."""
    return text_key(without_wording(text_key(text), contract.input)) if contract.input else text_key(text)


def _kinds(
    rows: Sequence[Example], seen: _Seen, contract: RequestContract, threshold: float | None
) -> list[Contamination]:
    """How each row was met."""
    keys = [compared_key(row.text, contract) for row in rows]
    near: Set[int] = _near(rows, keys, seen, closed=is_closed(contract.task), threshold=threshold)
    return [
        "exact" if key in seen.keys else "near" if place in near else "group" if row.group in seen.groups else ""
        for place, (row, key) in enumerate(zip(rows, keys, strict=True))
    ]


def _near(
    rows: Sequence[Example], keys: Sequence[str], seen: _Seen, *, closed: bool, threshold: float | None
) -> set[int]:
    if threshold is None or not rows or not seen.keys:
        return set()
    met = list(seen.keys)
    pairs = NearPairs([*met, *keys], threshold, left=len(met)).before()
    return {
        place - len(met)
        for place, matches in pairs.items()
        if not closed or any(rows[place - len(met)].answer in seen.keys[met[match.index]] for match in matches)
    }


def _added(told: Leakage, fresh: Mapping[Contamination, int]) -> Leakage:
    more = {"exact": told.exact + fresh.get("exact", 0), "near": told.near + fresh.get("near", 0)}
    return told.model_copy(update={**more, "group": told.group + fresh.get("group", 0)})


def _tell(
    folder: Path,
    report: DataReport,
    contract: RequestContract,
    leakage: Mapping[SplitName, Leakage],
    fates: Sequence[RowFate],
) -> None:
    shards: dict[SplitName, Path] = {name: folder / f"{name}.arrow" for name in ("train", "validation", "test")}
    dropped = {**report.dropped, REASON: len(fates)} if fates else report.dropped
    changed = report.model_copy(
        update={
            "splits": split_reports(shards, contract),
            "leakage": tuple(leakage.values()),
            "fates": (*report.fates, *fates),
            "dropped": dropped,
            "rows_out": report.rows_out - len(fates),
        }
    )
    write_atomic(folder / "report.json", changed.to_json())
