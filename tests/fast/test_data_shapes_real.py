"""What is detected in real data sets, each of which somebody else made."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.data.profile import profile

FOUND = {
    "banking77/test.jsonl": ("text_label", "classification", "{text}", "label"),
    "bitext_support/test.jsonl": ("text_label", "classification", "{text}", "label"),
    "clinc150/validation.jsonl": ("text_label", "classification", "{text}", "label"),
    "trec6/test.jsonl": ("text_label", "classification", "{text}", "label"),
    "snips/validation.jsonl": ("text_label", "classification", "{text}", "label"),
    "sst2/test.jsonl": ("text_label", "sentiment", "{text}", "label"),
    "dirty_doaj/doaj-article-sample.csv": ("text_label", "classification", "{Title}", "Publisher"),
    "dolly/test.jsonl": ("prompt_completion", "generation", "{instruction}\n\n{context}", "response"),
    "gsm8k/test.jsonl": ("prompt_completion", "generation", "{question}", "answer"),
    "humaneval/test.jsonl": ("prompt_completion", "generation", "{prompt}", "canonical_solution"),
    "mbpp/test.jsonl": ("prompt_completion", "generation", "{text}", "code"),
    "p3_multitask/test.jsonl": ("prompt_completion", "generation", "{prompt}", "completion"),
    "tldr_commands/test.jsonl": ("prompt_completion", "generation", "{prompt}", "completion"),
    "sql_advising/test.jsonl": ("prompt_completion", "generation", "{prompt}", "completion"),
    "instruct_small/train.jsonl": ("alpaca", "generation", "{instruction}\n\n{input}", "output"),
    "self_instruct/seed_tasks.jsonl": ("alpaca", "generation", "{instruction}\n\n{input}", "output"),
    "multi30k/en-de.test_2016_flickr.jsonl": ("source_target", "translation", "{source}", "target"),
    "tldr_translation/en-de.test.jsonl": ("source_target", "translation", "{source}", "target"),
    "sgd_chat/test.jsonl": ("messages", "generation", "", ""),
    "preference_politeness/train.jsonl": ("preference", "preference", "{prompt}", "chosen"),
    "pandalm/test.jsonl": ("preference", "preference", "{prompt}", "chosen"),
    "wikitext2/test.jsonl.gz": ("plain_text", "domain", "{text}", ""),
    "enterprise_docs/test.jsonl": ("plain_text", "domain", "{text}", ""),
    "presidio_pii/train.jsonl": ("plain_text", "domain", "{text}", ""),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_shape_of_a_real_set(shared_data: Path, name: str) -> None:
    found = profile(shared_data / name)
    assert (found.shape, found.task, found.input, found.label) == FOUND[name]
    assert not found.faults
