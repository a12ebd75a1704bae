"""Few-shot prompting: which rows are shown, in which words, as far as they fit; and that nothing else is changed."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from echo_engine import LABELS, TOKENIZER, asker, chat_example, contract, example, rows
from test_evals_evaluate import SETTINGS, material, silent

from luthier.data.shards import Example
from luthier.data.template import TEXT_TEMPLATE
from luthier.errors import DataError
from luthier.eval_records import EvalReport
from luthier.evals.evaluate import evaluate
from luthier.evals.few_shot import Neighbours, show
from luthier.evals.headline import headline
from luthier.evals.score import score
from luthier.records import Message, RequestContract
from luthier.spec.recipe import Evaluate

FEW = Evaluate(baselines=("few_shot", "base"), few_shot_examples=3, resamples=300, level=0.95)
TEXTS = ("the red fox", "a red hen", "the blue sky", "the red red fox", "green")


def judge(out: Path, made: RequestContract | None = None, settings: Evaluate = FEW, **changes: object) -> EvalReport:
    return evaluate(
        material(made, **changes), base=asker(0.3, made), tuned=asker(2.0, made), settings=settings, seed=0, out=out,
        progress=silent, clock=lambda: 0.0,
    )  # fmt: skip


def likeness(text: str, other: str, texts: tuple[str, ...]) -> float:
    """Cosine by the formula that the module states, in plain Python."""
    frequency = Counter(word for one in texts for word in set(one.split()))

    def vector(of: str) -> dict[str, float]:
        known = Counter(word for word in of.split() if word in frequency)
        return {w: n * (math.log((1 + len(texts)) / (1 + frequency[w])) + 1) for w, n in known.items()}

    one, two = vector(text), vector(other)
    length = math.sqrt(sum(x * x for x in one.values()) * sum(x * x for x in two.values()))
    return sum(one[word] * two.get(word, 0.0) for word in one) / length if length else 0.0


@pytest.mark.parametrize("text", ["red fox", "the sky", "hen a a", "unknown words"])
def test_the_nearest_rows_are_those_of_the_formula(text: str) -> None:
    train = [example(one, "ggg", line=number) for number, one in enumerate(TEXTS)]
    found = Neighbours(train).of(example(text, "hhh"), count=4)
    order = sorted(range(len(TEXTS)), key=lambda place: (-round(likeness(text, TEXTS[place], TEXTS), 9), place))
    assert [row.line for row in found] == order[:4]


def test_equals_come_in_the_order_of_the_rows_every_time() -> None:
    train = [example("same words", label, line=number) for number, label in enumerate(LABELS * 5)]
    for _ in range(3):
        assert [row.line for row in Neighbours(train).of(example("same", "ggg"), count=4)] == [0, 1, 2, 3]


def test_rows_of_the_items_own_group_are_never_shown() -> None:
    train = [example("red fox", "ggg", line=1, group="a"), example("blue", "hhh", line=2, group="b")]
    train.append(example("red", "kkk", line=3))
    asked = example("red fox", "ggg", group="a")
    assert [row.line for row in Neighbours(train).of(asked, count=9)] == [3, 2]
    assert [row.line for row in Neighbours(train).of(replace(asked, group=""), count=9)] == [1, 3, 2]
    assert Neighbours([]).of(asked, count=2) == []


@pytest.mark.parametrize("system", ["", "Letter?"])
def test_the_prompt_is_the_contracts_own_chat_with_the_nearest_example_last(system: str) -> None:
    made = contract(system=system, max_length=600)
    train = [example("red fox", "ggg", made=made), example("red hen", "hhh", made=made), example("sky", "kkk")]
    item = example("a red fox", "ggg", made=made)
    shown = show(asker(0.0, made), train, [item], count=2)
    assert shown.mean_examples == 2
    renderer = asker(0.0, made).renderer
    ids = renderer.prompt_ids(renderer.messages(item.text, after=shown.turns[0]))
    begin = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    text = begin + (
        "<|im_start|>user\nred hen<|im_end|>\n<|im_start|>assistant\nhhh<|im_end|>\n"
        "<|im_start|>user\nred fox<|im_end|>\n<|im_start|>assistant\nggg<|im_end|>\n"
        "<|im_start|>user\na red fox<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids == TOKENIZER.encode(text, add_special_tokens=False).ids
    assert renderer.prompt_ids(renderer.messages(item.text)) == item.prompt_ids


@pytest.mark.parametrize("max_length", [60, 110, 150, 2000])
@pytest.mark.parametrize("open_task", [False, True])
def test_examples_that_do_not_fit_are_left_out_whole(max_length: int, open_task: bool) -> None:
    changes = {"task": "generation", "labels": (), "max_new_tokens": 9} if open_task else {}
    made = contract(max_length=max_length, **changes)
    train, items = rows(30, seed=1, made=made), rows(8, seed=2, made=made)
    shown = show(asker(0.0, made), train, items, count=4)
    pairs = {(row.text, row.answer) for row in train}
    for item, turns in zip(items, shown.turns, strict=True):
        said = [(turns[at].content, turns[at + 1].content) for at in range(0, len(turns), 2)]
        assert set(said) <= pairs, "an example is shown whole"
        renderer = asker(0.0, made).renderer
        prompt = renderer.prompt_ids(renderer.messages(item.text, after=turns))
        assert not turns or len(prompt) + made.max_new_tokens <= max_length
    counts = [len(turns) // 2 for turns in shown.turns]
    assert shown.mean_examples == np.mean(counts)
    assert (max_length == 60) == (max(counts) == 0)
    assert (max_length == 2000) == (min(counts) == 4)


def test_only_items_that_count_are_counted() -> None:
    made = contract(max_length=150)
    items = [example("red", "ggg", made=made), replace(example("g" * 100, "ggg", made=made), contaminated="exact")]
    train = [example("red fox", "ggg", made=made)]
    assert show(asker(0.0, made), train, items, count=1).mean_examples == 1
    assert show(asker(0.0, made), train, [items[0], replace(items[1], contaminated="")], count=1).mean_examples == 0.5


def test_scores_are_those_of_asking_the_same_prompt_directly(tmp_path: Path) -> None:
    made = contract(max_length=400)
    report = judge(tmp_path, made)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    base, used = asker(0.3, made), material(made)
    shown = show(base, used.train, used.test, count=3)
    direct = []
    for line, row, turns in zip(lines, used.test, shown.turns, strict=True):
        prompt = base.renderer.prompt_ids([*turns, Message(role="user", content=row.text)])
        found = base.engine.score(prompt, [base.renderer.answer_ids(label) for label in LABELS])
        logprobs = np.array([one.logprob for one in found])
        assert line["predicted"]["few_shot"] == LABELS[int(logprobs.argmax())]
        odds = np.exp(logprobs - logprobs.max())
        assert list(line["probabilities"]["few_shot"].values()) == pytest.approx((odds / odds.sum()).tolist())
        direct.append(line["predicted"]["few_shot"] == row.answer)
    score_of = next(one for one in report.systems if one.system == "few_shot")
    assert score_of.metrics["accuracy"].point == pytest.approx(np.mean(direct))
    assert score_of.mean_examples == shown.mean_examples > 2
    assert score_of.title == f"base model, few-shot (3 examples, {shown.mean_examples:.1f} fit on average)"
    gap = next(g for g in report.differences if (g.against, g.metric) == ("few_shot", "accuracy"))
    tuned = next(one for one in report.systems if one.system == "tuned").metrics["accuracy"].point
    assert gap.interval.point == pytest.approx(tuned - np.mean(direct))
    assert gap.p_value == gap.p_value, "it is tested like any other"


def test_generated_answers_follow_the_same_prompt(tmp_path: Path) -> None:
    made = contract(task="generation", labels=(), max_new_tokens=4, max_length=400)
    changes = {name: rows(count, seed=count, made=made) for name, count in (("train", 20), ("test", 6))}
    report = judge(tmp_path, made, **changes)
    base = asker(0.3, made)
    shown = show(base, changes["train"], changes["test"], count=3)
    said = score(base, changes["test"], after=shown.turns)
    for place, row in enumerate(changes["test"]):
        prompt = base.renderer.prompt_ids([*shown.turns[place], Message(role="user", content=row.text)])
        ids = base.engine.generate(prompt, max_new_tokens=4, stop_ids=made.stop_ids)
        assert said.predicted[place] == base.renderer.decode(ids)
        nats = -base.engine.score(prompt, [base.renderer.answer_ids(row.answer)])[0].logprob
        assert said.answer_nll[place] == pytest.approx(nats)
    few = next(one for one in report.systems if one.system == "few_shot")
    assert {"exact_match", "perplexity"} <= set(few.metrics)


def test_conversations_of_several_turns_are_no_examples_and_get_none() -> None:
    made = contract(task="generation", labels=(), input="", max_length=900)
    one = [Message(role="user", content="red fox"), Message(role="assistant", content="ggg")]
    several = [*one, Message(role="user", content="red hen"), Message(role="assistant", content="hhh")]
    train = [chat_example(several, line=1, made=made), chat_example(one, line=2, made=made)]
    items = [chat_example(one, line=3, made=made), chat_example(several, line=4, made=made)]
    shown = show(asker(0.0, made), train, items, count=2)
    assert [[turn.content for turn in turns] for turns in shown.turns] == [["red fox", "ggg"], []]
    assert shown.mean_examples == 0.5


def test_it_changes_nothing_of_the_other_systems_and_is_the_same_again(tmp_path: Path) -> None:
    made = contract(max_length=400)
    without = judge(tmp_path, made, settings=SETTINGS.model_copy(update={"baselines": ("base",)}))
    first, again = judge(tmp_path, made), judge(tmp_path, made)
    assert first.systems == again.systems
    assert [one.system for one in first.systems] == ["base", "few_shot", "tuned"]
    points = {one.system: {k: v.point for k, v in one.metrics.items()} for one in first.systems}
    for one in without.systems:
        assert points[one.system] == {name: value.point for name, value in one.metrics.items()}
        assert one.mean_examples is None
    assert (first.confusion, first.general.ratio.point) == (without.confusion, without.general.ratio.point)


def test_only_training_rows_are_shown(tmp_path: Path) -> None:
    made = contract(max_length=400)
    poison: list[Example] = rows(40, seed=9)
    one, other = judge(tmp_path, made), judge(tmp_path, made, validation=poison)
    assert one.systems == other.systems
    fewer = judge(tmp_path, made, train=rows(80, seed=5))
    few = [next(s.metrics for s in report.systems if s.system == "few_shot") for report in (one, fewer)]
    assert few[0] != few[1], "and other rows say something else"


def test_a_better_few_shot_prompt_comes_first(tmp_path: Path) -> None:
    report = evaluate(
        material(contract(max_length=400)), base=asker(2.0, contract(max_length=400)),
        tuned=asker(0.0, contract(max_length=400)), settings=FEW, seed=0, out=tmp_path, progress=silent,
    )  # fmt: skip
    few, tuned = (next(s for s in report.systems if s.system == name) for name in ("few_shot", "tuned"))
    assert few.metrics["macro_f1"].point > tuned.metrics["macro_f1"].point
    assert report.headline.startswith("The base model with examples in its prompt beats the tuned model on 60 test")
    assert report.headline == headline(report.systems, report.differences, num_items=60, metric="macro_f1")


@pytest.mark.parametrize("task", ["preference", "domain"])
def test_tasks_without_questions_refuse_it(task: str, tmp_path: Path) -> None:
    made = contract(task=task, labels=(), chat_template=TEXT_TEMPLATE)
    with pytest.raises(DataError, match=rf"'few_shot' shows questions with their answers, and {task} has none") as told:
        judge(tmp_path, made)
    assert re.search(r"evaluate.baselines: \[(length, )?base\]", told.value.way_out)
