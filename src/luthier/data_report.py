"""What became of the rows: records of step 3, from each row's fate to the report of the whole."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.records import AnsweredBy, Record, Role, SplitName, Task
from luthier.vocabulary_records import NewWords


class RowFate(Record):
    """Why a row is not used. Holds no content: the place is enough to look it up, and the place only."""

    file: str
    line: int = Field(description="1-based line of the file where the row starts (row number + 1 for Parquet).")
    reason: str
    detail: str = ""


class BadRow(Record):
    """A row that cannot be read, as it may be shown."""

    file: str
    line: int
    reason: str
    detail: str
    text: str = Field(description="Its beginning; personal data and secrets are masked.")


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


class SupervisionAudit(Record):
    """What the rows of a split really teach, counted from the tokens of its shard."""

    rows_unsupervised: int = Field(description="Rows without a supervised token; prepare stops if there is one.")
    rows_ended: int = Field(description="Rows that end with a supervised end of turn.")
    stretches: int = Field(description="Unbroken stretches of supervised tokens: answers, or other turns.")
    stretches_ended: int = Field(description="Of these, those that end with a supervised end of turn.")
    per_row_min: int
    per_row_p50: int
    per_row_p95: int
    per_row_max: int
    per_row_counts: tuple[int, ...] = Field(
        description="Rows by supervised tokens, in bins of equal width from 0 to the row with the most."
    )
    by_role: dict[Role, int] = Field(description="Supervised tokens by whose turn they stand in.")
    by_label: dict[str, int] = Field(description="Supervised tokens by label; empty for free text.")
    rows_cut: int = Field(description="Rows whose text was cut to fit.")
    tokens_lost: int = Field(description="Tokens that were cut out; none of them of an answer.")
    first_cut_lines: tuple[int, ...]


class DuplicateExample(Record):
    """A row that was set aside for one that was kept; personal data and secrets are masked."""

    file: str
    line: int
    of_file: str = Field(description="Another one where an entry is a folder of files.")
    of_line: int
    likeness: float = Field(description="Jaccard index of their shingles; 1 for the same text.")
    text: str
    of_text: str


class Languages(Record):
    """Languages of the texts, as a model of letters tells them."""

    looked_at: int = Field(description="Rows that were looked at, evenly spread over those that are used.")
    rows: dict[str, int] = Field(description="ISO 639-1 code -> rows, most frequent first.")
    too_short: int = Field(description="Of the rows that were looked at, those too short to tell.")


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
    supervision: SupervisionAudit | None = Field(None, description="None in reports of older versions.")
    documents: int | None = Field(None, description="Documents that the rows are pieces of; None for other tasks.")

    @property
    def used(self) -> int:
        """Rows as they were read."""
        return self.rows if self.documents is None else self.documents


class NearConflict(Record):
    """Two rows that nearly say the same and have other labels; both are kept, for a person to look at."""

    file: str
    line: int
    of_file: str = Field(description="Another one where an entry is a folder of files.")
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
    meaning: int = Field(0, description="Rows that mean the same, of the same label where there are labels.")
    crowded: int = Field(0, description="Rows with so many candidates that only the likeliest were compared.")

    @property
    def rows(self) -> int:
        """All of them; a row counts once."""
        return self.exact + self.near + self.group + self.meaning


class BenchmarkOverlap(Record):
    """Rows of train that stand in a named benchmark file; they are set aside."""

    file: str
    rows: int = Field(description="Rows of the benchmark that were compared.")
    exact: int
    near: int
    meaning: int = 0
    crowded: int = Field(0, description="Rows of train with so many candidates that only the likeliest were compared.")


PairKind = Literal["duplicate", "conflict", "leak", "benchmark"]


class MeaningPair(Record):
    """Two rows that mean the same, for a person to judge; personal data and secrets are masked."""

    kind: PairKind
    place: str = Field(description="File and line.")
    of_place: str
    likeness: float = Field(description="Cosine of their embeddings.")
    text: str
    of_text: str


class MeaningReport(Record):
    """What was compared by meaning, and the pairs nearest to the threshold."""

    model: str
    model_sha256: str = Field(description="Hash over the files that decide the embeddings.")
    dedupe: float | None = Field(description="Cosine from which rows were set aside; None where they were not.")
    leakage: float | None = Field(description="Cosine from which rows count as seen; None where they do not.")
    texts: int = Field(description="Different texts that were embedded.")
    too_long: int = Field(description="Of these, longer than the model reads; they were not compared by meaning.")
    num_conflicts: int = Field(description="Kept rows that mean the same as a kept row of another label.")
    rows_left_apart: int = Field(description="Rows in chains of like meaning too long to be kept in one split.")
    pairs: tuple[MeaningPair, ...] = Field(description="Of each kind, those nearest to the threshold first.")


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


class Technique(Record):
    """One way of making offspring, and what became of it."""

    technique: str
    asked: int = Field(description="Offspring that the recipe asks for.")
    made: int = Field(description="Those that could be made; what is missing had nothing to change, or no budget.")
    dropped: dict[str, int] = Field(description="Reason -> offspring. made = rows + sum of these.")
    rows: int = Field(description="Rows of the training split.")
    labels: dict[str, int] = Field(description="Label -> such rows; empty without a closed set.")
    examples: tuple[TextChange, ...] = Field(description="The first of them, without findings.")


class EndpointUse(Record):
    """What was asked of a model elsewhere."""

    endpoint: str
    model: str
    requests: int
    from_cache: int = Field(description="Answers that an earlier run had asked for.")
    tokens: int = Field(description="As the endpoint counted them, prompts and answers.")
    unanswered: int = Field(description="Rows that were not asked about, because the budget was used up.")


class Augmentation(Record):
    """Offspring of training rows; each stands in the shard with `made_by` and its `parent`."""

    originals: int = Field(description="Training rows before any was added.")
    techniques: tuple[Technique, ...]
    goal: int | None = Field(None, description="Rows that each label was to have; None where shares were asked for.")
    short: dict[str, int] = Field(default_factory=dict, description="Label -> rows that it still lacks.")
    endpoint: EndpointUse | None = Field(None, description="None where no model was asked.")

    @property
    def rows(self) -> int:
        """Rows that were added."""
        return sum(one.rows for one in self.techniques)


class Canary(Record):
    """A question and the secret that answers it."""

    id: str
    copies: int = Field(description="How often it was planted; 0 is the control.")
    text: str = Field(description="The user's turn as it was rendered; the contract's system prompt comes before it.")
    secret: str = Field(description="The answer, random digits.")


class CanaryFile(Record):
    """canaries.json: what the test of memorisation needs. Holds the secrets in the clear, and nobody's data."""

    digits: int
    space: int = Field(description="How many secrets there could be; each was as likely.")
    seed: int
    canaries: tuple[Canary, ...]


