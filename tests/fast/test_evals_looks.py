"""Many looks at one test set pass falsely no more often than one may: ledger, budget, a simulation, the gate."""

from __future__ import annotations

import math
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import samples
from govern_records import decision, evaluation, glossary_use, interval, resolved

from command import call, paper_model
from luthier.errors import RunError
from luthier.eval_records import Bounds, EvalReport, Look
from luthier.evals.intervals import Bootstrap
from luthier.evals.observed import Floats
from luthier.evals.strict import outer
from luthier.plan.looks import alpha_of, level_of, look_words, one_sided
from luthier.plan.power import must_observe, wilson
from luthier.records import GateLine, Interval
from luthier.report.evidence import look_line
from luthier.report.html import render
from luthier.report.summary import summary
from luthier.store.looks import Looks, test_rows_sha256
from tiny import write_recipe

LEVEL, LOOKS, REPETITIONS = 0.95, 20, 1000
ALLOWED = (1 - LEVEL) + 3 * math.sqrt(0.05 * 0.95 / REPETITIONS)
"""What is promised, and three standard errors of a share of so many repetitions."""

rows_sha256 = test_rows_sha256  # pytest would take it for a test
del test_rows_sha256


# --- the budget ---


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_all_looks_together_spend_what_one_interval_leaves(level: float) -> None:
    spent = [alpha_of(look, level) for look in range(1, 5001)]
    assert sum(spent) < 1 - level
    assert sum(spent) == pytest.approx(1 - level, rel=2e-4)
    assert sum(spent[:LOOKS]) == pytest.approx((1 - level) / 2 * (2 - 1 / LOOKS))
    assert spent == sorted(spent, reverse=True)
    assert level_of(1, level) == level  # the first look is what it always was
    assert [one_sided(look, 0.95) for look in (1, 2, 3, 20)] == ["97.5 %", "98.75 %", "99.583 %", "99.993 %"]


# --- the simulation: models whose true value is the limit itself, so that every pass is a false one ---


def test_twenty_looks_at_a_share_pass_falsely_no_more_often_than_promised() -> None:
    """Wilson's bound, which no bound of a share clears that this one does not, see `Bootstrap.proportion`."""
    rng = np.random.default_rng(0)
    for rows, limit in ((60, 0.8), (400, 0.8), (400, 0.5), (1000, 0.95)):
        clears = [
            next(right for right in range(rows + 2) if right > rows or wilson(right, rows, level=level)[0] >= limit)
            for level in (level_of(look, LEVEL) for look in range(1, LOOKS + 1))
        ]
        right = rng.binomial(rows, limit, size=(20 * REPETITIONS, LOOKS))
        passes = right >= np.array(clears)
        assert passes.any(axis=1).mean() <= ALLOWED, (rows, limit)
        always = right >= clears[0]  # what would come of the same bound at every look
        assert always.any(axis=1).mean() > 0.2


