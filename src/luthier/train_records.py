"""Records of step 4: what happened while a model learned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.records import Record


class StepEvent(Record):
    """One optimizer step, or one validation."""

    kind: Literal["step", "validation"]
    step: int
    epoch: float
    loss: float = Field(
        description="Mean loss a supervised token, or a row of a head, in nats, weighted where train.class_weight is; "
        "of preferences the method's mean loss a pair; of several tasks their weighted sum."
    )
    learning_rate: float
    grad_norm: float
    num_tokens: int = Field(description="Tokens of this step's rows.")
    computed_tokens: int = Field(
        0, description="Positions computed: what rows share once, what follows the last supervised token never."
    )
    supervised_tokens: int = Field(description="Units of the loss: supervised tokens, or rows where a head learns.")
    seconds: float
    memory_gib: float = Field(description="Largest resident memory so far, of all ranks together.")
    metrics: dict[str, float] = Field(default_factory=dict)

    @property
    def useful_share(self) -> float:
        """Supervised over computed tokens.

        Above 1 where rows are alike to the last: what they share is computed once and learned once for each row.
        """
        return self.supervised_tokens / self.computed_tokens if self.computed_tokens else float("nan")


class Kill(Record):
    """One `kill -9` of a training run."""

    after_step: int
    """The last step that had been written down when the signal was sent."""
    writing_checkpoint: bool
    """Whether a checkpoint stood there under its temporary name at that moment."""
    resumed_from: int | None
    """Step of the checkpoint that the next start went on from, 0 where there was none; None where that start made no
    step before it was killed too."""


class ResumeCertificate(Record):
    """A training run that was killed again and again beside the same run left alone."""

    recipe_sha256: str
    data_sha256: str
    model_sha256: str
    luthier: str
    processor: str
    threads: int
    steps: int
    seed: int
    """Of the moments."""
    kills: tuple[Kill, ...]
    parts: dict[str, bool]
    """Whether they are equal to the bit: weights, optimizer, random_state, best_weights, schedule, rows, adapter."""
    weights_sha256: str
    """Of the adapter of the run that was left alone."""

    @property
    def equal(self) -> bool:
        return all(self.parts.values())


class LossSpike(Record):
    """A step whose loss lies far above those of the steps before it."""

    kind: Literal["spike"] = "spike"
    step: int
    loss: float
    usual_low: float = Field(description="Of the losses of the steps before it: from here ...")
    usual_high: float = Field(description="... to here they would go.")
    lines: tuple[int, ...] = Field(description="Of the data file, where the step's rows stand.")


class Calibration(Record):
    """One temperature for all scores of a head, fitted on validation rows; it is in the head's weights already."""

    temperature: float = Field(description="Scores were divided by it; above 1 where the head was too sure of itself.")
    num_items: int
    log_loss_before: float = Field(description="Mean negative log-likelihood of these rows' labels, in nats.")
    log_loss_after: float


class MergedRun(Record):
    """A run that was merged."""

    run: str = Field(description="NAME/ID.")
    weights_sha256: str
    recipe_sha256: str
    weight: float = Field(description="What its task vector was multiplied by; 0 where a greedy soup left it out.")
    validation: float | None = Field(
        None, description="Of a greedy soup: the metric of the mean that this run would have made, it included."
    )


class MergeResult(Record):
    """How trained runs became the weights of this one."""

    method: str
    runs: tuple[MergedRun, ...] = Field(description="In the recipe's order; of a greedy soup in the order tried.")
    into: Literal["adapter", "weights"]
    density: float | None
    seed: int | None
    rank: int | None = Field(description="Of the adapter; None for whole weights.")
    kept: float = Field(
        description="Share of the sum of squares of the exact merge that an adapter of this rank holds; else 1."
    )


class TrainResult(Record):
    method: str
    steps: int
    best_step: int
    best_metric: str
    best_value: float
    stopped_early: bool
    stopped_tasks: tuple[str, ...] = Field((), description="Tasks whose rows were no longer learned at the end.")
    trained_tokens: int
    supervised_tokens: int
    trainable_parameters: int
    seconds: float = Field(description="Over all sessions of the run; validations, a trunk and a reference included.")
    peak_memory_gib: float
    resumed_from: tuple[int, ...] = Field(description="Steps at which the run was taken up again.")
    history: tuple[StepEvent, ...]
    spikes: tuple[LossSpike, ...] = ()
    weights_sha256: str
    data_sha256: str
    model_sha256: str
    threads: int
    ranks: int = Field(1, description="Processes that shared every step, at the end of training.")
    calibration: Calibration | None = Field(None, description="Of a run of one task; None where there was none.")
    calibrations: dict[str, Calibration] = Field(
        default_factory=dict, description="Of a run of several: task -> what its head's scores were divided by."
    )
    merge: MergeResult | None = Field(None, description="None where the weights were trained.")
