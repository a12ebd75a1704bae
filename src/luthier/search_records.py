"""What a search over candidates has tried, found and taken; search.json of the run that it took."""

from __future__ import annotations

from pydantic import Field

from luthier.records import Record


class RungScore(Record):
    """What a trial reached on one rung."""

    score: float = Field(description="The best on the validation rows until then.")
    tiebreak: float = Field(description="What decides between equal scores, the lower the better.")
    seconds: float = Field(description="That training took on this rung, in the process that ended it.")


class Trial(Record):
    """One candidate with its settings."""

    number: int
    technique: str = Field(description="As the plan calls it.")
    settings: dict[str, int | float | str | bool]
    run: str = Field("", description="NAME/ID of its run; '' before it began.")
    rungs: tuple[RungScore, ...] = ()
    dropped: str = Field("", description="Why others went on and it did not; '' for what was taken or is still in.")
    failed: str = Field("", description="Why it cannot be trained with such settings; '' if it can.")
    other_seconds: float = Field(
        0.0, description="That training took outside of these rungs: where it failed, and from the last one to its end."
    )

    @property
    def words(self) -> str:
        """Technique and settings."""
        values = {key: f"{one:.3g}" if isinstance(one, float) else str(one) for key, one in self.settings.items()}
        return ", ".join([self.technique, *(f"{key} {value}" for key, value in values.items())])


class SearchRecord(Record):
    """All trials, in the order in which they were made."""

    recipe: str
    technique: str = Field(description="Of trials whose technique the search leaves open, as the plan calls it.")
    key: str = Field(description="Hash over the recipe, its data and what is searched.")
    metric: str = Field("", description="On the validation rows, by which trials are compared; '' before the first.")
    higher_is_better: bool = True
    hours: float
    planned_seconds: float = Field(0.0, description="Of the longest of the techniques' trainings, by the plan.")
    shares: tuple[float, ...] = Field(description="Of a training, at the end of each rung.")
    trials: tuple[Trial, ...] = ()
    ended: str = Field("", description="Why no further rung was begun; '' while it goes on.")
    taken: int | None = Field(None, description="Number of the trial that is evaluated and gated.")

    @property
    def seconds(self) -> float:
        """Of training, over all trials."""
        return sum(sum(rung.seconds for rung in trial.rungs) + trial.other_seconds for trial in self.trials)
