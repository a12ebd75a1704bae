"""Techniques, ranked by what is known of data like this; what speaks against each stands beside it."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.plan import cost, memory
from luthier.plan.words import duration
from luthier.plan.workload import Workload
from luthier.records import Candidate, ModelShape
from luthier.spec.recipe import Budget

TFIDF = "do not fine-tune: TF-IDF + logistic regression"
ZERO_SHOT = "do not fine-tune: zero-shot"

HARDLY_ANY_ROWS = 16
"""Training rows (open task) below which an answer's form can hardly be learned; prompting is the honest start."""

FEW_ROWS_PER_LABEL = 2.0
"""Training rows a label below which nothing can be learned about most labels."""

THIN_ROWS_PER_LABEL = 10.0
"""Below it a linear model has not seen most words that matter; a pre-trained model has."""

MANY_ROWS_PER_LABEL = 2000.0
"""Above it words alone carry most of what labels need, at a thousandth of the cost."""

TFIDF_GIB = 0.35
"""Python with scikit-learn and a sparse matrix of some ten thousand texts."""


@dataclass(frozen=True)
class Estimate:
    """What tuning is predicted to take."""

    technique: str
    trainable_parameters: int
    train_seconds: float
    total_seconds: float
    peak_memory_gib: float


def within(budget: Budget, *, seconds: float, peak_memory_gib: float) -> bool:
    """Whether a prediction keeps to what the budget states; what is not stated is not limited."""
    in_time = budget.hours is None or seconds <= budget.hours * 3600
    return in_time and (budget.ram_gib is None or peak_memory_gib <= budget.ram_gib)


def rank(
    tuning: Estimate, shape: ModelShape, work: Workload, *, budget: Budget, gflops: float, threads: int
) -> tuple[Candidate, ...]:
    """All techniques that this version knows for the task, best first by what is known of data like this.

    Whether one fits the budget is another question, answered beside it: a busy machine makes no technique worse.
    """
    candidates = {
        tuning.technique: _tuning(tuning, shape, work, budget=budget),
        ZERO_SHOT: _zero_shot(shape, work, budget=budget, gflops=gflops, threads=threads),
    }
    if work.num_labels:
        candidates[TFIDF] = _tfidf(work, budget=budget)
    return tuple(candidates[name] for name in _order(tuning.technique, work) if name in candidates)


def _order(tuned: str, work: Workload) -> tuple[str, ...]:
    if not work.num_labels:
        return (tuned, ZERO_SHOT) if work.train_rows >= HARDLY_ANY_ROWS else (ZERO_SHOT, tuned)
    if work.rows_per_label < FEW_ROWS_PER_LABEL:
        return (ZERO_SHOT, tuned, TFIDF)
    if work.rows_per_label > MANY_ROWS_PER_LABEL:
        return (TFIDF, tuned, ZERO_SHOT)
    return (tuned, TFIDF, ZERO_SHOT)


def _rows(work: Workload) -> str:
    if work.is_text:
        return f"{work.trained_tokens:,} tokens of documents"
    if not work.num_labels:
        return f"{work.train_rows:,} training rows"
    rows = work.rows_per_label
    return f"about {rows:,.0f} training rows a label" if rows >= 1 else "less than one training row a label"


def _tuning(tuning: Estimate, shape: ModelShape, work: Workload, *, budget: Budget) -> Candidate:
    learns = "words and subjects" if work.is_text else "the answers"
    speaks_for = f"keeps what {shape.name} knows of language and learns {learns} from {_rows(work)}"
    if work.num_labels and FEW_ROWS_PER_LABEL <= work.rows_per_label < THIN_ROWS_PER_LABEL:
        speaks_for += "; so few rows favor a pre-trained model over one that counts words"
    against = f"{duration(tuning.train_seconds)} of training, and a model to serve; can forget what is not in the data"
    if work.num_labels and work.rows_per_label > MANY_ROWS_PER_LABEL:
        against = f"with {_rows(work)} a linear model is usually close; " + against
    elif work.rows_per_label < FEW_ROWS_PER_LABEL or (not work.num_labels and work.train_rows < HARDLY_ANY_ROWS):
        against = f"{_rows(work)} are hardly enough to learn from; " + against
    return Candidate(
        technique=tuning.technique,
        trainable_parameters=tuning.trainable_parameters,
        peak_memory_gib=tuning.peak_memory_gib,
        train_seconds=tuning.train_seconds,
        fits=within(budget, seconds=tuning.total_seconds, peak_memory_gib=tuning.peak_memory_gib),
        speaks_for=speaks_for,
        speaks_against=against,
    )


def _zero_shot(shape: ModelShape, work: Workload, *, budget: Budget, gflops: float, threads: int) -> Candidate:
    scored = max(1, work.num_labels) * work.answer_tokens
    peak = memory.evaluation_gib(shape, adapter=0, tokens=work.prompt_tokens, scored=scored, threads=threads)
    seconds = cost.STAGE_SECONDS + work.test_rows * cost.answer_seconds(shape, work, gflops=gflops)
    against = "knows neither the answers that are wanted nor their form"
    if work.is_text:
        against = "knows of the domain what it met before; what matters to a request has to be put into its prompt"
    if work.num_labels:
        against = f"has never seen these {work.num_labels} labels used"
    if shape.num_parameters < 3e9 and not work.is_text:
        against += "; models of this size seldom follow such a request unaided"
    return Candidate(
        technique=ZERO_SHOT,
        trainable_parameters=0,
        peak_memory_gib=peak,
        train_seconds=0.0,
        fits=within(budget, seconds=seconds, peak_memory_gib=peak),
        speaks_for="nothing to train, nothing forgotten; evaluated as the base model in every run",
        speaks_against=against,
    )


def _tfidf(work: Workload, *, budget: Budget) -> Candidate:
    seconds = cost.linear_seconds(work)
    speaks_for = f"{duration(seconds)} to fit, a few MB to serve, answers in a millisecond"
    if work.rows_per_label > MANY_ROWS_PER_LABEL:
        speaks_for += f"; with {_rows(work)} hard to beat"
    against = "sees words, not meaning: paraphrases, spelling and negation are lost on it"
    if work.rows_per_label < THIN_ROWS_PER_LABEL:
        against += f"; with {_rows(work)} most words of a new message are new to it"
    return Candidate(
        technique=TFIDF,
        trainable_parameters=0,
        peak_memory_gib=TFIDF_GIB,
        train_seconds=seconds,
        fits=within(budget, seconds=seconds, peak_memory_gib=TFIDF_GIB),
        speaks_for=speaks_for,
        speaks_against=against,
    )
