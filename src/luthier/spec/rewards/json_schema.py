"""The answer is JSON that a schema accepts."""

from typing import Any, Literal

from pydantic import Field

from luthier.spec.plugins import RewardFacts
from luthier.spec.section import RewardRule


class JsonSchema(RewardRule):
    type: Literal["json_schema"] = "json_schema"
    accepts: dict[str, Any] = Field(description="A JSON schema, draft 2020-12; {} accepts any JSON.")
    parses: float = Field(0.0, ge=0, lt=1, description="What JSON is worth that the schema does not accept.")


FACTS = RewardFacts(
    name="json_schema",
    summary="the answer is JSON that a schema accepts",
    section=JsonSchema,
    package="jsonschema",
)
