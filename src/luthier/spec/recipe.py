"""The recipe's typed sections. A field that is None is open: `resolve` fills it in and gives the reason.

Validation here only refuses. Unknown keys are errors; `load` turns them into messages with line and suggestion.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from luthier.records import ColumnType, PrivacyAction, PrivacyProfile, Task

_FEATURE_NAME = re.compile(r"[^\W\d]\w*")

Share = Annotated[float, Field(gt=0.0, lt=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """YAML reads yes, on and true as a truth value, which pydantic would take as 1 where a number is asked for."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"a truth value does not belong here (YAML reads yes, no, on and off as {value})")
        return value


class Budget(Section):
    hours: float | None = Field(None, gt=0, description="Wall time for the whole run; the plan says whether it fits.")
    ram_gib: float | None = Field(None, gt=0, description="Peak memory of any stage; also sizes the micro-batch.")


class Objective(Section):
    targets: dict[str, str] = Field(default_factory=dict, description="NAME.METRIC -> '>= value'.")
    non_regression: dict[str, str] = Field(default_factory=dict, description="general.perplexity -> '<= factorx'.")
    budget: Budget = Field(default_factory=Budget)


class Model(Section):
    name: str = Field(min_length=1, description="A bundled name, a folder, a .gguf file, or a hub id.")
    revision: str | None = Field(None, description="Commit, tag or branch of a hub model; None means its main branch.")


class DataEntry(Section):
    path: str = Field(min_length=1, description="File or folder of files, relative to the recipe.")
    name: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", description="What targets call it.")
    task: Task | None = None
    format: str | None = Field(None, description="A name of the readers table.")
    sheet: str | None = Field(None, min_length=1, description="Of a workbook; None takes the first with rows.")
    query: str | None = Field(None, min_length=1, description="Of a database; None takes its only table.")
    input: str | None = Field(None, description="Template of the user's turn, e.g. '{title}: {body}'.")
    label: str | None = Field(None, description="Column of the answer: label, completion or target.")
    system: str | None = Field(None, description="System prompt; '' for none.")
    license: str | None = Field(None, description="SPDX id or words; noted in the card.")
    synthetic: bool = Field(False, description="Whether the data was written for a purpose rather than collected.")


class Split(Section):
    test: Share | None = Field(None, description="Share of groups for the test split.")
    validation: Share | None = Field(None, description="Share of groups for the validation split.")
    group_by: str | None = Field(None, description="Column whose values must not be spread over splits; '' for none.")
    stratify: bool | None = Field(None, description="Keep label shares alike over splits.")
    by_time: str | None = Field(None, min_length=1, description="Column of a time: the newest rows are tested.")
    column: str | None = Field(None, min_length=1, description="Column that names each row's split: train, test, ...")
    stable: bool = Field(False, description="Each group by its own lot: a file that grows moves no row it had.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the draw of splits and limits; not that of training.")

    @model_validator(mode="after")
    def _one_way(self) -> Split:
        ways = [name for name in ("by_time", "column", "stable") if getattr(self, name)]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} are different ways to split; keep one")
        return self

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> Split:
        if (self.test or 0.0) + (self.validation or 0.0) >= 0.9:
            raise ValueError("split.test + split.validation leave less than a tenth for training")
        return self


class RowLimit(Section):
    train: int | None = Field(None, gt=0)
    validation: int | None = Field(None, gt=0)
    test: int | None = Field(None, gt=0)


