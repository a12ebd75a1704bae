"""Frozen results that flow from step to step. A record is JSON on disk and carries the hashes of what it was made from.

Floor 2: no room knows another room, all rooms know these.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.errors import RunError

Task = Literal[
    "classification", "sentiment", "multi_label", "regression", "translation", "generation", "extraction", "preference",
    "domain",
]  # fmt: skip
"""The types of work that can be asked for."""
PrivacyAction = Literal["report", "redact", "pseudonymise", "drop"]
PrivacyProfile = Literal["fast", "balanced", "maximum"]

TooLong = Literal["drop", "cut_start", "cut_middle", "cut_end"]
"""What becomes of a prompt that is too long."""

AnsweredBy = Literal["words", "head"]
"""How an answer is said: written, or read off by a head, which chooses a label, says a number or scores an answer."""

CLOSED_TASKS = ("classification", "sentiment")
"""The tasks whose answers come from a closed set of labels."""


def is_closed(task: str | None) -> bool:
    """Whether a task's answers come from a closed set of labels."""
    return task in CLOSED_TASKS


def is_read_off(task: str | None) -> bool:
    """Whether a task's answers are labels or numbers, which a head can read off the prompt's last state."""
    return is_closed(task) or task in ("multi_label", "regression")


def is_text(task: str | None) -> bool:
    """Whether a task's rows are documents without an answer: read on from, learned as a whole."""
    return task == "domain"


SplitName = Literal["train", "validation", "test"]

Contamination = Literal["", "exact", "near", "group", "meaning"]
"""How a test item was seen in training: its text, nearly its text, its group, or its meaning; '' for a clean one."""


