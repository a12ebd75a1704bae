"""What every section of a recipe is, and what sections of plugins are."""

from __future__ import annotations

from typing import get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """YAML reads yes, on and true as a truth value, which pydantic would take as 1 where a number is asked for."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"a truth value does not belong here (YAML reads yes, no, on and off as {value})")
        return value


class Method(Section):
    """How the model learns. Each method of the table has a section of its own, which its `type` chooses."""

    type: str

    @property
    def answers(self) -> int:
        """That the model itself writes to each prompt of a step."""
        return 0

    @property
    def answer_tokens(self) -> int | None:
        """How long each of them may be; None is as long as when it is asked."""
        return None

    @property
    def is_held(self) -> bool:
        """Whether each step measures from the base, and holds the model to it."""
        return False


class RewardRule(Section):
    """How an answer is verified. Each type of the table has a section of its own, which its `type` chooses."""

    type: str
    weight: float = Field(1.0, gt=0, description="What it counts beside others.")
