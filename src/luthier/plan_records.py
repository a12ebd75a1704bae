"""Records of step 2: what a plan says before anything is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.records import Record


class Detectable(Record):
    """What the data can prove, worked out before training."""

    num_test: int
    smallest_difference: float = Field(description="Of accuracy, shown with 80 % power at 5 %; NaN for documents.")
    assumption: str = Field(description="In words: the discordance that was assumed.")
    target: str = Field(description="e.g. 'intent.macro_f1 >= 0.80'; '' where there is no target.")
    must_observe: float | None = Field(
        description="About the point value that must be seen for the bound to clear the target, if the metric behaved "
        "like a share of num_test independent items."
    )


class Prediction(Record):
    """What the plan expects; `report` later shows it beside what happened."""

    train_seconds: float
    evaluate_seconds: float
    total_seconds: float
    peak_memory_gib: float
    trained_tokens: int
    matmul_gflops: float = Field(description="Rate of a float32 product measured on this machine for this plan.")
    rates: Literal["product", "probe"] = Field(
        "product", description="What time rests on: the rate of a product, or steps of this training on this machine."
    )
    train_memory_gib: float = Field(0.0, description="Peak of the training stage alone.")


class Expected(Record):
    """A quality that was measured, or follows from the labels; never guessed."""

    metric: str
    point: float
    low: float | None = None
    high: float | None = None
    source: str = Field(description="In words: where it was measured.")
    data: str = Field(description="Two values are compared only where this is the same.")


class Candidate(Record):
    """One technique, ranked."""

    technique: str
    trains: str = Field("nothing", description="In words.")
    trainable_parameters: int
    peak_memory_gib: float
    train_seconds: float
    total_seconds: float = Field(0.0, description="Of the whole run.")
    money: float | None = Field(None, description="Of the whole run; None without a price.")
    expected: Expected | None = Field(None, description="None where nothing is known.")
    fits: bool
    why: str = Field("", description="Why it stands where it stands.")
    speaks_for: str
    speaks_against: str


class Plan(Record):
    recipe_sha256: str
    data_sha256: str
    model_sha256: str
    candidates: tuple[Candidate, ...] = Field(description="Best first.")
    chosen: str
    prediction: Prediction
    fits: bool
    budget: dict[str, float] = Field(description="e.g. {'hours': 1, 'ram_gib': 16}.")
    currency: str = ""
    detectable: Detectable
    notes: tuple[str, ...] = Field(description="In plain words: what speaks against training, what is tight.")
    weighed_sha256: str = Field(
        "", description="Hash of the recipe as rules alone resolve it, where the plan chose; '' where the recipe did."
    )
