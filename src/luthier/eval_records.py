"""Records of the evaluation: what was measured of which system, and what may be said of it."""

from __future__ import annotations

import math

from pydantic import Field

from luthier.records import Interval, Record, SplitName, Task


class SystemScore(Record):
    """One system (baseline, base or tuned) on the test split."""

    system: str = Field(
        description="majority, tfidf_logreg, length, base, few_shot, base_per_token, tuned, pruned, 'parent RUN' if "
        "merged."
    )
    title: str
    metrics: dict[str, Interval] = Field(description="e.g. accuracy, macro_f1, exact_match, free_text_agreement.")
    seconds: float
    mean_examples: float | None = Field(None, description="Of few_shot: examples that fit, a counted item.")


class Difference(Record):
    """Paired difference of two systems on the same items."""

    system: str
    against: str
    metric: str
    interval: Interval
    p_value: float = Field(
        description="Two-sided, of the paired test that interval_method names; NaN where not defined."
    )


class RunComparison(Record):
    """Two runs on the same test rows: the tuned model of the one minus that of the other, paired by item."""

    run: str
    against: str
    num_items: int = Field(description="Rows that training has seen in neither run.")
    num_groups: int
    not_counted: int = Field(description="Rows that training has seen in one of the runs.")
    differences: tuple[Difference, ...]
    against_points: dict[str, float] = Field(
        default_factory=dict, description="Metrics of the other model on these rows."
    )
    left_out: tuple[str, ...] = Field((), description="Metrics that the runs cannot be compared by, with the reason.")


class TransferCell(Record):
    """What learning with others did to a task: its metric in that training minus that of the training alone."""

    task: str
    together: tuple[str, ...] = Field(description="The tasks of the training, in the recipe's order.")
    metric: str
    higher_is_better: bool
    alone: float = Field(description="The metric after training alone, on the rows that are compared.")
    difference: Interval = Field(description="Paired by item.")
    num_items: int = Field(description="Rows that are compared: training has seen them in neither run.")
    not_counted: int = Field(0, description="Rows that training has seen in one of the runs.")
    p_value: float = Field(
        description="Two-sided, of this metric, corrected by Holm over all cells; NaN where there is no test of it."
    )


class TransferMatrix(Record):
    """Each task alone, in pairs and with all others, on the same test rows."""

    recipe: str
    tasks: tuple[str, ...]
    cells: tuple[TransferCell, ...]
    runs: dict[str, str] = Field(description="Tasks of a training, joined by ' + ' -> its run folder.")


class Contender(Record):
    """A system of a leaderboard: the tuned model of a run, or a baseline that was evaluated beside one."""

    name: str = Field(description="'NAME/ID' of a run, or a baseline's title.")
    is_baseline: bool = False
    base: str = Field("", description="Model that was tuned.")
    technique: str = Field("", description="What was trained, 'lora sft'.")
    metrics: dict[str, Interval]
    trainable_parameters: int = 0
    train_seconds: float = 0.0
    answer_seconds: float = Field(description="Of the evaluation, a test row; on the machine of that run.")


class Leaderboard(Record):
    """Several runs and their baselines on the same test rows; the best by the main metric first."""

    task: str = Field(description="Type of the task.")
    metric: str
    num_items: int
    num_groups: int
    not_counted: int
    level: float
    pair_level: float = Field(
        description="Of each difference, so that all of them hold together with `level` (Bonferroni)."
    )
    contenders: tuple[Contender, ...]
    pairs: tuple[Difference, ...] = Field(description="Each contender minus each that stands below it.")
    left_out: tuple[str, ...]


class SeedScore(Record):
    """A metric of the tuned model over several seeds, or how far it leads another system."""

    metric: str
    against: str = Field("", description="The system that is subtracted, in each run its own; '' where none is.")
    values: tuple[float, ...] = Field(description="Of each seed, in their order.")
    mean: Interval = Field(description="Over seeds, of both noises: as many other seeds on other test rows.")
    training_sd: float = Field(description="Standard deviation from seed to seed, on these test rows.")
    test_sd: float = Field(description="Of the mean, from one draw of as many groups to another; NaN where unknown.")


class SeedsReport(Record):
    """One recipe trained with several seeds and judged on the same test rows: what is noise of training, what of the
    test.
    """

    recipe: str
    task: str = Field(description="Name of the data entry.")
    seeds: tuple[int, ...]
    runs: tuple[str, ...] = Field(description="Run of each seed.")
    num_items: int
    num_groups: int
    level: float
    scores: tuple[SeedScore, ...] = Field(description="The task's main metric first.")
    differences: tuple[SeedScore, ...]


class ClassScore(Record):
    label: str
    support: int
    precision: float
    recall: float
    f1: float


class Mistake(Record):
    """A misclassified test item; the text is the prepared one, so what was redacted is not in it."""

    line: int
    text: str
    expected: str
    predicted: str
    probability: float


class GeneralText(Record):
    """Perplexity on a general text that has nothing to do with the task: what was forgotten."""

    source: str
    num_tokens: int
    base: Interval
    tuned: Interval
    ratio: Interval = Field(description="tuned / base, paired by paragraph.")


class TermScore(Record):
    """A term of the domain, as both models expect it in the held-out documents."""

    term: str
    occurrences: int
    base: float = Field(description="Perplexity of its tokens where it stands.")
    tuned: float


