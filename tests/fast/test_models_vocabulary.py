"""A base with new tokens: rows from their pieces, old bits kept; what learns is what PEFT learns; the base asked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from luthier.engines.in_pieces import InPieces
from luthier.engines.transformers import TransformersEngine
from luthier.errors import ModelError
from luthier.models import vocabulary
from luthier.models.adapters import attach, bare, load_adapter, merge, save_adapter
from luthier.models.base import load_base
from luthier.models.head import has_plain_head
from luthier.models.new_rows import NewRowsLayer, fuse_rows
from luthier.models.source import locate
from luthier.models.tuned import can_switch_off
from luthier.models.vocabulary import grow_base, grow_rows, grown_folder, is_grown, new_rows
from luthier.spec.adapters.full import Full
from luthier.spec.adapters.lora import Lora
from luthier.train.rows import Row, supervised_losses
from tiny import llama, write_model, write_tokenizer

VOCABULARY = 384
PIECES = {384: (5, 6, 7), 385: (8, 9), 386: (10, 5)}
ADAPTER = Lora.model_validate({"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": "all-linear"})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    return tmp_path


def grown(folder: Path, **changes: Any) -> tuple[Path, Path]:
    """Folders of a tiny base, and of that with the new tokens."""
    base = write_model(folder / "model", **changes)
    write_tokenizer(folder / "tokenizer")
    source = locate(str(base), folder=folder, revision=None, offline=True, say=print)
    assert not is_grown(source, folder / "tokenizer")
    made = grow_base(source, base, folder / "tokenizer", PIECES)
    assert is_grown(source, folder / "tokenizer")
    assert made == grown_folder(source, folder / "tokenizer")
    return base, made


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [VOCABULARY, VOCABULARY + 2, VOCABULARY + 64])
def test_new_rows_are_the_mean_of_their_pieces_and_all_else_keeps_its_bits(
    home: Path, tied: bool, rows: int, tmp_path: Path
) -> None:
    """Also of a base that has rows to spare, as many families do."""
    base, made = grown(tmp_path, tie_word_embeddings=tied, vocab_size=rows)
    before, after = load_file(base / "model.safetensors"), load_file(made / "model.safetensors")
    assert before.keys() == after.keys()
    ends = {"model.embed_tokens.weight", *(() if tied else ("lm_head.weight",))}
    for name, old in before.items():
        new = after[name]
        if name not in ends:
            assert torch.equal(new, old), name
            continue
        assert len(new) == max(rows, VOCABULARY + len(PIECES))
        assert torch.equal(new[:VOCABULARY], old[:VOCABULARY])
        assert torch.equal(new[387:], old[387:])
        for number, pieces in PIECES.items():
            expected = old[list(pieces)].double().mean(dim=0)
            torch.testing.assert_close(new[number].double(), expected, rtol=0, atol=1e-7)
    model = load_base(made)
    assert list(new_rows(model)) == sorted(PIECES)
    assert not new_rows(load_base(base))
    ids = torch.arange(3, 40).view(1, -1)
    old_scores, new_scores = (load_base(folder)(input_ids=ids).logits for folder in (base, made))
    torch.testing.assert_close(new_scores[..., :VOCABULARY], old_scores[..., :VOCABULARY], rtol=0, atol=1e-6)


def test_an_output_head_with_a_bias_is_refused() -> None:
    model = llama(tie_word_embeddings=False)
    model.lm_head = torch.nn.Linear(32, VOCABULARY)
    with pytest.raises(ModelError, match="a bias in its output head"):
        grow_rows(model, PIECES)


# --- what learns ------------------------------------------------------------------------------------------------------


def tuned(tied: bool) -> Any:
    """By PEFT alone: LoRA whose B is drawn, and the rows of the new tokens."""
    model = llama(tie_word_embeddings=tied)
    grow_rows(model, PIECES)
    torch.manual_seed(1)
    ends = ["embed_tokens", *(() if tied else ("lm_head",))]
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], trainable_token_indices={n: [*PIECES] for n in ends}
    )
    made = get_peft_model(model, config)
    for name, parameter in made.named_parameters():
        if "lora_B" in name or "trainable_tokens_delta" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return made


ROW = [3, 384, 20, 386, 386, 30, 385, 40]


@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_those_of_peft(tied: bool) -> None:
    """With our layers and our chunks of positions, against PEFT's layers and torch's loss over whole scores."""
    plain, fused = tuned(tied), tuned(tied)
    fuse_rows(fused)
    assert sum(isinstance(module, NewRowsLayer) for module in fused.modules()) == 2
    ids = torch.tensor([ROW])
    expected = cross_entropy(plain(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
    weights = torch.linspace(0.5, 1.5, len(expected))
    (expected * weights).sum().backward()
    assert has_plain_head(bare(fused)), "so that scores of all positions are never held at once"
    (losses,) = supervised_losses(fused, [Row(ROW, [False] + [True] * (len(ROW) - 1))])
    (losses * weights).sum().backward()
    torch.testing.assert_close(losses, expected)
    wanted = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in fused.named_parameters() if p.grad is not None}
    assert wanted.keys() == found.keys()
    assert sum("trainable_tokens_delta" in name for name in found) == (1 if tied else 2)
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm()) < 1e-5 * float(gradient.norm()), name
    by_library = copy.deepcopy(fused)
    by_library.zero_grad()
    scores = by_library(input_ids=ids).logits[0, :-1]
    (cross_entropy(scores, ids[0, 1:], reduction="none") * weights).sum().backward()
    for name, parameter in by_library.named_parameters():
        if name in wanted:
            assert float((parameter.grad - wanted[name]).norm()) < 1e-5 * float(wanted[name].norm()), name


@pytest.mark.parametrize("tied", [True, False])
def test_steps_move_the_new_rows_and_no_old_bit(home: Path, tied: bool, tmp_path: Path) -> None:
    base, made = grown(tmp_path, tie_word_embeddings=tied)
    model = attach(load_base(made), ADAPTER, base_name="m", seed=0)
    assert not can_switch_off(model), "under it stands a base with more tokens than the one that it is compared with"
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        sum(losses.sum() for losses in supervised_losses(model, [Row(ROW, [True] * len(ROW))])).backward()
        optimizer.step()
    (tmp_path / "adapter").mkdir()
    save_adapter(model, tmp_path / "adapter")
    learned = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    rows = {name: one for name, one in learned.items() if "trainable_tokens_delta" in name}
    assert len(rows) == (1 if tied else 2)
    merged = merge(load_adapter(load_base(made), tmp_path / "adapter"))
    for end, name in ((merged.get_input_embeddings(), "embed_tokens"), (merged.get_output_embeddings(), "lm_head")):
        first = load_file(made / "model.safetensors")
        start = first["model.embed_tokens.weight" if tied or name == "embed_tokens" else "lm_head.weight"]
        assert torch.equal(end.weight[:VOCABULARY], start[:VOCABULARY])
        assert all(not torch.equal(end.weight[number], start[number]) for number in PIECES)
    _opens_in_plain_peft(base, tmp_path / "adapter", merged, load_adapter(load_base(made), tmp_path / "adapter"))


def _opens_in_plain_peft(base: Path, adapter: Path, merged: Any, ours: Any) -> None:
    """Beside the base as it is, with room for the rows, whatever stands in it."""
    from transformers import AutoModelForCausalLM

    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain.resize_token_embeddings(VOCABULARY + len(PIECES))
    opened = PeftModel.from_pretrained(plain, str(adapter)).eval()
    assert any(type(module) is TrainableTokensLayer for module in opened.modules())
    ids = torch.tensor([ROW])
    with torch.no_grad():
        scores: Tensor = opened(input_ids=ids).logits
        torch.testing.assert_close(ours(input_ids=ids).logits, scores, rtol=0, atol=1e-6)
        torch.testing.assert_close(merged(input_ids=ids).logits, scores, rtol=0, atol=1e-5)


def test_where_all_weights_learn_the_rows_are_among_them(home: Path, tmp_path: Path) -> None:
    _, made = grown(tmp_path)
    model = attach(load_base(made), Full(), base_name="m", seed=0)
    assert model.get_input_embeddings().weight.requires_grad
    assert len(model.get_input_embeddings().weight) == VOCABULARY + len(PIECES)


def test_the_version_is_part_of_the_folder(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, made = grown(tmp_path)
    monkeypatch.setattr(vocabulary, "_VERSION", "x")
    source = locate(str(base), folder=tmp_path, revision=None, offline=True, say=print)
    assert grown_folder(source, tmp_path / "tokenizer") != made


# --- the base in its own tokens ---------------------------------------------------------------------------------------


def collapsed(ids: Any) -> list[int]:
    """As the grown tokenizer would cut the same text."""
    found = list(ids)
    for number, pieces in PIECES.items():
        place = 0
        while place + len(pieces) <= len(found):
            if tuple(found[place : place + len(pieces)]) == pieces:
                found[place : place + len(pieces)] = [number]
            place += 1
    return found


def test_the_base_says_of_new_tokens_what_it_says_of_their_text() -> None:
    engine = TransformersEngine(llama())
    asked = InPieces(engine, PIECES, again=collapsed, most=512)
    old = [3, 5, 6, 7, 20, 10, 5, 10, 5, 30, 8, 9, 40]
    by_old = engine.logprobs(old)
    found = asked.logprobs(ROW)
    assert len(found) == len(ROW) - 1
    expected = [
        by_old[0:3].sum(),
        by_old[3],
        by_old[4:6].sum(),
        by_old[6:8].sum(),
        by_old[8],
        by_old[9:11].sum(),
        by_old[11],
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    beginning = asked.logprobs([384, 20, 385])  # nothing stands before the first token, whatever its pieces
    np.testing.assert_allclose(
        beginning, [engine.logprobs([5, 6, 7, 20, 8, 9])[2], engine.logprobs([5, 6, 7, 20, 8, 9])[3:].sum()], rtol=1e-12
    )
    assert asked.logprobs([384]).size == 0
    short = InPieces(engine, PIECES, again=collapsed, most=12)
    with pytest.raises(ModelError, match="a text of 8 tokens is 13 to the base's own tokenizer"):
        short.logprobs(ROW)
    assert asked.score([3, 384], [[20, 386], [40]]) == engine.score([3, 5, 6, 7], [[20, 10, 5], [40]])
    assert list(asked.each(lambda ids: float(asked.logprobs(ids).sum()), [ROW])) == [pytest.approx(float(by_old.sum()))]


class Writes:
    """An engine that goes on with given ids, and stops where they end."""

    name = "writes"

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids

    def generate(self, prompt_ids: Any, *, max_new_tokens: int, stop_ids: Any) -> list[int]:
        begun = len(prompt_ids) - 3
        return self.ids[begun : begun + max_new_tokens]


def test_the_base_may_write_as_long_a_text_as_the_tuned_model() -> None:
    written = [20, 8, 9, 8, 9, 8, 9, 30, 31, 32, 33]  # 20 385 385 385 30 31 32 33
    asked = InPieces(Writes(written), PIECES, again=collapsed, most=512)  # type: ignore[arg-type]
    assert asked.generate([384], max_new_tokens=6, stop_ids=[2]) == written[:9]
    assert asked.generate([384], max_new_tokens=60, stop_ids=[2]) == written
