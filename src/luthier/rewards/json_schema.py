"""JSON that a schema accepts, by the library jsonschema (draft 2020-12)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from luthier.errors import RecipeError
from luthier.rewards import Reward
from luthier.spec.rewards.json_schema import JsonSchema


def open_reward(section: JsonSchema) -> Reward:
    """1 where it is accepted, `parses` where it is JSON alone, else 0; what stands around the JSON makes it none.

    Raises:
        RecipeError: the schema is none, or names something that it does not hold; within `$id` that shows while it
            is asked.
    """
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    try:
        Draft202012Validator.check_schema(section.accepts)
    except SchemaError as error:
        raise RecipeError(
            f"rewards: json_schema: accepts is no schema: {error.message}", way_out="see json-schema.org, draft 2020-12"
        ) from error
    named = REGISTRY.with_resource("", DRAFT202012.create_resource(section.accepts)).resolver()
    for reference in _references(section.accepts):
        try:
            named.lookup(reference)
        except Unresolvable as error:
            raise _nothing_of(reference) from error
    validator = Draft202012Validator(section.accepts, registry=REGISTRY)  # which fetches nothing

    def reward(answer: str, expected: str) -> float:
        try:
            found = json.loads(answer, parse_constant=_refuse, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            return 0.0
        try:
            return 1.0 if validator.is_valid(found) else section.parses
        except Unresolvable as error:
            raise _nothing_of(error.ref) from error
        except (OverflowError, RecursionError):  # numbers without end, or a depth that no schema of use has
            return section.parses

    return reward


def _references(schema: Any) -> Iterator[str]:
    """All that a schema names elsewhere; within `$id` none, on which it hangs what is meant."""
    if isinstance(schema, dict) and "$id" not in schema:
        for key, value in schema.items():
            if key in ("const", "default", "enum", "examples"):  # data
                continue
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for one in schema:
            yield from _references(one)


def _nothing_of(reference: str) -> RecipeError:
    return RecipeError(
        f"rewards: json_schema: accepts has the $ref {reference!r}, and there is nothing of that name in it",
        way_out="put what it names below $defs of the schema: nothing is fetched",
    )


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON (RFC 8259, section 6)")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object, of which readers make different things")
    return found
