"""Classification heads beside the output head: scores of C labels from the last state of a prompt's last token.

It is transformers' own (`GenericForSequenceClassification`): z = W h, W [C, hidden], no bias, h behind the final norm.
In memory the model stays a causal language model, so that what it forgets of language is measured on what was trained;
what is written is PEFT's and transformers' sequence classification, which plain tools open. The head of one of several
tasks of a training is a module of its own, named by the task; those of all tasks stand over the same layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import Linear

from luthier.errors import ModelError
from luthier.models.forward import hidden_states
from luthier.models.packing import Layout

NAME = "score"
"""Of the head within the transformers module; of one of several tasks followed by `_TASK`."""

STORED = f"base_model.model.{NAME}.weight"
"""Of its weight in PEFT's files."""

_OF_TASK = re.compile(rf"(?:base_model\.model\.)?{NAME}_([A-Za-z][A-Za-z0-9_-]*)\.weight")


def put_head(model: Any, num_labels: int, *, task: str = "", beside_words: bool = False) -> Any:
    """Give a model, with or without an adapter, a fresh head that learns fully; the model, changed in place.

    The head starts at zero: every label is then equally likely, the first loss is log C, and no seed matters. The
    adapter moves from the second step on. An output head with weights of its own, which no label is read off, stays as
    it is where all weights learn, unless another task writes words.

    Args:
        model: a causal language model.
        num_labels: C.
        task: whose head it is, where a training has several tasks.
        beside_words: whether one of them is answered in words.

    Raises:
        ModelError: transformers has no sequence classification for this family, or one with another kind of head.
    """
    model = _inner(model)
    _check_family(model)
    head = Linear(model.config.get_text_config().hidden_size, num_labels, bias=False)
    torch.nn.init.zeros_(head.weight)
    setattr(model, _module(task), head.to(model.device, torch.float32))
    output = model.get_output_embeddings()
    if not beside_words and output is not None and output.weight is not model.get_input_embeddings().weight:
        output.requires_grad_(False)
    return model


def heads_of(model: Any) -> dict[str, Linear]:
    """Task -> its head, in the order of putting; '' for the head of a model that was trained for one task alone."""
    found = {}
    for name, module in _inner(model).named_children():
        task = "" if name == NAME else name.removeprefix(f"{NAME}_")
        if isinstance(module, Linear) and name == _module(task):
            found[task] = module
    return found


def head_of(model: Any, task: str = "") -> Linear | None:
    """The head of a task; of a model that was trained for one task its only one; None where there is none."""
    heads = heads_of(model)
    return heads.get(task, heads.get(""))


def stored_as(task: str) -> str:
    """Name of a head's weight among the tensors of an adapter."""
    return f"base_model.model.{_module(task)}.weight"


def stored_head(name: str) -> str | None:
    """The task whose head's weight a tensor of this name is; None where it is no head of one of several."""
    match = _OF_TASK.fullmatch(name)
    return match[1] if match else None


def class_scores(model: Any, layout: Layout, last: Tensor, task: str = "") -> Tensor:
    """Scores of a task's labels after the tokens at the indices `last` [K] of the packed row; float32 [K, C].

    Raises:
        ModelError: the model has no such head.
    """
    head = head_of(model, task)
    if head is None and (others := heads_of(model)):
        raise ModelError(
            f"this model has no classification head for task {task!r}, only for {', '.join(others)}",
            way_out="give the adapter that was trained for that task",
        )
    if head is None:
        raise ModelError(
            "this model has no classification head, so no label can be chosen by it",
            way_out="give the adapter that was trained with method classify",
        )
    states = hidden_states(_inner(model), layout)[last.to(head.weight.device)]
    scores: Tensor = head(states.float())
    return scores


