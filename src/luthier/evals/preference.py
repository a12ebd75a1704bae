"""Which of two answers a system prefers, and by how much; used at the end and, for validation, during training.

Names: N pairs; of the two answers the first is the one that people preferred.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from luthier.data.shards import Example
from luthier.engines.ask import Asker
from luthier.engines.protocol import HeadEngine
from luthier.evals.compare import measurable
from luthier.evals.metric import load_metric
from luthier.evals.observed import Floats, Observed
from luthier.records import RequestContract
from luthier.spec.plugins import PairReward

Tick = Callable[[int, int], None]
"""Called after each pair with (done, all)."""

TITLES: dict[PairReward, str] = {
    "implicit": "tuned model: the answer that gained more on the base (implicit reward)",
    "per_token": "tuned model: the likelier answer a token",
    "score": "tuned model: the answer with the higher score",
}
BASE_TITLE = "base model, not tuned: the likelier answer (sum of log-probabilities)"
PER_TOKEN_TITLE = "base model, not tuned: the likelier answer a token"


class PairScores(NamedTuple):
    """How likely a model finds both answers of N pairs."""

    logprobs_N2: Floats
    """Sum of log p over an answer's tokens, its end of turn included."""
    tokens_N2: Floats
    """How many these are."""


@dataclass(frozen=True)
class Length:
    """A baseline that reads nothing: the longer answer, or the shorter one, whichever people preferred in training."""

    longer: bool
    observed: Observed

    @property
    def title(self) -> str:
        return f"the {'longer' if self.longer else 'shorter'} answer (characters; equal lengths count as wrong)"


def read_pairs(
    asker: Asker, examples: Sequence[Example], *, unwritten: int = 0, tick: Tick | None = None
) -> PairScores:
    """Ask a model how likely it finds both answers of each pair; their prompt is computed once.

    Args:
        asker: the model.
        examples: N pairs.
        unwritten: tokens at the end of each answer that no model writes, and that are not asked about.
        tick: told of progress.
    """
    logprobs, tokens = [], []
    for one, other, counts in asker.engine.each(lambda example: _read(asker, example, unwritten), examples):
        logprobs.append((one, other))
        tokens.append(counts)
        if tick is not None:
            tick(len(logprobs), len(examples))
    return PairScores(np.array(logprobs, dtype=np.float64), np.array(tokens, dtype=np.float64))


def unwritten_end(contract: RequestContract) -> int:
    """Tokens of the end of turn behind the one that stops generation: read where an answer is scored, never written."""
    stop = next((place for place, token in enumerate(contract.end_of_turn_ids) if token in contract.stop_ids), None)
    return 0 if stop is None or not contract.scores_answers else len(contract.end_of_turn_ids) - 1 - stop


def _read(asker: Asker, example: Example, unwritten: int) -> tuple[float, float, tuple[int, int]]:
    whole = (example.input_ids[example.prompt_tokens :], example.rejected_ids)
    answers = [ids[: len(ids) - unwritten] for ids in whole]
    one, other = asker.engine.score(example.prompt_ids, answers)
    return one.logprob, other.logprob, (len(answers[0]), len(answers[1]))


def scored_leads(asker: Asker, examples: Sequence[Example], *, tick: Tick | None = None) -> Floats:
    """By how much a head scores the first answer of each pair above the other: the log odds that people prefer it; [N].

    Each answer is asked about by itself, as `predict` and the server do.
    """
    engine, task, leads = asker.engine, asker.contract.name, list[float]()
    assert isinstance(engine, HeadEngine), "answers are scored by a head"

    def lead(example: Example) -> float:
        rows = (example.input_ids, [*example.prompt_ids, *example.rejected_ids])
        one, other = (float(engine.class_logits(row, task)[0]) for row in rows)
        return one - other

    for found in engine.each(lead, examples):
        leads.append(found)
        if tick is not None:
            tick(len(leads), len(examples))
    return np.array(leads, dtype=np.float64)


def margins(scores: PairScores, reward: Literal["sum"] | PairReward, before: PairScores | None = None) -> Floats:
    """By how much the first answer of each pair leads, in nats; [N].

    Args:
        scores: of the model.
        reward: what is compared: the sum of log-probabilities, their mean a token, or, for 'implicit', the sum beyond
            what it was before training (Rafailov et al. 2023, arXiv 2305.18290, section 5, without the factor beta).
        before: of the model before training, for 'implicit'.
    """
    rewards_N2 = scores.logprobs_N2
    if reward == "per_token":
        rewards_N2 = rewards_N2 / scores.tokens_N2
    elif reward == "implicit":
        assert before is not None, "the implicit reward is measured from the model before training"
        rewards_N2 = rewards_N2 - before.logprobs_N2
    return np.asarray(rewards_N2[:, 0] - rewards_N2[:, 1])


def observed(examples: Sequence[Example], leads: Floats, scores: PairScores | None = None) -> Observed:
    """What a system prefers that goes by `leads` [N]; a lead of 0 prefers nothing, and counts as wrong.

    With scores also the lead and the perplexity of the answers that people preferred.
    """
    pairs = zip(examples, leads, strict=True)
    seen = Observed(
        expected=tuple(example.answer for example in examples),
        predicted=tuple(example.answer if lead > 0 else example.rejected for example, lead in pairs),
        prefers=True,
    )
    if scores is None:
        return seen
    nll, tokens = -scores.logprobs_N2[:, 0], scores.tokens_N2[:, 0]
    return replace(seen, leads=leads, answer_nll=nll, answer_tokens=tokens)


def length_baseline(train: Sequence[Example], test: Sequence[Example]) -> Length:
    """The longer or the shorter answer of each test pair, as it was preferred in more training pairs."""
    longer = float(np.sign(_leads_in_length(train)).sum()) >= 0
    leads = _leads_in_length(test)
    return Length(longer, observed(test, leads if longer else -leads))


def _leads_in_length(examples: Sequence[Example]) -> Floats:
    return np.array([len(one.answer) - len(one.rejected) for one in examples], dtype=np.float64)


def judged(
    asker: Asker,
    examples: Sequence[Example],
    *,
    reward: PairReward,
    before: PairScores | None,
    tick: Tick | None = None,
) -> Observed:
    """What a model prefers that learned preferences, and its leads; of one that writes also how likely it finds the
    answers that people preferred.
    """
    if reward == "score":
        leads = scored_leads(asker, examples, tick=tick)
        return replace(observed(examples, leads), leads=leads)
    scores = read_pairs(asker, examples, tick=tick)
    return observed(examples, margins(scores, reward, before), scores)


def pair_metrics(
    asker: Asker, examples: Sequence[Example], *, reward: PairReward, before: PairScores | None, scale: float
) -> dict[str, float]:
    """Point values for choosing a checkpoint: accuracy, lead, perplexity of the preferred answers, and a loss.

    The loss is the mean of - log s(scale * lead), s the logistic function: of how surely the pairs are told apart. A
    model that scores answers writes none, so there is no perplexity.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("validation without examples")
    seen = judged(asker, examples, reward=reward, before=before)
    values = {"preference_loss": float(np.logaddexp(0.0, -scale * seen.leads).mean())}
    for name in measurable(seen):
        metric = load_metric(name)
        values[name] = float(metric.value(metric.statistics(seen).sum(axis=0)))
    return values
