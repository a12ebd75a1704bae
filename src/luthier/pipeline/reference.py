"""Methods that measure from the base: what it says of every pair is computed once, before training, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.shards import Example
from luthier.errors import ModelError
from luthier.pipeline.progress import Progress
from luthier.plan.words import duration
from luthier.spec.methods.dpo import Dpo
from luthier.spec.methods.simpo import Simpo
from luthier.spec.plugins import METHODS
from luthier.spec.recipe import Recipe
from luthier.store.events import EventLog
from luthier.store.files import sha256_json

if TYPE_CHECKING:
    from luthier.engines.ask import Asker
    from luthier.train.loop import Inputs, Validation
    from luthier.train.methods import Method


def with_reference(
    model: Any,
    method: Method,
    inputs: Inputs,
    *,
    recipe: Recipe,
    folder: Path,
    progress: Progress,
    events: EventLog,
    stop_asked: Callable[[], bool],
) -> Method:
    """The method, ready to learn: with what `model`, which has learned nothing yet, says of the pairs.

    Raises:
        ModelError: its layers are divided between ranks.
        Stopped: see `open_reference`.
    """
    from luthier.train.reference import Referring, open_reference, seen_pairs
    from luthier.train.shard import is_sharded

    if not isinstance(method, Referring):
        return method
    if is_sharded(model):
        raise ModelError(
            f"method {recipe.method.type!r} asks the base before training, which is not built for layers that "
            "launch.strategy 'fsdp' divides between ranks",
            way_out="write strategy: ddp, or take a method without a reference (orpo, simpo)",
        )
    assert recipe.train.micro_batch_tokens is not None
    reference = open_reference(
        model,
        seen_pairs(inputs.examples, recipe.train),
        method=method,
        base_sha256=sha256_json([inputs.model_sha256, recipe.train.bf16]),  # another precision, other numbers
        folder=folder,
        max_tokens=recipe.train.micro_batch_tokens,
        tell=(lambda done, total: progress("pairs read by the base", done, total), stop_asked),
    )
    about = reference.about
    how = "taken from before" if reference.reused else f"computed in {duration(about.seconds)}"
    progress.say(f"what the base says of {about.num_pairs} pairs: {how}")
    events.append("reference", pairs=about.num_pairs, sha256=about.sha256, reused=reference.reused)
    return method.beside(reference)


def pair_validation(
    recipe: Recipe, examples: Sequence[Example], asker: Callable[[Any], Asker], model: Any
) -> Validation:
    """How well the validation pairs are told apart while training, from where `model` stands now, before it learns."""
    from luthier.evals.preference import pair_metrics, read_pairs
    from luthier.models.forward import in_evaluation
    from luthier.train.loop import Validation

    reward = METHODS.get(recipe.method.type).reward
    scale = recipe.method.beta if isinstance(recipe.method, Dpo | Simpo) else 1.0
    with in_evaluation(model):
        before = read_pairs(asker(model), examples)

    def measure(learned: Any) -> dict[str, float]:
        return pair_metrics(asker(learned), examples, reward=reward, before=before, scale=scale)

    return Validation(measure, "preference_accuracy", higher_is_better=True, tiebreak="preference_loss")
