"""The engine against plain transformers, and the adapter switched off against the plain base."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.engines.transformers import AT_ONCE, TransformersEngine
from luthier.models.adapters import attach
from luthier.spec.adapters.lora import Lora
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


def test_each_answers_in_order_what_one_by_one_gives_and_leaves_the_threads_as_they_were() -> None:
    def ask(ids: list[int]) -> tuple[float, int]:
        return ENGINE.score(ids, [[3, 4], [3, 9, 9]])[1].logprob, torch.get_num_threads()

    questions = [list(range(5, 5 + length)) for length in (9, 2, 30, 4, 17, 3)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [ask(ids) for ids in questions]
        for threads, at_once in ((1, 1), (2, 2), (9, AT_ONCE)):
            torch.set_num_threads(threads)
            engine = TransformersEngine(MODEL)
            together = list(engine.each(ask, questions))
            assert torch.get_num_threads() == threads
            assert {used for _, used in together} == {threads // at_once}
            np.testing.assert_allclose([value for value, _ in together], [value for value, _ in alone], rtol=1e-6)
            assert [*engine.each(ask, questions[:1]), *engine.each(ask, questions[1:])] == together, "to the bit"
            with ThreadPoolExecutor(1) as later:
                assert later.submit(torch.get_num_threads).result() == threads, "a worker's setting stays its own"
    finally:
        torch.set_num_threads(before)


def test_a_long_list_does_not_hold_up_a_single_question() -> None:
    begun, go_on = threading.Event(), threading.Event()
    asked = []

    def slow(number: int) -> int:
        asked.append(number)
        begun.set()
        assert go_on.wait(30)
        return number

    with ThreadPoolExecutor(1) as caller:
        many = caller.submit(lambda: list(ENGINE.each(slow, range(100))))
        assert begun.wait(30)
        single = ENGINE.each(lambda number: len(asked), [0])
        go_on.set()
        assert next(single) <= 2 * AT_ONCE + 2, "it was asked among the first of the list"
        assert many.result() == list(range(100))


def test_an_error_comes_at_its_items_turn_and_ends_the_rest() -> None:
    asked = []

    def ask(number: int) -> int:
        asked.append(number)
        if number == 1:
            raise KeyError(number)
        return number

    found = ENGINE.each(ask, range(1000))
    assert next(found) == 0
    with pytest.raises(KeyError):
        next(found)
    assert len(asked) <= AT_ONCE + 3


def test_the_adapter_stays_off_for_all_questions_that_are_asked_at_once() -> None:
    plain = TransformersEngine(llama(seed=3))
    questions = [[5 + number % 40, 6, 7 + number % 11] for number in range(60)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        tuned = TransformersEngine(_tuned())
        off = tuned.without_adapter()
        said = list(off.each(lambda ids: off.score(ids, [[6, 7]])[0].logprob, questions))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(said, [plain.score(ids, [[6, 7]])[0].logprob for ids in questions], rtol=1e-6)
    assert abs(tuned.score([5], [[6, 7]])[0].logprob - plain.score([5], [[6, 7]])[0].logprob) > 1e-3


def _tuned() -> Any:
    adapter = Lora(type="lora", r=4, alpha=8.0, dropout=0.0, target_modules="all-linear")
    model = attach(llama(seed=3), adapter, base_name="tiny", seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def test_adapter_on_off_on() -> None:
    plain = TransformersEngine(llama(seed=3))
    tuned = TransformersEngine(_tuned())
    off, ids = tuned.without_adapter(), [5, 6, 7, 8]
    on_before = tuned.logits(ids)
    np.testing.assert_array_equal(off.logits(ids), plain.logits(ids))
    assert off.score([5], [[6, 7]]) == plain.score([5], [[6, 7]])
    assert off.generate(ids, max_new_tokens=5, stop_ids=[]) == plain.generate(ids, max_new_tokens=5, stop_ids=[])
    np.testing.assert_array_equal(off.logprobs(ids), plain.logprobs(ids))
    np.testing.assert_array_equal(tuned.logits(ids), on_before)
    assert np.abs(on_before - plain.logits(ids)).max() > 1e-3
