"""The one evaluation: every system on the same items, compared in pairs. Artifacts are judged with it too."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from luthier.data.shards import Example
from luthier.data_report import CanaryFile
from luthier.engines.ask import Asker
from luthier.errors import DataError
from luthier.eval_records import (
    AllItems,
    Bounds,
    EvalReport,
    GeneralText,
    GlossaryUse,
    Look,
    Memorisation,
    SystemScore,
    Terms,
)
from luthier.evals import memorisation
from luthier.evals.baselines import Made, baselines_of
from luthier.evals.compare import (
    class_scores,
    confusion,
    coverage,
    differences,
    measurable,
    metrics_of,
    mistakes,
    points_of,
)
from luthier.evals.few_shot import show
from luthier.evals.general import compare_general, paragraph_losses, refuse_short_text
from luthier.evals.glossary import DOCUMENTS, PIECES, Places, find_places, find_terms, read_glossary
from luthier.evals.headline import headline
from luthier.evals.intervals import FLIPS, Bootstrap
from luthier.evals.marks import unsaid, with_marks
from luthier.evals.metrics import bleu, chrf
from luthier.evals.observed import Floats, Observed
from luthier.evals.preference import (
    BASE_TITLE,
    PER_TOKEN_TITLE,
    judged,
    length_baseline,
    margins,
    observed,
    read_pairs,
    unwritten_end,
)
from luthier.evals.preference import TITLES as REWARD_TITLES
from luthier.evals.score import score
from luthier.evals.stored import write_predictions
from luthier.evals.strict import bounds_of, stricter
from luthier.evals.terminology import Glossary, glossary_use, read_terminology
from luthier.evals.texts import compare_terms, read_texts, text_headline
from luthier.records import RequestContract, is_text
from luthier.spec.plugins import PairReward
from luthier.spec.recipe import Evaluate
from luthier.systems import PARENT, PRUNED

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, all)."""

GeneralLosses = tuple[Floats, Floats]
"""Of base and tuned model: `paragraph_losses`."""

_NEEDS = {
    "length": ("chooses between two answers", "has none"),
    "few_shot": ("shows questions with their answers", "has none"),
}
_TITLES = {"base": "base model, not tuned", "tuned": "tuned model"}


@dataclass(frozen=True)
class Material:
    """What is judged, on what."""

    contract: RequestContract
    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    general_text: str
    general_source: str
    data_sha256: str
    weights_sha256: str
    reward: PairReward = ""
    """By what the tuned model prefers an answer; '' where it was taught no preferences."""
    general: GeneralLosses | None = None
    """Of both models on the general text, where another task of the run has asked them already."""
    glossary: tuple[str, str] | None = None
    """Name of a file of terms, and what it says."""
    canaries: CanaryFile | None = None
    """Secrets that were planted in train."""
    look: Look | None = None
    """Which look at these test rows it is; None where nobody counts."""


@dataclass(frozen=True)
class Beside:
    """Another model that answers the same items: a run that was merged into the tuned one, or what it was before."""

    name: str
    """As a system of the report."""
    open: Callable[[], Asker]
    """Loads it, once, when it is asked."""

    @property
    def title(self) -> str:
        if self.name == PRUNED:
            return "pruned model, not healed"
        return f"merged run {self.name.removeprefix(PARENT)}"


@dataclass(frozen=True)
class _System:
    name: str
    title: str
    observed: Observed
    seconds: float
    terms: tuple[Floats, ...] = ()
    """Of documents; see `luthier.evals.texts.Read`."""
    mean_examples: float | None = None
    """Of a system that is shown some."""


@dataclass(frozen=True)
class _Found:
    """What was found beside the scores of the systems."""

    general: GeneralText
    with_contaminated: AllItems | None
    terms: Terms | None
    glossary: GlossaryUse | None
    memorisation: Memorisation | None
    strict: tuple[Bootstrap, GeneralText, GlossaryUse | None] | None
    """At the level of a later look."""


