"""Expected quality is measured or follows from the labels; it is never made up."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import samples

from luthier.eval_records import SystemScore
from luthier.evals.metric import load_metric
from luthier.evals.observed import Observed
from luthier.pipeline.known import earlier
from luthier.plan.expect import TABLE, expected_of, majority, measured_alike, outdone
from luthier.plan.lines import lines
from luthier.plan.make import make_plan
from luthier.plan.rank import FEW_SHOT, MAJORITY, RIDGE, TFIDF, ZERO_SHOT
from luthier.plan_records import Expected, Plan
from luthier.spec.plugins import METRICS
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder


def points(low: float, point: float, high: float, *, metric: str = "accuracy", data: str = "d") -> Expected:
    return Expected(metric=metric, point=point, low=low, high=high, source="s", data=data)


@pytest.mark.parametrize("counts", [[1, 1], [3, 1], [40, 17, 2], [5, 5, 5, 5], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_the_majority_class_scores_what_the_metrics_say(counts: list[int]) -> None:
    labels = {f"l{number}": count for number, count in enumerate(counts)}
    rows = tuple(label for label, count in labels.items() for _ in range(count))
    most = Counter(rows).most_common(1)[0][0]
    seen = Observed(rows, (most,) * len(rows))
    for name in ("accuracy", "macro_f1"):
        metric, found = load_metric(name), majority(labels, name)
        assert found is not None
        assert found.point == pytest.approx(float(metric.value(metric.statistics(seen).sum(axis=0))))
    assert majority({}, "accuracy") is None
    assert majority(labels, "perplexity") is None


def test_only_a_difference_that_the_intervals_show_counts() -> None:
    low, high = points(0.60, 0.65, 0.70), points(0.72, 0.75, 0.80)
    assert outdone(low, by=high)
    assert not outdone(high, by=low)
    assert not outdone(low, by=points(0.64, 0.72, 0.80)), "the worse point lies within"
    assert not outdone(low, by=None)
    assert not outdone(None, by=high)
    assert not outdone(low, by=points(0.72, 0.75, 0.80, data="other"))
    assert not outdone(low, by=points(0.72, 0.75, 0.80, metric="macro_f1"))
    better, worse = (points(low, mid, high, metric="perplexity") for low, mid, high in ((2, 3, 4), (5, 6, 7)))
    assert outdone(worse, by=better)
    assert not outdone(better, by=worse)


def test_the_shipped_table_is_what_the_benchmarks_wrote() -> None:
    written = Path(__file__).parents[2] / "benchmarks" / "results" / "recipes.csv"
    with written.open(encoding="utf-8", newline="") as file:
        measured = {row["recipe"]: row for row in csv.DictReader(file)}
    columns = {TFIDF: "tfidf_logreg", ZERO_SHOT: "base", "lora sft": "tuned"}
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["data"] in ("banking77", "sst2")]
    for row in rows:
        assert row["metric"] in METRICS.names()
        if row["technique"] in columns:
            cell = measured[row["data"]][f"{columns[row['technique']]}_{row['metric']}"]
            assert cell == f"{row['point']} [{row['low']}, {row['high']}]"
            assert measured[row["data"]]["n_test"] == row["n_test"]
    assert {row["data"] for row in rows} == {"banking77", "sst2"}


def test_like_data_is_found_and_unlike_data_is_not() -> None:
    shape = samples.shape()
    like = measured_alike("classification", num_labels=60, train_rows=3000, shape=shape)
    found = expected_of(TFIDF, "macro_f1", like)
    assert found is not None
    assert (found.point, found.data) == (0.855, "banking77")
    assert found.source.startswith("measured on banking77, not on this data: 77 labels, 2,400 rows")
    assert outdone(expected_of("lora sft", "accuracy", like), by=expected_of(TFIDF, "accuracy", like))
    for task, labels, rows, parameters in (
        ("classification", 12, 900, shape.num_parameters),
        ("classification", 77, 80_000, shape.num_parameters),
        ("sentiment", 60, 3000, shape.num_parameters),
        ("translation", 0, 3000, shape.num_parameters),
        ("classification", 77, 2400, 10 * shape.num_parameters),
    ):
        other = samples.shape(num_parameters=parameters)
        assert not measured_alike(task, num_labels=labels, train_rows=rows, shape=other)


def test_many_labels_like_banking77_put_counting_words_first() -> None:
    profile = samples.profile(num_rows=3400, labels={f"l{number}": 44 for number in range(77)})
    made = make_plan(samples.resolved(objective={}), profile, samples.shape(), matmul_gflops=100.0)
    first = made.candidates[0]
    assert first.technique == TFIDF
    assert first.why == "measured to be better than 'lora sft'"
    text = "\n".join(lines(made))
    assert "expected macro_f1 0.855 [0.780, 0.902], measured on banking77, not on this data" in text
    assert "macro_f1 0.8" in text.partition("for  ")[0]
    assert text.count("unknown") == 1, "nothing measured few-shot prompting there"


def write_run(out: Path, name: str, **sections: object) -> RunFolder:
    run = RunFolder.create(out, name, "1")
    write_atomic(run.resolved, samples.resolved(**sections).to_json())
    write_atomic(run.eval_report, samples.eval_report().to_json())
    return run


def test_what_earlier_runs_measured_on_the_same_data_is_known(tmp_path: Path) -> None:
    mine = samples.resolved()
    assert earlier(tmp_path / "nothing", mine).known == ()
    write_run(tmp_path, "one")
    other = {"train": [{"path": "support.csv", "label": "channel", "name": "intent"}]}
    write_run(tmp_path, "two", data=other, objective={})
    known = earlier(tmp_path, mine).known
    techniques = {one.technique for one in known}
    assert {TFIDF, ZERO_SHOT, MAJORITY, "lora sft"} == techniques
    tuned = next(one for one in known if one.technique == "lora sft")
    assert tuned.source.startswith("measured on this data in run one/1, ")
    assert tuned.metrics == next(s for s in samples.eval_report().systems if s.system == "tuned").metrics
    plan = make_plan(mine, samples.profile(), samples.shape(), matmul_gflops=100.0, known=known)
    assert [one.technique for one in plan.candidates if one.expected is None] == [FEW_SHOT]


@pytest.mark.parametrize(("measured", "asked", "is_known"), [(None, 4, True), (8, 8, True), (8, None, False)])
def test_few_shot_is_known_from_runs_that_showed_as_many_examples(
    tmp_path: Path, measured: int | None, asked: int | None, is_known: bool
) -> None:
    few = SystemScore(
        system="few_shot", title="few", metrics={"macro_f1": samples.interval(0.9, 0.02)}, seconds=1.0, mean_examples=4
    )
    run = write_run(tmp_path, "one", evaluate={"few_shot_examples": measured})
    report = samples.eval_report()
    write_atomic(run.eval_report, report.model_copy(update={"systems": (few, *report.systems)}).to_json())
    mine = samples.resolved(evaluate={"few_shot_examples": asked})
    known = earlier(tmp_path, mine).known
    found = expected_of(FEW_SHOT, "macro_f1", known)
    assert (found is not None) == is_known
    tuned = [one for one in known if one.technique == "lora sft"]
    assert len(tuned) == 1, "it is never taken for the tuned model"
    if found is not None:
        plan = make_plan(mine, samples.profile(), samples.shape(), matmul_gflops=100.0, known=known)
        assert next(one for one in plan.candidates if one.technique == FEW_SHOT).expected == found
        places = [one.technique for one in plan.candidates]
        assert places.index(FEW_SHOT) < places.index(ZERO_SHOT), "measured to be better"


def test_another_base_says_nothing_of_this_one_but_words_are_words(tmp_path: Path) -> None:
    write_run(tmp_path, "one")
    mine = samples.resolved().model_copy(update={"model_sha256": samples.sha("e")})
    assert {one.technique for one in earlier(tmp_path, mine).known} == {TFIDF, MAJORITY}


@pytest.mark.parametrize(
    "other",
    [
        {"labels": {"rename": {"refund_status": "return_request"}}},
        {"split": {"test": 0.4}},
        {"limit": {"test": 9}},
        {"filter": {"max_chars": 90}},
    ],
)
def test_a_run_with_other_labels_or_rows_is_no_measure_of_these(tmp_path: Path, other: dict[str, Any]) -> None:
    write_run(tmp_path, "one", data={"train": [{"path": "support.csv"}], **other})
    assert earlier(tmp_path, samples.resolved()).known == ()


def test_what_stands_beside_numbers_is_not_taken_for_what_was_trained(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "objective": {"targets": {"minutes.mae": "<= 9"}},
        "method": {"type": "regression"},
        "data": {"train": [{"path": "support.csv", "label": "intent", "name": "minutes", "task": "regression"}]},
    }
    run = write_run(tmp_path, "one", **sections)
    values = {"mean": 9.9, "tfidf_ridge": 3.0, "base": 25.0, "tuned": 4.0}
    systems = tuple(
        SystemScore(system=name, title=name, metrics={"mae": samples.interval(one, 0.1)}, seconds=1.0)
        for name, one in values.items()
    )
    write_atomic(run.eval_report, samples.eval_report().model_copy(update={"systems": systems}).to_json())
    known = earlier(tmp_path, samples.resolved(**sections)).known
    assert {one.technique: one.metrics["mae"].point for one in known} == {
        RIDGE: 3.0, ZERO_SHOT: 25.0, "lora regression": 4.0,
    }  # fmt: skip


def test_a_training_that_was_only_tried_out_says_nothing_of_a_whole_one(tmp_path: Path) -> None:
    write_run(tmp_path, "one", train={"max_tokens": 900})
    assert "lora sft" not in {one.technique for one in earlier(tmp_path, samples.resolved()).known}
    mine = samples.resolved(train={"max_tokens": 900})
    assert "lora sft" in {one.technique for one in earlier(tmp_path, mine).known}


def test_runs_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path, "one")
    write_atomic(run.eval_report, "{}")
    write_atomic(run.plan, "{}")
    assert earlier(tmp_path, samples.resolved()).known == ()


def test_the_choice_of_a_run_that_was_begun_is_found(tmp_path: Path) -> None:
    mine = samples.resolved()
    run = RunFolder.create(tmp_path, mine.recipe.name, "1")
    write_atomic(run.plan, samples.plan(weighed_sha256=mine.sha256).to_json())
    assert earlier(tmp_path, mine).begun == "lora sft"
    write_atomic(run.plan, samples.plan(weighed_sha256="").to_json())
    assert earlier(tmp_path, mine).begun == ""
    assert Plan.read(run.plan).weighed_sha256 == ""
