"""The stage that makes the base smaller before it is trained; and the pruned model as a system of the evaluation."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data.shards import Shard
from luthier.errors import DataError
from luthier.pipeline.context import Context, set_up_device
from luthier.prune_records import PruneResult
from luthier.store.files import sha256_file, write_atomic, write_atomic_dir
from luthier.store.runs import WEIGHTS, weights_file
from luthier.systems import PRUNED

if TYPE_CHECKING:
    from luthier.compress.prune.choose import Chosen
    from luthier.compress.prune.rows import Rows
    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.evaluate import Beside

SCORES = "scores.safetensors"
"""Of every channel and head, 'mlp.scores.LAYER', and which of them stay, 'mlp.kept.LAYER'."""

_FLOAT_BYTES = 4


def pruned_beside(context: Context, tuned: TransformersEngine, *, device: str) -> list[Beside]:
    """The pruned base before it was trained, asked as the base is; none where nothing was pruned.

    It is not loaded a second time where it stands under an adapter.
    """
    from luthier.engines.transformers import TransformersEngine
    from luthier.evals.evaluate import Beside
    from luthier.models.tuned import can_switch_off

    if context.resolved.recipe.prune is None:
        return []
    base = context.base

    def engine() -> TransformersEngine:
        under = can_switch_off(tuned.whole)
        return tuned.without_adapter() if under else TransformersEngine.open(base, device=device)

    return [Beside(PRUNED, lambda: context.base_asker(engine()))]


def prune(context: Context) -> None:
    """Measure on training rows what each part of the base does, leave out what does least, and write what stays.

    Raises:
        ModelError: its weights cannot be told apart by their names.
        DataError: there are no rows to measure on.
    """
    from luthier.compress.prune.choose import choose
    from luthier.compress.prune.depth import mean_loss
    from luthier.compress.prune.write import refuse_family, write_smaller
    from luthier.models.base import load_base

    started = time.monotonic()
    settings = context.resolved.recipe.prune
    assert settings is not None, "the recipe prunes nothing"
    device = set_up_device(context.resolved.recipe.train)
    model: Any = load_base(context.original).to(device)
    refuse_family(model)
    rows, batches = _rows(context, settings.tokens) if settings.tokens is not None else (0, [])
    chosen = choose(model, batches, settings, context.shape, context.progress)
    with write_atomic_dir(context.run.pruned) as fresh:
        place = fresh / WEIGHTS
        place.mkdir()
        smaller = write_smaller(model, chosen.kept, base=context.original, out=place).to(device)
        before, after = (sum(one.numel() for one in each.parameters()) for each in (model, smaller))
        result = PruneResult(
            layers=chosen.layers,
            mlp=chosen.mlp,
            heads=chosen.heads,
            rows=rows,
            tokens=sum(one.tokens for one in batches),
            loss_before=mean_loss(model, batches) if batches else None,
            loss_after=mean_loss(smaller, batches) if batches else None,
            num_layers_before=model.config.num_hidden_layers,
            num_layers_after=smaller.config.num_hidden_layers,
            parameters_before=before,
            parameters_after=after,
            bytes_before=_FLOAT_BYTES * before,
            bytes_after=_FLOAT_BYTES * after,
            seconds=time.monotonic() - started,
            peak_memory_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            / (2**30 if sys.platform == "darwin" else 2**20),
            weights_sha256=sha256_file(weights_file(place)),
            scores_sha256=_write_scores(fresh / SCORES, chosen),
            model_sha256=context.shape.sha256,
            data_sha256=context.data_sha256,
        )
        write_atomic(fresh / context.run.pruned_result.name, result.to_json())


def _rows(context: Context, tokens: int) -> tuple[int, list[Rows]]:
    """Training rows of every task, as many tokens of each; no offspring and no canaries. Their number first.

    Raises:
        DataError: they hold nothing that is learned.
    """
    from luthier.compress.prune.rows import counted, drawn, packed

    number = 0
    batches: list[Rows] = []
    tasks, seed = context.tasks, context.resolved.recipe.data.split.seed  # not train.seed: seeds share what is left
    for task in tasks:
        examples = Shard(task.run.data / "train.arrow").originals()
        found = drawn(examples, tokens // len(tasks), seed=seed)
        number += len(found)
        batches += packed(found, whole=task.contract.answered_by == "head")
    if not batches or not counted(batches):
        raise DataError(
            "prune measures what each part of the base does on training rows, and there are none that are learned",
            way_out="give more rows, or prune channels and heads by magnitude, which looks at weights alone",
        )
    return number, batches


def _write_scores(path: Path, chosen: Chosen) -> str:
    """Score and choice of every channel and head; returns the file's hash."""
    import torch
    from safetensors.torch import save_file

    kept, tensors = {"mlp": chosen.kept.channels, "heads": chosen.kept.groups}, {}
    for part, scores in chosen.scores.items():
        for layer, one in scores.items():
            tensors[f"{part}.scores.{layer}"] = one
            tensors[f"{part}.kept.{layer}"] = torch.tensor(kept[part][layer], dtype=torch.int32)
    save_file(tensors, path)
    return sha256_file(path)
