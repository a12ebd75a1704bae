"""`luthier run --search`: trials are trained by rungs, and the best on validation rows becomes the run.

Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943, algorithm 1): every trial trains for the share of the
first rung; of those, the best 1 / reduction go on to the next. A trial is a usual run of the recipe with other
settings, which ends with a checkpoint at a rung and goes on from there: its learning rate follows the schedule of a
whole training, of which a rung is the beginning. Nothing here reads a test row; what is taken is evaluated and gated as
any run, once.

What has been found stands in a file, written after each rung; where the process is killed, the same command reads it
and goes on, and the checkpoint of the trial at work loses nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier import __version__
from luthier.errors import OutOfMemory, RecipeError
from luthier.launch.child import StageFailed
from luthier.pipeline.drive import Session, train_until, work_through
from luthier.pipeline.propose import propose, refuse_missing_optuna
from luthier.pipeline.start import Prepared, Say, look_at, open_run, recipe_path
from luthier.pipeline.training import judged_by
from luthier.plan.cost import STAGE_SECONDS
from luthier.plan.predict import technique_of
from luthier.plan.search import why_no_search
from luthier.plan.words import duration
from luthier.records import RequestContract
from luthier.search_records import RungScore, SearchRecord, Trial
from luthier.spec.load import LoadedRecipe, load_recipe
from luthier.spec.plugins import METRICS
from luthier.spec.search import Search
from luthier.store.events import CANNOT_TRAIN, EventLog
from luthier.store.files import sha256_json, write_atomic
from luthier.store.runs import RunFolder
from luthier.store.stages import Stages


def search(
    recipe: str, *, overrides: Sequence[str], out: Path | None, offline: bool, say: Say
) -> tuple[Session, SearchRecord]:
    """Try what the recipe's section says, and train to the end what is best on validation rows.

    Returns:
        The run that was taken, trained, and the record of the search, which also stands in its folder.

    Raises:
        RecipeError: the recipe says nothing of a search, has several tasks or no validation rows, or a trial cannot be.
        MissingExtra: settings are searched, and Optuna is not installed.
        StageFailed, OutOfMemory, Stopped: a stage other than a trial's training failed, or was stopped.
    """
    loaded = load_recipe(recipe_path(recipe), overrides=overrides)
    if reason := why_no_search(loaded.recipe):
        raise RecipeError(f"{loaded.path}: {reason}", way_out="see docs/choosing.md", key="search")
    section = loaded.recipe.search
    assert section is not None
    if section.settings is not None:
        refuse_missing_optuna()
    place = out or Path(loaded.recipe.output_dir)
    work = _Work(loaded, tuple(overrides), section, place, offline, say)
    record = work.search()
    taken = record.trials[record.taken or 0]
    say(f"search: trial {taken.number} is taken, {taken.words}; it is evaluated on the test rows now, once")
    session, _ = work.session(taken)
    write_atomic(session.run.search, record.to_json())
    return session, record


@dataclass(frozen=True)
class _Work:
    loaded: LoadedRecipe
    overrides: tuple[str, ...]
    section: Search
    place: Path
    offline: bool
    say: Say

    def search(self) -> SearchRecord:
        """All rungs, or as many as the budget holds, and the end of the best one's training."""
        record = self._begun()
        if record.taken is not None:
            self.say("search: done before, nothing is tried again")
            return record
        left = list(range(self.section.num_trials))
        for rung in range(self.section.rungs):
            for number in left:
                if number == len(record.trials):
                    trial = self._proposed(record)
                    if trial is None:
                        self.say(f"search: there is nothing else to try than these {number} trials")
                        left = left[:number]
                        break
                    record = self._save(record, (*record.trials, trial))
                if len(record.trials[number].rungs) > rung or record.trials[number].failed:
                    continue
                if why := self._spent(record, number, rung):
                    return self._closed(record, why)
                record = self._advanced(record, number, rung)
            record, left = self._halved(record, left, rung)
            if not left:
                return self._closed(record, f"no training came to the end of rung {rung + 1}")
        return self._closed(record, "all rungs were done")

    def session(self, trial: Trial) -> tuple[Session, Prepared]:
        """Its run, opened.

        Raises:
            RecipeError: its settings do not go with its technique, or with what the recipe says.
        """
        prepared = self._looked(trial)
        run = open_run(prepared, out=self.place)
        return Session(run, prepared.resolved, self.offline, self.say), prepared

    def _looked(self, trial: Trial) -> Prepared:
        """The recipe with its technique and its settings, looked at.

        Raises:
            RecipeError: its settings do not go with its technique, or with what the recipe says.
        """
        adapter, _, method = trial.technique.partition(" ")
        given = {"adapter": self.loaded.recipe.adapter.type, "method": self.loaded.recipe.method.type}
        wanted = {"adapter": adapter, "method": method}
        said = [*self.overrides, *(f"{key}={{type: {name}}}" for key, name in wanted.items() if given[key] != name)]
        said += [f"{key}={str(one).lower() if isinstance(one, bool) else one}" for key, one in trial.settings.items()]
        if self.loaded.recipe.train.validations is None:
            said += [f"train.validations={self.section.validations}"]
        try:
            loaded = load_recipe(self.loaded.path, overrides=said)
            return look_at(loaded, offline=self.offline, say=lambda line: None, out=self.place)
        except RecipeError as error:
            raise RecipeError(f"search: {trial.words}: {error.what}", way_out=error.way_out) from error

    def _begun(self) -> SearchRecord:
        """What was found before, or a new record.

        Its key hangs on what the recipe says and on what it reads: which technique an open one becomes may change as
        more is measured, and a search that was begun goes on.

        Raises:
            RecipeError: a technique cannot be with settings from the ends of their ranges, or by the plan the budget
                does not hold one training of it.
        """
        resolved = look_at(self.loaded, offline=self.offline, say=self.say, out=self.place).resolved
        said = self.loaded.recipe.model_dump(mode="json", exclude={"output_dir", "launch"})
        teacher = resolved.teacher.sha256 if resolved.teacher is not None else None
        key = sha256_json([said, resolved.data_sha256, resolved.model_sha256, teacher, __version__])
        file = self._file(key)
        if file.is_file():
            record = SearchRecord.read(file)
            self.say(f"search: goes on, {len(record.trials)} of {self.section.num_trials} trials were begun")
            return record
        techniques = self.section.candidates or (technique_of(resolved),)
        planned = max(self._planned(technique) for technique in techniques)
        file.parent.mkdir(parents=True, exist_ok=True)
        return SearchRecord(
            recipe=self.loaded.recipe.name,
            technique=technique_of(resolved),
            key=key,
            hours=self.section.hours,
            planned_seconds=planned,
            shares=self.section.shares,
        )

    def _planned(self, technique: str) -> float:
        """Seconds that one training takes by the plan, with the settings that the recipe has.

        Raises:
            RecipeError: it cannot be, with these settings or those from the ends of what is searched; or the budget
                does not hold it.
        """
        for settings in self.section.ends:
            self._looked(Trial(number=0, technique=technique, settings=settings))
        plan = self._looked(Trial(number=0, technique=technique, settings={})).plan()
        seconds = plan.prediction.train_seconds + STAGE_SECONDS
        if 3600 * self.section.hours < seconds:
            raise RecipeError(
                f"search.hours {self.section.hours:g} does not hold one training of {technique!r}, which takes about "
                f"{duration(seconds)} by the plan",
                way_out="give it more, or train on fewer tokens (train.max_tokens), or leave that candidate out",
            )
        return seconds

    def _file(self, key: str) -> Path:
        return self.place / self.loaded.recipe.name / f"search-{key[:12]}.json"

    def _save(self, record: SearchRecord, trials: Sequence[Trial], **changes: object) -> SearchRecord:
        """With these trials; nothing is begun before it stands there."""
        made = record.model_copy(update={"trials": tuple(trials), **changes})
        write_atomic(self._file(record.key), made.to_json())
        return made

    def _proposed(self, record: SearchRecord) -> Trial | None:
        """The next trial: the next candidate, or what Optuna makes of those before it; None where all were tried."""
        number = len(record.trials)
        if self.section.settings is None and self.section.candidates is not None:
            return Trial(number=number, technique=self.section.candidates[number], settings={})
        return propose(self.section, record)

    def _advanced(self, record: SearchRecord, number: int, rung: int) -> SearchRecord:
        """The trial trained to the end of a rung, and what it reached; or why it cannot be trained."""
        trial, share = record.trials[number], self.section.shares[rung]
        session, prepared = self.session(trial)
        trial = trial.model_copy(update={"run": f"{session.run.name}/{session.run.id}"})
        self.say(
            f"--- trial {number} ({trial.words}), rung {rung + 1} of {self.section.rungs}: {share:.0%} of training"
        )
        last = round((prepared.resolved.recipe.train.validations or 1) * share)
        seconds, failed = _attempt(session, prepared, last, whole=rung + 1 == self.section.rungs)
        metric, tiebreak = judged_by(RequestContract.read(session.run.contract))
        higher = METRICS.get(metric).higher_is_better
        found = None
        if not failed:
            found = _reached(session.run, last, (metric, self._tiebreak(tiebreak)), higher)
            failed = "" if found else f"{metric} is not finite on the validation rows"
        if found is None:
            self.say(f"trial {number}: {failed}")
            trial = trial.model_copy(update={"failed": failed, "other_seconds": seconds})
        else:
            self.say(f"trial {number}: {metric} {found[0]:.4f} on validation rows")
            done = RungScore(score=found[0], tiebreak=found[1], seconds=seconds)
            trial = trial.model_copy(update={"rungs": (*trial.rungs, done)})
        return self._save(record, _with(record, trial), metric=metric, higher_is_better=higher)

    def _tiebreak(self, key: str) -> str | None:
        """What decides between equal values, if all trials measure the same by it: words and heads do not."""
        methods = {technique.partition(" ")[2] for technique in self.section.candidates or ()}
        return key if len(methods) < 2 else None

    def _halved(self, record: SearchRecord, left: Sequence[int], rung: int) -> tuple[SearchRecord, list[int]]:
        """Only the best go on, the best of them first; of equals the first. After the last rung none is dropped.

        What has been dropped here before a kill is weighed again, so that as many go on as would have.
        """
        reached = [record.trials[number] for number in left if len(record.trials[number].rungs) > rung]
        order = _best_first(reached, record, rung)
        kept = len(order) if rung + 1 == self.section.rungs else -(-len(order) // self.section.reduction)
        out = {trial.number for trial in order[kept:]}
        why = f"not among the best {kept} of {len(order)} on rung {rung + 1}"
        trials = [one.model_copy(update={"dropped": why}) if one.number in out else one for one in record.trials]
        return self._save(record, trials), [trial.number for trial in order[:kept]]

    def _spent(self, record: SearchRecord, number: int, rung: int) -> str:
        """Why the budget does not hold this rung and the end of the best one's training after it; '' if it does."""
        done_of = {trial.number: (0.0, *self.section.shares)[len(trial.rungs)] for trial in record.trials}
        share = self.section.shares[rung]
        a_training = self._a_training(record)
        next_one = (share - done_of[number]) * a_training
        rest = max(0.0, 1.0 - max(*done_of.values(), share)) * a_training
        if not record.seconds or record.seconds + next_one + rest <= 3600 * self.section.hours:
            return ""
        return (
            f"the budget: {duration(record.seconds)} of {self.section.hours:g} hours were spent, and the next rung "
            f"with the end of the best one's training would take about {duration(next_one + rest)}"
        )

    def _a_training(self, record: SearchRecord) -> float:
        """Seconds that a whole one takes by what was trained here so far, or by the plan where nothing was."""
        before = (0.0, *self.section.shares)
        timed = [
            (one.seconds, self.section.shares[rung] - before[rung])
            for trial in record.trials
            for rung, one in enumerate(trial.rungs)
            if one.seconds  # what an earlier search had trained took none
        ]
        if not timed:
            return record.planned_seconds
        return sum(seconds for seconds, _ in timed) / sum(share for _, share in timed)

    def _closed(self, record: SearchRecord, why: str) -> SearchRecord:
        """The best of the furthest rung is trained to its end; where that fails, the next best.

        Raises:
            RecipeError: none can be trained.
        """
        self.say(f"search: {why}")
        while able := [trial for trial in record.trials if trial.rungs and not trial.failed]:
            furthest = max(len(trial.rungs) for trial in able)
            best = _best_first([trial for trial in able if len(trial.rungs) == furthest], record, furthest - 1)[0]
            session, prepared = self.session(best)
            seconds, failed = _attempt(session, prepared, 0, whole=True)
            if furthest < self.section.rungs:
                best = best.model_copy(update={"other_seconds": seconds})
            if not failed:
                best = best.model_copy(update={"dropped": ""})
                return self._save(record, _with(record, best), ended=why, taken=best.number)
            self.say(f"trial {best.number}: {failed}")
            record = self._save(record, _with(record, best.model_copy(update={"failed": failed})))
        raise RecipeError(
            f"search: {why}, and no trial could be trained",
            way_out="look at what they said, and narrow search.settings",
        )


def _with(record: SearchRecord, trial: Trial) -> list[Trial]:
    """The trials, this one as it is now."""
    return [trial if one.number == trial.number else one for one in record.trials]


def _attempt(session: Session, prepared: Prepared, last: int, *, whole: bool) -> tuple[float, str]:
    """Train to the end, or to that of a rung, whose validations there are `last` of.

    Returns:
        The seconds that it took now, and why no model can be trained so; '' where it was.

    Raises:
        StageFailed, OutOfMemory, Stopped: a stage before training failed, or training did for another reason.
    """
    plan = prepared.plan()
    work_through(session, "prepare", plan=plan, prepared=prepared)
    if not whole and len(_validated(session.run)) >= last:  # before a kill
        return 0.0, ""
    before, began = len(EventLog.read(session.run.events)), time.monotonic()
    try:
        if not whole:
            return train_until(session, last, plan=plan, prepared=prepared), ""
        work_through(session, "train", plan=plan, prepared=prepared)
    except OutOfMemory:  # it was killed, and could not say so itself
        return time.monotonic() - began, "it ran out of memory"
    except StageFailed:
        said = [event for event in EventLog.read(session.run.events)[before:] if event["kind"] == CANNOT_TRAIN]
        if not said:
            raise
        return time.monotonic() - began, str(said[-1]["what"])
    marker = Stages(session.run).marker("train")
    return (marker.seconds if marker is not None else 0.0), ""


def _reached(run: RunFolder, last: int, keys: tuple[str, str | None], higher: bool) -> tuple[float, float] | None:
    """The best value until a validation, and what decides between equal ones, lower is better; None if none is finite.

    Raises:
        RecipeError: there are no validation rows, or fewer steps than validations.
    """
    metric, tiebreak = keys
    seen = [event["metrics"] for event in _validated(run)[:last]]
    if not seen:
        raise RecipeError(
            f"search compares by {metric} on validation rows, and there are none",
            way_out="give data.split.validation a share, or data.validation a file",
        )
    if len(seen) < last and not run.train_result.is_file():
        raise RecipeError(
            "search: training has fewer steps than validations, and a rung ends with a validation",
            way_out="lower train.batch_size, search.rungs or search.reduction, or train on more",
        )
    found = [(one[metric], one[tiebreak] if tiebreak else 0.0) for one in seen if math.isfinite(one[metric])]
    return min(found, key=lambda one: (-one[0] if higher else one[0], one[1])) if found else None


def _validated(run: RunFolder) -> list[dict[str, dict[str, float]]]:
    """Validations so far, in the order of their steps; what was done again after a kill stands once."""
    by_step = {event["step"]: event for event in EventLog.read(run.events) if event.get("kind") == "validation"}
    return [by_step[step] for step in sorted(by_step)]


def _best_first(trials: Sequence[Trial], record: SearchRecord, rung: int) -> list[Trial]:
    """By what they reached on a rung."""
    sign = -1.0 if record.higher_is_better else 1.0
    return sorted(trials, key=lambda one: (sign * one.rungs[rung].score, one.rungs[rung].tiebreak, one.number))
