"""Times are read strictly, and splits by time, by name and by a lot of their own keep what they promise."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from data_kit import shape
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data_firewall import changed, rows_of, texts
from test_data_prepare import balanced, run, shards, write

from luthier.data.profile import profile
from luthier.data.split import assign_by_time, assign_stable
from luthier.data.times import read_times
from luthier.errors import DataError, RecipeError
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe, resolve

FIRST = datetime(2026, 3, 1, tzinfo=UTC)
TEN = datetime(2026, 3, 1, 10, 42, tzinfo=UTC)


@pytest.mark.parametrize(
    ("cell", "time"),
    [
        ("2026-03-01", FIRST),
        ("  2026-03-01 ", FIRST),
        ("20260301", FIRST),
        ("2026/03/01", FIRST),
        ("2026/3/1 10:42", TEN),
        ("01.03.2026", FIRST),
        ("1.3.2026 10:42:00", TEN),
        ("2026-03-01T10:42:00Z", TEN),
        ("2026-03-01T11:42:00+01:00", TEN),
        ("2026-03-01 10:42:00.000", TEN),
        (date(2026, 3, 1), FIRST),
        (datetime(2026, 3, 1, 10, 42), TEN),
        (datetime(2026, 3, 1, 12, 42, tzinfo=timezone(timedelta(hours=2))), TEN),
        (int(TEN.timestamp()), TEN),
        (str(int(TEN.timestamp())), TEN),
        (TEN.timestamp() * 1000, TEN),
        *((cell, None) for cell in ("", "soon", "2026", "2026-02-30", "30.02.2026", "01.03.26", "99.99.2026", None)),
        *((cell, None) for cell in (True, 17, -5, 10**400, "9" * 5000, float("nan"), float("inf"), ["2026-03-01"])),
        *((cell, None) for cell in ("2026-03-01 25:00", "2026-03/01", "1/2026", "10:42", "٢٠٢٦-٠٣-٠١")),
    ],
)
def test_cells(cell: object, time: datetime | None) -> None:
    assert read_times([cell], column="day") == [time]


@pytest.mark.parametrize("mark", ["/", "-"])
def test_the_column_shows_whether_the_day_comes_first(mark: str) -> None:
    days = [cell.replace("/", mark) for cell in ("03/01/2026", "25/12/2026", "2026/02/01")]
    assert read_times(days, column="day")[0] == datetime(2026, 1, 3, tzinfo=UTC)
    months = [cell.replace("/", mark) for cell in ("03/01/2026 10:42", "12/25/2026")]
    assert read_times(months, column="day")[0] == datetime(2026, 3, 1, 10, 42, tzinfo=UTC)
    for cells, found in ((["01/02/2026", "03/04/2026"], "no day above 12 shows it"), (days + months, "both orders")):
        with pytest.raises(
            DataError, match=f"column 'day' has dates such as [^$]*{found}[^$]*-> write the dates as 2026"
        ):
            read_times([cell.replace("/", mark) for cell in cells], column="day")


@settings(deadline=None)
@given(cell=st.text() | st.integers() | st.floats() | st.datetimes() | st.booleans() | st.none())
def test_any_cell_has_a_time_or_none(cell: object) -> None:
    time = read_times([cell], column="day")[0] if not isinstance(cell, str) or "20" not in cell else None
    assert time is None or time.utcoffset() == timedelta(0)


TIMES = st.lists(st.integers(0, 30), min_size=1, max_size=80).map(lambda days: [FIRST + timedelta(day) for day in days])
SHARE = st.sampled_from([0.0, 0.1, 0.25, 0.4])


@settings(deadline=None)
@given(times=TIMES, test=SHARE, validation=SHARE, order=st.randoms(use_true_random=False))
def test_the_newest_are_tested(times: list[datetime], test: float, validation: float, order: Any) -> None:
    splits = assign_by_time(times, test=test, validation=validation)
    held = {name: [time for time, split in zip(times, splits, strict=True) if split == name] for name in set(splits)}
    ordered = [held[name] for name in ("train", "validation", "test") if name in held]
    assert all(max(one) < min(other) for one, other in itertools.pairwise(ordered))
    assert "train" in held
    wanted = [name for name, share in (("test", test), ("validation", validation)) if share]
    assert set(held) - {"train"} <= set(wanted)
    if len(set(times)) > len(wanted):
        assert set(wanted) <= set(held)
    shuffled = list(range(len(times)))
    order.shuffle(shuffled)
    again = assign_by_time([times[place] for place in shuffled], test=test, validation=validation)
    assert [splits[place] for place in shuffled] == again


def test_shares_by_time_are_kept_to_a_time() -> None:
    times = [FIRST + timedelta(hours=hour) for hour in range(200)]
    assert Counter(assign_by_time(times, test=0.25, validation=0.1)) == {"train": 130, "validation": 20, "test": 50}


GROUPS = st.lists(st.text("abc", min_size=1, max_size=3), max_size=40)


@settings(deadline=None)
@given(groups=GROUPS, later=GROUPS, seed=st.integers(0, 9))
def test_a_file_that_grows_moves_no_row(groups: list[str], later: list[str], seed: int) -> None:
    before = assign_stable(groups, test=0.3, validation=0.2, seed=seed)
    after = assign_stable([*later, *groups], test=0.3, validation=0.2, seed=seed)
    assert after[len(later) :] == before


def test_stable_shares_are_those_of_the_expectation() -> None:
    names = [str(number) for number in range(20_000)]
    counts = Counter(assign_stable(names, test=0.25, validation=0.05, seed=0))
    assert abs(counts["test"] / 20_000 - 0.25) < 0.01
    assert abs(counts["validation"] / 20_000 - 0.05) < 0.005
    assert assign_stable(names, test=0.25, validation=0.05, seed=1) != assign_stable(
        names, test=0.25, validation=0.05, seed=0
    )


def test_prepare_keeps_every_row_of_a_growing_file_where_it_was(tmp_path: Path) -> None:
    messages = texts(90)
    messages[50:60] = [changed(text) for text in messages[:10]]  # like rows that come later move nothing either
    seen = []
    for name, rows in (("short", rows_of(messages)[:50]), ("long", rows_of(messages))):
        (tmp_path / name).mkdir()
        report = run(tmp_path / name, rows, split={"stable": True, "stratify": False}, leakage={"near": 0.7})
        assert balanced(report)
        assert report.split_rule == (
            "drawn by lot: test 0.25, validation 0.1; rows with the same 'text' stay together; later rows move none; "
            "seed 0"
        ).replace("'text'", "text")
        seen.append({one.text: split for split, ones in shards(tmp_path / name).items() for one in ones})
    both = set(seen[0]) & set(seen[1])
    assert len(both) >= 45  # a validation row that is like a learned one is set aside, which is no move
    assert all(seen[0][text] == seen[1][text] for text in both)


def test_rows_by_time_and_those_without_one(tmp_path: Path) -> None:
    rows = [{**row, "day": f"2026-01-{n % 28 + 1:02}"} for n, row in enumerate(rows_of(texts(84)))]
    rows[5]["day"], rows[6]["day"] = "", "tomorrow"
    report = run(tmp_path, rows, split={"by_time": "day", "stratify": False})
    assert balanced(report)
    assert [(fate.line, fate.reason, fate.detail) for fate in report.fates] == [
        (7, "no_time", "nothing in the column 'day' can be read as a time"),
        (8, "no_time", "nothing in the column 'day' can be read as a time"),
    ]  # fmt: skip
    assert report.split_rule == "by 'day', the newest last: test 0.25, validation 0.1; seed 0"
    days = {split: {rows[one.line - 2]["day"] for one in ones} for split, ones in shards(tmp_path).items()}
    assert max(days["train"]) < min(days["validation"]) <= max(days["validation"]) < min(days["test"])
    for row in rows:
        row["day"] = "soon"
    with pytest.raises(DataError, match=r"data\.csv: no row has a time in column 'day' \(data\.split\.by_time\)\n  ->"):
        run(tmp_path, rows, split={"by_time": "day", "stratify": False})


def test_rows_that_name_their_split(tmp_path: Path) -> None:
    parts = ["train", "Training", " dev", "val", "valid", "VALIDATION", "test", "train", "train"]
    rows = [{**row, "part": parts[n % 9]} for n, row in enumerate(rows_of(texts(90)))]
    report = run(tmp_path, rows, split={"column": "part", "stratify": False, "test": None, "validation": None})
    assert balanced(report)
    assert {split: part.rows for split, part in report.splits.items()} == {"train": 40, "validation": 40, "test": 10}
    assert report.split_rule == "named by the column 'part'; seed 0 of limits"
    for wrong, said in (("holdout", "'holdout'"), ("", "nothing"), ("ana@example.org", "another text")):
        rows[11]["part"] = wrong
        with pytest.raises(
            DataError, match=rf"data\.csv:13: column 'part' .* it holds {said}\n  -> write one of train,"
        ):
            run(tmp_path, rows, split={"column": "part", "stratify": False, "test": None, "validation": None})


@pytest.mark.parametrize("key", ["by_time", "column"])
def test_a_column_that_is_not_there_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match=rf"data\.split\.{key} names the column 'custmer'[^$]*did you mean 'customer'"):
        run(tmp_path, rows_of(texts(20)), split={key: "custmer"})


def resolved_split(folder: Path, split: dict[str, Any], **data: Any) -> ResolvedRecipe:
    rows = [{**row, "day": f"2026-01-{n % 28 + 1:02}", "part": "train"} for n, row in enumerate(rows_of(texts(60)))]
    path = write(folder / "data.csv", rows)
    entry = {"path": "data.csv", "input": "{message}", "label": "intent", "task": "classification"}
    recipe = {"name": "r", "model": {"name": "m"}, "data": {"train": [entry], "split": split, **data}}
    loaded = LoadedRecipe(Recipe.model_validate(recipe), folder / "r.yaml", "", ())
    return resolve(loaded, profile(path), shape(), machine=Machine(threads=1), data_sha256={}, luthier_version="0")


@pytest.mark.parametrize(
    ("split", "data", "key", "way"),
    [
        ({"column": "part", "test": 0.3}, {}, "data.split.test", "column"),
        ({"column": "part", "validation": 0.3}, {}, "data.split.validation", "column"),
        ({"column": "part"}, {"test": "t.csv"}, "data.test", "column"),
        ({"column": "part"}, {"validation": "t.csv"}, "data.validation", "column"),
        ({"column": "part", "stratify": True}, {}, "data.split.stratify", "column"),
        ({"by_time": "day", "stratify": True}, {}, "data.split.stratify", "by_time"),
        ({"stable": True, "stratify": True}, {}, "data.split.stratify", "stable"),
    ],
)
def test_keys_that_a_way_to_split_cannot_obey_are_refused(
    tmp_path: Path, split: dict[str, Any], data: dict[str, Any], key: str, way: str
) -> None:
    with pytest.raises(RecipeError, match=rf"{key} does not go with data\.split\.{way}\n  -> leave {key} or {way} out"):
        resolved_split(tmp_path, split, **data)


@pytest.mark.parametrize("two", [{"by_time": "a", "column": "b"}, {"by_time": "a", "stable": True}])
def test_two_ways_to_split_are_refused(two: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{' and '.join(two)} are different ways to split; keep one"):
        Recipe.model_validate({"name": "r", "model": {"name": "m"}, "data": {"train": [{"path": "d"}], "split": two}})


def test_what_a_way_to_split_leaves_open_is_filled_in_with_the_reason(tmp_path: Path) -> None:
    made = resolved_split(tmp_path, {"by_time": "day"})
    assert (made.recipe.data.split.group_by, made.recipe.data.split.stratify) == ("", False)
    assert made.reasons["data.split.group_by"] == "rows are split by 'day'"
    assert made.reasons["data.split.stratify"] == "rows are not drawn by label"
    made = resolved_split(tmp_path, {"column": "part"})
    assert made.reasons["data.split.test"] == "for the plan only: the column 'part' names the splits"
    made = resolved_split(tmp_path, {"stable": True})
    assert made.recipe.data.split.stratify is False
