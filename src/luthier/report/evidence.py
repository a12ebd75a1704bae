"""What a report rests on, and the sentences that the page and the terminal share."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from luthier.approval_records import Standing
from luthier.data_report import DataReport
from luthier.eval_records import Difference, EvalReport, SystemScore
from luthier.plan.looks import look_words
from luthier.plan.words import duration, memory, points
from luthier.plan_records import Plan
from luthier.prune_records import PruneResult
from luthier.records import Artifact, DataProfile, GateDecision, GateLine, Interval, ModelShape, is_closed
from luthier.search_records import SearchRecord
from luthier.spec.plugins import METRICS
from luthier.spec.resolve import ResolvedRecipe
from luthier.systems import place, subject, system_title
from luthier.train_records import MergeResult, TrainResult

USUAL_METRICS = (
    "micro_f1", "macro_f1", "mae", "reward", "chrf", "exact_match", "preference_accuracy", "bits_per_byte",
    "perplexity",
)  # fmt: skip
"""What a verdict speaks of where no target does, the first that was measured."""

ACTIONS = {
    "report": "reported, left in",
    "redact": "redacted",
    "pseudonymise": "replaced by pseudonyms",
    "drop": "rows dropped",
    "stop": "stops the run",
}
"""What a privacy action did."""


@dataclass(frozen=True)
class Evidence:
    """All records of one finished run."""

    resolved: ResolvedRecipe
    profile: DataProfile
    shape: ModelShape
    plan: Plan
    data: DataReport
    train: TrainResult
    evaluation: EvalReport
    artifacts: tuple[Artifact, ...]
    gate: GateDecision
    stage_seconds: dict[str, float]
    """Stage -> seconds, in the order in which they ran; a stage taken over from an earlier run is not in it."""
    peak_memory_gib: float
    """Of any stage."""
    run: str
    """The run folder as the user would type it."""
    search: SearchRecord | None = None
    """What else was tried, where a search took this run."""
    pruned: PruneResult | None = None
    """What of the base went before it was trained."""
    standing: Standing | None = None
    """Request and approval beside a refusal, of the run; None where nothing was looked up."""

    @property
    def name(self) -> str:
        return self.resolved.recipe.name

    @property
    def where_it_stands(self) -> Standing:
        """As it was looked up, or by the decision alone."""
        return self.standing or Standing(state="passed" if self.gate.passed else "refused")

    @property
    def total_seconds(self) -> float:
        return sum(self.stage_seconds.values())

    @property
    def is_whole(self) -> bool:
        """Whether training and evaluation ran now, so that the time of the run can be compared with the plan's."""
        return {"train", "evaluate"} <= set(self.stage_seconds)

    @property
    def by_head(self) -> bool:
        """Whether a classification head chooses the labels, so that the unit of the loss is the row."""
        return self.data.answered_by == "head"

    @property
    def scores_answers(self) -> bool:
        """Whether that head scores answers instead."""
        return self.by_head and self.data.task == "preference"

    @property
    def metric(self) -> str:
        """The metric that the verdict speaks of: the first target's, else the task's usual one."""
        tuned = self.system("tuned").metrics
        targets = [limit.metric for limit in self.resolved.limits if not limit.relative]
        return next(name for name in (*targets, *USUAL_METRICS, *tuned) if name in tuned)

    def system(self, name: str) -> SystemScore:
        """The score of a system that was evaluated; 'tuned' and 'base' always are."""
        return next(score for score in self.evaluation.systems if score.system == name)

    def difference(self, against: str) -> Difference | None:
        """Tuned minus `against` on the verdict's metric."""
        for difference in self.evaluation.differences:
            if (difference.system, difference.against, difference.metric) == ("tuned", against, self.metric):
                return difference
        return None

    @property
    def failed(self) -> tuple[GateLine, ...]:
        return tuple(line for line in self.gate.lines if not line.passed)


def title(metric: str) -> str:
    """What people call a metric."""
    return METRICS.get(metric).title if metric in METRICS.names() else metric.replace("_", " ")


def is_proportion(metric: str) -> bool:
    """Whether a metric lies between 0 and 1; one that is not in the table is the agreement, a share."""
    return metric not in METRICS.names() or METRICS.get(metric).is_proportion


def is_higher_better(metric: str) -> bool:
    """Of those that are no entry of the table, such as agreement of greedy text, more is better."""
    return metric not in METRICS.names() or METRICS.get(metric).higher_is_better


