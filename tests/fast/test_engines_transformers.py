"""The engine against plain transformers, and the adapter switched off against the plain base."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.engines.transformers import TransformersEngine
from luthier.models.adapters import attach
from luthier.spec.recipe import Adapter
from tiny import llama

MODEL = llama()
ENGINE = TransformersEngine(MODEL)
IDS = st.lists(st.integers(3, 60), min_size=1, max_size=6)


def reference_score(prompt: list[int], answer: list[int]) -> float:
    logits = MODEL(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) + place - 1, token]) for place, token in enumerate(answer))


@settings(max_examples=25, deadline=None)
@given(IDS, st.lists(IDS, min_size=1, max_size=6))
def test_scores_are_those_of_separate_rows(prompt: list[int], answers: list[list[int]]) -> None:
    with torch.no_grad():
        expected = [reference_score(prompt, answer) for answer in answers]
    found = ENGINE.score(prompt, answers)
    assert [score.logprob for score in found] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_greedy_text_equals_that_of_transformers() -> None:
    for seed in range(5):
        prompt = np.random.default_rng(seed).integers(3, 380, size=4 + seed).tolist()
        expected = MODEL.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=2,
        )[0, len(prompt) :].tolist()
        expected = expected[: expected.index(2)] if 2 in expected else expected
        assert ENGINE.generate(prompt, max_new_tokens=12, stop_ids=[2]) == expected


def test_is_greedy_says_what_generate_would_write() -> None:
    prompt = [5, 9, 20]
    said = ENGINE.generate(prompt, max_new_tokens=4, stop_ids=[])
    other = [*said[:-1], (said[-1] + 1) % 384]
    assert [score.is_greedy for score in ENGINE.score(prompt, [said, other, said[:2]])] == [True, False, True]


def test_generate_stops_at_a_stop_token_and_leaves_it_out() -> None:
    said = ENGINE.generate([5, 9, 20], max_new_tokens=6, stop_ids=[])
    assert ENGINE.generate([5, 9, 20], max_new_tokens=6, stop_ids=[said[2]]) == said[: said.index(said[2])]


def test_logprobs_add_up_to_the_score_and_logits_are_those_of_transformers() -> None:
    ids = [7, 30, 41, 8, 99]
    parts = ENGINE.logprobs(ids)
    assert parts.shape == (4,)
    assert math.isclose(float(parts[1:].sum()), ENGINE.score(ids[:2], [ids[2:]])[0].logprob, rel_tol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(
            ENGINE.logits(ids), MODEL(input_ids=torch.tensor([ids])).logits[0], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(("prompt", "answers"), [([], [[1]]), ([1], []), ([1], [[]])])
def test_empty_questions_are_refused(prompt: list[int], answers: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="not empty"):
        ENGINE.score(prompt, answers)


def test_adapter_on_off_on() -> None:
    plain = TransformersEngine(llama(seed=3))
    adapter = Adapter(type="lora", r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")
    tuned_model = attach(llama(seed=3), adapter, base_name="tiny", seed=0)
    with torch.no_grad():
        for name, parameter in tuned_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    tuned = TransformersEngine(tuned_model)
    off, ids = tuned.without_adapter(), [5, 6, 7, 8]
    on_before = tuned.logits(ids)
    np.testing.assert_array_equal(off.logits(ids), plain.logits(ids))
    assert off.score([5], [[6, 7]]) == plain.score([5], [[6, 7]])
    assert off.generate(ids, max_new_tokens=5, stop_ids=[]) == plain.generate(ids, max_new_tokens=5, stop_ids=[])
    np.testing.assert_array_equal(off.logprobs(ids), plain.logprobs(ids))
    np.testing.assert_array_equal(tuned.logits(ids), on_before)
    assert np.abs(on_before - plain.logits(ids)).max() > 1e-3