class Privacy(Section):
    action: PrivacyAction = Field("report", description="What to do about personal data.")
    secrets: Literal["stop", "redact", "drop"] = Field("stop", description="What to do about keys and tokens.")
    profile: PrivacyProfile | None = Field(
        None, description="Which detectors look: 'fast' patterns, 'balanced' a model too, 'maximum' also a trained one."
    )
    annotations: str | None = Field(
        None, description="JSON lines of texts with 'spans' of 'start', 'end', 'type', which profile 'maximum' learns."
    )
    keep_mapping: str | None = Field(
        None, description="File for the encrypted mapping from values to pseudonyms; none is kept where this is open."
    )

    @field_validator("action", mode="before")
    @classmethod
    def _spelled_either_way(cls, value: object) -> object:
        return "pseudonymise" if value == "pseudonymize" else value

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Privacy:
        if self.annotations is not None and self.profile != "maximum":
            raise ValueError("annotations are learned by profile: maximum only; set it, or leave annotations out")
        if self.profile == "maximum" and self.annotations is None:
            raise ValueError("profile: maximum learns from annotations; name the file, or take profile: balanced")
        if self.keep_mapping is not None and self.action != "pseudonymise":
            raise ValueError("keep_mapping keeps pseudonyms, which only action: pseudonymise makes")
        return self


class Labels(Section):
    rename: dict[str, str] = Field(default_factory=dict, description="Label in the file -> label to learn.")
    min_rows: int | None = Field(None, ge=0, description="Labels with fewer training rows are named in the report.")
    review: bool | None = Field(
        None, description="List rows whose label a simple model of the other rows contradicts; nothing is changed."
    )


CleanStep = Literal[
    "unescape_html", "repair_mojibake", "strip_control", "normalise_unicode", "collapse_whitespace", "strip_ends"
]


class Filter(Section):
    min_chars: int | None = Field(None, gt=0, description="Rows with a shorter text are set aside.")
    max_chars: int | None = Field(None, gt=0, description="Rows with a longer text are set aside.")
    languages: tuple[str, ...] = Field((), description="ISO 639-1 codes; rows surely in another one are set aside.")
    max_repetition: float | None = Field(
        None, gt=0, lt=1, description="Rows in which a larger share of the words was said before are set aside."
    )


class _Near(Section):
    near: float | bool | None = Field(
        None, description="Jaccard index of 5-character shingles from which texts are alike; off: equal ones only."
    )

    @field_validator("near", mode="before")
    @classmethod
    def _is_likeness_or_off(cls, value: object) -> object:
        """One message for a union; below a half, most short texts on one subject are alike."""
        if value is None or value is False:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.5 <= value <= 1:
            raise ValueError("is a likeness from 0.5 to 1, such as 0.8, or off")
        return float(value)

    @property
    def threshold(self) -> float | None:
        """The likeness, or None where only equal texts count as alike."""
        return None if self.near is None or isinstance(self.near, bool) else self.near


class Dedupe(_Near):
    """Rows that repeat another one; equal ones are always set aside."""


class LeakageRules(_Near):
    """What counts as seen in training."""

    benchmarks: tuple[str, ...] = Field(
        (), description="Files whose rows must not be learned; rows of train that overlap are set aside."
    )


class Data(Section):
    train: tuple[DataEntry, ...] = Field(min_length=1)
    validation: str | None = Field(None, description="A file of the user's own instead of a split.")
    test: str | None = Field(None, description="A file of the user's own instead of a split.")
    split: Split = Field(default_factory=Split)
    limit: RowLimit = Field(default_factory=RowLimit, description="At most so many rows, drawn by label and seed.")
    privacy: Privacy | None = None
    clean: tuple[CleanStep, ...] | None = Field(None, description="Cleaning steps in order, of rows and of requests.")
    filter: Filter | None = None
    labels: Labels = Field(default_factory=Labels)
    dedupe: Dedupe | None = None
    leakage: LeakageRules = Field(default_factory=LeakageRules)
    bad_rows: Literal["fail", "quarantine"] = Field("quarantine", description="What to do with unreadable rows.")
    max_bad_rows: float = Field(0.01, ge=0, le=1, description="Share of unreadable rows above which a file is refused.")
    features: dict[str, str] = Field(
        default_factory=dict, description="New column -> SQL expression over the columns of its row."
    )
    columns: dict[str, ColumnType] = Field(
        default_factory=dict, description="Column -> its type in expressions; those left out are as found in the file."
    )

    @model_validator(mode="after")
    def _features_have_names(self) -> Data:
        for name, sql in self.features.items():
            if not _FEATURE_NAME.fullmatch(name):
                raise ValueError(f"features: {name!r} is no name; write letters, digits and _, a letter first")
            if not sql.strip():
                raise ValueError(f"features.{name} is empty; write an expression such as 'length(message)'")
        folded = [name.casefold() for name in self.features]
        if twice := sorted({name for name in folded if folded.count(name) > 1}):
            raise ValueError(f"features: {twice[0]!r} stands twice, and SQL does not tell capitals apart; rename one")
        if self.columns and not self.features:
            raise ValueError("columns are types for the expressions of features, and there are none; leave it out")
        if self.train[0].label in self.features:
            raise ValueError(
                f"train[0].label: {self.train[0].label!r} is a feature; an answer must be a column of the file"
            )
        return self

    @model_validator(mode="after")
    def _one_entry(self) -> Data:
        if len(self.train) > 1:
            raise ValueError("several data.train entries (multi-task training) are not built yet; give one")
        return self


