"""Techniques, ranked by what is known of data like this; what speaks against each stands beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.plan import cost, memory
from luthier.plan.expect import expected_of, majority, outdone
from luthier.plan.measured import Known
from luthier.plan.predict import Estimate
from luthier.plan.words import duration
from luthier.plan.workload import Workload
from luthier.plan_records import Candidate, Expected
from luthier.records import ModelShape
from luthier.spec.objective import Budget
from luthier.spec.suits import THIN_ROWS_PER_LABEL, suited

TFIDF = "do not fine-tune: TF-IDF + logistic regression"
ZERO_SHOT = "do not fine-tune: zero-shot"
FEW_SHOT = "do not fine-tune: few-shot"
RIDGE = "do not fine-tune: TF-IDF + ridge regression"
MAJORITY = "do not fine-tune: majority class"

_LINEAR = {"multi_label": TFIDF, "regression": RIDGE}
"""What counts words, for tasks whose answers are no closed set."""

HARDLY_ANY_ROWS = 16
"""Training rows (open task) below which an answer's form can hardly be learned; prompting is the honest start."""

FEW_ROWS_PER_LABEL = 2.0
"""Training rows a label below which nothing can be learned about most labels."""

MANY_ROWS_PER_LABEL = 2000.0
"""Above it words alone carry most of what labels need, at a thousandth of the cost."""

FULL_ROWS = 100_000
"""Training rows from which on tuning all weights may go before an adapter. On 110,000 rows of code and 395,000 of
mathematics it learned more than LoRA, and forgot more (Biderman et al. 2024, arXiv 2405.09673, sections 4.1, 4.2)."""

TFIDF_GIB = 0.35
"""Python with scikit-learn and a sparse matrix of some ten thousand texts."""


@dataclass(frozen=True)
class Ground:
    """What all techniques are weighed on."""

    shape: ModelShape
    work: Workload
    task: str
    budget: Budget
    rates: cost.Rates
    threads: int
    metric: str
    """What quality is said in."""
    labels: Mapping[str, int]
    """Label -> rows; empty where they were not counted."""
    known: Sequence[Known]
    """What was measured, the nearest first."""


def within(budget: Budget, *, seconds: float, peak_memory_gib: float) -> bool:
    """Whether a prediction keeps to what the budget states; what is not stated is not limited."""
    price = price_of(budget, seconds=seconds)
    in_time = budget.hours is None or seconds <= budget.hours * 3600
    in_money = budget.money is None or price is None or price <= budget.money
    return in_time and in_money and (budget.ram_gib is None or peak_memory_gib <= budget.ram_gib)


def price_of(budget: Budget, *, seconds: float) -> float | None:
    """What so long costs; None without a price."""
    return None if budget.price_per_hour is None else budget.price_per_hour * seconds / 3600


def rank(tunings: Sequence[Estimate], ground: Ground) -> tuple[Candidate, ...]:
    """All techniques that this version knows for the task, best first by what is known of data like this.

    Rules come first, and what was measured overrules them. Whether a technique fits the budget is another question,
    answered beside it: a busy machine makes no technique worse.

    Args:
        tunings: what could be trained, the recipe's own first.
        ground: see there.
    """
    candidates = _tunings(tunings, ground)
    tuned = tuple(candidates)
    candidates[ZERO_SHOT] = _zero_shot(ground)
    if ground.work.shown_tokens:
        candidates[FEW_SHOT] = _few_shot(ground)
    if ground.work.num_labels:
        candidates[TFIDF] = _tfidf(ground)
        candidates[MAJORITY] = _majority(ground)
    elif ground.task in _LINEAR:
        candidates[_LINEAR[ground.task]] = _tfidf(ground, _LINEAR[ground.task])
    order = [name for name in _order(tuned, ground.work) if name in candidates]
    expected = {name: candidates[name].expected for name in order}
    for place in range(1, len(order)):  # each goes before the first that was seen to be worse
        name = order[place]
        beaten = next((i for i in range(place) if outdone(expected[order[i]], by=expected[name])), None)
        if beaten is not None:
            why = f"measured to be better than {order[beaten].removeprefix('do not fine-tune: ')!r}"
            candidates[name] = candidates[name].model_copy(update={"why": why})
            order.insert(beaten, order.pop(place))
    return tuple(candidates[name] for name in order)


def _order(tuned: Sequence[str], work: Workload) -> tuple[str, ...]:
    if not work.num_labels:
        prompted = (TFIDF, RIDGE, ZERO_SHOT, FEW_SHOT)
        return (*tuned, *prompted) if work.train_rows >= HARDLY_ANY_ROWS else (*prompted, *tuned)
    if work.rows_per_label < FEW_ROWS_PER_LABEL:
        return (ZERO_SHOT, FEW_SHOT, *tuned, TFIDF, MAJORITY)
    if work.rows_per_label > MANY_ROWS_PER_LABEL:
        return (TFIDF, *tuned, ZERO_SHOT, FEW_SHOT, MAJORITY)
    return (*tuned, TFIDF, ZERO_SHOT, FEW_SHOT, MAJORITY)


