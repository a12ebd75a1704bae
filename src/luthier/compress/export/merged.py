"""Plain transformers folder: W + (alpha / r) B A, or what was learned in its place, in float32 safetensors."""

from __future__ import annotations

import json
from pathlib import Path

from luthier.data.contract import Renderer
from luthier.engines.classifier import ClassifierEngine
from luthier.engines.protocol import HeadEngine, LogitsEngine
from luthier.engines.transformers import TransformersEngine
from luthier.errors import ModelError
from luthier.models.adapters import merge, safetensors_disk_errors
from luthier.models.classifier import as_classifier, take_off_heads
from luthier.models.tuned import is_adapted, load_tuned
from luthier.records import RequestContract
from luthier.store.files import write_atomic


def write(*, base: Path, adapter: Path, out: Path, head: RequestContract | None) -> None:
    """Merge and save, weights that were trained themselves as they are; for a head as a sequence classification model
    whose batches may be padded, else as a language model.
    """
    tuned = load_tuned(base, adapter, as_dense=True)
    merged = merge(tuned) if is_adapted(tuned) else tuned
    if head is not None:
        pad_token_id, pad_token = padding(base, head)
        merged = as_classifier(
            merged, head.head_rows, pad_token_id=pad_token_id, task=head.name, problem_type=problem_type(head)
        )
        path = base / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        write_atomic(out / path.name, json.dumps({**config, "pad_token": pad_token}, ensure_ascii=False, indent=2))
    else:
        take_off_heads(merged)
    with safetensors_disk_errors(out):
        merged.save_pretrained(out, safe_serialization=True)


def problem_type(head: RequestContract) -> str:
    """As transformers calls it: by it its own loss is chosen, and how its pipeline reads scores."""
    if head.scale is not None or head.scores_answers:
        return "regression"
    return "multi_label_classification" if head.tags else "single_label_classification"


def reopen(*, base: Path, folder: Path, head: RequestContract | None) -> LogitsEngine | HeadEngine:
    """The folder alone, without PEFT and without the base."""
    if head is not None:
        return ClassifierEngine.open(folder, num_labels=len(head.head_rows))
    return TransformersEngine.open(folder)


def padding(base: Path, contract: RequestContract) -> tuple[int, str]:
    """A token to pad with that no prompt ends with, or no answer where these are scored: its tokenizer's own, or
    another control token.

    Plain transformers scores the last token of a row that is not this one.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    renderer = Renderer.open_plain(contract, base / "tokenizer.json")
    last = renderer.prompt_ids(renderer.messages("text"))[-1]
    if contract.scores_answers:
        last = contract.end_of_turn_ids[-1]
    for token in (tokenizer.pad_token, *tokenizer.all_special_tokens):
        number = None if token is None else tokenizer.convert_tokens_to_ids(token)
        if number is not None and number != last:
            return number, token
    raise ModelError(
        f"the tokenizer of {base} has no control token to pad with beside {tokenizer.convert_ids_to_tokens(last)!r}, "
        f"with which every {'answer' if contract.scores_answers else 'prompt'} ends",
        way_out="add a pad_token to its tokenizer_config.json, or leave 'merged' out of export",
    )
