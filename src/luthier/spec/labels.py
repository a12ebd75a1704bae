"""`data.labels` of a recipe: what labels are called, and in what order they stand."""

from __future__ import annotations

from pydantic import Field, field_validator

from luthier.spec.section import Section


def as_label(value: object) -> object:
    """Of a number its digits; what YAML reads as yes or no may have been a label.

    Raises:
        ValueError: it is one of those.
    """
    if isinstance(value, bool):
        word = "yes, true or on" if value else "no, false or off"
        raise ValueError(f"YAML reads {word} as {str(value).lower()}, and not as a label; put it in quotes")
    return str(value) if isinstance(value, int) else value


class Labels(Section):
    rename: dict[str, str] = Field(default_factory=dict, description="Label in the file -> label to learn.")
    order: tuple[str, ...] = Field((), description="All labels from the lowest to the highest, where they are degrees.")
    separator: str | None = Field(
        None,
        min_length=1,
        description="Stands between the labels of a cell, of task multi_label; usually ','.",
    )
    min_rows: int | None = Field(None, ge=0, description="Labels with fewer training rows are named in the report.")
    review: bool | None = Field(
        None, description="List rows whose label a simple model of the other rows contradicts; nothing is changed."
    )

    @field_validator("order", mode="before")
    @classmethod
    def _numbers_are_labels_too(cls, value: object) -> object:
        """As they stand in a file: `order: [1, 2, 3]`."""
        return [as_label(one) for one in value] if isinstance(value, list | tuple) else value

    @field_validator("rename", mode="before")
    @classmethod
    def _so_are_they_here(cls, value: object) -> object:
        """`rename: {1: low}`."""
        return {as_label(key): as_label(one) for key, one in value.items()} if isinstance(value, dict) else value

    @field_validator("order")
    @classmethod
    def _is_an_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value and (len(value) < 2 or len(set(value)) < len(value)):
            raise ValueError("names at least two labels, each once, from the lowest to the highest")
        return value

    @field_validator("separator")
    @classmethod
    def _is_seen(cls, value: str | None) -> str | None:
        if value is not None and value != value.strip():
            raise ValueError("has white space around it, which does not count between labels; write it without")
        return value
