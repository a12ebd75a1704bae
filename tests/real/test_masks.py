"""SmolLM2's own tokenizer and template: what is learned of a conversation is what transformers marks."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.data.contract import Renderer, make_contract
from luthier.data.masks import Supervision, mask
from luthier.models.base import import_base
from luthier.models.source import locate
from luthier.recipes import general_text
from luthier.records import Message

sys.path.append(str(Path(__file__).parents[1] / "fast"))

pytestmark = pytest.mark.real

CONTENT = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
MARKED = (
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['learn'] %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}"
)


def test_the_mask_is_that_of_transformers(tmp_path: Path) -> None:
    from data_kit import resolved
    from transformers import AutoTokenizer

    folder = import_base(locate("smollm2-135m-instruct", folder=Path(), revision=None, offline=True, say=print))
    recipe = resolved(tmp_path, task="generation", input="", label="", system="")
    contract = make_contract(recipe, tokenizer_folder=folder, labels=())
    assert contract.chat_template.count(CONTENT) == 1
    (tmp_path / "contract.json").write_text(contract.to_json(), encoding="utf-8")
    ours = Renderer.open(tmp_path / "contract.json", folder / "tokenizer.json")
    theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    words, rng = general_text().split(), random.Random(0)
    odd = ["é", "Ж", "中文", "👍🏽", "\n\n", "  ", "{{ x }}", "1,234.50", "it's", "\t", "def f():\n    return", "…"]
    for _ in range(300):
        turns = []
        for place in range(2 * rng.randint(1, 4)):
            parts = rng.choices(words, k=rng.randint(1, 12)) + rng.choices(odd, k=rng.randint(0, 3))
            rng.shuffle(parts)
            text = " ".join(parts).strip() or "x"
            turns.append(Message(role=("user", "assistant")[place % 2], content=text, weight=rng.choice([0, 1, 1])))
        turns[-1] = turns[-1].model_copy(update={"weight": 1})
        if rng.random() < 0.5:
            turns.insert(0, Message(role="system", content="Answer shortly."))
        supervision = Supervision(rng.choice([("assistant",), ("user", "assistant")]), rng.random() < 0.3)
        found = mask(ours, turns, supervision)
        told: list[dict[str, Any]] = [
            {"role": one.role, "content": one.content, "learn": one is turns[-1] or supervision.learns(one)}
            for one in turns
        ]
        length = len(found.ids)
        plain = theirs.apply_chat_template(told, tokenize=True, return_dict=False)
        assert found.ids == list(plain)[:length]
        marked = theirs.apply_chat_template(
            told, chat_template=contract.chat_template.replace(CONTENT, MARKED), tokenize=True, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        assert found.ids == list(marked["input_ids"])[:length]
        assert found.supervised == [bool(one) for one in marked["assistant_masks"]][:length]
