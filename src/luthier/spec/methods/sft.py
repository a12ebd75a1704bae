"""Supervised fine-tuning: the answer's tokens, end of turn included, are learned; the prompt's are not."""

from luthier.spec.plugins import MethodFacts

FACTS = MethodFacts(
    name="sft",
    summary="supervised fine-tuning on answers",
    tasks=("classification", "sentiment", "translation", "generation", "extraction"),
    learning_rate=1e-3,
    # Forward 1, gradient with respect to activations 1; a frozen base needs no weight gradients (adapters' are small).
    backward_factor=2.0,
)
