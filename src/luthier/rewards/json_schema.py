"""JSON that a schema accepts, by the library jsonschema (draft 2020-12)."""

from __future__ import annotations

import json

from luthier.errors import RecipeError
from luthier.rewards import Reward
from luthier.spec.rewards.json_schema import JsonSchema


def open_reward(section: JsonSchema) -> Reward:
    """1 where it is accepted, `parses` where it is JSON alone, else 0; what stands around the JSON makes it none.

    Raises:
        RecipeError: the schema is none.
    """
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(section.accepts)
    except SchemaError as error:
        raise RecipeError(
            f"rewards: json_schema: accepts is no schema: {error.message}", way_out="see json-schema.org, draft 2020-12"
        ) from error
    validator = Draft202012Validator(section.accepts)

    def reward(answer: str, expected: str) -> float:
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0 if validator.is_valid(found) else section.parses

    return reward