class Method(Section):
    type: str = Field("auto", description="'auto' or a name of the methods table.")


class Adapter(Section):
    type: str | None = Field(None, description="A name of the adapters table.")
    r: int | None = Field(None, gt=0, le=512)
    alpha: float | None = Field(None, gt=0)
    dropout: float | None = Field(None, ge=0, lt=1)
    target_modules: str | tuple[str, ...] | None = Field(None, description="'all-linear' or names of modules.")

    @field_validator("target_modules")
    @classmethod
    def _names_a_module(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value is not None and not all([value, *value]):
            raise ValueError("no module is named, write 'all-linear' or a list of names")
        return value


class Train(Section):
    learning_rate: float | None = Field(None, gt=0)
    num_train_epochs: int | None = Field(None, gt=0)
    max_tokens: int | None = Field(None, gt=0, description="Stop before more than so many tokens were computed.")
    max_length: int | None = Field(None, gt=8, description="Longest row in tokens; longer rows are set aside.")
    batch_size: int | None = Field(None, gt=0, description="Rows an optimizer step, over all micro-batches.")
    micro_batch_tokens: int | None = Field(None, gt=0, description="Tokens computed at once; no effect on the result.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] | None = None
    warmup_ratio: float | None = Field(None, ge=0, lt=1)
    weight_decay: float | None = Field(None, ge=0)
    max_grad_norm: float | None = Field(None, gt=0)
    validations: int | None = Field(None, gt=0, description="How often the validation split is scored, evenly spread.")
    patience: int | None = Field(None, gt=0, description="Validations without a better metric before training stops.")
    save_steps: int | None = Field(None, gt=0, description="Steps between checkpoints.")
    seed: int = Field(0, ge=0, lt=2**31)
    threads: int | None = Field(None, gt=0, description="Processor threads; part of what makes a run repeatable.")


class Evaluate(Section):
    baselines: tuple[Literal["majority", "tfidf_logreg", "base"], ...] | None = Field(
        None, description="Systems beside the tuned model; the base is needed for differences."
    )
    resamples: int | None = Field(None, ge=200, le=100_000, description="Bootstrap resamples.")
    level: float | None = Field(None, gt=0.5, lt=1, description="Confidence level of two-sided intervals.")


class Recipe(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Also the name in the registry.")
    objective: Objective = Field(default_factory=Objective)
    model: Model
    data: Data
    method: Method = Field(default_factory=Method)
    adapter: Adapter = Field(default_factory=Adapter)
    train: Train = Field(default_factory=Train)
    evaluate: Evaluate = Field(default_factory=Evaluate)
    export: tuple[str, ...] | None = Field(None, description="Names of the exports table.")
    output_dir: str = Field("runs", description="Where run folders go; `--out` overrides.")

    @property
    def entry(self) -> DataEntry:
        """The one data entry."""
        return self.data.train[0]
