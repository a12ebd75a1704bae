"""What a search over candidates has tried, found and taken; search.json of the run that it took."""

from __future__ import annotations

from pydantic import Field

from luthier.records import Record


class RungScore(Record):
    """What a trial reached on one rung."""

    rung: int = Field(description="From 0.")
    share: float = Field(description="Of a training, done by then.")
    score: float = Field(description="The best on the validation rows until then.")
    tiebreak: float = Field(description="What decides between equal scores, the lower the better.")
    seconds: float = Field(description="That training took on this rung, in the process that ended it.")


class Trial(Record):
    """One candidate with its settings."""

    number: int
    technique: str = Field(description="As the plan calls it; '' for the recipe's own.")
    settings: dict[str, int | float | str | bool]
    run: str = Field("", description="NAME/ID of its run; '' before it began.")
    rungs: tuple[RungScore, ...] = ()
    dropped: str = Field("", description="Why it did not go on; '' for what was taken, and for what is still in.")

    @property
    def score(self) -> float:
        """On the last rung that it has reached; NaN before the first."""
        return self.rungs[-1].score if self.rungs else float("nan")

    @property
    def words(self) -> str:
        """Technique and settings."""
        values = {key: f"{one:.3g}" if isinstance(one, float) else str(one) for key, one in self.settings.items()}
        return ", ".join([*filter(None, [self.technique]), *(f"{key} {value}" for key, value in values.items())])


class SearchRecord(Record):
    """All trials, in the order in which they were made."""

    recipe: str
    key: str = Field(description="Hash over the recipe, its data and what is searched.")
    metric: str = Field("", description="On the validation rows, by which trials are compared; '' before the first.")
    higher_is_better: bool = True
    hours: float
    shares: tuple[float, ...] = Field(description="Of a training, at the end of each rung.")
    trials: tuple[Trial, ...] = ()
    ended: str = Field("", description="Why no further rung was begun; '' while it goes on.")
    taken: int | None = Field(None, description="Number of the trial that is evaluated and gated.")

    @property
    def seconds(self) -> float:
        """Of training, over all trials."""
        return sum(rung.seconds for trial in self.trials for rung in trial.rungs)
