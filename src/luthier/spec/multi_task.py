"""The section of a recipe whose `data.train` has several entries."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from luthier.spec.section import Section

Sampling = Literal["proportional", "sqrt", "equal", "annealed"] | float | dict[str, Annotated[float, Field(gt=0)]]


class MultiTask(Section):
    """How several tasks share the steps of one training, or each has an adapter of its own over one base."""

    adapters: Literal["shared", "per_task"] = Field(
        "shared", description="'shared': one for all tasks; 'per_task': one each, which learns from its own rows alone."
    )
    sampling: Sampling = Field(
        "proportional",
        description="Rows of an epoch by task: as many as there are, by square root, equally many, 'annealed' from "
        "proportional to nearly equal, a temperature of at least 1, or a share for each task.",
    )
    loss: Literal["static", "uncertainty", "pcgrad"] = Field(
        "static", description="'static': by weight; 'uncertainty': learned weights; 'pcgrad': conflicts projected out."
    )

    @field_validator("sampling", mode="before")
    @classmethod
    def _is_a_way_to_share(cls, value: object) -> object:
        """One message for a union."""
        number = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < float("inf")
        shares = (
            isinstance(value, dict)
            and value
            and all(
                isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < float("inf")
                for one in value.values()
            )
        )
        if number or shares or value in ("proportional", "sqrt", "equal", "annealed"):
            return value
        raise ValueError(
            "is 'proportional', 'sqrt', 'equal', 'annealed', a temperature of at least 1, or a share for each task"
        )

    @model_validator(mode="after")
    def _shares_what_there_is_to_share(self) -> MultiTask:
        """Where every task has steps of its own, nothing is drawn between tasks and no losses are added up."""
        if self.adapters == "per_task":
            if self.sampling != "proportional":
                raise ValueError(
                    "sampling says how tasks share an epoch, and with adapters: per_task each has epochs of its own; "
                    "leave sampling out"
                )
            if self.loss != "static":
                raise ValueError(
                    f"loss: {self.loss} weighs the losses of tasks that share weights, and with adapters: per_task "
                    "none are shared; leave loss out"
                )
        return self
