"""A search keeps the best, spends what it was given, and goes on where it was killed as if it had not been."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import samples
from pydantic import ValidationError

from luthier.errors import MissingExtra, OutOfMemory, RecipeError
from luthier.launch.child import StageFailed
from luthier.pipeline import search as searching
from luthier.pipeline.propose import propose, refuse_missing_optuna
from luthier.pipeline.training import CANNOT_TRAIN
from luthier.plan.search import search_note, validations_of, why_no_search
from luthier.records import ModelShape
from luthier.search_records import RungScore, SearchRecord, Trial
from luthier.spec.load import LoadedRecipe
from luthier.spec.recipe import Recipe
from luthier.spec.search import Search
from luthier.store.events import EventLog
from luthier.store.runs import RunFolder

RATE = {"train.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}}


def section(**said: Any) -> Search:
    return Search.model_validate({"hours": 10.0, "settings": RATE, "trials": 9, **said})


def record(section: Search, **more: Any) -> SearchRecord:
    return SearchRecord(
        recipe="r", technique="lora sft", key="k" * 64, hours=section.hours, shares=section.shares, **more
    )


class Fake:
    """Trials whose scores follow from their settings; a whole training is an hour; killed where it says."""

    def __init__(self, folder: Path, section: Search, reach: Callable[[Trial, float], float | None], kill: int = -1):
        self.reach, self.left, self.begun = reach, kill, []
        loaded = LoadedRecipe(samples.recipe(), folder / "r.yaml", "", ())
        self.work = searching._Work(loaded, (), section, folder, True, lambda line: None)
        (folder / loaded.recipe.name).mkdir(exist_ok=True)

    def advanced(self, record: SearchRecord, number: int, rung: int) -> SearchRecord:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        trial, shares = record.trials[number], self.work.section.shares
        self.begun.append((number, rung))
        score = self.reach(trial, shares[rung])
        if score is None:
            trial = trial.model_copy(update={"dropped": "it is not finite", "failed_seconds": 1800.0})
        else:
            seconds = 3600 * (shares[rung] - (shares[rung - 1] if rung else 0.0))
            done = RungScore(score=score, tiebreak=0.0, seconds=seconds)
            trial = trial.model_copy(update={"rungs": (*trial.rungs, done)})
        trials = [trial if one.number == number else one for one in record.trials]
        return self.work._save(record, trials, metric="macro_f1", higher_is_better=True)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[SearchRecord, list[tuple[int, int]]]]:
    def go(
        section: Search, reach: Callable[[Trial, float], float | None], kill: int = -1, place: str = "a"
    ) -> tuple[SearchRecord, list[tuple[int, int]]]:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        fake = Fake(folder, section, reach, kill)
        kind = searching._Work
        file = fake.work._file("k" * 64)
        monkeypatch.setattr(kind, "_advanced", lambda self, *what: fake.advanced(*what))
        monkeypatch.setattr(kind, "_begun", lambda self: SearchRecord.read(file) if file.exists() else record(section))
        monkeypatch.setattr(kind, "session", lambda self, trial: (None, samples))
        monkeypatch.setattr(samples, "plan", lambda: None, raising=False)
        monkeypatch.setattr(searching, "work_through", lambda *args, **more: None)
        return fake.work.search(), fake.begun

    return go


def near(trial: Trial, share: float) -> float:
    """The best rate is 0.003, and it shows more the longer it is trained."""
    rate = float(trial.settings["train.learning_rate"])
    return share / (1.0 + abs(rate - 0.003))


def test_the_best_of_each_rung_go_on_and_the_best_of_the_last_is_taken(run: Any) -> None:
    found, begun = run(section(), near)
    assert [sum(rung == one for _, rung in begun) for one in range(3)] == [9, 3, 1]
    first = {trial.number: trial.rungs[0].score for trial in found.trials}
    on_second = {number for number, rung in begun if rung == 1}
    assert min(first[number] for number in on_second) >= max(first[n] for n in first if n not in on_second)
    assert found.taken == max(first, key=lambda number: first[number])
    assert found.seconds == pytest.approx(3600 * section().trainings)
    dropped = [trial.number for trial in found.trials if trial.dropped]
    assert sorted([*dropped, found.taken]) == list(range(9))


@pytest.mark.parametrize("kill", [0, 1, 4, 9, 11, 12])
def test_killed_at_any_rung_it_ends_as_if_it_had_not_been(run: Any, kill: int) -> None:
    whole, _ = run(section(), near, place="whole")
    with pytest.raises(KeyboardInterrupt):
        run(section(), near, kill=kill, place="cut")
    again, begun = run(section(), near, place="cut")
    assert again == whole
    assert len(begun) == 13 - kill
    done, begun = run(section(), near, place="cut")
    assert done == whole
    assert not begun


@pytest.mark.parametrize("hours", [0.5, 1.2, 1.9, 2.5])
def test_no_rung_is_begun_that_the_budget_does_not_hold(run: Any, hours: float) -> None:
    found, _ = run(section(hours=hours), near)
    whole = section().trainings
    assert found.ended.startswith("all rungs" if hours > whole else "the budget")
    assert found.taken is not None
    taken = found.trials[found.taken]
    rest = 3600 * (1.0 - section().shares[len(taken.rungs) - 1])
    assert found.seconds + rest <= max(3600 * hours, 3600.0) + 1.0  # one training is done in any case
    furthest = max(len(trial.rungs) for trial in found.trials)
    last = {trial.number: trial.rungs[-1].score for trial in found.trials if len(trial.rungs) == furthest}
    assert last[taken.number] == max(last.values())
    first = {trial.number: trial.rungs[0].score for trial in found.trials if trial.rungs}
    assert first[taken.number] == max(first.values())  # a budget that ends within a rung has gone on with the best


def test_a_trial_whose_training_fails_is_dropped_and_all_that_fail_are_an_error(run: Any) -> None:
    found, _ = run(section(), lambda trial, share: None if trial.number in (0, 3, 4) else near(trial, share))
    assert [trial.number for trial in found.trials if "finite" in trial.dropped] == [0, 3, 4]
    assert found.taken not in (0, 3, 4)
    with pytest.raises(RecipeError, match="every trial failed"):
        run(section(), lambda trial, share: None, place="b")


def test_time_of_a_failed_training_is_spent_too(run: Any) -> None:
    found, _ = run(section(hours=2.3), lambda trial, share: None if trial.number < 3 else near(trial, share))
    learned = sum(rung.seconds for trial in found.trials for rung in trial.rungs)
    assert found.seconds == learned + 3 * 1800.0
    assert found.ended.startswith("the budget")
    whole, _ = run(section(hours=2.3), near, place="b")
    assert whole.ended.startswith("all rungs") is (section().trainings <= 2.3)
    assert sum(len(trial.rungs) for trial in found.trials) < sum(len(trial.rungs) for trial in whole.trials) - 3


def test_only_what_says_that_it_cannot_be_trained_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log = EventLog(folder.events)
    log.append("stage_started", stage="train")
    full_disk = StageFailed("train", OutOfMemory.exit_code)
    with pytest.raises(StageFailed):
        searching._why_failed(folder, full_disk)
    log.append(CANNOT_TRAIN, what="the accelerator is full")
    assert searching._why_failed(folder, full_disk) == "the accelerator is full"


def test_a_search_that_was_begun_goes_on_though_the_plan_would_take_another_technique_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = LoadedRecipe(samples.recipe(method={"type": "auto"}), tmp_path / "r.yaml", "", ())

    def looked(method: str) -> SimpleNamespace:
        recipe = samples.recipe(method={"type": method})
        resolved = SimpleNamespace(recipe=recipe, data_sha256={"a": "b"}, model_sha256="c", teacher=None)
        plan = SimpleNamespace(prediction=SimpleNamespace(train_seconds=1.0))
        return SimpleNamespace(resolved=resolved, plan=lambda: plan)

    work = searching._Work(loaded, (), section(), tmp_path, True, lambda line: None)
    monkeypatch.setattr(searching, "look_at", lambda *args, **more: looked("sft"))
    begun = work._begun()
    assert begun.technique == "lora sft"
    made = propose(section(), begun)
    assert made is not None
    assert made.technique == "lora sft"
    work._save(begun, (made,))
    monkeypatch.setattr(searching, "look_at", lambda *args, **more: looked("classify"))
    assert work._begun() == begun.model_copy(update={"trials": (made,)})


def test_equal_scores_are_told_apart_by_the_tiebreak_then_by_their_number() -> None:
    def trial(number: int, score: float, tiebreak: float) -> Trial:
        done = RungScore(score=score, tiebreak=tiebreak, seconds=1.0)
        return Trial(number=number, technique="", settings={}, rungs=(done,))

    trials = [trial(0, 0.5, 2.0), trial(1, 0.5, 1.0), trial(2, 0.5, 1.0), trial(3, 0.6, 9.0)]
    for higher, order in ((True, [3, 1, 2, 0]), (False, [1, 2, 0, 3])):
        made = record(section(), trials=tuple(trials), higher_is_better=higher)
        assert [one.number for one in searching._best_first(trials, made, 0)] == order


def test_candidates_alone_are_tried_in_their_order_without_optuna(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = ("lora sft", "lora classify", "full classify")
    what = section(settings=None, trials=None, candidates=names)
    found, _ = run(what, lambda trial, share: share * len(trial.technique))
    assert [trial.technique for trial in found.trials] == list(names)
    assert found.trials[found.taken].technique == max(names, key=len)
    with pytest.raises(MissingExtra, match="optuna"):
        refuse_missing_optuna()


def test_proposals_follow_from_what_was_found_stay_within_and_never_repeat() -> None:
    what = section(
        settings={
            **RATE,
            "adapter.r": {"low": 2, "high": 64, "log": True},
            "adapter.use_dora": {"choices": [True, False]},
        },
        candidates=["lora sft", "lora classify"],
        trials=12,
    )
    made = record(what)
    for number in range(12):
        trial = propose(what, made)
        assert trial is not None
        assert trial == propose(what, made)
        assert trial.number == number
        assert all(one.settings != trial.settings for one in made.trials)
        rate, rank = trial.settings["train.learning_rate"], trial.settings["adapter.r"]
        assert isinstance(rate, float) and 1e-5 <= rate <= 1e-1  # noqa: PT018
        assert isinstance(rank, int) and 2 <= rank <= 64  # noqa: PT018
        done = RungScore(score=near(trial, 1.0), tiebreak=0.0, seconds=1.0)
        made = made.model_copy(update={"trials": (*made.trials, trial.model_copy(update={"rungs": (done,)}))})
    assert {trial.technique for trial in made.trials} == {"lora sft", "lora classify"}


def test_few_choices_are_all_tried_and_then_there_is_nothing_else() -> None:
    what = section(settings={"adapter.r": {"choices": [4, 8, 16]}}, trials=5)
    made = record(what)
    while (trial := propose(what, made)) is not None:
        done = RungScore(score=0.5, tiebreak=0.0, seconds=1.0)
        made = made.model_copy(update={"trials": (*made.trials, trial.model_copy(update={"rungs": (done,)}))})
    assert sorted(trial.settings["adapter.r"] for trial in made.trials) == [4, 8, 16]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"settings": None, "trials": None}, "at least two candidates"),
        ({"settings": None, "candidates": ["lora sft", "full sft"]}, "trials counts those of settings"),
        ({"settings": {"data.split.test": {"low": 0.1, "high": 0.2}}}, "only train., adapter., method."),
        ({"settings": {"train.learning_rate": {"low": 1e-3, "high": 1e-5}}}, "is not below"),
        ({"settings": {"train.learning_rate": {"low": 0, "high": 1e-5, "log": True}}}, "no logarithm"),
        ({"settings": {"train.learning_rate": {"low": 0.1}}}, "is {low: , high: , log: true} or"),
        ({"settings": {"train.learning_rate": [1, 2]}}, "is {low: , high: , log: true} or"),
        ({"settings": {"method.type": {"choices": ["sft", "classify"]}}}, "`candidates` are for techniques"),
        ({"settings": {"train.validations": {"choices": [9, 18]}}}, "a rung ends with a validation"),
        ({"settings": {"train.threads": {"choices": [1, 2]}}}, "does not hang on it; leave it out"),
        ({"candidates": ["lora sft", "lora sft"]}, "one stands twice"),
        ({"hours": 0}, "greater than 0"),
    ],
)
def test_what_cannot_be_searched_is_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        section(**said)


def test_a_recipe_that_cannot_be_searched_says_why() -> None:
    def why(**sections: Any) -> str:
        return why_no_search(samples.recipe(**sections))

    assert "there is none" in why()
    asked = {"hours": 1.0, "settings": RATE}
    assert why(search=asked) == ""
    assert "'sft lora' is no 'ADAPTER METHOD'" in why(search={"hours": 1.0, "candidates": ["sft lora", "lora sft"]})
    assert "train.validations 4 is no multiple of 9" in why(search=asked, train={"validations": 4})
    assert why(search=asked, train={"validations": 18}) == ""


def test_the_shares_of_rungs_and_what_all_take() -> None:
    three = section(trials=9)
    assert three.shares == pytest.approx((1 / 9, 1 / 3, 1.0))
    assert [three.on_rung(rung) for rung in range(3)] == [9, 3, 1]
    assert three.trainings == pytest.approx(9 / 9 + 3 * 2 / 9 + 1 * 2 / 3)
    assert validations_of(three) == 9


def test_the_plan_says_what_it_takes_and_whether_the_budget_holds_it() -> None:
    from luthier.plan.make import make_plan
    from luthier.spec.filler import Machine
    from luthier.spec.resolve import resolve

    shape: ModelShape = samples.shape()

    def note(hours: float) -> str:
        recipe: Recipe = samples.recipe(search={"hours": hours, "settings": RATE})
        loaded = LoadedRecipe(recipe, Path("r.yaml"), "", ())
        made = resolve(
            loaded, samples.profile(), shape, machine=Machine(threads=1), data_sha256={}, luthier_version="0"
        )
        assert made.recipe.search is None  # no trial is told of the others
        plan = make_plan(made, samples.profile(), shape, matmul_gflops=100.0)
        (line,) = search_note(recipe, plan)
        return line

    assert "9 trials on 3 rungs" in note(1000.0)
    assert note(1000.0).endswith("holds that.")
    assert "does not hold even one training" in note(1e-6)
