"""Which families can have a head: those whose sequence classification in transformers is such a one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_models_families import EXACT, SIZES, model_of

from luthier.errors import ModelError
from luthier.models.classifier import as_classifier, class_scores, head_of, put_head
from luthier.models.packing import lay_out_rows

ROWS = [[3, 5, 7, 4, 6, 8, 3, 9, 5, 4, 6, 7], [3, 5, 7, 4, 6, 8, 3, 9, 5, 4, 8], [9, 3, 8]]
FAMILIES = [name for name in EXACT if name != "Granite"]


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_have_the_scores_of_the_familys_own_class(name: str) -> None:
    model = model_of(name, EXACT[name])
    put_head(model, 5)
    head = head_of(model)
    assert head is not None
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    layout, places = lay_out_rows(ROWS)
    with torch.no_grad():
        found = class_scores(model, layout, torch.stack([place[-1] for place in places]))
        theirs = as_classifier(model, list("abcde"), pad_token_id=0)
        expected = torch.stack([theirs(input_ids=torch.tensor([row])).logits[0] for row in ROWS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def refused(model: Any, why: str) -> None:
    with pytest.raises(ModelError, match=why) as caught:
        put_head(model, 3)
    assert "method: sft" in caught.value.way_out


def test_a_family_without_a_head_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(model_of("Granite", EXACT["Granite"]), "GraniteForCausalLM cannot have a classification head")


def test_another_kind_of_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForSequenceClassification

    model = model_of("Llama", {})
    usual = LlamaForSequenceClassification.__init__

    def biased(self: Any, config: Any) -> None:
        usual(self, config)
        self.score = torch.nn.Linear(SIZES["hidden_size"], config.num_labels)

    monkeypatch.setattr(LlamaForSequenceClassification, "__init__", biased)
    refused(model, "no score layer without bias")

    def wider(self: Any, config: Any) -> None:
        usual(self, config)
        self.pooler = torch.nn.Linear(4, 4)

    monkeypatch.setattr(LlamaForSequenceClassification, "__init__", wider)
    refused(model, "has pooler.bias, which the language model has not")