def _rows(work: Workload) -> str:
    if work.is_text:
        return f"{work.trained_tokens:,} tokens of documents"
    if not work.num_labels:
        return f"{work.train_rows:,} training rows"
    rows = work.rows_per_label
    return f"about {rows:,.0f} training rows a label" if rows >= 1 else "less than one training row a label"


def _tunings(tunings: Sequence[Estimate], ground: Ground) -> dict[str, Candidate]:
    """What could be trained, by rule: adapters before all weights unless rows are many, then what suits the task."""
    methods = suited(
        ground.task,
        num_labels=ground.work.num_labels,
        train_rows=ground.work.train_rows,
        given=tunings[0].resolved.recipe.method.type,
    )
    places = {one.facts.name: place for place, one in enumerate(methods)}
    full_first = ground.work.train_rows >= FULL_ROWS

    def place(one: Estimate) -> tuple[bool, int, bool]:
        recipe = one.resolved.recipe
        aside = one.learner.whole_base is not (full_first and _fits(one, ground.budget))
        return aside, places.get(recipe.method.type, len(places)), recipe.adapter != tunings[0].resolved.recipe.adapter

    whys = {one.facts.name: one.why for one in methods}
    found = {}
    for one in sorted(tunings, key=place):
        why = whys.get(one.resolved.recipe.method.type, "")
        if one.learner.whole_base:
            why = _why_full(ground.work.train_rows, fits=_fits(one, ground.budget))
        found[one.technique] = _tuning(one, ground, why=why)
    return found


def _why_full(rows: int, *, fits: bool) -> str:
    if rows < FULL_ROWS:
        return f"{rows:,} rows are learned as well by an adapter, which forgets less"
    return "rows are many enough that all weights learn more" if fits else "rows are many, but it does not fit"


def _fits(one: Estimate, budget: Budget) -> bool:
    seconds, peak = one.prediction.total_seconds, one.prediction.peak_memory_gib
    return within(budget, seconds=seconds, peak_memory_gib=peak)


def _tuning(one: Estimate, ground: Ground, *, why: str) -> Candidate:
    if one.resolved.recipe.merge is not None:
        return _merging(one, ground)
    shape, work = ground.shape, ground.work
    labels = "how far up a number is" if ground.task == "regression" else "to tell the labels apart"
    labels = "which answer is better" if work.is_paired else labels
    what = labels if one.work.head else "words and subjects" if work.is_text else "the answers"
    learns = f"learns {what}"
    speaks_for = f"keeps what {shape.name} knows of language and {learns} from {_rows(work)}"
    if one.resolved.recipe.prune is not None:
        speaks_for = f"heals a smaller {shape.name}, and {learns} from {_rows(work)}"
    elif one.learner.whole_base:
        speaks_for = f"every weight of {shape.name} {learns} from {_rows(work)}"
    if work.num_labels and FEW_ROWS_PER_LABEL <= work.rows_per_label < THIN_ROWS_PER_LABEL:
        speaks_for += "; so few rows favor a pre-trained model over one that counts words"
    took = duration(one.prediction.train_seconds)
    against = f"{took} of training, and a model to serve; can forget what is not in the data"
    if one.work.head and work.is_paired:
        against += "; scores answers that others write, and writes none"
    if one.work.answers_written:
        speaks_for = f"keeps what {shape.name} knows of language, and writes more of what is verified, in any words"
        against += "; teaches nothing where it writes no answer that is worth anything"
    if (teacher := one.resolved.teacher) is not None:
        speaks_for = f"{speaks_for}, and from what {teacher.named} finds likely there"
        against = f"{against}; repeats the teacher's errors, and its license counts"
    if one.learner.whole_base:
        against = f"{took} of training, and a whole model to keep for each version; forgets more than an adapter"
    if one.resolved.recipe.prune is not None:
        against += "; what went with the pruned parts may not come back"
    if work.num_labels and work.rows_per_label > MANY_ROWS_PER_LABEL:
        against = f"with {_rows(work)} a linear model is usually close; " + against
    elif work.rows_per_label < FEW_ROWS_PER_LABEL or (not work.num_labels and work.train_rows < HARDLY_ANY_ROWS):
        against = f"{_rows(work)} are hardly enough to learn from; " + against
    return Candidate(
        technique=one.technique,
        trains=one.learner.words,
        trainable_parameters=one.learner.parameters,
        peak_memory_gib=one.prediction.peak_memory_gib,
        train_seconds=one.prediction.train_seconds,
        total_seconds=one.prediction.total_seconds,
        money=price_of(ground.budget, seconds=one.prediction.total_seconds),
        expected=expected_of(one.technique, ground.metric, ground.known),
        fits=_fits(one, ground.budget),
        why=why,
        speaks_for=speaks_for,
        speaks_against=against,
    )