def number(value: float) -> str:
    """Three places for a share, four digits for anything else, '–' where there is no number."""
    if not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 0.001:
        return f"{value:.2e}".replace("-", "−")
    places = 3 if abs(value) < 10 else 2 if abs(value) < 1000 else 0
    return f"{value:,.{places}f}".replace("-", "−")


def brackets(interval: Interval) -> str:
    """A value with its interval, '0.846 [0.802, 0.890]'."""
    return f"{number(interval.point)} [{number(interval.low)}, {number(interval.high)}]"


def signed_points(value: float) -> str:
    """'+7.5 points', with a true minus sign."""
    return f"{'+' if value >= 0 else '−'}{points(abs(value))}"


def _plus(value: float) -> str:
    """A number with its sign."""
    return f"{'+' if value >= 0 else ''}{number(value)}"


def signed(interval: Interval, metric: str) -> str:
    """A difference with its interval: in points for shares, plain for the rest."""
    if not math.isfinite(interval.point):
        return "–"
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{signed_points(interval.point) if is_proportion(metric) else f'{interval.point:+.3f}'} [–, –]"
    if not is_proportion(metric):
        return f"{_plus(interval.point)} [{_plus(interval.low)}, {_plus(interval.high)}]"
    ends = f"{100 * interval.low:+.1f}, {100 * interval.high:+.1f}".replace("-", "−")
    return f"{signed_points(interval.point)} [{ends}]"


def minus(difference: Difference) -> str:
    """'tuned model − base model'."""
    return f"{system_title(difference.system)} − {system_title(difference.against)}"


def bits(quantisation: str) -> str:
    """'4 bits' of 'Q4_1' or 'IQ4_XS'; '' where the name holds none."""
    match = re.search(r"Q(\d+)", quantisation.upper())
    return f"{match[1]} bits" if match else ""


def merged_words(merge: MergeResult) -> str:
    """How runs were merged, in a sentence or two."""
    runs = ", ".join(
        f"{one.run} ({'left out' if one.weight == 0 and merge.method == 'greedy' else f'weight {one.weight:g}'}"
        f"{'' if one.validation is None else f', validation with it {number(one.validation)}'})"
        for one in merge.runs
    )
    settings = {"density": merge.density, "seed": merge.seed, "rank": merge.rank}
    said = ", ".join(f"{key} {value:g}" for key, value in settings.items() if value is not None)
    held = (
        "exactly" if merge.kept >= 1.0 - 1e-9 else f"which holds {100 * merge.kept:.2f} % of the exact merge's squares"
    )
    form = "an adapter" if merge.into == "adapter" else "whole weights"
    return f"Merged by {merge.method}{f' ({said})' if said else ''} into {form}, {held}: {runs}. Nothing was trained."


def warnings(evidence: Evidence) -> list[str]:
    """What must be said before anything else, strongest first: whoever beats the tuned model, and the plan's advice."""
    metric = evidence.metric
    tuned = evidence.system("tuned").metrics[metric].point
    higher = is_higher_better(metric)
    said = []
    others = [score for score in evidence.evaluation.systems if score.system != "tuned" and metric in score.metrics]
    for score in sorted(others, key=lambda score: place(score.system)):
        point = score.metrics[metric].point
        if point > tuned if higher else point < tuned:
            said.append(_beaten(evidence, score, point, tuned))
    first = evidence.plan.candidates[0].technique
    if first != evidence.plan.chosen and first.startswith("do not fine-tune"):
        said.append(f"The plan ranked '{first}' first; the recipe's method was run all the same.")
    return said


def _beaten(evidence: Evidence, score: SystemScore, point: float, tuned: float) -> str:
    reached = f"{title(evidence.metric)} {number(point)} against {number(tuned)}"
    sentence = f"{subject(score.system)} beats the tuned model: {reached}"
    difference = evidence.difference(score.system)
    if difference is None:
        return sentence + "."
    chance = not (difference.interval.low > 0 or difference.interval.high < 0)
    shown = signed(difference.interval, evidence.metric)
    return f"{sentence} (tuned minus it: {shown}{', which may be chance' if chance else ''})."