class Record(BaseModel):
    """Base of all records: frozen, strict about unknown keys, JSON in and out."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def to_json(self) -> str:
        """Indented JSON that ends with a newline; floats keep full precision, NaN is the text "NaN"."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record back from `path`.

        Raises:
            RunError: the file is missing or was not written by this version of the record.
        """
        if not path.is_file():
            raise RunError(f"{path} is missing", way_out="run the step that writes it, see `luthier --help`")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise RunError(
                f"{path} is not a {cls.__name__}: {f'{place}: ' if place else ''}{first['msg']}",
                way_out="remove this file and repeat the step that writes it, see `luthier --help`",
            ) from error


class Interval(Record):
    """A value with its confidence interval."""

    point: float
    low: float = Field(description="NaN, as `high`, where groups are too few to say, or all resamples are alike.")
    high: float
    level: float = Field(0.95, description="Two-sided confidence level.")
    n: int = Field(description="Items (not resamples) that the interval rests on.")

    def ends(self, style: str = ".3f") -> str:
        """'0.802 to 0.890', or that nothing is known of it."""
        if math.isnan(self.low) or math.isnan(self.high):
            return "not known"
        return f"{self.low:{style}} to {self.high:{style}}"


# --- step 1: what is there -------------------------------------------------------------------


ColumnType = Literal["text", "integer", "number", "boolean", "date", "time"]
"""What a cell is to an expression of `data.features`."""


class ColumnProfile(Record):
    name: str
    kind: Literal["text", "label", "number", "date", "id", "messages", "empty"]
    distinct: int = Field(description="Different values; at least so many where there are more than 200,000.")
    empty: int
    mean_chars: float
    longest_chars: int = 0
    type: ColumnType = Field("text", description="Of its cells as the file holds them; 'text' where they differ.")


class FaultCount(Record):
    """Rows that cannot be read for one reason."""

    reason: str
    rows: int
    first: tuple[str, ...] = Field(description="The first lines, e.g. '12'; 'FILE:12' in a folder.")
    detail: str = Field(description="What was found in the first of them.")


Shape = Literal[
    "text_label", "prompt_completion", "alpaca", "messages", "sharegpt", "source_target", "preference", "plain_text",
    "unknown",
]  # fmt: skip


class DataProfile(Record):
    """What a data file holds, before anything is done to it. Never holds a value of a text column."""

    path: str
    sha256: str
    num_bytes: int
    format: str = Field(description="A name of the readers table, e.g. 'csv'.")
    encoding: str = Field(description="'' where the file is no text.")
    delimiter: str = Field(description="'' unless CSV.")
    num_rows: int = Field(description="Data rows, faulty ones included.")
    columns: tuple[ColumnProfile, ...]
    shape: Shape
    task: Task | None = Field(description="The detected task; None where the shape tells none that is built.")
    input: str = Field(description="Detected input template such as '{message}'; '' where unknown.")
    label: str = Field(description="Column of the answer: label, completion or target; '' for messages or unknown.")
    rejected: str = Field("", description="Column of the answer that was not preferred; '' unless preference.")
    group_by: str = Field(description="Column that names the customer, document or thread of a row; '' if none.")
    labels: dict[str, int] = Field(description="Label counts, most frequent first; empty unless text_label.")
    mean_input_chars: float
    mean_answer_chars: float = Field(description="Of both answers together where rows are preferences.")
    sheet: str = Field("", description="Of a workbook.")
    query: str = Field("", description="Of a database.")
    license: str = Field("", description="What the data set states itself; '' where it states nothing.")
    faults: tuple[FaultCount, ...] = Field((), description="Rows that cannot be read, most frequent reason first.")

    @property
    def is_chat(self) -> bool:
        """Whether the rows are conversations, which bring their own turns."""
        paired = any(one.kind == "messages" for one in self.columns if one.name == self.label)
        return self.shape in ("messages", "sharegpt") or (self.shape == "preference" and paired)


class ModelShape(Record):
    """Facts of a base model read from config.json or a GGUF header alone."""

    name: str
    kind: Literal["bundled", "folder", "gguf", "hub"]
    path: str = Field(description="The folder or file that the facts were read from.")
    sha256: str = Field(description="Hash of the weights file, or of the sorted hashes of the files.")
    architecture: str = Field(description="model_type in transformers' words, e.g. 'llama'.")
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    tied_embeddings: bool
    num_parameters: int
    num_bytes: int = Field(description="Size of the weights on disk.")
    quantisation: str = Field(description="e.g. 'Q4_1'; '' where the weights are float.")
    license: str = Field(description="SPDX id, or 'unknown'.")
    license_source: str = Field(description="Where the license was read: file, model card, package metadata.")


class Teacher(Record):
    """A model that another one learns from."""

    named: str = Field(description="As the recipe has it.")
    shape: ModelShape = Field(description="Of the base.")
    tuned: str = Field("", description="Folder with what a run learned on that base; '' for the base as it is.")
    tuned_sha256: str = Field("", description="Hash of the weights there.")
    config_sha256: str = Field("", description="Hash of the file that says how they are read, e.g. an adapter's scale.")

    @property
    def sha256(self) -> str:
        """Of all its weights and how they are read; where they are does not count."""
        both = f"{self.shape.sha256}:{self.tuned_sha256}:{self.config_sha256}"
        return hashlib.sha256(both.encode()).hexdigest()


# --- step 3: data ----------------------------------------------------------------------------------------------------


Role = Literal["system", "user", "assistant"]


class Message(Record):
    role: Role
    content: str
    weight: Literal[0, 1] = Field(1, description="0 in a row of training data: this turn is not learned.")


class Feature(Record):
    """A column that is computed from the columns of its own row."""

    name: str
    sql: str = Field(description="A scalar expression in DuckDB's SQL.")
    uses: tuple[str, ...] = Field(description="Columns and earlier features that it names.")
    type: str = Field(description="What DuckDB makes of it, e.g. 'string'.")


class Scale(Record):
    """Of the numbers in the training rows: a head learns (number - mean) / spread."""

    mean: float
    spread: float = Field(description="Standard deviation, of the population.")


class RequestContract(Record):
    """How the model is asked, frozen at prepare time.

    Training, evaluation, export, `predict` and the server all ask through `luthier.data.contract`.
    """

    name: str = Field(description="Name of the data entry, e.g. 'intent'.")
    task: Task
    transforms: tuple[str, ...] = Field(description="Names of the cleaning steps applied to every input, in order.")
    privacy_action: PrivacyAction
    privacy_profile: PrivacyProfile = Field("fast", description="Which detectors look into a request.")
    privacy_tagger_sha256: str = Field("", description="Hash of tagger.safetensors beside this file; '' for none.")
    system: str = Field(description="System prompt; '' for none.")
    input: str = Field(description="Template of the user's turn over the columns, e.g. '{message}'; '' for chat rows.")
    labels: tuple[str, ...] = Field(description="The closed set of answers, sorted; empty for free text.")
    chat_template: str = Field(description="Jinja source, the tokenizer's own.")
    bos_token: str
    eos_token: str
    end_of_turn: str = Field(description="What ends an answer, to the token that stops it, e.g. '<|im_end|>'.")
    end_of_turn_ids: tuple[int, ...] = Field(description="Ids of it; supervised.")
    stop_ids: tuple[int, ...]
    tokenizer_sha256: str
    max_length: int
    max_new_tokens: int
    too_long: TooLong = Field("drop", description="Where a prompt that is too long is cut; 'drop': it is refused.")
    max_prompt_tokens: int | None = Field(None, description="To what length it is cut; None where it is not.")
    features: tuple[Feature, ...] = Field((), description="What the input template needs, in the order of computing.")
    column_types: dict[str, ColumnType] = Field(
        default_factory=dict, description="Type of each column that a feature names; a request is held to it."
    )
    features_sha256: str = Field("", description="Hash of what the features make of probes; '' for none.")
    answered_by: AnsweredBy = Field("words", description="'head': a head chooses among labels, or says a number.")
    label_rows: tuple[int, ...] = Field((), description="Training rows of each label, where a head learns them.")
    abstain_below: float | None = Field(None, description="A label that is less likely than this is not given.")
    label_order: tuple[str, ...] = Field(
        (), description="The labels from the lowest to the highest; empty where they have no order."
    )
    tags: tuple[str, ...] = Field((), description="Labels of which a text may have several, sorted.")
    separator: str = Field("", description="Stands between the labels of a text that has several.")
    threshold: float | None = Field(None, description="A label of several is given from this probability on.")
    scale: Scale | None = Field(None, description="Of the numbers that are learned; None where answers are none.")
    rewards: tuple[dict[str, Any], ...] = Field((), description="What verifies an answer; no part of how it is asked.")
    answer_columns: tuple[str, ...] = Field((), description="Of both answers of a row, where a head scores them.")

    @property
    def scores_answers(self) -> bool:
        """Whether a head scores an answer that stands behind the prompt, at the last token of its end of turn."""
        return self.task == "preference" and self.answered_by == "head"

    @property
    def head_rows(self) -> tuple[str, ...]:
        """What a head has a score for: each label, the number, or the answer."""
        return (self.name,) if self.scale is not None or self.scores_answers else self.labels or self.tags


def longest_open_answer(max_length: int) -> int:
    """Tokens that a free answer may take where no answers of the data say so, beside rows of `max_length`."""
    return min(256, max_length // 2)


class Golden(Record):
    """One prompt whose ids, scores and text every engine must reproduce."""

    name: str
    text: str = Field(description="The user's turn before templates; never a row with findings.")
    prompt: str = Field(description="Rendered text.")
    prompt_ids: tuple[int, ...]
    answer: str = Field("", description="What stands behind the user's turn where answers are scored.")


# --- step 6: artifacts, gate, versions -------------------------------------------------------------------------------


class ParityCheck(Record):
    """One artifact against what was trained, on the golden prompts."""

    prompts: int
    ids_equal: bool
    max_logit_error: float = Field(description="Largest that was seen of what `measure` says.")
    bound: float
    measure: Literal["logits", "log_probabilities", "kl"] = Field("logits", description="See `ExportFacts.measure`.")
    greedy_equal: int = Field(description="Prompts with the same greedy text, or, of a head, the same label.")
    passed: bool
    first_difference: str = ""
    answered_by: AnsweredBy | Literal["both"] = Field("words", description="'both': of some tasks by a head.")
    listed: tuple[str, ...] = Field((), description="Prompts whose greedy text is another, as rounding may turn it.")


class Artifact(Record):
    kind: str
    path: str = Field(description="Relative to the run folder.")
    sha256: dict[str, str] = Field(description="File -> hash.")
    num_bytes: int
    parity: ParityCheck
    made_from: str = Field(description="weights_sha256 of the training result.")


class GateLine(Record):
    """One line of the decision: what was asked, what was seen, the bound that counts, the verdict."""

    line: str
    kind: Literal["target", "non_regression", "parity", "data", "memorisation", "license"]
    asked: str
    observed: str
    bound: float | None
    passed: bool
    evidence: str = Field(description="File (relative to the run folder) and key where the number stands.")


class GateDecision(Record):
    passed: bool
    lines: tuple[GateLine, ...]
    decided_at: str = Field(description="UTC, ISO 8601.")
    recipe_sha256: str
    eval_sha256: str
    artifacts_sha256: str
    approvers_sha256: str = Field("", description="Of the approvers' file; '' where there was none.")
    signed_by: str = Field("", description="Fingerprint of the key that signed this file; '' where none did.")
    seal: str = Field(description="SHA-256 of this record with an empty seal, so an edit shows.")


class Version(Record):
    name: str
    version: int
    run: str = Field(description="Path of the run folder.")
    gate_passed: bool
    gate_seal: str
    weights_sha256: str
    created_at: str
    aliases: tuple[str, ...]


class Answer(Record):
    """What a model says to one request."""

    text: str
    given: tuple[str, ...] | None = Field(None, description="Labels, where a text may have several; else None.")
    value: float | None = Field(None, description="The number or the score that is asked for; NaN where none is said.")
    label: str = Field(description="Chosen label; '' for free text.")
    probabilities: dict[str, float] = Field(
        description="Label -> probability, over a closed set or, of several labels, of each; empty for free text."
    )
    log_mass: float | None = Field(
        description="Log of the closed set's total probability, in nats; None for free text and for a head."
    )
    greedy_label: str | None = Field(
        description="The label that greedy decoding would write, '' if anything else; None for free text and a head."
    )
    abstained: bool = Field(False, description="Whether no label is given, because the likeliest is not likely enough.")
    prompt_tokens: int
    answer_tokens: int
    lost_tokens: int = Field(0, description="Tokens that were cut out of the text, because it was too long.")
