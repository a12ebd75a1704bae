"""Lineage: every hash from source file to artifact, as a graph that says what was made from what."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from luthier.data_report import DataReport
from luthier.errors import RunError
from luthier.eval_records import EvalReport
from luthier.prune_records import PruneResult
from luthier.records import Artifact, GateDecision, ModelShape, Record
from luthier.spec.resolve import ResolvedRecipe
from luthier.train_records import MergedRun, TrainResult


class LineageNode(Record):
    node: str = Field(description="What it is: a file of the run folder, a source file, or a thing without a file.")
    sha256: str
    made_from: tuple[str, ...] = Field(default=(), description="Nodes; none for what came from outside.")


class Lineage(Record):
    """Nodes in an order in which each comes after all that it was made from."""

    name: str
    nodes: tuple[LineageNode, ...]


BASE = "base model"
PRUNED_BASE = "pruned/model"
TEACHER = "teacher"
RECIPE = "recipe.resolved.json"
CONTRACT = "data/contract.json"
WEIGHTS = "trained weights"
EVALUATION = "eval/report.json"
ARTIFACTS = "artifacts/index.json"


def lineage(
    *,
    resolved: ResolvedRecipe,
    shape: ModelShape,
    data: DataReport,
    train: TrainResult,
    evaluation: EvalReport,
    artifacts: Sequence[Artifact],
    gate: GateDecision,
    pruned: PruneResult | None = None,
) -> Lineage:
    """Connect the hashes that the records of one run carry.

    Raises:
        RunError: a record speaks of other weights or another recipe than the rest, so they are not of one run.
    """
    _check(resolved, train, evaluation, artifacts, gate)
    sources = [LineageNode(node=f"source: {file}", sha256=sha256) for file, sha256 in data.source_sha256.items()]
    outside = (*(source.node for source in sources), BASE)
    taught_by = [LineageNode(node=TEACHER, sha256=resolved.teacher.sha256)] if resolved.teacher is not None else []
    shards = [
        LineageNode(node=f"data/{name}.arrow", sha256=split.sha256, made_from=(*outside, RECIPE, CONTRACT))
        for name, split in data.splits.items()
        if split.sha256
    ]
    learned = [*(shard.node for shard in shards if shard.node != "data/test.arrow"), *(one.node for one in taught_by)]
    tested = [shard.node for shard in shards]  # the baselines learn from the training split during evaluation
    parents = [LineageNode(node=f"merged run: {one.run}", sha256=one.weights_sha256) for one in _merged(train)]
    if train.merge is not None:  # the rows only chose, or calibrated, or did nothing
        used = train.merge.method == "greedy" or train.calibration is not None
        learned = [name for name in learned if used and name == "data/validation.arrow"]
    learned = [*(parent.node for parent in parents), *learned]
    smaller = _pruned(pruned)
    learned += [one.node for one in smaller]
    files = [
        LineageNode(
            node=f"{artifact.path}/{file}",
            sha256=sha256,
            made_from=(PRUNED_BASE if pruned else BASE, WEIGHTS, CONTRACT),
        )
        for artifact in artifacts
        for file, sha256 in artifact.sha256.items()
    ]
    return Lineage(
        name=resolved.recipe.name,
        nodes=(
            *sources,
            LineageNode(node=BASE, sha256=shape.sha256),
            *taught_by,
            LineageNode(node=RECIPE, sha256=resolved.sha256, made_from=outside),
            LineageNode(node=CONTRACT, sha256=data.contract_sha256, made_from=(RECIPE, *outside)),
            *shards,
            *parents,
            *smaller,
            LineageNode(node=WEIGHTS, sha256=train.weights_sha256, made_from=(RECIPE, BASE, CONTRACT, *learned)),
            LineageNode(node=EVALUATION, sha256=gate.eval_sha256, made_from=(RECIPE, BASE, WEIGHTS, CONTRACT, *tested)),
            *files,
            LineageNode(
                node=ARTIFACTS, sha256=gate.artifacts_sha256, made_from=(WEIGHTS, *(file.node for file in files))
            ),
            LineageNode(node="gate.json", sha256=gate.seal, made_from=(RECIPE, EVALUATION, ARTIFACTS)),
        ),
    )


def _pruned(pruned: PruneResult | None) -> list[LineageNode]:
    if pruned is None:
        return []
    asked = ("data/train.arrow",) if pruned.rows else ()
    return [LineageNode(node=PRUNED_BASE, sha256=pruned.weights_sha256, made_from=(RECIPE, BASE, *asked))]


def _merged(train: TrainResult) -> tuple[MergedRun, ...]:
    return train.merge.runs if train.merge is not None else ()


def _check(
    resolved: ResolvedRecipe,
    train: TrainResult,
    evaluation: EvalReport,
    artifacts: Sequence[Artifact],
    gate: GateDecision,
) -> None:
    claims = {EVALUATION: evaluation.weights_sha256, **{artifact.path: artifact.made_from for artifact in artifacts}}
    for file, sha256 in claims.items():
        if sha256 != train.weights_sha256:
            raise RunError(
                f"{file} was made from weights {sha256[:12]}, but train/result.json has {train.weights_sha256[:12]}",
                way_out="run `luthier run` with the same recipe again, it makes again what does not fit",
            )
    if gate.recipe_sha256 != resolved.sha256:
        raise RunError(
            f"gate.json was decided for recipe {gate.recipe_sha256[:12]}, but {RECIPE} is {resolved.sha256[:12]}",
            way_out="run `luthier gate` again",
        )
