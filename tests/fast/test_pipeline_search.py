"""A search keeps the best, spends what it was given, and goes on where it was killed as if it had not been."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import samples
import yaml
from pydantic import ValidationError

from luthier.errors import MissingExtra, OutOfMemory, RecipeError
from luthier.launch.child import StageFailed
from luthier.pipeline import search as searching
from luthier.pipeline.propose import propose, refuse_missing_optuna
from luthier.plan.search import search_note, why_no_search
from luthier.records import ModelShape
from luthier.search_records import RungScore, SearchRecord, Trial
from luthier.spec.load import LoadedRecipe, load_recipe
from luthier.spec.recipe import Recipe
from luthier.spec.search import Search
from luthier.store.events import CANNOT_TRAIN, EventLog
from luthier.store.runs import RunFolder
from tiny import write_recipe

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
            trial = trial.model_copy(update={"failed": "it is not finite", "other_seconds": 1800.0})
        else:
            seconds = 3600 * (shares[rung] - (shares[rung - 1] if rung else 0.0))
            done = RungScore(score=score, tiebreak=0.0, seconds=seconds)
            trial = trial.model_copy(update={"rungs": (*trial.rungs, done)})
        trials = [trial if one.number == number else one for one in record.trials]
        return self.work._save(record, trials, metric="macro_f1", higher_is_better=True)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[SearchRecord, list[tuple[int, int]]]]:
    def go(
        section: Search,
        reach: Callable[[Trial, float], float | None],
        kill: int = -1,
        place: str = "a",
        to_the_end: Callable[[Trial], str] = lambda trial: "",
    ) -> tuple[SearchRecord, list[tuple[int, int]]]:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        fake = Fake(folder, section, reach, kill)
        kind = searching._Work
        file = fake.work._file("k" * 64)
        begun = record(section, planned_seconds=3600.0)
        monkeypatch.setattr(kind, "_advanced", lambda self, *what: fake.advanced(*what))
        monkeypatch.setattr(kind, "_begun", lambda self: SearchRecord.read(file) if file.exists() else begun)
        monkeypatch.setattr(kind, "session", lambda self, trial: (trial, None))
        monkeypatch.setattr(searching, "_attempt", lambda trial, *args, **more: (600.0, to_the_end(trial)))
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
    learned = sum(rung.seconds for trial in found.trials for rung in trial.rungs)
    assert learned + rest <= max(3600 * hours, 3600.0) + 1.0  # one training is done in any case
    assert found.seconds == learned + (600.0 if len(taken.rungs) < 3 else 0.0)
    furthest = max(len(trial.rungs) for trial in found.trials)
    last = {trial.number: trial.rungs[-1].score for trial in found.trials if len(trial.rungs) == furthest}
    assert last[taken.number] == max(last.values())
    first = {trial.number: trial.rungs[0].score for trial in found.trials if trial.rungs}
    assert first[taken.number] == max(first.values())  # a budget that ends within a rung has gone on with the best


def test_a_trial_whose_training_fails_is_dropped_and_all_that_fail_are_an_error(run: Any) -> None:
    found, _ = run(section(), lambda trial, share: None if trial.number in (0, 3, 4) else near(trial, share))
    assert [trial.number for trial in found.trials if "finite" in trial.failed] == [0, 3, 4]
    assert found.taken not in (0, 3, 4)
    with pytest.raises(RecipeError, match="no training came to the end of rung 1, and no trial could be trained"):
        run(section(), lambda trial, share: None, place="b")
    with pytest.raises(RecipeError, match=r"the budget: .* were spent.*, and no trial could be trained"):
        run(section(hours=1.2), lambda trial, share: None, place="c")


def by_rate(found: SearchRecord) -> list[int]:
    """Numbers of the trials, the best on the first rung first."""
    scored = [trial for trial in found.trials if trial.rungs]
    return [trial.number for trial in sorted(scored, key=lambda one: -one.rungs[0].score)]


def test_where_the_best_fails_later_the_next_best_is_taken(run: Any) -> None:
    best = by_rate(run(section(), near)[0])

    def fails(*numbers: int, beyond: float) -> Callable[[Trial, float], float | None]:
        return lambda trial, share: None if trial.number in numbers and share > beyond else near(trial, share)

    last, _ = run(section(), fails(best[0], beyond=0.5), place="last rung")
    assert last.taken == best[1]  # it had reached the second rung, and was dropped there for the best
    assert (last.trials[best[0]].failed, last.trials[best[1]].dropped) == ("it is not finite", "")
    second, _ = run(section(), fails(*best[:3], beyond=0.2), place="second rung")
    assert second.ended == "no training came to the end of rung 2"
    assert second.taken == best[3]
    again, begun = run(section(), fails(*best[:3], beyond=0.2), place="second rung")
    assert (again, begun) == (second, [])
    short, _ = run(
        section(hours=1.9), near, place="end", to_the_end=lambda trial: "full" if trial.number == best[0] else ""
    )
    assert short.ended.startswith("the budget")
    assert (short.trials[best[0]].failed, short.trials[best[0]].other_seconds) == ("full", 600.0)
    assert short.taken == best[1]


def test_time_of_a_failed_training_is_spent_too(run: Any) -> None:
    found, _ = run(section(hours=2.6), lambda trial, share: None if trial.number < 3 else near(trial, share))
    learned = sum(rung.seconds for trial in found.trials for rung in trial.rungs)
    assert found.seconds == learned + 3 * 1800.0 + 600.0
    assert found.ended.startswith("the budget")
    whole, _ = run(section(hours=2.6), near, place="b")
    assert whole.ended.startswith("all rungs") is (section().trainings <= 2.6)
    assert sum(len(trial.rungs) for trial in found.trials) < sum(len(trial.rungs) for trial in whole.trials) - 3


def test_only_what_says_that_it_cannot_be_trained_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    log = EventLog(folder.events)
    session: Any = SimpleNamespace(run=folder)
    prepared: Any = SimpleNamespace(plan=lambda: None)

    def attempt(end: Callable[[], Any], *, before: Callable[[], Any] = lambda: None) -> tuple[float, str]:
        stages = {"prepare": before, "train": end}
        monkeypatch.setattr(searching, "work_through", lambda session, stage, **more: stages[stage]())
        return searching._attempt(session, prepared, 0, whole=True)

    def full_disk() -> None:
        raise StageFailed("train", 6)

    def full_device() -> None:
        log.append(CANNOT_TRAIN, what="the accelerator is full")
        full_disk()

    def killed() -> None:
        raise OutOfMemory("it was killed")

    assert attempt(lambda: None)[1] == ""
    assert attempt(full_device)[1] == "the accelerator is full"
    with pytest.raises(StageFailed):  # of an earlier process that is no reason
        attempt(full_disk)
    assert attempt(killed)[1] == "it ran out of memory"
    with pytest.raises(OutOfMemory):  # all trials have the same data
        attempt(lambda: None, before=killed)


def test_what_was_reached_is_the_best_finite_value_of_enough_validations(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    keys = ("macro_f1", "log_loss")
    with pytest.raises(RecipeError, match="there are none"):
        searching._reached(folder, 1, keys, True)
    for step, (value, loss) in enumerate([(0.5, 2.0), (float("nan"), 1.0), (0.5, 1.0), (0.9, 1.0)]):
        EventLog(folder.events).append("validation", step=step, metrics={"macro_f1": value, "log_loss": loss})
    assert searching._reached(folder, 3, keys, True) == (0.5, 1.0)
    assert searching._reached(folder, 3, ("macro_f1", None), True) == (0.5, 0.0)
    with pytest.raises(RecipeError, match="fewer steps than validations"):
        searching._reached(folder, 9, keys, True)
    other = RunFolder(tmp_path / "other")
    EventLog(other.events).append("validation", step=1, metrics={"macro_f1": float("nan"), "log_loss": 1.0})
    assert searching._reached(other, 1, keys, True) is None


@pytest.mark.parametrize(
    ("candidates", "told"),
    [(None, "log_loss"), (("lora sft", "full sft"), "log_loss"), (("lora sft", "lora classify"), None)],
)
def test_words_and_heads_are_not_told_apart_by_their_losses(
    tmp_path: Path, candidates: tuple[str, ...] | None, told: str | None
) -> None:
    loaded = LoadedRecipe(samples.recipe(), tmp_path / "r.yaml", "", ())
    work = searching._Work(loaded, (), section(candidates=candidates), tmp_path, True, lambda line: None)
    assert work._tiebreak("log_loss") == told


def test_what_cannot_be_or_is_not_held_is_said_before_the_first_trial(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path, tiny_model)

    def begun(**said: Any) -> SearchRecord:
        tree = yaml.safe_load(path.read_text())
        tree["search"] = {"hours": 10.0, **said}
        path.write_text(yaml.safe_dump(tree))
        loaded = load_recipe(path)
        assert loaded.recipe.search is not None
        return searching._Work(loaded, (), loaded.recipe.search, tmp_path / "out", True, lambda line: None)._begun()

    ranks = {"adapter.r": {"choices": [4, 8]}}
    with pytest.raises(RecipeError, match=r"search: full sft, adapter\.r 4"):
        begun(candidates=["lora sft", "full sft"], settings=ranks)
    with pytest.raises(RecipeError, match=r"search: lora dpo"):
        begun(candidates=["lora sft", "lora dpo"])
    one = begun(candidates=["lora sft", "lora classify"])
    assert one.planned_seconds > 0
    hours = 1.01 * one.planned_seconds / 3600
    assert begun(candidates=["lora sft", "lora classify"], hours=hours).planned_seconds > 0
    monkeypatch.setattr(searching, "STAGE_SECONDS", 3600.0)
    with pytest.raises(RecipeError, match=r"does not hold one training of 'lora sft'"):
        begun(candidates=["lora sft", "lora classify"], hours=0.9)


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
    monkeypatch.setattr(searching, "load_recipe", lambda *args, **more: loaded)
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
        ({"settings": {"train.max_length": {"choices": [9, 18]}}}, "which validation rows there are"),
        ({"reduction": 10, "rungs": 6}, "reduction 10 on 6 rungs validates 100,000 times"),
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
    own = {"data": {"train": [{"path": "a.csv", "input": "text", "label": "label", "method": {"type": "sft"}}]}}
    assert "data.train[0].method would be that of every trial" in why(search=asked, **own)


def test_the_shares_of_rungs_and_what_all_take() -> None:
    three = section(trials=9)
    assert three.shares == pytest.approx((1 / 9, 1 / 3, 1.0))
    assert [three.on_rung(rung) for rung in range(3)] == [9, 3, 1]
    assert three.trainings == pytest.approx(9 / 9 + 3 * 2 / 9 + 1 * 2 / 3)
    assert three.validations == 9


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