class Terms(Record):
    """Terms of the domain: how well each model expects them where they stand, everything before them given."""

    source: str = Field(description="The glossary, or how the terms were found.")
    num_terms: int = Field(description="Different terms that occur in the documents.")
    occurrences: int
    num_tokens: int
    unmatched: int = Field(description="Pieces whose tokens could not all be told apart.")
    base: Interval = Field(description="Perplexity of the terms' tokens.")
    tuned: Interval
    ratio: Interval = Field(description="tuned / base, paired by piece, by group.")
    terms: tuple[TermScore, ...] = Field(description="The commonest of them.")


class GlossaryTerm(Record):
    """A term of the glossary that the tuned model misses."""

    term: str
    accepted: tuple[str, ...] = Field(description="What may stand for it in an answer.")
    occurrences: int
    base: int = Field(description="Of the occurrences, those that the base model keeps.")
    tuned: int


class GlossaryUse(Record):
    """Terms of a glossary in the test items; how many answers keep is `term_accuracy`, a metric of each system."""

    source: str = Field(description="The file.")
    num_terms: int = Field(description="In the glossary.")
    met: int = Field(description="Different ones that the test items hold; where there is none, nothing was measured.")
    occurrences: int
    num_items: int = Field(description="Items that hold a term.")
    ratio: Interval | None = Field(description="tuned / base of term_accuracy; None where the base keeps no term.")
    num_missed: int = Field(description="Different terms that the tuned model misses at least once.")
    missed: tuple[GlossaryTerm, ...] = Field(description="The most missed of them.")


class MemorisedSecrets(Record):
    """What the tuned model gives away of the planted secrets of one number of copies."""

    copies: int = Field(description="How often each was learned; 0 is the control.")
    extracted: Interval = Field(description="Share that greedy decoding writes when it is asked.")
    singled_out: Interval = Field(description="Share that is likelier than all of the references.")
    exposure: float = Field(description="Mean, in bits; see luthier.evals.memorisation.")


class Memorisation(Record):
    """Of the secrets that `data.canaries` planted."""

    references: int = Field(description="Secrets that were never planted, which each was ranked among.")
    secrets: tuple[MemorisedSecrets, ...] = Field(description="The fewest copies first.")

    @property
    def false_positives(self) -> float:
        """Of a secret that was never learned, the probability that it is singled out."""
        return 1.0 / (self.references + 1)

    @property
    def most_bits(self) -> float:
        """Exposure of a secret that is ranked first."""
        return math.log2(self.references + 1)

    @property
    def chance_bits(self) -> float:
        """Mean exposure of secrets that were never learned: each rank is as likely."""
        ranks = range(1, self.references + 2)
        return self.most_bits - sum(map(math.log2, ranks)) / len(ranks)

    @property
    def fewest(self) -> MemorisedSecrets:
        """Of those that were learned, the ones with the fewest copies: what is secret seldom stands there often."""
        return next(one for one in self.secrets if one.copies)


class AllItems(Record):
    """What the tuned model scores on all test items, those that training has seen included."""

    num_items: int
    metrics: dict[str, float]


class Coverage(Record):
    """What would be answered, and how well, if a label were given only where it is at least so likely."""

    threshold: float
    coverage: float = Field(description="Share of the items that get a label.")
    accuracy: float | None = Field(description="Share of these whose label is right; None where there are none.")


class Look(Record):
    """How often models were judged on these test rows under this name, this one counted; the ledger keeps them."""

    number: int = Field(ge=1, description="From 1; the same model judged again is the look that it was.")
    test_sha256: str = Field(description="Of the rows, by what is asked and expected.")


class Bounds(Record):
    """Intervals whose worse ends the gate takes from the second look on, at the level of the look."""

    metrics: dict[str, Interval] = Field(description="Of the tuned model.")
    general: Interval = Field(description="general.ratio at that level.")
    glossary: Interval | None = Field(None, description="glossary.ratio at that level.")


class EvalReport(Record):
    name: str
    task: Task
    split: SplitName
    num_items: int = Field(description="Items that count: no training has seen them.")
    num_groups: int
    with_contaminated: AllItems | None = Field(None, description="None where no item is contaminated.")
    systems: tuple[SystemScore, ...]
    differences: tuple[Difference, ...]
    classes: tuple[ClassScore, ...] = Field(description="Of the tuned model.")
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...] = Field(description="[expected][predicted] counts of the tuned model.")
    mistakes: tuple[Mistake, ...]
    coverage: tuple[Coverage, ...] = Field((), description="Of the tuned model, where a head chooses.")
    general: GeneralText
    terms: Terms | None = Field(None, description="Of documents only, and where terms occur in them.")
    glossary: GlossaryUse | None = Field(None, description="Of translation and generation, where a glossary is given.")
    memorisation: Memorisation | None = Field(None, description="None where no secrets were planted.")
    look: Look | None = Field(None, description="None where nothing was counted.")
    bounds: Bounds | None = Field(None, description="None at the first look, where the intervals above are taken.")
    headline: str = Field(description="One sentence that may be claimed.")
    resamples: int
    interval_method: str
    data_sha256: str
    weights_sha256: str
    peak_memory_gib: float
    seconds: float
