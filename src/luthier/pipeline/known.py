"""What earlier runs in the same folder say: qualities measured on the same data, and what was chosen for a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import RunError
from luthier.eval_records import EvalReport
from luthier.plan.measured import Known
from luthier.plan.predict import technique_of
from luthier.plan.rank import FEW_SHOT, MAJORITY, RIDGE, TFIDF, ZERO_SHOT
from luthier.plan_records import Plan
from luthier.spec.fill_baselines import examples_of
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.runs import RunFolder

MOST_RUNS = 100
"""Evaluated runs that are looked at, the newest first."""

_UNTRAINED = {
    "majority": MAJORITY,
    "tfidf_logreg": TFIDF,
    "tfidf_ridge": RIDGE,
    "base": ZERO_SHOT,
    "few_shot": FEW_SHOT,
}


@dataclass(frozen=True)
class Earlier:
    """What earlier runs say."""

    known: tuple[Known, ...] = ()
    """The newest first."""
    begun: str = ""
    """The technique that was chosen when the plan weighed the very same recipe before; '' where it did not."""


def earlier(out: Path, resolved: ResolvedRecipe) -> Earlier:
    """Look through the runs below `out`; what another version wrote, and this one cannot read, says nothing.

    Args:
        out: folder of run folders.
        resolved: the recipe as the rules alone resolve it.
    """
    known: list[Known] = []
    for run in _newest(out, "*/*/eval/report.json", above=2)[:MOST_RUNS]:
        try:
            known += _measured(run, resolved)
        except RunError:
            continue
    begun = ""
    for run in _newest(out, f"{resolved.recipe.name}/*/plan.json", above=1):
        try:
            plan = Plan.read(run.plan)
        except RunError:
            continue
        if plan.weighed_sha256 == resolved.sha256:
            begun = plan.chosen
            break
    return Earlier(tuple(known), begun)


def _newest(out: Path, pattern: str, *, above: int) -> list[RunFolder]:
    """Runs that have such a file, by its time; `latest` is another name of one of them."""
    files = [path for path in out.glob(pattern) if not path.parents[above - 1].is_symlink()]
    return [RunFolder(path.parents[above - 1]) for path in sorted(files, key=lambda path: -path.stat().st_mtime_ns)]


def _measured(run: RunFolder, resolved: ResolvedRecipe) -> Iterator[Known]:
    """What a run on the same rows, asked in the same way, measured of each system."""
    other = ResolvedRecipe.read(run.resolved)
    if _question(other) != _question(resolved) or other.recipe.merge is not None:  # merging is no technique to weigh
        return
    report = EvalReport.read(run.eval_report)
    same_base = (other.model_sha256, _as_trained(other)) == (resolved.model_sha256, _as_trained(resolved))
    for score in report.systems:
        if score.system == "few_shot" and examples_of(other.recipe) != examples_of(resolved.recipe):
            continue
        if score.system not in _UNTRAINED and score.system != "tuned":  # others are no techniques
            continue
        name = _UNTRAINED.get(score.system, technique_of(other))
        if score.system == "tuned" and _training(other) != _training(resolved):
            continue
        if same_base or score.system in ("majority", "tfidf_logreg", "tfidf_ridge"):
            yield Known(
                technique=name,
                metrics=score.metrics,
                source=f"measured on this data in run {run.name}/{run.id}, {report.num_items:,} test items",
                data=resolved.data_sha256.get("data.train.0.path", ""),
            )


def _question(resolved: ResolvedRecipe) -> tuple[object, ...]:
    """What decides which rows are learned and judged, and what may be answered."""
    entry, data = resolved.recipe.entry, resolved.recipe.data
    files = [resolved.data_sha256.get(key) for key in ("data.train.0.path", "data.test", "data.validation")]
    rules = [data.split, data.limit, data.labels.rename, data.labels.separator, data.filter, data.features]
    return *files, entry.task, entry.input, entry.label, *rules


def _as_trained(resolved: ResolvedRecipe) -> tuple[object, ...]:
    """How the base stands under what learns."""
    return (resolved.recipe.model.held, resolved.recipe.model.new_tokens)


def _training(resolved: ResolvedRecipe) -> tuple[object, ...]:
    """For how long is learned, and what of the base; a run that was only tried out says nothing of a whole one."""
    train = resolved.recipe.train
    return train.max_tokens, train.num_train_epochs, resolved.recipe.prune
