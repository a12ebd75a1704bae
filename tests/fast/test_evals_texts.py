"""Held-out documents: bits per byte against a plain loop, terms where they stand, and what may be claimed of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from echo_engine import TOKENIZER, asker, contract
from test_evals_evaluate import material, silent

from tiny import llama

from data_kit import renderer  # isort: skip
from luthier.data.contract import Renderer
from luthier.data.documents import pieces
from luthier.data.items import Item
from luthier.data.shards import Example, Shard, write_shard
from luthier.data.template import TEXT_TEMPLATE
from luthier.engines.ask import Asker
from luthier.engines.transformers import TransformersEngine
from luthier.errors import DataError, UserError
from luthier.evals.against import compare_runs
from luthier.evals.evaluate import evaluate
from luthier.evals.glossary import find_places, find_terms, read_glossary
from luthier.evals.score import validation_metrics
from luthier.evals.stored import Stored
from luthier.evals.texts import read_texts
from luthier.records import Message
from luthier.spec.recipe import Evaluate

TEXTS = contract(task="domain", labels=(), chat_template=TEXT_TEMPLATE, max_length=40)
RENDERER = Renderer(TEXTS, TOKENIZER)
SETTINGS = Evaluate(baselines=("base",), resamples=300, level=0.95)


def documents(count: int, *, of: Renderer = RENDERER, first: int = 0) -> list[Example]:
    rows = []
    for number in range(first, first + count):
        text = f"the purfling of number {number} is thin; Purfling, and a sound post. " * (1 + number % 3)
        rows += pieces(Item("d", number, None, {}, group=f"g{number}", text=text.strip()), of)
    return rows


def test_bits_per_byte_is_what_a_plain_loop_gives(tmp_path: Path) -> None:
    """sum over documents and tokens of -log2 p, computed by plain transformers in float64, over the bytes."""
    made = renderer(tmp_path, task="domain", input="{text}", label="", system="", max_length=512)
    rows = documents(8, of=made)
    model = llama(vocab_size=400)
    engine = TransformersEngine(model)
    observed = read_texts(Asker(made.contract, made, engine), rows, tick=None).observed
    bits, num_bytes, tokens = 0.0, 0, 0
    exact = llama(vocab_size=400).double()
    for row in rows:
        assert row.prompt_tokens == 0, "whole documents"
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            bits += float(exact(input_ids=ids, labels=ids).loss) * (len(row.input_ids) - 1) / math.log(2)
        num_bytes += len(row.text.encode())
        tokens += len(row.input_ids) - 1
    found = validation_metrics(Asker(made.contract, made, engine), rows)
    assert found["bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-5)
    assert found["perplexity"] == pytest.approx(2 ** (bits / tokens), rel=1e-5)
    assert observed.answer_bytes.sum() == num_bytes


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("eval")
    test = documents(12, first=20)
    report = evaluate(
        material(
            TEXTS, train=documents(12), validation=[], test=test, glossary=("terms.txt", "Purfling\nsound  post\n")
        ),
        base=asker(0.0, TEXTS), tuned=asker(1.0, TEXTS), settings=SETTINGS, seed=0, out=out, progress=silent,
        clock=lambda: 0.0,
    )  # fmt: skip
    return report, test, out


def test_base_and_tuned_are_compared_in_pairs_by_document(judged) -> None:
    report, test, _ = judged
    scores = {system.system: system.metrics for system in report.systems}
    assert set(scores["tuned"]) == {"bits_per_byte", "perplexity"}
    assert (report.num_items, report.num_groups) == (len(test), 12)
    gap = next(one for one in report.differences if one.metric == "bits_per_byte")
    assert gap.interval.point == pytest.approx(
        scores["tuned"]["bits_per_byte"].point - scores["base"]["bits_per_byte"].point
    )
    assert gap.p_value != gap.p_value, "nothing is right or wrong here"
    direct = sum(-asker(1.0, TEXTS).engine.logprobs(row.input_ids)[np.array(row.supervised[1:])].sum() for row in test)
    size = sum(len(row.text.encode()) for row in test)
    assert scores["tuned"]["bits_per_byte"].point == pytest.approx(direct / math.log(2) / size)
    assert report.mistakes == ()
    assert "McNemar" not in report.interval_method


def test_the_headline_says_no_more_than_the_interval_shows(judged) -> None:
    report, _, _ = judged
    gap = next(one.interval for one in report.differences if one.metric == "bits_per_byte")
    assert gap.high < 0
    assert f"{-gap.point:.3f} fewer than the base model ({gap.low:+.3f} to {gap.high:+.3f}" in report.headline
    assert "perplexity of 2 terms of the domain is" in report.headline


def test_terms_are_read_where_they_stand(judged) -> None:
    """Against a plain loop over the characters; in this tokenizer a byte is a token."""
    report, test, _ = judged
    terms = report.terms
    nats, tokens, times = 0.0, 0, 0
    for row in test:
        first = row.supervised.index(True)
        losses = -asker(1.0, TEXTS).engine.logprobs(row.input_ids)
        for term in ("purfling", "sound post"):
            place = row.text.lower().find(term)
            while place >= 0:
                alone = not row.text[place - 1 : place].isalpha() and not row.text[place + len(term) :][:1].isalpha()
                whole = row.input_ids[-2:] == list(TEXTS.end_of_turn_ids) or place + len(term) < len(row.text)
                if alone and place and whole:
                    span = slice(first + place - 1, first + place + len(term) - 1)
                    nats, tokens, times = nats + losses[span].sum(), tokens + len(term), times + 1
                place = row.text.lower().find(term, place + 1)
    assert (terms.occurrences, terms.num_tokens, terms.num_terms) == (times, tokens, 2)
    assert terms.tuned.point == pytest.approx(math.exp(nats / tokens))
    assert {one.term: one.occurrences for one in terms.terms}.keys() == {"purfling", "sound post"}
    assert sum(one.occurrences for one in terms.terms) == times
    assert (terms.source, terms.unmatched) == ("terms.txt", 0)


def test_predictions_compare_two_runs(judged, tmp_path: Path) -> None:
    report, test, out = judged
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(line["nats"]["tuned"] for line in lines) / sum(line["bytes"] for line in lines) / math.log(2) == (
        pytest.approx(next(one for one in report.systems if one.system == "tuned").metrics["bits_per_byte"].point)
    )
    write_shard(tmp_path / "test.arrow", test)
    stored = Stored("one", TEXTS, Shard(tmp_path / "test.arrow"), out / "predictions.jsonl")
    compared = compare_runs(stored, stored, resamples=300, level=0.95, seed=0)
    assert [(one.metric, one.interval.point) for one in compared.differences] == [
        ("bits_per_byte", 0.0), ("perplexity", 0.0),
    ]  # fmt: skip


def test_terms_are_found_among_words_that_the_tokenizer_does_not_know() -> None:
    train = documents(6)
    found = find_terms(train, RENDERER)
    assert {"purfling", "sound", "number"} <= set(found)
    assert "post" in found
    assert "the" not in found, "too short"
    assert find_terms(train[:2], RENDERER) == (), "words of one document are none of the domain's"
    replayed = [
        Example(**{name: getattr(row, name) for name in row.__slots__} | {"made_by": "replay"}) for row in train
    ]
    assert find_terms(replayed, RENDERER) == ()


def test_longer_terms_come_before_those_within_them_and_parts_of_words_are_none() -> None:
    (row,) = pieces(Item("d", 1, None, {}, group="g", text="a bow, a Bow hair; bowed, elbow"), Renderer(contract(
        task="domain", labels=(), chat_template=TEXT_TEMPLATE), TOKENIZER))  # fmt: skip
    places = find_places([row], ("bow", "bow hair"), RENDERER, source="s")
    assert [(name, end - start) for name, start, end in places.spans[0]] == [("bow", 3), ("bow hair", 8)]
    _, start, end = places.spans[0][1]
    assert RENDERER.raw_text(row.input_ids[start:end]) == "Bow hair"


def test_a_glossary_is_one_term_a_line() -> None:
    assert read_glossary("# ours\nSound  post # part\n\nbow\nBOW\n", name="t") == ("sound post", "bow")
    assert read_glossary("C#\n", name="t") == ("c#",)
    with pytest.raises(DataError, match=r"evaluate\.glossary: t:2: a term with a target, and documents are of one"):
        read_glossary("bow\npost\tPfosten\n", name="t")
    with pytest.raises(DataError, match=r"evaluate\.glossary: t holds no term"):
        read_glossary("# nothing\n", name="t")


def test_a_model_of_texts_goes_on_with_a_text_as_it_was_learned() -> None:
    """The prompt is the beginning of a document: letter by letter, id by id."""
    text = "the purfling of number 7"
    one = asker(0.0, TEXTS)
    (row,) = pieces(Item("d", 1, None, {}, group="g", text=text), Renderer(TEXTS, TOKENIZER))
    assert RENDERER.prompt_ids(RENDERER.messages(text)) == row.input_ids[: -len(TEXTS.end_of_turn_ids)]
    said = one.answer_messages([Message(role="user", content=text)])
    assert said == one.answer_text(text)
    assert said.prompt_tokens == len(row.input_ids) - len(TEXTS.end_of_turn_ids)
    turns = [
        Message(role="user", content="a"),
        Message(role="assistant", content="b"),
        Message(role="user", content="c"),
    ]
    for messages in (turns, [Message(role="system", content="be kind"), turns[0]]):
        with pytest.raises(UserError, match="goes on with one text") as error:
            one.answer_messages(messages)
        assert "one user message" in error.value.way_out
