"""Weights & Biases: an offline run in the run folder; WANDB_MODE=online sends it where the run is not offline."""

from luthier.spec.plugins import SinkFacts

FACTS = SinkFacts(
    name="wandb",
    summary="a Weights & Biases run, kept in the run folder unless WANDB_MODE says otherwise",
    packages=("wandb",),
    extra="wandb",
)