def contaminated_line(evidence: Evidence) -> str:
    """The score with the test items that training has seen, beside the one that counts; '' where there are none."""
    evaluation, metric = evidence.evaluation, evidence.metric
    every = evaluation.with_contaminated
    if every is None:
        return ""
    seen = every.num_items - evaluation.num_items
    counted = number(evidence.system("tuned").metrics[metric].point)
    return (
        f"{seen:,} of {every.num_items:,} test items overlap with training and do not count: {title(metric)} of the "
        f"tuned model is {counted} without them, {number(every.metrics[metric])} with them."
    )


def look_line(evidence: Evidence) -> str:
    """Which look at the test rows it is, and what the gate makes of that; '' where nobody counted."""
    look = evidence.evaluation.look
    return look_words(look.number, evidence.resolved.recipe.evaluate.level or 0.95) if look is not None else ""


def verdict(evidence: Evidence) -> tuple[str, str]:
    """One word and one sentence: what the gate decided."""
    return verdict_of(evidence.name, evidence.gate, evidence.standing)


def verdict_of(name: str, gate: GateDecision, standing: Standing | None = None) -> tuple[str, str]:
    """The same of a decision alone; an approval is never told as a plain pass."""
    failed = [line.line for line in gate.lines if not line.passed]
    total = len(gate.lines)
    if gate.passed and standing is not None and standing.state != "passed":  # a task of a run that was refused
        what = f"this task meets all {total} of its conditions, and {name} as a whole was refused by its gate."
        if standing.state == "approved":
            return "Approved.", f"{what} It may be served by approval. {standing.words}"
        return "Refused.", f"{what} It must not be served.{' ' if standing.words else ''}{standing.words}"
    if gate.passed:
        return "Passed.", f"{name} may be served: it meets all {total} conditions of its gate."
    what = f"{len(failed)} of {total} conditions failed ({', '.join(failed)})"
    if standing is not None and standing.state == "approved":
        return "Approved.", f"{name} was refused by its gate: {what}. It may be served by approval. {standing.words}"
    if standing is not None and standing.words:
        return "Refused.", f"{name} must not be served: {what}. {standing.words}"
    return "Refused.", f"{name} must not be served: {what}."


def shown_gap(interval: Interval, metric: str) -> tuple[str, str, str]:
    """(kind, difference, interval) of a cell: 'pass' where the interval shows a gain, 'fail' a loss, else 'chance'."""
    higher = is_higher_better(metric)
    better = interval.low > 0 if higher else interval.high < 0
    worse = interval.high < 0 if higher else interval.low > 0
    value, _, ends = signed(interval, metric).partition(" [")
    return "pass" if better else "fail" if worse else "chance", value, f"[{ends}"


def budgets(evidence: Evidence) -> dict[str, str]:
    """'time' and 'memory' -> '30 min, kept'; only what the recipe states a budget for.

    Whether the time was kept is not said of a run that took stages over from an earlier one.
    """
    stated, said = evidence.plan.budget, {}
    if "hours" in stated:
        kept = _kept(evidence.total_seconds / 3600 <= stated["hours"]) if evidence.is_whole else ""
        said["time"] = duration(stated["hours"] * 3600) + kept
    if "ram_gib" in stated:
        said["memory"] = memory(stated["ram_gib"]) + _kept(evidence.peak_memory_gib <= stated["ram_gib"])
    return said


def not_looked_for(data: DataReport) -> str:
    """A sentence on the personal data that nothing looked for."""
    return data.not_looked_for[:1].upper() + data.not_looked_for[1:] + "."


def _kept(within: bool) -> str:
    return ", kept" if within else ", NOT KEPT"


def ask_commands(evidence: Evidence) -> list[str]:
    """Shell lines that serve the run, ask it something, and answer a whole file."""
    if is_closed(evidence.resolved.recipe.entry.task) or evidence.by_head:
        place, body = "classify", '{"input": "your text"}'
        if evidence.scores_answers:
            body = (
                '{"input": {"messages": [{"role": "user", "content": "your text"}, '
                '{"role": "assistant", "content": "an answer"}]}}'
            )
    else:
        place = "chat/completions"
        body = f'{{"model": "{evidence.name}", "messages": [{{"role": "user", "content": "your text"}}]}}'
    return [
        f"luthier serve {evidence.run}",
        f"curl http://127.0.0.1:8000/v1/{place} -H 'Content-Type: application/json' \\",
        f"  -d '{body}'",
        f"luthier predict {evidence.run} FILE",
    ]
