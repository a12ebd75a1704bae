"""TensorBoard: event files in the run folder."""

from luthier.spec.plugins import SinkFacts

FACTS = SinkFacts(
    name="tensorboard",
    summary="TensorBoard event files in the run folder",
    packages=("tensorboard",),
    extra="tensorboard",
)