def as_classifier(
    model: Any, labels: Sequence[str], *, pad_token_id: int, task: str = "", problem_type: str = ""
) -> Any:
    """The same weights as transformers' sequence classification: decoder and head, without the output head.

    Args:
        model: without an adapter (merged), with its head.
        labels: names of the head's rows.
        task: whose head, see `head_of`.
        problem_type: what a score is for, in transformers' words; one label a row where it is ''.
        pad_token_id: that no prompt ends with: the last token that is another one is the one that is scored.
    """
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.num_labels = len(labels)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: place for place, label in enumerate(labels)}
    config.problem_type = problem_type or "single_label_classification"
    config.get_text_config().pad_token_id = config.pad_token_id = pad_token_id
    classifier = _class_of(model)(config).to(torch.float32)
    head = head_of(model, task)
    assert head is not None, "a model without a head is no classifier"
    held = {**model.state_dict(), f"{NAME}.weight": head.weight}
    classifier.load_state_dict({name: held[name] for name in classifier.state_dict()}, strict=True)
    classifier.eval()
    return classifier


def open_classifier(folder: Path, *, adapter: Path | None = None, num_labels: int) -> Any:
    """A folder as plain transformers opens it, with an adapter as plain PEFT does; in evaluation mode."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    from luthier.models.quantised import compute_as_trained

    with unwarned():  # of a head that is missing in the base, and comes with the adapter
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=num_labels, dtype=torch.float32, trust_remote_code=False, use_safetensors=True,
            local_files_only=True, device_map={"": "cpu"},
        )  # fmt: skip
    compute_as_trained(model)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    return model.eval()


def take_off_heads(model: Any) -> None:
    """Leave a model that writes words without the heads that stand beside."""
    for task in heads_of(model):
        delattr(_inner(model), _module(task))


def take_up_head(model: Any, weights: Path) -> None:
    """Give a model the frozen head that a safetensors file with its weights has too; nothing where it has none."""
    with safe_open(weights, "pt") as file:
        held = file.get_tensor(f"{NAME}.weight") if f"{NAME}.weight" in file.keys() else None  # noqa: SIM118
    if held is not None:
        take_up_heads(model, {"": held})


def take_up_heads(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Give a model frozen heads: task -> weight [C, hidden].

    Raises:
        ModelError: see `put_head`.
        RuntimeError: a weight is of another base.
    """
    for task, weight in weights.items():
        put_head(model, len(weight), task=task).requires_grad_(False)
        model.get_parameter(f"{_module(task)}.weight").copy_(weight)


def _module(task: str) -> str:
    return f"{NAME}_{task}" if task else NAME


@contextmanager
def unwarned() -> Iterator[None]:
    """Without what transformers warns of when a file has other modules than the class that reads it."""
    from transformers.utils import logging

    said = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(said)


def _inner(model: Any) -> Any:
    """The transformers module; here, because `luthier.models.adapters` needs this file."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _class_of(model: Any) -> Any:
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    table: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(model.config) not in table:
        raise _unfit(model, "transformers has no sequence classification for it")
    return table[type(model.config)]


def _check_family(model: Any) -> None:
    """See that the family's sequence classification is the decoder's weights, under their names, and such a head."""
    kind = _class_of(model)
    with torch.device("meta"):
        like = kind(model.config)
    head = getattr(like, NAME, None)
    # As PEFT calls what it adapts, and what learns whole.
    held = {re.sub(r"\.(base_layer|original_module)\.", ".", name) for name, _ in model.named_parameters()}
    if not isinstance(head, Linear) or getattr(head, "bias", None) is not None:
        raise _unfit(model, f"its sequence classification has no {NAME} layer without bias")
    if odd := sorted({name for name, _ in like.named_parameters()} - held - {f"{NAME}.weight"}):
        raise _unfit(model, f"its sequence classification has {odd[0]}, which the language model has not")


def _unfit(model: Any, why: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot have a classification head here: {why}",
        way_out="set method: sft, which learns labels as words, or of preferences method: dpo",
    )