def evaluate(
    material: Material,
    *,
    base: Asker,
    tuned: Asker,
    settings: Evaluate,
    seed: int,
    out: Path,
    progress: Progress,
    beside: Sequence[Beside] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> EvalReport:
    """Judge the tuned model on the test split; also writes `out/predictions.jsonl`, one line an item.

    All systems answer all items. What training has seen in some way (`Example.contaminated`) does not count: every
    number rests on the clean items, but for `with_contaminated`.

    Args:
        material: data, texts and hashes.
        base: the original model behind the same contract, or, where the contract is for a head, which it lacks, asked
            in words. How well it writes is then not compared.
        tuned: the tuned one.
        settings: resolved `evaluate` section; nothing may be open.
        seed: of the resamples.
        out: existing folder for the predictions.
        progress: told of each item.
        beside: other models, asked behind the tuned one's contract, or as the base is.
        clock: seconds, for durations only.

    Raises:
        DataError: the test split has no row, or none that training has not seen, or the general text is too short for
            an interval.
    """
    if not material.test:
        raise DataError(
            f"{material.contract.name}: the test split has no rows",
            way_out="raise data.split.test or data.limit.test, or give data.test",
        )
    clean = [place for place, example in enumerate(material.test) if not example.contaminated]
    if not clean:
        raise DataError(
            f"{material.contract.name}: training has seen every one of the {len(material.test)} rows of the test split",
            way_out="give other rows as data.test and run `luthier prepare` again",
        )
    refuse_short_text(base, material.general_text, source=material.general_source)
    baselines, resamples, level = _resolved(settings)
    started = clock()
    places: Places | None = None
    glossary = _glossary(material)
    met = [glossary.met(example) for example in material.test] if glossary is not None else []
    if material.contract.task == "preference":
        _refuse_baselines(baselines, material.contract, ("length", "base"))
        systems = _preferences(material, base, tuned, beside, baselines, progress, clock)
    else:
        _refuse_baselines(baselines, material.contract, _fitting(material.contract))
        systems = [
            _baseline(name, make, material, progress, clock)
            for name, make in baselines_of(material.contract).items()
            if name in baselines
        ]
        if is_text(material.contract.task):
            places = _places(material, base)
        systems += [
            _ask("base", _TITLES["base"], base, material, places, progress, clock),
            *([_few_shot(base, material, settings, progress, clock)] if "few_shot" in baselines else ()),
            *(_ask(one.name, one.title, one.open(), material, places, progress, clock) for one in beside),
            _ask("tuned", _TITLES["tuned"], tuned, material, places, progress, clock),
        ]
    systems = [_with_terms(system, glossary, met) for system in systems]
    general = material.general or ask_general(base, tuned, material.general_text, progress)
    said = {system.name: system.observed for system in systems}
    write_predictions(out / "predictions.jsonl", material.test, said, tags=material.contract.tags)
    rng = np.random.default_rng(seed)
    with_contaminated = _all_items(systems, len(clean))
    material = replace(material, test=[material.test[place] for place in clean])
    systems = [replace(system, observed=system.observed.only(clean)) for system in systems]
    bootstrap = Bootstrap([example.group for example in material.test], resamples=resamples, level=level, rng=rng)
    terms = _terms(systems, places, clean, bootstrap) if places is not None else None
    use = _use(systems, glossary, [met[place] for place in clean], bootstrap) if glossary is not None else None
    by_paragraph = Bootstrap([""] * len(general[0]), resamples=resamples, level=level, rng=rng)
    compared = compare_general(general[0], general[1], source=material.general_source, bootstrap=by_paragraph)
    strict = None
    if material.look is not None and material.look.number > 1:
        mine = stricter(bootstrap, material.look)
        theirs = stricter(by_paragraph, material.look)
        strict = (
            mine,
            compare_general(general[0], general[1], source=material.general_source, bootstrap=theirs),
            _use(systems, glossary, [met[place] for place in clean], mine) if glossary is not None else None,
        )
    given_away = _memorised(tuned, material, level, out, progress)
    found = _Found(compared, with_contaminated, terms, use, given_away, strict)
    return _report(material, systems, found, bootstrap=bootstrap, elapsed=lambda: clock() - started)


def _places(material: Material, asker: Asker) -> Places:
    """Where the glossary's terms, or those that are found in the training split, stand in the test split."""
    if material.glossary is not None:
        name, text = material.glossary
        terms, source = read_glossary(text, name=name), name
    else:
        terms = find_terms(material.train, asker.renderer)
        source = f"words of {DOCUMENTS} or more training documents, {PIECES} or more tokens each to the tokenizer"
    return find_places(material.test, terms, asker.renderer, source=source)


def _glossary(material: Material) -> Glossary | None:
    """Terms that answers should keep; those of documents are another thing."""
    task = material.contract.task
    if material.glossary is None or is_text(task):
        return None
    name, text = material.glossary
    return read_terminology(text, name=name, task=task)


def _with_terms(system: _System, glossary: Glossary | None, met: Sequence[Sequence[str]]) -> _System:
    if glossary is None:
        return system
    counts = glossary.statistics(met, system.observed.predicted)
    return replace(system, observed=replace(system.observed, terms=counts))


def _use(
    systems: Sequence[_System], glossary: Glossary, met: Sequence[Sequence[str]], bootstrap: Bootstrap
) -> GlossaryUse:
    said = {system.name: system.observed.predicted for system in systems}
    return glossary_use(glossary, met, said["base"], said["tuned"], bootstrap=bootstrap)


def _terms(systems: Sequence[_System], places: Places, clean: Sequence[int], bootstrap: Bootstrap) -> Terms | None:
    read = {system.name: [system.terms[place] for place in clean] for system in systems if system.terms}
    return compare_terms(read["base"], read["tuned"], places.only(clean), bootstrap=bootstrap)


def ask_general(base: Asker, tuned: Asker, text: str, progress: Progress) -> GeneralLosses:
    """What both models find of a general text; the same for every task of a run, so it is asked once."""
    return (
        paragraph_losses(base, text, _titled(progress, "base model on the general text")),
        paragraph_losses(tuned, text, _titled(progress, "tuned model on the general text")),
    )


def _memorised(tuned: Asker, material: Material, level: float, out: Path, progress: Progress) -> Memorisation | None:
    if material.canaries is None:
        return None
    tick = _titled(progress, "tuned model on planted secrets")
    return memorisation.measure(tuned, material.canaries, level=level, out=out, tick=tick)


def _all_items(systems: Sequence[_System], num_clean: int) -> AllItems | None:
    """What the tuned model would score if the items that training has seen counted too."""
    seen = next(system.observed for system in systems if system.name == "tuned")
    num_items = len(seen.expected)
    return AllItems(num_items=num_items, metrics=points_of(seen)) if num_items > num_clean else None


def _report(
    material: Material,
    systems: Sequence[_System],
    found: _Found,
    *,
    bootstrap: Bootstrap,
    elapsed: Callable[[], float],
) -> EvalReport:
    seen: dict[str, Observed] = {system.name: system.observed for system in systems}
    scores = tuple(
        SystemScore(
            system=system.name,
            title=system.title,
            seconds=system.seconds,
            metrics=metrics_of(system.observed, bootstrap),
            mean_examples=system.mean_examples,
        )
        for system in systems
    )
    compared = differences(seen, bootstrap)
    labels, texts = material.contract.labels, is_text(material.contract.task)
    claim = (
        text_headline(scores, compared, found.terms, num_items=bootstrap.num_items, num_groups=bootstrap.num_groups)
        if texts
        else headline(scores, compared, num_items=bootstrap.num_items, metric=measurable(seen["tuned"])[0])
    )
    return EvalReport(
        name=material.contract.name,
        task=material.contract.task,
        split="test",
        num_items=bootstrap.num_items,
        num_groups=bootstrap.num_groups,
        with_contaminated=found.with_contaminated,
        systems=scores,
        differences=compared,
        classes=class_scores(seen["tuned"], labels or material.contract.tags),
        labels=labels,
        confusion=confusion(seen["tuned"], labels),
        mistakes=mistakes(seen["tuned"], material.test),
        coverage=coverage(seen["tuned"]) if labels and material.contract.answered_by == "head" else (),
        general=found.general,
        terms=found.terms,
        glossary=found.glossary,
        memorisation=found.memorisation,
        look=material.look,
        bounds=_bounds(seen["tuned"], scores, found),
        headline=claim,
        resamples=bootstrap.resamples,
        interval_method=_method(bootstrap, tested=not texts and material.contract.scale is None)
        + (f"; {chrf.SIGNATURE}; {bleu.SIGNATURE}" if seen["tuned"].translates else ""),
        data_sha256=material.data_sha256,
        weights_sha256=material.weights_sha256,
        peak_memory_gib=_peak_memory_gib(),
        seconds=elapsed(),
    )


def _bounds(tuned: Observed, scores: Sequence[SystemScore], found: _Found) -> Bounds | None:
    if found.strict is None:
        return None
    bootstrap, general, use = found.strict
    usual = next(score.metrics for score in scores if score.system == "tuned")
    return bounds_of(tuned, bootstrap, usual=usual, general=(found.general, general), glossary=(found.glossary, use))


def _resolved(settings: Evaluate) -> tuple[tuple[str, ...], int, float]:
    assert settings.baselines is not None, "evaluate.baselines is open"
    assert settings.resamples is not None, "evaluate.resamples is open"
    assert settings.level is not None, "evaluate.level is open"
    return settings.baselines, settings.resamples, settings.level


def _fitting(contract: RequestContract) -> tuple[str, ...]:
    """Baselines of all tasks but preferences."""
    if is_text(contract.task):
        return ("base",)
    return (*baselines_of(contract), "few_shot", "base")


def _refuse_baselines(given: Sequence[str], contract: RequestContract, fitting: Sequence[str]) -> None:
    """Some need a closed set of labels, others two answers to choose between."""
    odd = [name for name in given if name not in fitting]
    if odd:
        needs, lacks = _NEEDS.get(odd[0], ("predicts labels", "has no closed set"))
        raise DataError(
            f"evaluate.baselines: {odd[0]!r} {needs}, and {contract.task} {lacks}",
            way_out=f"set evaluate.baselines: [{', '.join(sorted(fitting, key='base'.__eq__))}]",
        )


def _baseline(name: str, make: Made, material: Material, progress: Progress, clock: Callable[[], float]) -> _System:
    started = clock()
    progress(f"baseline {name}", 0, 1)
    made = make(material.train, material.validation, material.test)
    progress(f"baseline {name}", 1, 1)
    expected = tuple(example.answer for example in material.test)
    said = Observed(expected, made.predicted, order=material.contract.label_order)
    return _System(name, made.title, with_marks(said, material.contract), clock() - started)


def _ask(
    name: str,
    title: str,
    asker: Asker,
    material: Material,
    places: Places | None,
    progress: Progress,
    clock: Callable[[], float],
) -> _System:
    started = clock()
    if places is not None:
        read = read_texts(asker, material.test, places, tick=_titled(progress, title))
        return _System(name, title, read.observed, clock() - started, read.terms)
    said = score(asker, material.test, tick=_titled(progress, title))
    return _System(name, title + _missing(said), _comparable(said, material), clock() - started)


def _few_shot(
    base: Asker, material: Material, settings: Evaluate, progress: Progress, clock: Callable[[], float]
) -> _System:
    """The base after examples from the training rows; every other thing of its question is the same."""
    started, count = clock(), settings.few_shot_examples
    assert count is not None, "evaluate.few_shot_examples is open"
    shown = show(base, material.train, material.test, count=count)
    title = f"base model, few-shot ({count} examples, {shown.mean_examples:.1f} fit on average)"
    said = score(base, material.test, after=shown.turns, tick=_titled(progress, "base model, few-shot"))
    return _System(
        "few_shot", title + _missing(said), _comparable(said, material), clock() - started, (), shown.mean_examples
    )


def _missing(said: Observed) -> str:
    """What the row of a system adds where numbers were asked for, and some answers have none."""
    missing = unsaid(said)
    return f" ({missing:,} answers without a number count as the mean of training)" if missing else ""


def _comparable(said: Observed, material: Material) -> Observed:
    """What can be held against a head, which writes nothing."""
    if material.contract.answered_by != "head":
        return said
    nothing = np.empty(0, dtype=np.float64)
    return replace(said, free_text=(), answer_nll=nothing, answer_tokens=nothing)


def _preferences(
    material: Material,
    base: Asker,
    tuned: Asker,
    beside: Sequence[Beside],
    baselines: Sequence[str],
    progress: Progress,
    clock: Callable[[], float],
) -> list[_System]:
    """Which answer of each pair is preferred: by length, by the base in two ways, by what learned, the tuned last."""
    test, systems = material.test, list[_System]()
    if "length" in baselines:
        started = clock()
        made = length_baseline(material.train, test)
        systems.append(_System("length", made.title, made.observed, clock() - started))
    started = clock()
    unwritten = unwritten_end(material.contract)
    before = read_pairs(base, test, unwritten=unwritten, tick=_titled(progress, _TITLES["base"]))
    took = clock() - started
    likelier = _comparable(_without_leads(observed(test, margins(before, "sum"), before)), material)
    systems += [
        _System("base", BASE_TITLE, likelier, took),
        _System("base_per_token", PER_TOKEN_TITLE, observed(test, margins(before, "per_token")), took),
    ]
    others = [(one.name, one.title, one.open) for one in beside]
    for name, title, opened in (*others, ("tuned", REWARD_TITLES[material.reward], lambda: tuned)):
        started = clock()
        seen = judged(opened(), test, reward=material.reward, before=before, tick=_titled(progress, title))
        systems.append(_System(name, title, seen, clock() - started))
    return systems


def _without_leads(seen: Observed) -> Observed:
    """Its nats are others than those of a tuned model's reward, so their difference would say nothing."""
    return replace(seen, leads=seen.leads[:0])


def _titled(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)


def _method(bootstrap: Bootstrap, *, tested: bool) -> str:
    grouped = bootstrap.num_groups < bootstrap.num_items
    test = f"a sign-flip test by group, {FLIPS:,} flips" if grouped else "McNemar's exact test"
    drawn = (
        f"{bootstrap.level:.0%} BCa bootstrap, {bootstrap.resamples} resamples of "
        f"{bootstrap.num_groups} groups, paired between systems"
    )
    if not tested:  # of a loss there is nothing that is right or wrong
        return drawn
    return (
        f"{drawn}; shares never narrower than Wilson's interval; "
        f"p-values of {test}, corrected by Holm for the number of comparisons of a metric"
    )


def _peak_memory_gib() -> float:
    """Highest resident size of this process so far; the kernel counts in KiB on Linux, in bytes on macOS."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
