"""Methods that measure from the base: what it says of every pair is computed once, before training, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.shards import Example
from luthier.errors import ModelError
from luthier.pipeline.context import Context
from luthier.pipeline.progress import Progress
from luthier.plan.words import duration
from luthier.spec.methods.dpo import Dpo
from luthier.spec.methods.kto import Kto
from luthier.spec.methods.simpo import Simpo
from luthier.spec.plugins import METHODS
from luthier.spec.recipe import Train
from luthier.store.events import EventLog
from luthier.store.files import sha256_json

if TYPE_CHECKING:
    from luthier.engines.protocol import Engine
    from luthier.train.inputs import Inputs


def with_reference(
    model: Any,
    inputs: Inputs,
    *,
    settings: Train,
    folder: Path,
    progress: Progress,
    events: EventLog,
    stop_asked: Callable[[], bool],
) -> tuple[Inputs, float]:
    """The inputs, ready to be learned: with what `model`, which has learned nothing yet, says of the pairs.

    Returns:
        The inputs, and the seconds that it took to read the pairs, in whatever session that was.

    Raises:
        ModelError: its layers are divided between ranks.
        Stopped: see `open_reference`.
    """
    from luthier.train.reference import Referring, open_reference, seen_pairs
    from luthier.train.shard import is_sharded

    tasks, seconds = [], 0.0
    for place, task in enumerate(inputs.tasks):
        if not isinstance(task.method, Referring):
            tasks.append(task)
            continue
        if is_sharded(model):
            raise ModelError(
                f"{task.name} is measured from the base, which is asked before training; that is not built for layers "
                "that launch.strategy 'fsdp' divides between ranks",
                way_out="write strategy: ddp, or take a method without a reference (orpo, simpo)",
            )
        assert settings.micro_batch_tokens is not None
        reference = open_reference(
            model,
            seen_pairs(inputs, place, settings),
            method=task.method,
            base_sha256=sha256_json([inputs.model_sha256, settings.bf16]),  # another precision, other numbers
            folder=folder,
            max_tokens=settings.micro_batch_tokens,
            tell=(lambda done, total: progress("pairs read by the base", done, total), stop_asked),
        )
        about = reference.about
        seconds += about.seconds
        how = "taken from before" if reference.reused else f"computed in {duration(about.seconds)}"
        progress.say(f"what the base says of {about.num_pairs} pairs: {how}")
        events.append("reference", pairs=about.num_pairs, sha256=about.sha256, reused=reference.reused)
        tasks.append(replace(task, method=task.method.beside(reference)))
    return replace(inputs, tasks=tuple(tasks)), seconds


def pair_measure(task: Context, examples: Sequence[Example], engine: Engine) -> Callable[[Engine], dict[str, float]]:
    """How well the validation pairs are told apart while training, from where `engine` stands now, before it learns."""
    from luthier.evals.preference import pair_metrics, read_pairs

    method = task.resolved.recipe.method
    reward = METHODS.get(method.type).reward
    scale = method.beta if isinstance(method, Dpo | Kto | Simpo) else 1.0
    before = None if reward == "score" else read_pairs(task.asker(engine), examples)
    return lambda asked: pair_metrics(task.asker(asked), examples, reward=reward, before=before, scale=scale)