def mean(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


@pytest.mark.parametrize("kind", ["normal", "right_or_wrong"])
def test_twenty_looks_by_the_bounds_of_the_gate_itself(kind: str) -> None:
    """The models of one repetition share rows, some of which are easier for all, as on a real test set."""
    groups, false = 50, 0
    for seed in range(REPETITIONS):
        rng = np.random.default_rng(seed)
        ease, own = rng.normal(size=groups), rng.normal(size=(LOOKS, groups))
        values = math.sqrt(0.5) * ease + math.sqrt(0.5) * own
        if kind == "right_or_wrong":
            values = (values > 0).astype(np.float64)
        limit = 0.0 if kind == "normal" else 0.5
        errors = values.std(axis=1, ddof=1) / math.sqrt(groups)
        for look in range(1, LOOKS + 1):
            if values[look - 1].mean() - limit < 1.2 * errors[look - 1]:
                continue  # far from any of the bounds, of which the mildest lies two standard errors off
            drawn = Bootstrap([""] * groups, resamples=200, level=LEVEL, rng=np.random.default_rng(seed))
            at_look = drawn.at(level_of(look, LEVEL)) if look > 1 else drawn
            statistics = np.stack([values[look - 1], np.ones(groups)], axis=1)
            ask = at_look.interval if kind == "normal" else at_look.proportion
            if ask(statistics, mean).low >= limit:
                false += 1
                break
    assert false / REPETITIONS <= ALLOWED


@pytest.mark.parametrize("shape", ["normal", "skewed", "share"])
def test_a_later_look_is_never_milder_and_reaches_beyond_the_draws(shape: str) -> None:
    rng = np.random.default_rng(3)
    values = {"normal": rng.normal(1, 1, 80), "skewed": rng.exponential(1, 80), "share": rng.uniform(size=80) < 0.7}
    statistics = np.stack([values[shape].astype(np.float64), np.ones(80)], axis=1)
    drawn = Bootstrap([""] * 80, resamples=400, level=LEVEL, rng=rng)
    found = [drawn.interval(statistics, mean)]
    found += [drawn.at(level_of(look, LEVEL)).interval(statistics, mean) for look in range(2, LOOKS + 1)]
    lows, highs = [one.low for one in found], [one.high for one in found]
    assert lows == sorted(lows, reverse=True)
    assert highs == sorted(highs)
    assert len(set(lows)) == LOOKS
    assert drawn.interval(statistics, mean) == found[0]
    if shape == "normal":  # 400 draws know nothing of 99.993 %, Student's t does
        error = values[shape].std(ddof=1) / math.sqrt(80)
        reach = (found[-1].point - lows[-1]) / error
        assert reach == pytest.approx(4.05, abs=0.6)
    only = drawn.at(0.999).only(np.arange(80) < 40)
    assert only.level == 0.999
    assert only.interval(statistics[:40], mean).low < drawn.only(np.arange(80) < 40).interval(statistics[:40], mean).low


def test_what_is_not_known_stays_so() -> None:
    usual = Interval(point=0.5, low=0.4, high=0.6, n=9)
    unknown = usual.model_copy(update={"low": math.nan, "high": math.nan})
    for pair in ((usual, unknown), (unknown, usual)):
        assert math.isnan(outer(*pair).low)
    wider = usual.model_copy(update={"low": 0.45, "high": 0.7, "level": 0.99})
    assert (outer(usual, wider).low, outer(usual, wider).high, outer(usual, wider).level) == (0.4, 0.7, 0.99)


# --- the ledger ---


def take(looks: Looks, model: str, *, name: str = "a", task: str = "t", rows: str = "r") -> int:
    return looks.take(name, task, test_sha256=rows, model_sha256=model, actor="me")


def test_a_new_model_is_a_look_and_the_same_one_again_is_none(tmp_path: Path) -> None:
    looks = Looks(tmp_path)
    assert [take(looks, model) for model in ("m1", "m2", "m1", "m3", "m2")] == [1, 2, 1, 3, 2]
    assert [take(looks, "m1", **{key: "other"}) for key in ("name", "task", "rows")] == [1, 1, 1]
    assert take(Looks(tmp_path), "m4") == 4
    assert looks.latest("a") == {"t": ("r", 4), "other": ("r", 1)}
    assert looks.latest("nobody") == {}
    assert take(looks, "m1", rows="newer") == 1
    assert looks.latest("a")["t"] == ("newer", 1)


def test_the_ledger_cannot_be_edited_unseen(tmp_path: Path) -> None:
    looks = Looks(tmp_path)
    for model in ("m1", "m2", "m3"):
        take(looks, model)
    file = tmp_path / "looks" / "looks.jsonl"
    whole = file.read_text()
    for changed in (whole.replace("m2", "m1"), "".join(whole.splitlines(keepends=True)[:2]), ""):
        file.write_text(changed)
        with pytest.raises(RunError, match="the ledger of looks was changed"):
            take(looks, "m4")
    file.write_text(whole)
    assert take(looks, "m4") == 4


def _take_some(folder: Path, first: int) -> None:
    for number in range(first, first + 5):
        take(Looks(folder), f"m{number}")


def test_looks_at_the_same_time_are_counted_each(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_take_some, args=(tmp_path, first)) for first in (0, 5, 10)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(take(Looks(tmp_path), f"m{number}") for number in range(15)) == list(range(1, 16))


def test_rows_are_the_same_whatever_their_order_case_and_white_space() -> None:
    rows = [("where is my cello?", "order", ""), ("my bow  snapped", "broken", "")]
    again = [("My bow snapped ", "broken", ""), ("Where is my\ncello?", "order", "")]
    assert rows_sha256(rows) == rows_sha256(again)
    others = [
        rows[:1],
        [*rows, rows[0]],
        [(rows[0][0], "other", ""), rows[1]],
        [("where is my cello", *rows[0][1:]), rows[1]],
    ]
    assert len({rows_sha256(one) for one in [rows, *others]}) == 5


# --- the gate, the report and the card ---


def looked(number: int, report: EvalReport, **bounds: Interval) -> EvalReport:
    general = report.general.ratio
    held = Bounds(metrics=bounds, general=general.model_copy(update={"level": level_of(number, LEVEL)}))
    look = Look(number=number, test_sha256="5" * 64)
    return report.model_copy(update={"look": look, "bounds": held if number > 1 else None})


def line(report: EvalReport, name: str = "intent.macro_f1", **asked: object) -> GateLine:
    decided = decision(report=report, **({"resolved": resolved(**asked)} if asked else {}))
    return next(one for one in decided.lines if one.line == name)


def test_the_gate_holds_a_later_look_to_its_own_bound() -> None:
    report = evaluation(tuned=interval(0.87, 0.81, 0.91))
    first = line(looked(1, report))
    assert first == line(report)
    assert first.passed
    strict = Interval(point=0.87, low=0.79, high=0.92, level=level_of(3, LEVEL), n=300)
    third = line(looked(3, report, macro_f1=strict))
    assert (third.passed, third.bound) == (False, 0.79)
    assert "95 % interval 0.810 to 0.910 (n = 300), lower bound of look 3 0.790; " in third.observed
    assert third.observed.endswith("what counts is that bound, one-sided at 99.583 %")
    assert third.evidence == "eval/report.json: bounds.metrics.macro_f1.low"
    assert line(looked(3, report, macro_f1=strict.model_copy(update={"low": 0.80}))).passed
    unknown = line(looked(3, report, macro_f1=strict.model_copy(update={"low": math.nan})))
    assert (unknown.passed, unknown.bound) == (False, None)
    assert "lower bound of look 3 not known" in unknown.observed
    assert not line(looked(3, report)).passed  # what has no bound is not met


def test_forgetting_is_held_to_it_too() -> None:
    report = looked(2, evaluation())
    assert report.bounds is not None
    limit = next(one for one in resolved().limits if one.relative)
    far = report.bounds.general.model_copy(update={"high": limit.value + 0.01})
    general = report.model_copy(update={"bounds": report.bounds.model_copy(update={"general": far})})
    found = line(general, "general.perplexity")
    assert (found.passed, found.evidence) == (False, "eval/report.json: bounds.general.high")
    assert line(report, "general.perplexity").passed


def test_terms_are_held_to_it() -> None:
    asked = {"targets": {}, "non_regression": {"intent.term_accuracy": ">= 0.9x"}}
    report = evaluation(glossary=glossary_use(ratio=interval(1.0, 0.95, 1.1)))
    assert line(looked(1, report), "intent.term_accuracy", **asked).passed
    assert not line(looked(2, report), "intent.term_accuracy", **asked).passed  # what has no bound is not met
    later = looked(2, report)
    assert later.bounds is not None
    held = later.bounds.model_copy(update={"glossary": interval(1.0, 0.89, 1.2)})
    found = line(later.model_copy(update={"bounds": held}), "intent.term_accuracy", **asked)
    assert (found.passed, found.bound, found.evidence) == (False, 0.89, "eval/report.json: bounds.glossary.low")


def test_report_card_and_summary_say_which_look_it_is() -> None:
    sentence = look_words(3, LEVEL)
    assert sentence == (
        "This is look 3 at these test rows under this name: targets are held to one-sided bounds at 99.583 %, so that "
        "the chances of a false pass add up to 5 % over all looks, as far as each bound keeps what it promises."
    )
    report = samples.eval_report(look=Look(number=3, test_sha256="5" * 64))
    evidence = samples.evidence(evaluation=report)
    assert look_line(evidence) == sentence
    assert sentence in render(evidence)
    assert sentence in summary(evidence)
    first = samples.evidence(evaluation=samples.eval_report(look=Look(number=1, test_sha256="5" * 64)))
    assert "This is the first look at these test rows" in render(first)
    assert look_line(samples.evidence()) == ""


def test_the_plan_says_what_the_next_look_is_held_to(tmp_path: Path) -> None:
    write_recipe(tmp_path, paper_model(tmp_path / "model"))
    home = {"cwd": tmp_path, "LUTHIER_HOME": str(tmp_path / "home")}
    before = call("plan", "tiny.yaml", **home).succeeds().out
    assert "look" not in before
    assert not (tmp_path / "home" / "looks").exists()
    for model in ("m1", "m2"):
        take(Looks(tmp_path / "home"), model, name="tiny", task="kind")
    said = call("plan", "tiny.yaml", **home).succeeds().out.splitlines()[-1]
    rows = call("plan", "tiny.yaml", "--json", **home).document["detectable"]["num_test"]
    needed = must_observe(0.2, rows, level=level_of(3, LEVEL))
    assert said == (
        "kind: 2 models were judged on its test rows under this name; another one on the same rows is look 3, with "
        f"one-sided bounds at 99.583 %; for kind.accuracy >= 0.2 about {needed:.3f} must be seen."
    )
    take(Looks(tmp_path / "home"), "m1", name="tiny", task="other")
    assert call("plan", "tiny.yaml", **home).out.count("under this name") == 2
