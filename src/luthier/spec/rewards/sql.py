"""The answer is a query on a database of its own, and gives what the expected query gives."""

from typing import Literal

from pydantic import Field

from luthier.spec.plugins import RewardFacts
from luthier.spec.section import RewardRule


class Sql(RewardRule):
    type: Literal["sql"] = "sql"
    database: str = Field(min_length=1, description="SQL that makes the tables and their rows, for SQLite in memory.")
    runs: float = Field(0.0, ge=0, lt=1, description="What a query is worth that runs and gives something else.")
    steps: int = Field(1_000_000, gt=0, description="Of SQLite's machine, after which a query has failed.")


FACTS = RewardFacts(name="sql", summary="a query that gives what the expected one gives", section=Sql)
