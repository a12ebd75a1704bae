"""Supervised fine-tuning: the answer's tokens, end of turn included, are learned; the prompt's are not."""

from typing import Literal

from luthier.spec.plugins import MethodFacts
from luthier.spec.section import Method


class Sft(Method):
    type: Literal["sft"] = "sft"


FACTS = MethodFacts(
    name="sft",
    summary="supervised fine-tuning on answers",
    section=Sft,
    tasks=("classification", "sentiment", "multi_label", "regression", "translation", "generation", "extraction"),
    # Small bases take larger steps: on 135 M, 1e-3 and 2e-3 ended alike (benchmarks/LOG.md); 2e-4 is what most recipes
    # for 7 B and more use.
    learning_rates=((0.5, 1e-3), (2.0, 5e-4), (float("inf"), 2e-4)),
    # Forward 1, gradient with respect to activations 1; a frozen base needs no weight gradients (adapters' are small).
    backward_factor=2.0,
)