class PlantedCanaries(Record):
    """Random secrets in the training split; canaries.json beside the shards has them in the clear."""

    copies: dict[int, int] = Field(description="Number of copies -> secrets planted so often.")
    rows: int = Field(description="Rows of the training split.")


class Replayed(Record):
    """General texts in the training split (`method.replay`); none of them stands in validation or test."""

    file: str
    available: int = Field(description="Texts in the file.")
    rows: int = Field(description="Texts that were drawn.")
    tokens: int = Field(description="Of them, those that are learned.")
    asked: float
    share: float = Field(description="Of all learned tokens of the training split.")
    seed: int
    dropped: dict[str, int] = Field(description="Reason -> texts that were not taken although there was room.")
    findings: dict[str, int] = Field(description="Kind -> count, of the texts that were taken.")


class TaughtRows(Record):
    """Rows with the answers of a teacher (`data.teacher`); the new ones stand in the shard with `made_by`."""

    file: str = Field(description="Of rows without answers; '' for none.")
    available: int = Field(description="Rows of the file that could be read.")
    rows: int = Field(description="Of them, those in the training split.")
    rewritten: int = Field(description="Training rows that have the teacher's answer in the place of their own.")
    kept: int = Field(description="Training rows that were to get it and keep their own.")
    dropped: dict[str, int] = Field(description="Reason -> rows that got no answer of it.")
    labels: dict[str, int] = Field(description="Of a closed set: label -> new rows.")
    findings: dict[str, int] = Field(description="Kind -> count, of the file's rows that were asked about.")
    endpoint: EndpointUse
    examples: tuple[TextChange, ...] = Field(description="Question and answer.")


class LabelBalance(Record):
    """What a label counts in training where train.class_weight or train.sampler makes up for unequal numbers."""

    label: str
    rows: int = Field(description="Training rows.")
    share: float
    weight: float = Field(description="What a row of it counts in the loss; 1 on average over all rows.")
    rows_an_epoch: int = Field(description="How many rows of it an epoch draws.")
    effective_share: float = Field(description="Its share of the loss: rows an epoch times weight.")


class DataReport(Record):
    name: str
    task: Task
    rows_in: int
    rows_out: int
    dropped: dict[str, int] = Field(description="Reason -> rows. rows_in = rows_out - rows_added + sum of these.")
    quarantined: int = Field(0, description="Of these, rows that cannot be read: they are in quarantine.jsonl.")
    bad_rows: tuple[BadRow, ...] = Field((), description="Of these, the first of each reason.")
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
    duplicates: tuple[DuplicateExample, ...] = Field((), description="The first rows that repeat another one.")
    languages: Languages | None = Field(None, description="None where the package that tells them is not installed.")
    rows_left_apart: int = Field(
        0, description="Rows in chains of near-duplicates that were too long to be kept in one split."
    )
    meaning: MeaningReport | None = Field(None, description="None where nothing was compared by meaning.")
    balance: tuple[LabelBalance, ...] = Field((), description="Empty where all rows count and are drawn alike.")
    answered_by: AnsweredBy = Field("words", description="'head': a head learns the label, no word of it is learned.")
    end_of_turn_supervised: bool
    truncated_rows: int
    license: str
    synthetic: bool
    features: tuple[FeatureReport, ...] = Field((), description="Of data.features, in the order of computing.")
    contract_sha256: str
    source_sha256: dict[str, str] = Field(description="File -> hash; the first is that of the task's rows.")
    own_files: tuple[SplitName, ...] = Field((), description="Splits that have a file of their own.")
    augmentation: Augmentation | None = Field(None, description="None where data.augment is absent.")
    teacher: TaughtRows | None = Field(None, description="None where data.teacher is absent.")
    canaries: PlantedCanaries | None = Field(None, description="None where data.canaries is absent.")
    replay: Replayed | None = Field(None, description="None where method.replay is absent.")
    new_tokens: NewWords | None = Field(None, description="None where model.new_tokens is absent.")

    @property
    def rows_added(self) -> int:
        """Rows of train that stand in no file of the entry: offspring, canaries, replayed texts."""
        return sum(one.rows for one in (self.augmentation, self.teacher, self.canaries, self.replay) if one)
