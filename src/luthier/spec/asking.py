"""What a recipe says about a model behind an OpenAI-compatible endpoint, and what it is asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from luthier.errors import RecipeError
from luthier.records import is_closed, is_read_off, is_text
from luthier.spec.section import Section

if TYPE_CHECKING:
    from luthier.spec.recipe import Recipe


class Asking(Section):
    """Which model is asked, and how much."""

    endpoint: str = Field(description="Base URL, such as 'http://127.0.0.1:8080/v1'.")
    model: str = Field(min_length=1, description="What the endpoint calls the model.")
    key_env: str | None = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Name of the environment's variable with the API key."
    )
    max_requests: int = Field(1000, gt=0, description="What was asked before and is kept does not count.")
    max_tokens: int | None = Field(None, gt=0, description="Stop asking once the endpoint has counted so many.")
    temperature: float = Field(0.0, ge=0, le=2)
    send_personal_data: bool = Field(False, description="Whether rows with personal data may be sent as they are.")

    @field_validator("endpoint")
    @classmethod
    def _is_plain_url(cls, value: str) -> str:
        if not re.fullmatch(r"https?://[^\s/@?#]+(/[^\s@?#]*)?", value):
            raise ValueError("is a URL such as 'https://host/v1', without user, password or query; a key is `key_env`")
        try:
            told = urlsplit(value).port
        except ValueError as error:  # brackets that do not close, or a port that is none
            raise ValueError(f"is no URL: {error}") from error
        if told == 0:
            raise ValueError("is no URL: nothing listens on port 0")
        return value


class Paraphrase(Asking):
    """Rows said in other words."""

    share: float = Field(0.1, gt=0, le=1, description="Offspring as a share of the training rows; see `balance`.")
    via: str | None = Field(None, min_length=2, description="Language to translate to and back from; none: rephrase.")
    temperature: float = Field(0.7, ge=0, le=2)


class Writer(Asking):
    """A teacher that writes answers, which are learned (Kim and Rush 2016, arXiv 1606.07947, section 3.2)."""

    path: str | None = Field(None, min_length=1, description="File of rows without answers, with the input's columns.")
    rewrite: bool = Field(False, description="Whether it also answers the training rows, in the place of their own.")
    system: str | None = Field(
        None, description="Its system prompt; None: the task's, with the labels; '': none, as a run brings its own."
    )

    @model_validator(mode="after")
    def _has_rows(self) -> Writer:
        if self.path is None and not self.rewrite:
            raise ValueError("needs rows to answer: path, a file of rows without answers, or rewrite: true, or both")
        return self


def refuse_unfit_writer(recipe: Recipe) -> None:
    """Hold `data.teacher` of a resolved recipe against the rest.

    Raises:
        RecipeError: the task has no answers that it could write, or there is no template for its rows.
    """
    rules, entry = recipe.data.teacher, recipe.entry
    if rules is None:
        return
    if entry.task == "preference" or is_text(entry.task):
        raise RecipeError(
            f"data.teacher writes one answer to a row, and a row of task {entry.task!r} has "
            f"{'two' if entry.task == 'preference' else 'none'}",
            way_out="leave data.teacher out",
            key="data.teacher",
        )
    if is_read_off(entry.task) and not is_closed(entry.task):
        raise RecipeError(
            f"data.teacher writes what nobody holds to the labels or the numbers of task {entry.task!r}",
            way_out="leave data.teacher out",
            key="data.teacher",
        )
    if rules.rewrite and is_closed(entry.task):
        raise RecipeError(
            "data.teacher.rewrite would put a model's labels in the place of those that people gave",
            way_out="leave it out, and give rows without labels in data.teacher.path",
            key="data.teacher.rewrite",
        )
    if rules.path is not None and (not entry.input or recipe.data.features):
        what = "data.features computes columns for the rows of data.train" if entry.input else "conversations have none"
        raise RecipeError(
            f"data.teacher.path holds rows for the template data.train[0].input, and {what}",
            way_out="give rows with all columns of the template, without data.features"
            if entry.input
            else "use rewrite: true",
            key="data.teacher.path",
        )
