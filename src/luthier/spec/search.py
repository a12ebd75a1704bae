"""`search` of a recipe: what `luthier run --search` may try, and for how long."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from luthier.spec.section import Section

SEARCHED = ("train.", "adapter.", "method.")
"""Beginnings of keys that may differ between trials; what else a recipe says decides what is compared."""
NOT_SEARCHED = {
    "adapter.type": "`candidates` are for techniques",
    "method.type": "`candidates` are for techniques",
    "train.max_length": "it decides which validation rows there are",
    "method.max_completion_length": "it decides how long an answer is that is compared",
    "train.validations": "a rung ends with a validation, the same for every trial",
    **dict.fromkeys(
        (
            "train.cache_trunk", "train.device", "train.gradient_checkpointing", "train.micro_batch_tokens",
            "train.report_to", "train.save_steps", "train.save_total_limit", "train.threads", "train.torch_compile",
        ),
        "what is learned does not hang on it",
    ),
}  # fmt: skip
"""Keys with such a beginning that may not, and why."""

MOST_VALIDATIONS = 256
"""Of one training; the first rung ends with the first of them."""

Value = Annotated[int, Field(strict=True)] | float | str | bool


class Between(BaseModel):
    """A number from `low` to `high`, both included; whole where both are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: Annotated[int, Field(strict=True)] | float
    high: Annotated[int, Field(strict=True)] | float
    log: bool = Field(False, description="Draw its logarithm evenly: for rates and sizes.")

    @model_validator(mode="after")
    def _leaves_a_choice(self) -> Between:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm; write a number above 0, or leave log out")
        return self


class Among(BaseModel):
    """One of some values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: tuple[Value, ...] = Field(min_length=2)


class Search(Section):
    """Trials are dropped by rungs: each rung trains those that are left further, and keeps the best 1 / reduction."""

    hours: float = Field(gt=0, description="Of training, over all trials; what evaluates and exports comes on top.")
    candidates: tuple[str, ...] | None = Field(
        None, min_length=1, description="Techniques as the plan calls them, e.g. 'lora sft'; None is the recipe's own."
    )
    settings: dict[str, Between | Among] | None = Field(
        None, min_length=1, description="Key, e.g. train.learning_rate, to a range or to choices; needs Optuna."
    )
    trials: int | None = Field(
        None, ge=2, le=1000, description="Of `settings`, 9 where it is open; without them each candidate is one."
    )
    reduction: int = Field(3, ge=2, le=10, description="Of so many trials one goes on to the next rung.")
    rungs: int = Field(3, ge=2, le=6, description="The first trains 1 / reduction^(rungs - 1) of a training.")
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("settings", mode="before")
    @classmethod
    def _are_ranges(cls, value: object) -> object:
        """One message for a union."""
        if not isinstance(value, dict):
            return value
        for key, one in value.items():
            given = set(one) if isinstance(one, dict) else set()
            if not (given == {"choices"} or {"low", "high"} <= given <= {"low", "high", "log"}):
                raise ValueError(f"{key}: is {{low: , high: , log: true}} or {{choices: [ , ]}}")
            if not str(key).startswith(SEARCHED):
                raise ValueError(f"{key}: only {', '.join(SEARCHED)}... may differ: the rest decides what is compared")
            if key in NOT_SEARCHED:
                raise ValueError(f"{key}: is not searched, {NOT_SEARCHED[key]}; leave it out")
        return value

    @model_validator(mode="after")
    def _tries_something(self) -> Search:
        if self.settings is None and len(self.candidates or ()) < 2:
            raise ValueError("give at least two candidates, or settings with a range")
        if self.settings is None and self.trials is not None:
            raise ValueError("trials counts those of settings; without them each candidate is one, so leave it out")
        if self.validations > MOST_VALIDATIONS:
            raise ValueError(
                f"reduction {self.reduction} on {self.rungs} rungs validates {self.validations:,} "
                f"times in a training, and {MOST_VALIDATIONS} is the most; take fewer rungs"
            )
        if len(set(self.candidates or ())) < len(self.candidates or ()):
            raise ValueError("candidates: one stands twice")
        return self

    @property
    def num_trials(self) -> int:
        return len(self.candidates or ()) if self.settings is None else self.trials or 9

    @property
    def validations(self) -> int:
        """Of a training, once for each share of the first rung."""
        return int(self.reduction ** (self.rungs - 1))

    @property
    def shares(self) -> tuple[float, ...]:
        """Of a training, what has been done of it at the end of each rung."""
        return tuple(self.reduction ** (rung + 1 - self.rungs) for rung in range(self.rungs))

    @property
    def ends(self) -> tuple[dict[str, Value], ...]:
        """Settings from the two ends of every range and from all choices; none where no settings are searched."""
        values = {
            key: one.choices if isinstance(one, Among) else (one.low, one.high)
            for key, one in (self.settings or {}).items()
        }
        most = max(map(len, values.values()), default=0)
        return tuple({key: some[min(place, len(some) - 1)] for key, some in values.items()} for place in range(most))

    def on_rung(self, rung: int) -> int:
        """How many trials begin it."""
        left = self.num_trials
        for _ in range(rung):
            left = -(-left // self.reduction)
        return left

    @property
    def trainings(self) -> float:
        """Whole trainings that all rungs take together, if none is stopped by its own patience."""
        before = (0.0, *self.shares)
        return sum(self.on_rung(rung) * (share - before[rung]) for rung, share in enumerate(self.shares))
