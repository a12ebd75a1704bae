"""What a recipe is for: targets, what must not get worse, and what it may take."""

from __future__ import annotations

from pydantic import Field, model_validator

from luthier.spec.section import Section


class Budget(Section):
    hours: float | None = Field(None, gt=0, description="Wall time for the whole run; the plan says whether it fits.")
    ram_gib: float | None = Field(None, gt=0, description="Peak memory of any stage; also sizes the micro-batch.")
    price_per_hour: float | None = Field(None, gt=0, description="What an hour of this machine costs.")
    currency: str | None = Field(None, min_length=1, max_length=12, description="Of the price, e.g. EUR.")
    money: float | None = Field(None, gt=0, description="What the whole run may cost.")

    @model_validator(mode="after")
    def _money_has_a_price(self) -> Budget:
        for key in ("money", "currency"):
            if getattr(self, key) is not None and self.price_per_hour is None:
                raise ValueError(f"{key} needs price_per_hour, what an hour of this machine costs")
        return self


class Objective(Section):
    targets: dict[str, str] = Field(default_factory=dict, description="NAME.METRIC -> '>= value'.")
    non_regression: dict[str, str] = Field(
        default_factory=dict, description="general.perplexity -> '<= factorx'; NAME.term_accuracy -> '>= factorx'."
    )
    budget: Budget = Field(default_factory=Budget)
