"""Ask one model every item of a split; used at the end and, for validation, during training."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from luthier.data.shards import Example
from luthier.engines.ask import Asker
from luthier.evals.marks import with_marks
from luthier.evals.metric import load_metric
from luthier.evals.observed import Floats, Observed
from luthier.evals.texts import read_texts
from luthier.records import Answer, Message, RequestContract, is_text
from luthier.rewards import Reward, rewards_of

Tick = Callable[[int, int], None]
"""Called after each item with (done, all)."""


def score(
    asker: Asker,
    examples: Sequence[Example],
    *,
    after: Sequence[Sequence[Message]] | None = None,
    tick: Tick | None = None,
) -> Observed:
    """Predictions of a model for prepared examples, and how likely it finds the expected answers.

    Args:
        asker: the model.
        examples: N rows of a shard.
        after: N times the turns that stand before the question, which then is the text of the row; None for none.
        tick: told of progress.
    """
    asked = []
    questions = list(zip(examples, after if after is not None else ((),) * len(examples), strict=True))
    for said in asker.engine.each(lambda question: _ask(asker, *question), questions):
        asked.append(said)
        if tick is not None:
            tick(len(asked), len(examples))
    observed = Observed(
        expected=tuple(example.answer for example in examples),
        predicted=tuple(said.predicted for said in asked),
        probabilities=tuple(said.probabilities for said in asked if said.probabilities and asker.contract.labels),
        answered=tuple(said.answered for said in asked) if asker.contract.abstain_below is not None else (),
        order=asker.contract.label_order,
        translates=asker.contract.task == "translation",
    )
    if asker.contract.answered_by == "head":  # which writes nothing
        tags = asker.contract.tags
        chances = [[said.probabilities[tag] for tag in tags] for said in asked] if tags else []
        return with_marks(replace(observed, chances=np.array(chances, dtype=np.float64)), asker.contract)
    written = replace(
        observed,
        free_text=tuple(said.free_text for said in asked),
        answer_nll=np.array([said.answer_nll for said in asked], dtype=np.float64),
        answer_tokens=np.array([said.answer_tokens for said in asked], dtype=np.float64),
        rewards=verified(
            rewards_of(asker.contract), [said.free_text for said in asked], [example.answer for example in examples]
        ),
    )
    return with_marks(written, asker.contract)


def with_rewards(seen: Observed, contract: RequestContract) -> Observed:
    """With what each answer is worth by the task's rewards; as it is where it has none."""
    reward = rewards_of(contract)
    return seen if reward is None else replace(seen, rewards=verified(reward, seen.free_text, seen.expected))


def verified(reward: Reward | None, said: Sequence[str], expected: Sequence[str]) -> Floats:
    """What each answer is worth, [N]; empty where nothing verifies them."""
    worth = [] if reward is None else [reward(text, wanted) for text, wanted in zip(said, expected, strict=True)]
    return np.array(worth, dtype=np.float64)


class _Said(NamedTuple):
    """What a model says of one item; `probabilities` are empty where the task has no labels."""

    predicted: str
    probabilities: dict[str, float]
    free_text: str
    answer_nll: float
    answer_tokens: int
    answered: bool = True


def _ask(asker: Asker, example: Example, after: Sequence[Message]) -> _Said:
    prompt = example.prompt_ids
    if after:
        prompt = asker.renderer.prompt_ids(asker.renderer.messages(example.text, after=after))
    answer_part = slice(example.prompt_tokens, None)
    ids_and_marks = zip(example.input_ids[answer_part], example.supervised[answer_part], strict=True)
    expected_ids = [token for token, supervised in ids_and_marks if supervised]
    tokens = asker.renderer.base_tokens(expected_ids)
    if asker.contract.labels:
        answer = asker.answer_prepared(example.text, after=after)
        if asker.contract.answered_by == "head":
            return _Said(answer.label, answer.probabilities, "", 0.0, 0, not answer.abstained)
        nll = _closed_nll(asker, example.answer, answer, prompt, expected_ids)
        return _Said(answer.label, answer.probabilities, answer.greedy_label or "", nll, tokens)
    if asker.contract.answered_by == "head":
        answer = asker.answer_prepared(example.text)
        return _Said(answer.text, answer.probabilities, "", 0.0, 0)
    text = asker.free_text(example.text, after=after) if after else _open_text(asker, example, prompt)
    nll = -asker.engine.score(prompt, [expected_ids])[0].logprob
    return _Said(text, {}, text, nll, tokens)


def validation_metrics(asker: Asker, examples: Sequence[Example]) -> dict[str, float]:
    """Point values for choosing a checkpoint: bits_per_byte and perplexity of texts, else `measured_in_training`.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("validation without examples")
    if is_text(asker.contract.task):
        observed = read_texts(asker, examples, tick=None).observed
        names = ["bits_per_byte", "perplexity"]
    else:
        observed = score(asker, examples)
        names = measured_in_training(asker.contract)
    values = {}
    for name in names:
        metric = load_metric(name)
        values[name] = float(metric.value(metric.statistics(observed).sum(axis=0)))
    return values


def measured_in_training(contract: RequestContract) -> list[str]:
    """Names of the metrics that weights are chosen by, and of what tells equal ones apart."""
    by_head = contract.answered_by == "head"
    if contract.tags:
        return ["micro_f1", "macro_f1", "accuracy", "binary_log_loss" if by_head else "perplexity"]
    if contract.scale is not None:
        return ["mae", "r_squared", "rmse", *(() if by_head else ("perplexity",))]
    names = ["accuracy", "macro_f1"] if contract.labels else ["exact_match"]
    names = ["chrf"] if contract.task == "translation" else names
    names += ["reward"] if contract.rewards else []
    names += ["quadratic_kappa"] if contract.label_order else []
    return [*names, "log_loss" if by_head else "perplexity"]


def _closed_nll(
    asker: Asker, expected: str, answer: Answer, prompt: Sequence[int], expected_ids: Sequence[int]
) -> float:
    """Negative log-likelihood of the expected label, from the scores that chose it where these are at hand."""
    probability = answer.probabilities[expected]
    if answer.log_mass is not None and probability > 0:  # an underflow to 0 needs the score itself
        return -(math.log(probability) + answer.log_mass)
    return -asker.engine.score(prompt, [expected_ids])[0].logprob


def _open_text(asker: Asker, example: Example, prompt: Sequence[int]) -> str:
    renderer, contract = asker.renderer, asker.contract
    if contract.input:
        return asker.free_text(example.text)
    # A chat row may have turns before the last question; only the row's own ids hold them.
    room = min(contract.max_new_tokens, contract.max_length - len(prompt))
    return renderer.decode(asker.engine.generate(prompt, max_new_tokens=room, stop_ids=contract.stop_ids))
