"""Two runs from what they stored: the numbers of a direct evaluation, and no comparison of different rows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from data_kit import resolved
from echo_engine import asker, contract, rows
from test_evals_evaluate import OPEN, SETTINGS, material, silent

from command import call
from luthier.data.shards import Example, write_shard
from luthier.engines.ask import Asker
from luthier.errors import RunError
from luthier.eval_records import Difference, EvalReport, RunComparison
from luthier.evals.against import compare_runs
from luthier.evals.evaluate import evaluate
from luthier.evals.stored import Stored, read_system
from luthier.pipeline.against import comparison_lines
from luthier.records import RequestContract

AS_JUDGED = {"resamples": 300, "level": 0.95, "seed": 0}


def judged(
    out: Path, tuned: Asker, test: list[Example], made: RequestContract | None = None
) -> tuple[Stored, EvalReport]:
    out.mkdir(parents=True, exist_ok=True)
    settings = SETTINGS if made is None else SETTINGS.model_copy(update={"baselines": ("base",)})
    report = evaluate(
        material(made, test=test), base=asker(0.0, made) if made else asker(0.0), tuned=tuned, settings=settings,
        seed=0, out=out, progress=silent,
    )  # fmt: skip
    return Stored(f"r/{out.name}", made or contract(), test, out / "predictions.jsonl"), report


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Stored, Stored, EvalReport]:
    folder = tmp_path_factory.mktemp("two")
    test = rows(60, seed=3, groups=40)
    one, report = judged(folder / "one", asker(2.0), test)
    other, _ = judged(folder / "other", asker(0.0), test)
    return one, other, report


def gap(compared: Any, metric: str, against: str) -> Difference:
    return next(one for one in compared.differences if (one.metric, one.against) == (metric, against))


def test_the_numbers_are_those_of_one_evaluation(two: tuple[Stored, Stored, EvalReport]) -> None:
    one, other, report = two
    compared = compare_runs(one, other, **AS_JUDGED)  # type: ignore[arg-type]
    assert (compared.num_items, compared.num_groups, compared.not_counted) == (report.num_items, report.num_groups, 0)
    for metric in ("macro_f1", "accuracy", "exact_match"):
        assert gap(compared, metric, "r/other").interval == gap(report, metric, "base").interval
    assert gap(compared, "accuracy", "r/other").p_value < 0.001
    assert math.isnan(gap(compared, "macro_f1", "r/other").p_value)
    back = compare_runs(other, one, **AS_JUDGED)  # type: ignore[arg-type]
    there, here = gap(compared, "macro_f1", "r/other").interval, gap(back, "macro_f1", "r/one").interval
    assert (here.point, here.low, here.high) == pytest.approx((-there.point, -there.high, -there.low))
    same = compare_runs(one, one, **AS_JUDGED)  # type: ignore[arg-type]
    assert all(found.interval.low == found.interval.point == found.interval.high == 0 for found in same.differences)
    assert gap(same, "accuracy", "r/one").p_value == 1


def test_what_either_training_has_seen_does_not_count(two: tuple[Stored, Stored, EvalReport]) -> None:
    one, other, _ = two
    mine = [replace(row, contaminated="near") if place < 3 else row for place, row in enumerate(one.test)]
    its = [replace(row, contaminated="exact") if place in (2, 9) else row for place, row in enumerate(other.test)]
    compared = compare_runs(replace(one, test=mine), replace(other, test=its), **AS_JUDGED)  # type: ignore[arg-type]
    assert (compared.num_items, compared.not_counted) == (56, 4)
    seen = [replace(row, contaminated="near") for row in one.test]
    with pytest.raises(RunError, match="no test row that training has seen in neither"):
        compare_runs(replace(one, test=seen), other, **AS_JUDGED)  # type: ignore[arg-type]


def test_other_rows_are_not_compared(two: tuple[Stored, Stored, EvalReport]) -> None:
    one, other, _ = two
    rows_ = list(other.test)
    changed = [*rows_[:5], replace(rows_[5], text="another text"), *rows_[6:-4]]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"test": changed}, rf"5 test rows stand in r/one only \(line {rows_[5].line}, .*, \.\.\.\); "
         rf"1 test rows stand in r/other only \(line {rows_[5].line}\)"),
        ({"test": rows_[::-1]}, "their test rows stand in another order"),
        ({"contract": OPEN}, "one is classification, the other generation"),
        ({"contract": contract(labels=("ggg", "hhh"))}, "1 labels are known to one of them only: 'kkk'"),
    ]  # fmt: skip
    ordered = replace(one, contract=one.contract.model_copy(update={"label_order": one.contract.labels}))
    turned = other.contract.model_copy(update={"label_order": one.contract.labels[::-1]})
    with pytest.raises(RunError, match="their labels stand in another order") as error:
        compare_runs(ordered, replace(other, contract=turned), **AS_JUDGED)  # type: ignore[arg-type]
    assert "the same data.labels.order" in error.value.way_out
    assert any(gap.metric == "mae" for gap in compare_runs(ordered, ordered, **AS_JUDGED).differences)
    for change, message in cases:
        with pytest.raises(RunError, match=message) as error:
            compare_runs(one, replace(other, **change), **AS_JUDGED)  # type: ignore[arg-type]
        assert "r/one and r/other cannot be compared" in error.value.what
        assert "same data.split" in error.value.way_out


def test_what_was_stored_must_be_whole(two: tuple[Stored, Stored, EvalReport], tmp_path: Path) -> None:
    one = two[0]
    path = tmp_path / "predictions.jsonl"
    lines = one.predictions.read_text(encoding="utf-8").splitlines(keepends=True)
    for content, message in (
        (None, "is missing: r/one was not evaluated"),
        ("{", "is damaged"),
        ("[1]\n", "is damaged"),
        ("".join(lines[1:]), "is not about the test rows beside it"),
        ("".join([lines[0].replace('"expected": "', '"expected": "x'), *lines[1:]]), "is not about the test rows"),
    ):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_text(content, encoding="utf-8")
        with pytest.raises(RunError, match=message) as error:
            read_system(replace(one, predictions=path), "tuned")
        assert error.value.way_out == "luthier evaluate r/one makes it anew"
    broken = "".join(lines).replace('"predicted": {"', '"predicted": {"x\u2028": "", "')
    path.write_text(broken, encoding="utf-8")
    assert read_system(replace(one, predictions=path), "tuned").predicted == read_system(one, "tuned").predicted


def test_free_answers(tmp_path: Path) -> None:
    test = rows(20, seed=3, made=OPEN)
    one, report = judged(tmp_path / "one", asker(2.0, OPEN), test, OPEN)
    other, _ = judged(tmp_path / "other", asker(0.0, OPEN), test, OPEN)
    compared = compare_runs(one, other, **AS_JUDGED)  # type: ignore[arg-type]
    assert [found.metric for found in compared.differences] == ["exact_match", "token_f1", "rouge_l"]
    assert compared.differences[0].interval == gap(report, "exact_match", "base").interval


def test_answers_that_rules_verify_are_compared_where_the_rules_are_the_same(tmp_path: Path) -> None:
    ways = [({"type": "exact", "weight": 1.0, "ignore_case": flag},) for flag in (False, True)]
    made, strange = (OPEN.model_copy(update={"rewards": way}) for way in ways)
    test = rows(20, seed=3, made=made)
    one, report = judged(tmp_path / "one", asker(2.0, made), test, made)
    other, _ = judged(tmp_path / "other", asker(0.0, made), test, made)
    compared = compare_runs(one, other, **AS_JUDGED)  # type: ignore[arg-type]
    assert [found.metric for found in compared.differences] == ["reward", "exact_match", "token_f1", "rouge_l"]
    assert compared.differences[0].interval == gap(report, "reward", "base").interval
    assert not compared.left_out
    compared = compare_runs(one, replace(other, contract=strange), **AS_JUDGED)  # type: ignore[arg-type]
    assert [found.metric for found in compared.differences] == ["exact_match", "token_f1", "rouge_l"]
    assert compared.left_out == ("reward: the runs verify answers in other ways",)


def with_terms(stored: Stored, out: Path, met: list[int], kept: list[int]) -> Stored:
    """As if a glossary had been given; a row that holds no term has neither number in it."""
    lines = [json.loads(line) for line in stored.predictions.read_text().splitlines()]
    for line, asked, said in zip(lines, met, kept, strict=True):
        line["terms"] = {"met": asked, "kept": {"base": 0, "tuned": said}}
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return replace(stored, predictions=out)


def test_terms_kept(two: tuple[Stored, Stored, EvalReport], tmp_path: Path) -> None:
    one, other, _ = two
    met = [2, 1, 0] * 20
    better = with_terms(one, tmp_path / "better", met, met)
    worse = with_terms(other, tmp_path / "worse", met, [1, 0, 0] * 20)
    found = gap(compare_runs(better, worse, **AS_JUDGED), "term_accuracy", "r/other")  # type: ignore[arg-type]
    assert found.interval.point == pytest.approx(1 - 20 / 60)
    assert found.interval.low > 0.5
    for odd in (other, with_terms(other, tmp_path / "odd", met[::-1], [0] * 60)):
        compared = compare_runs(better, odd, **AS_JUDGED)  # type: ignore[arg-type]
        assert "term_accuracy" not in [found.metric for found in compared.differences]
        assert comparison_lines(compared)[-1] == "  not compared: term_accuracy: the runs were asked for other terms"
    assert compare_runs(one, other, **AS_JUDGED).left_out == ()  # type: ignore[arg-type]


def run_folder(path: Path, stored: Stored) -> None:
    recipe = resolved(path)
    changes = {"evaluate": SETTINGS}
    recipe = recipe.model_copy(update={"recipe": recipe.recipe.model_copy(update=changes)})
    (path / "data").mkdir(parents=True)
    (path / "eval").mkdir()
    (path / "recipe.resolved.json").write_text(recipe.to_json())
    (path / "data" / "contract.json").write_text(stored.contract.to_json())
    write_shard(path / "data" / "test.arrow", stored.test)
    (path / "eval" / "predictions.jsonl").write_bytes(stored.predictions.read_bytes())


def test_the_verb(two: tuple[Stored, Stored, EvalReport], tmp_path: Path) -> None:
    one, other, report = two
    run_folder(tmp_path / "with" / "r" / "1", one)
    run_folder(tmp_path / "without" / "r" / "2", other)
    done = call("evaluate", "with/r/1", "--against", "without/r/2", "--json", cwd=tmp_path).succeeds()
    document = RunComparison.model_validate(
        {
            **done.document,
            "differences": [{**d, "p_value": d["p_value"] or math.nan} for d in done.document["differences"]],
        }
    )
    assert (document.run, document.against, document.num_items) == ("r/1", "r/2", 60)
    assert gap(document, "macro_f1", "r/2").interval == gap(report, "macro_f1", "base").interval
    said = call("evaluate", "with/r/1", "--against", "without/r/2", cwd=tmp_path).succeeds().out
    assert "r/1 against r/2 on 60 test rows:" in said
    assert "macro-F1: +0." in said
    assert ": more" in said
    assert "p = " in said
    call("evaluate", "with/r/1", "--against", "nowhere", cwd=tmp_path).fails(2, "is not a run")
    same = compare_runs(one, one, **AS_JUDGED)  # type: ignore[arg-type]
    assert "no difference is shown" in comparison_lines(same)[1]
    less = compare_runs(other, one, **AS_JUDGED)  # type: ignore[arg-type]
    assert comparison_lines(less)[1].endswith(": less")
    assert json.loads(less.to_json())["not_counted"] == 0
    assert (
        "2 more that training has seen do not count" in comparison_lines(less.model_copy(update={"not_counted": 2}))[0]
    )


def stored_texts(path: Path, *, tokens: int, leads: bool = False) -> Stored:
    """Documents, the nats of which are the same however many tokens they are; or pairs with a lead each."""
    test = rows(12, seed=4)
    made = contract(labels=(), task="preference" if leads else "domain")
    lines = []
    for number, row in enumerate(test):
        line: dict[str, Any] = {"line": row.line, "expected": row.answer, "predicted": {"tuned": row.answer}}
        line |= {"probabilities": {}, "greedy": {}}
        nats = {"nats": {"tuned": 10.0 + number}, "tokens": tokens, "bytes": 40}
        lines.append(json.dumps(line | ({"leads": {"tuned": 1.0 + number}} if leads else nats)) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return Stored(path.stem, made, test, path)


def test_perplexities_of_other_tokens_and_leads_of_other_units_are_not_compared(tmp_path: Path) -> None:
    one = stored_texts(tmp_path / "one.jsonl", tokens=8)
    compared = compare_runs(one, stored_texts(tmp_path / "two.jsonl", tokens=8), **AS_JUDGED)  # type: ignore[arg-type]
    assert {gap.metric for gap in compared.differences} == {"bits_per_byte", "perplexity"}
    other = stored_texts(tmp_path / "other.jsonl", tokens=4)
    compared = compare_runs(one, other, **AS_JUDGED)  # type: ignore[arg-type]
    assert [(gap.metric, gap.interval.point) for gap in compared.differences] == [("bits_per_byte", 0.0)]
    assert compared.left_out == ("perplexity: the runs count other tokens, bits a byte do not",)
    pairs = [stored_texts(tmp_path / f"{name}.jsonl", tokens=1, leads=True) for name in "ab"]
    assert read_system(pairs[0], "tuned").leads.tolist() == [1.0 + number for number in range(12)]
    compared = compare_runs(*pairs, **AS_JUDGED)  # type: ignore[arg-type]
    assert {gap.metric for gap in compared.differences} == {"preference_accuracy"}
    assert compared.left_out == ("preference_margin: each method has its own unit",)
