"""Continued pre-training: the loss is that of plain transformers on each document, whatever is computed together."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from luthier.data.documents import pieces
from luthier.data.items import Item
from luthier.data.shards import Example
from luthier.errors import Stopped
from luthier.models.adapters import attach
from luthier.spec.adapters.lora import Lora
from luthier.spec.methods.pretrain import Pretrain
from luthier.spec.recipe import Train
from luthier.train import loop
from luthier.train.batches import micro_batches
from luthier.train.inputs import Inputs, TaskRows
from luthier.train.methods import load_method
from tiny import llama

from data_kit import renderer  # isort: skip

METHOD = load_method(Pretrain(), None)  # type: ignore[arg-type]
SETTINGS = Train(
    learning_rate=1e-2, num_train_epochs=2, batch_size=4, micro_batch_tokens=128, lr_scheduler_type="linear",
    warmup_ratio=0.1, weight_decay=0.0, max_grad_norm=1.0, validations=1, patience=2, save_steps=2, save_total_limit=2,
    threads=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[list[Example]]:
    """Of each document its pieces: short ones and long ones, some that begin alike."""
    made = renderer(tmp_path_factory.mktemp("t"), task="domain", input="{text}", label="", system="", max_length=48)
    rng = random.Random(0)
    words = ["the", "order", "has", "not", "come", "and", "I", "want", "my", "money", "back", "about", "refund"]
    texts = [" ".join(rng.choice(words) for _ in range(rng.choice([4, 12, 120]))) for _ in range(10)]
    texts += [texts[0] + " twice", texts[0] + " again and again"]
    return [pieces(Item("d", line, None, {}, group=f"g{line}", text=text), made) for line, text in enumerate(texts)]


def model(seed: int = 0):
    return attach(llama(seed=seed, vocab_size=400), Lora(r=4, alpha=8.0, dropout=0.0,
                  target_modules="all-linear"), base_name="b", seed=0)  # fmt: skip


def test_the_loss_of_a_document_is_that_of_plain_transformers(documents: list[list[Example]]) -> None:
    """Of a document that is one piece: the mean over its tokens but the first, as `labels=input_ids` gives it."""
    made, exact = model(), model().double()
    for (row,) in (rows for rows in documents if len(rows) == 1):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            expected = exact(input_ids=ids, labels=ids).loss * METHOD.count(row)
            found = METHOD.loss_sum(made, [row])
        assert METHOD.count(row) == len(row.input_ids) - 1
        assert float(found) == pytest.approx(float(expected), rel=2e-5)


def test_pieces_read_their_context_and_learn_what_follows(documents: list[list[Example]]) -> None:
    made, exact = model(), model().double()
    long = next(rows for rows in documents if len(rows) > 2)
    for row in long:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            losses = cross_entropy(exact(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
            found = METHOD.loss_sum(made, [row])
        assert float(found) == pytest.approx(float(losses[torch.tensor(row.supervised[1:])].sum()), rel=2e-5)
    whole = sum(len(row.input_ids) - row.prompt_tokens for row in long)
    assert sum(METHOD.count(row) for row in long) == whole - 1


@pytest.mark.parametrize("budget", [1, 64, 100_000])
def test_neither_loss_nor_gradient_depends_on_what_is_computed_together(
    documents: list[list[Example]], budget: int
) -> None:
    rows = [row for document in documents for row in document]
    made = model()
    alone = torch.zeros(())
    for row in rows:
        loss = METHOD.loss_sum(made, [row])
        loss.backward()
        alone = alone + loss.detach()
    expected = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad()
    together = torch.zeros(())
    for part in micro_batches(range(len(rows)), [METHOD.computed(row) for row in rows], max_tokens=budget):
        loss = METHOD.loss_sum(made, [rows[number] for number in part.rows])
        loss.backward()
        together = together + loss.detach()
    assert float(together) == pytest.approx(float(alone), rel=2e-5)
    for name, parameter in made.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=2e-3, atol=2e-5)


def test_documents_never_see_each_other(documents: list[list[Example]]) -> None:
    """Another text in the same micro-batch changes nothing."""
    made = model()
    one, other, another = (documents[number][0] for number in (0, 3, 4))
    with torch.no_grad():
        first = METHOD.loss_sum(made, [one, other]) - METHOD.loss_sum(made, [other])
        second = METHOD.loss_sum(made, [one, another]) - METHOD.loss_sum(made, [another])
    assert float(first) == pytest.approx(float(second), rel=2e-5)


def test_a_run_that_was_stopped_ends_with_the_same_bits(documents: list[list[Example]], tmp_path: Path) -> None:
    rows = [row for document in documents for row in document]

    def run(out: Path, stops: tuple[int, ...]) -> str:
        steps = 0

        def stop_asked() -> bool:
            nonlocal steps
            steps += 1
            return steps in stops

        while True:
            try:
                return loop.train(
                    model(), Inputs((TaskRows("domain", METHOD, rows),), "m", "d", "r"), settings=SETTINGS,
                    method_name="pretrain", validation=None, out=out, watch=lambda event, total_steps: None,
                    stop_asked=stop_asked,
                ).weights_sha256  # fmt: skip
            except Stopped:
                continue

    torch.use_deterministic_algorithms(True)
    try:
        assert run(tmp_path / "once", ()) == run(tmp_path / "thrice", (1, 4))
    finally:
        torch.use_deterministic_algorithms(False)
