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


class MostMemorised(Section):
    """What may be given away of the secrets of `data.canaries` that were planted in the fewest copies."""

    extracted: float | None = Field(None, ge=0, lt=1, description="Share that the model writes when it is asked.")
    singled_out: float | None = Field(
        None, ge=0, lt=1, description="Share that is likelier than 99 others; 0.01 is what chance gives."
    )

    @model_validator(mode="after")
    def _asks_something(self) -> MostMemorised:
        if self.extracted is None and self.singled_out is None:
            raise ValueError("needs extracted or singled_out, the largest share that may be so")
        return self


class Objective(Section):
    targets: dict[str, str] = Field(default_factory=dict, description="NAME.METRIC -> '>= value'.")
    non_regression: dict[str, str] = Field(
        default_factory=dict, description="general.perplexity -> '<= factorx'; NAME.term_accuracy -> '>= factorx'."
    )
    memorisation: MostMemorised | None = Field(None, description="Of planted secrets; needs data.canaries.")
    budget: Budget = Field(default_factory=Budget)
