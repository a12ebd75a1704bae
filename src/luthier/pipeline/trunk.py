"""Where only upper layers learn: the frozen ones below are computed once, and training starts above them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError
from luthier.pipeline.progress import Progress
from luthier.plan.words import duration, size
from luthier.spec.filler import GIVEN
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.events import EventLog
from luthier.store.files import sha256_json

if TYPE_CHECKING:
    from luthier.train.inputs import Inputs
    from luthier.train.trunk import Trunk


def lay_trunk(
    model: Any,
    inputs: Inputs,
    *,
    resolved: ResolvedRecipe,
    folder: Path,
    progress: Progress,
    events: EventLog,
    stop_asked: Callable[[], bool],
) -> Trunk | None:
    """The states below the lowest layer that learns, where the recipe has them kept; None where it has not.

    A family whose frozen layers cannot be kept is trained without, and that is said, unless the recipe itself asks.

    Raises:
        ModelError: they cannot be kept, and the recipe asks for it.
        DiskFull, Stopped: see `open_trunk`.
    """
    from luthier.models.trunk import check_trunk
    from luthier.train.shard import is_sharded
    from luthier.train.trunk import learned_rows, open_trunk

    settings = resolved.recipe.train
    if not settings.cache_trunk:
        return None
    assert settings.micro_batch_tokens is not None
    try:
        if is_sharded(model):
            raise ModelError(
                "frozen layers are not kept where launch.strategy 'fsdp' divides them between ranks",
                way_out="leave train.cache_trunk out, or write strategy: ddp",
            )
        first = check_trunk(model)
    except ModelError as error:
        if resolved.reasons["train.cache_trunk"] == GIVEN:
            raise
        progress.say(f"{error.what}: all layers are computed in every epoch")
        events.append("trunk_not_kept", reason=error.what)
        return None
    trunk = open_trunk(
        model,
        learned_rows(inputs, settings),
        first=first,
        base_sha256=sha256_json([inputs.model_sha256, settings.bf16]),  # another precision, other states
        folder=folder,
        max_tokens=settings.micro_batch_tokens,
        progress=lambda done, total: progress("rows through the frozen layers", done, total),
        stop_asked=stop_asked,
    )
    about = trunk.about
    how = "taken from before" if trunk.reused else f"computed in {duration(about.seconds)}"
    progress.say(f"layers below {first}: {how}, {size(trunk.num_bytes)} kept; training starts above them")
    events.append("trunk", first=first, tokens=about.num_tokens, num_bytes=trunk.num_bytes, reused=trunk.reused)
    return trunk


def clear_trunk(folder: Path) -> None:
    """Remove the states of a training that has ended."""
    if folder.is_dir():
        shutil.rmtree(folder)