def _merging(one: Estimate, ground: Ground) -> Candidate:
    count, recipe = len(one.resolved.parents), one.resolved.recipe
    form = "an adapter" if recipe.adapter.type == "lora" else "whole weights"
    return Candidate(
        technique=one.technique,
        trains=f"nothing, {form} from {count} runs",
        trainable_parameters=one.learner.parameters,
        peak_memory_gib=one.prediction.peak_memory_gib,
        train_seconds=one.prediction.train_seconds,
        total_seconds=one.prediction.total_seconds,
        money=price_of(ground.budget, seconds=one.prediction.total_seconds),
        expected=None,
        fits=_fits(one, ground.budget),
        why="the recipe merges runs",
        speaks_for=f"one model in the place of {count}, without training, judged beside each of them",
        speaks_against="what runs learned can cancel; a run trained on all rows together is the yardstick",
    )


def _untrained(
    ground: Ground,
    technique: str,
    *,
    seconds: float,
    fitting: float = 0.0,
    peak: float,
    expected: Expected | None,
    words: tuple[str, str, str],
) -> Candidate:
    why, speaks_for, speaks_against = words
    return Candidate(
        technique=technique,
        trainable_parameters=0,
        peak_memory_gib=peak,
        train_seconds=fitting,
        total_seconds=seconds,
        money=price_of(ground.budget, seconds=seconds),
        expected=expected,
        fits=within(ground.budget, seconds=seconds, peak_memory_gib=peak),
        why=why,
        speaks_for=speaks_for,
        speaks_against=speaks_against,
    )


def _zero_shot(ground: Ground) -> Candidate:
    shape, work = ground.shape, ground.work
    scored = max(1, work.num_labels) * work.answer_tokens
    peak = memory.evaluation_gib(shape, adapter=0, tokens=work.longest_prompt, scored=scored, threads=ground.threads)
    against = "knows neither the answers that are wanted nor their form"
    if work.is_text:
        against = "knows of the domain what it met before; what matters to a request has to be put into its prompt"
    if work.num_labels:
        against = f"has never seen these {work.num_labels} labels used"
    if shape.num_parameters < 3e9 and not work.is_text:
        against += "; models of this size seldom follow such a request unaided"
    few = work.rows_per_label < FEW_ROWS_PER_LABEL or (not work.num_labels and work.train_rows < HARDLY_ANY_ROWS)
    return _untrained(
        ground,
        ZERO_SHOT,
        seconds=ground.rates.start_seconds + work.test_rows * cost.answer_seconds(shape, work, ground.rates),
        peak=peak,
        expected=expected_of(ZERO_SHOT, ground.metric, ground.known),
        words=(
            f"{_rows(work)} teach hardly anything" if few else f"{_rows(work)} are enough to learn from",
            "nothing to train, nothing forgotten; evaluated as the base model in every run",
            against,
        ),
    )


def _few_shot(ground: Ground) -> Candidate:
    shape, work = ground.shape, ground.work.few_shot
    scored = max(1, work.num_labels) * work.answer_tokens
    peak = memory.evaluation_gib(shape, adapter=0, tokens=work.prompt_tokens, scored=scored, threads=ground.threads)
    seconds = cost.answer_seconds(shape, work, ground.rates)
    longer = seconds / cost.answer_seconds(shape, ground.work, ground.rates)
    against = f"each request reads {work.shown_tokens:,.0f} tokens more and takes {longer:.1f} times as long"
    if not ground.work.asks_few_shot:
        against += "; only evaluated where evaluate.few_shot_examples asks for it"
    return _untrained(
        ground,
        FEW_SHOT,
        seconds=ground.rates.start_seconds + work.test_rows * seconds,
        peak=peak,
        expected=expected_of(FEW_SHOT, ground.metric, ground.known),
        words=(
            "after zero-shot, which costs less, until it was measured to be better",
            f"nothing to train; the nearest of {work.train_rows:,} training rows show each request what is wanted",
            against,
        ),
    )


def _tfidf(ground: Ground, technique: str = TFIDF) -> Candidate:
    work = ground.work
    seconds = cost.linear_seconds(work)
    speaks_for = f"{duration(seconds)} to fit, a few MB to serve, answers in a millisecond"
    why = "a floor that a tuned model has to clear"
    if work.rows_per_label > MANY_ROWS_PER_LABEL:
        speaks_for += f"; with {_rows(work)} hard to beat"
        why = f"with {_rows(work)} words alone say most of what a label needs"
    against = "sees words, not meaning: paraphrases, spelling and negation are lost on it"
    if work.rows_per_label < THIN_ROWS_PER_LABEL:
        against += f"; with {_rows(work)} most words of a new message are new to it"
    return _untrained(
        ground,
        technique,
        seconds=seconds,
        fitting=seconds,
        peak=TFIDF_GIB,
        expected=expected_of(technique, ground.metric, ground.known),
        words=(why, speaks_for, against),
    )


def _majority(ground: Ground) -> Candidate:
    return _untrained(
        ground,
        MAJORITY,
        seconds=0.0,
        peak=0.0,
        expected=majority(ground.labels, ground.metric) or expected_of(MAJORITY, ground.metric, ground.known),
        words=("what any other must beat", "nothing to compute", "answers the same whatever is asked"),
    )
