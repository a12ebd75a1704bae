"""Pairs are judged by what the method made larger, beside the base and beside length; numbers follow from scores."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echo_engine import TOKENIZER, asker, contract, rows
from test_evals_evaluate import material, metric, silent

from luthier.data.contract import Renderer
from luthier.data.shards import Example
from luthier.errors import DataError
from luthier.eval_records import EvalReport
from luthier.evals.against import compare_runs
from luthier.evals.evaluate import Beside, evaluate
from luthier.evals.preference import length_baseline, margins, observed, pair_metrics, read_pairs
from luthier.evals.stored import Stored
from luthier.spec.plugins import PairReward
from luthier.spec.recipe import Evaluate
from luthier.systems import PARENT

PAIRED = contract(task="preference", labels=())
OURS = Renderer(PAIRED, TOKENIZER)
SETTINGS = Evaluate(baselines=("length", "base"), resamples=300, level=0.95)
BASE, TUNED = asker(0.0, PAIRED), asker(1.0, PAIRED)


def with_other(row: Example, other: str) -> Example:
    return replace(row, rejected=other, rejected_ids=OURS.answer_ids(other))


def pairs(count: int, *, seed: int) -> list[Example]:
    """The letter that stands most in the text, against another one or two of another."""
    rng = np.random.default_rng(seed)
    return [
        with_other(row, "ghk".replace(row.answer[0], "")[int(rng.integers(2))] * int(rng.integers(1, 5)))
        for row in rows(count, seed=seed, groups=count // 2, made=PAIRED)
    ]


TRAIN, TEST = pairs(40, seed=1), pairs(40, seed=3)


def judge(
    out: Path, *, reward: PairReward = "implicit", settings: Evaluate = SETTINGS, tuned: Any = TUNED
) -> EvalReport:
    out.mkdir(exist_ok=True)
    made = material(PAIRED, train=TRAIN, test=TEST, validation=[], reward=reward)
    return evaluate(made, base=BASE, tuned=tuned, settings=settings, seed=0, out=out, progress=silent)


def logprobs(ask: Any, row: Example) -> tuple[float, float]:
    chosen = row.input_ids[row.prompt_tokens :]
    one, other = (ask.engine.logprobs([*row.prompt_ids, *ids])[row.prompt_tokens - 1 :].sum() for ids in
                  (chosen, row.rejected_ids))  # fmt: skip
    return float(one), float(other)


def test_each_system_prefers_what_it_says_it_does(tmp_path: Path) -> None:
    report = judge(tmp_path)
    assert [one.system for one in report.systems] == ["length", "base", "base_per_token", "tuned"]
    before, after = ([logprobs(ask, row) for row in TEST] for ask in (BASE, TUNED))
    sizes = [(len(row.input_ids) - row.prompt_tokens, len(row.rejected_ids)) for row in TEST]
    gained = [(a - b) - (c - d) for (a, c), (b, d) in zip(after, before, strict=True)]
    expected = {
        "base": [a > b for a, b in before],
        "base_per_token": [a / n > b / m for (a, b), (n, m) in zip(before, sizes, strict=True)],
        "tuned": [gain > 0 for gain in gained],
    }
    for system, right in expected.items():
        assert metric(report, system, "preference_accuracy") == pytest.approx(sum(right) / len(TEST))
    assert metric(report, "tuned", "preference_margin") == pytest.approx(np.mean(gained))
    tokens = sum(n for n, _ in sizes)
    for system, found in (("base", before), ("tuned", after)):
        assert metric(report, system, "perplexity") == pytest.approx(math.exp(-sum(a for a, _ in found) / tokens))
    (token,) = (one for one in judge(tmp_path, reward="per_token").systems if one.system == "tuned")
    right = [a / n > b / m for (a, b), (n, m) in zip(after, sizes, strict=True)]
    assert token.metrics["preference_accuracy"].point == pytest.approx(sum(right) / len(TEST))
    assert "likelier answer a token" in token.title


def test_differences_are_paired_and_corrected_and_leads_of_other_kinds_are_not_subtracted(tmp_path: Path) -> None:
    report = judge(tmp_path)
    found = {(one.metric, one.against): one for one in report.differences}
    assert set(found) == {
        *(("preference_accuracy", against) for against in ("base", "length", "base_per_token")), ("perplexity", "base"),
    }  # fmt: skip
    accuracy = found["preference_accuracy", "base"]
    assert 0 <= accuracy.p_value <= 1
    gap = metric(report, "tuned", "preference_accuracy") - metric(report, "base", "preference_accuracy")
    assert accuracy.interval.point == pytest.approx(gap)
    assert accuracy.interval.low <= gap <= accuracy.interval.high


def test_the_headline_speaks_of_preferences_and_a_better_baseline_comes_first(tmp_path: Path) -> None:
    assert "the tuned model reaches preference accuracy" in judge(tmp_path).headline
    worst = judge(tmp_path, tuned=BASE)
    assert metric(worst, "tuned", "preference_accuracy") == 0.0  # nothing has gained, so nothing is preferred
    assert worst.headline.startswith(("Choosing by length alone beats", "The base model, by likelihood a token, beats"))


def test_what_was_preferred_stands_on_disk_and_two_runs_are_compared_from_it(tmp_path: Path) -> None:
    report = judge(tmp_path / "one")
    lines = [json.loads(line) for line in (tmp_path / "one" / "predictions.jsonl").read_text().splitlines()]
    for row, line in zip(TEST, lines, strict=True):
        assert line["predicted"]["tuned"] == (row.answer if line["leads"]["tuned"] > 0 else row.rejected)
    assert [one.expected for one in report.mistakes] == [TEST[one.line - 2].answer for one in report.mistakes]
    judge(tmp_path / "other", tuned=asker(0.1, PAIRED))
    one, other = (Stored(name, PAIRED, TEST, tmp_path / name / "predictions.jsonl") for name in ("one", "other"))
    compared = compare_runs(one, other, resamples=300, level=0.95, seed=0)
    assert [one.metric for one in compared.differences] == ["preference_accuracy"]


def test_length_goes_the_way_of_the_training_pairs_and_a_tie_is_wrong() -> None:
    short, long, even = (with_other(TEST[0], other) for other in ("z", "z" * 9, "zzz"))
    assert len(TEST[0].answer) == 3
    longer = length_baseline([short, short, long], [short, long, even])
    assert (longer.longer, longer.observed.correct.tolist()) == (True, [True, False, False])
    shorter = length_baseline([long, long, short], [short, long, even])
    assert (shorter.longer, shorter.observed.correct.tolist()) == (False, [False, True, False])
    assert "longer" in longer.title
    assert "shorter" in shorter.title


def test_validation_agrees_with_the_evaluation(tmp_path: Path) -> None:
    before = read_pairs(BASE, TEST)
    found = pair_metrics(TUNED, TEST, reward="implicit", before=before, scale=0.1)
    report = judge(tmp_path)
    for name in ("preference_accuracy", "preference_margin", "perplexity"):
        assert found[name] == pytest.approx(metric(report, "tuned", name))
    leads = margins(read_pairs(TUNED, TEST), "implicit", before)
    assert found["preference_loss"] == pytest.approx(np.mean([math.log(1 + math.exp(-0.1 * lead)) for lead in leads]))
    # Where the model stands, with DPO's beta, this is the loss that it begins with.
    still = pair_metrics(BASE, TEST, reward="implicit", before=before, scale=0.1)
    assert still["preference_loss"] == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="validation without examples"):
        pair_metrics(TUNED, [], reward="implicit", before=before, scale=1.0)


def test_items_are_chosen_with_all_that_was_observed() -> None:
    scores = read_pairs(TUNED, TEST)
    whole = observed(TEST, margins(scores, "sum"), scores)
    some = whole.only([3, 1])
    assert some.prefers
    assert some.leads.tolist() == whole.leads[[3, 1]].tolist()
    assert some.predicted == (whole.predicted[3], whole.predicted[1])


def test_baselines_of_other_tasks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"'majority' predicts labels, and preference has no closed set[^$]*\[length, base\]"
    ):
        judge(tmp_path, settings=Evaluate(baselines=("majority", "base"), resamples=300, level=0.95))
    with pytest.raises(DataError, match=r"'length' chooses between two answers, and classification has none"):
        evaluate(
            material(), base=asker(0.0), tuned=asker(1.0), settings=SETTINGS, seed=0, out=tmp_path, progress=silent
        )


def test_a_merged_run_is_judged_by_the_reward_of_the_tuned_model(tmp_path: Path) -> None:
    made = material(PAIRED, train=TRAIN, validation=[], test=TEST, reward="implicit")
    report = evaluate(
        made, base=BASE, tuned=TUNED, settings=SETTINGS, seed=0, out=tmp_path, progress=silent,
        beside=[Beside(f"{PARENT}a/1", lambda: TUNED), Beside(f"{PARENT}b/2", lambda: BASE)],
    )  # fmt: skip
    assert [one.system for one in report.systems][-3:] == ["parent a/1", "parent b/2", "tuned"]
    gaps = {(one.against, one.metric): one.interval.point for one in report.differences}
    assert gaps["parent a/1", "preference_margin"] == gaps["parent a/1", "preference_accuracy"] == 0.0
    assert metric(report, "parent b/2", "preference_accuracy") == 0.0  # the base has gained nothing on itself
