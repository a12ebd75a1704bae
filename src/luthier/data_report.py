"""What became of the rows: records of step 3, from each row's fate to the report of the whole."""

from __future__ import annotations

from pydantic import Field

from luthier.records import Record, SplitName, Task


class RowFate(Record):
    """Why a row is not used. Holds no content: the place is enough to look it up, and the place only."""

    file: str
    line: int = Field(description="1-based line of the file where the row starts (row number + 1 for Parquet).")
    reason: str
    detail: str = ""


class Finding(Record):
    """A piece of personal data or a secret: place, type and a keyed hash, never the value."""

    file: str
    line: int
    column: str
    start: int
    end: int
    kind: str = Field(description="e.g. 'email', 'phone', 'card', 'secret.aws_access_key'.")
    value_hmac: str = Field(
        description="HMAC-SHA256 under a key that is kept only in memory of one prepare, hex, 16 chars."
    )
    detector: str = Field(description="Detector and version, e.g. 'patterns/1'.")


class StepCount(Record):
    """A named refining step with its counts."""

    step: str
    rows_in: int
    rows_out: int
    rows_changed: int


class SplitReport(Record):
    rows: int
    tokens: int
    supervised_tokens: int
    groups: int
    labels: dict[str, int]
    length_p50: int
    length_p95: int
    length_max: int
    length_counts: tuple[int, ...] = Field(
        description="Rows by length in bins of equal width from 0 to the longest row of all splits."
    )
    sha256: str = Field(description="Hash of the shard file; '' when the split is empty.")
    contaminated: int = Field(0, description="Rows (of test) that training has seen in some way; they do not count.")


class NearConflict(Record):
    """Two rows that nearly say the same and have other labels; both are kept, for a person to look at."""

    file: str
    line: int
    of_line: int
    likeness: float = Field(description="Jaccard index of their shingles.")


class NearReport(Record):
    """What was found among rows that nearly say the same."""

    threshold: float = Field(description="Jaccard index of 5-character shingles.")
    compared: int = Field(description="Pairs of rows whose shingles were compared.")
    crowded: int = Field(description="Rows with so many candidates that only the likeliest were compared.")
    num_conflicts: int
    conflicts: tuple[NearConflict, ...] = Field(description="The first of them, in the order of the file.")


class Leakage(Record):
    """Overlap of training with an evaluation split after splitting.

    Rows of validation are set aside; rows of test stay, are marked, and do not count.
    """

    split: SplitName
    exact: int
    group: int
    near: int = Field(0, description="Rows with nearly the same text, of the same label where there are labels.")

    @property
    def rows(self) -> int:
        """All of them; a row counts once."""
        return self.exact + self.near + self.group


class BenchmarkOverlap(Record):
    """Rows of train that stand in a named benchmark file; they are set aside."""

    file: str
    rows: int = Field(description="Rows of the benchmark that were compared.")
    exact: int
    near: int


class LabelSuspect(Record):
    """A row whose label a model of the other rows contradicts; listed for review."""

    file: str
    line: int
    label: str
    suggested: str
    given_probability: float
    suggested_probability: float


class LabelReview(Record):
    """Labels to look at; nothing was changed."""

    agreement: float = Field(description="Share of rows for which the reviewing model would choose the given label.")
    suspects: tuple[LabelSuspect, ...] = Field(description="The surest first.")


class TextChange(Record):
    """What cleaning did to a text; personal data and secrets are masked."""

    file: str
    line: int
    before: str
    after: str


class FeatureExample(Record):
    """A row in which nothing personal was found."""

    line: int
    cells: dict[str, str] = Field(description="Of the columns that the expression names.")
    value: str


class FeatureReport(Record):
    """What became of a computed column."""

    name: str
    sql: str
    type: str = Field(description="What DuckDB makes of it, e.g. 'string'.")
    rows: int = Field(description="Rows that it was computed for.")
    empty: int = Field(description="Of these, rows in which it is NULL, which is rendered as an empty column.")
    failed: int = Field(description="Rows that it could not be computed for; they are in quarantine.")
    examples: tuple[FeatureExample, ...]


class TokenView(Record):
    text: str
    supervised: bool
    num_tokens: int = Field(description="Tokens that make up this text; more than one where they share a character.")


class RowView(Record):
    """A row as the model reads it; never one with findings."""

    split: SplitName
    line: int
    tokens: tuple[TokenView, ...]


class DataReport(Record):
    name: str
    task: Task
    rows_in: int
    rows_out: int
    dropped: dict[str, int] = Field(description="Reason -> rows. rows_in = rows_out + sum of these.")
    quarantined: int = Field(0, description="Of these, rows that cannot be read: they are in quarantine.jsonl.")
    fates: tuple[RowFate, ...] = Field(description="Each dropped row with its line.")
    steps: tuple[StepCount, ...]
    splits: dict[SplitName, SplitReport]
    split_rule: str = Field(description="In words, with the seed.")
    findings: dict[str, int] = Field(description="Kind -> count.")
    findings_action: str
    secrets_action: str
    not_looked_for: str = Field(
        "names of people are not looked for", description="In words: what the detectors cannot be expected to find."
    )
    personal_wording: tuple[str, ...] = Field((), description="Personal data in the recipe's own words, left as it is.")
    conflicts: int = Field(description="Texts that carried several labels (all their rows are set aside).")
    similar_labels: tuple[tuple[str, ...], ...] = Field(description="Groups of labels that read alike.")
    rare_labels: dict[str, int] = Field(description="Label -> training rows, of those below data.labels.min_rows.")
    review: LabelReview | None = Field(description="None where labels were not reviewed.")
    changes: tuple[TextChange, ...] = Field(description="The first texts that cleaning changed.")
    views: tuple[RowView, ...] = Field(description="Some rows, token by token.")
    near: NearReport | None = Field(None, description="None where data.dedupe.near is off.")
    leakage: tuple[Leakage, ...]
    benchmarks: tuple[BenchmarkOverlap, ...] = ()
    rows_left_apart: int = Field(
        0, description="Rows in chains of near-duplicates that were too long to be kept in one split."
    )
    end_of_turn_supervised: bool
    truncated_rows: int
    license: str
    synthetic: bool
    features: tuple[FeatureReport, ...] = Field((), description="Of data.features, in the order of computing.")
    contract_sha256: str
    source_sha256: dict[str, str] = Field(description="File -> hash.")
