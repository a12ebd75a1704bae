"""The recipe's typed sections. A field that is None is open: `resolve` fills it in and gives the reason.

Validation here only refuses. Unknown keys are errors; `load` turns them into messages with line and suggestion.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from luthier.records import ColumnType, PrivacyAction, PrivacyProfile, Role, Task, TooLong
from luthier.spec.adapter_rules import (
    refuse_beside_four_bits,
    refuse_unfit_cache,
    refuse_unfit_measures,
    refuse_unfit_own_adapters,
    refuse_unfit_settings,
)
from luthier.spec.adapter_section import Adapter
from luthier.spec.adapters.lora import Lora
from luthier.spec.asking import Paraphrase, Writer
from luthier.spec.base import Model
from luthier.spec.labels import Labels, as_label
from luthier.spec.launch import Launch
from luthier.spec.merge import Merge
from luthier.spec.multi_task import MultiTask
from luthier.spec.new_tokens import refuse_beside_new_tokens
from luthier.spec.objective import Objective
from luthier.spec.plugins import ADAPTERS, METHODS, REWARDS, union_of
from luthier.spec.prune import Prune, refuse_unfit_pruning
from luthier.spec.search import Search
from luthier.spec.section import Method, RewardRule, Section

_FEATURE_NAME = re.compile(r"[^\W\d]\w*")

Share = Annotated[float, Field(gt=0.0, lt=1.0)]

BUNDLED_EMBEDDINGS = "all-minilm-l6-v2"
"""The embedding model that the extra `meaning` brings; every other one is a folder."""


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

    meaning: float | None = Field(
        None, ge=0.5, lt=1, description="Cosine of embeddings from which texts mean the same; not looked at where open."
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


class Augment(Section):
    """Offspring of training rows. What is open is filled in: a little of each where no technique is named."""

    typos: float | None = Field(None, ge=0, le=1, description="Rows with typing errors, as a share of training rows.")
    typo_rate: float = Field(0.04, gt=0, le=0.5, description="Share of the letters that are mistyped.")
    case: float | None = Field(None, ge=0, le=1, description="Rows in other letter case, as a share.")
    punctuation: float | None = Field(None, ge=0, le=1, description="Rows with other punctuation, as a share.")
    swap: float | None = Field(None, ge=0, le=1, description="Rows with words exchanged within `swaps`, as a share.")
    swaps: str | tuple[tuple[str, ...], ...] | None = Field(
        None, description="Sets of words that may stand for one another, or a CSV file with one set a line."
    )
    paraphrase: Paraphrase | None = None
    balance: float | None = Field(
        None, gt=0, le=1, description="Rarer labels get offspring up to this share of the commonest one's rows; the "
        "shares of the techniques then only say how often each is taken."
    )  # fmt: skip
    max_per_row: int = Field(2, gt=0, le=20, description="Offspring of one row at most.")
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("swaps")
    @classmethod
    def _sets_are_sets(cls, value: str | tuple[tuple[str, ...], ...] | None) -> object:
        if not isinstance(value, str) and value is not None:
            refuse_odd_sets(value)
        return value

    @model_validator(mode="after")
    def _swap_has_sets(self) -> Augment:
        if self.swap and not self.swaps:
            raise ValueError("swap exchanges the words of `swaps`; give sets, or a file of them")
        return self


def refuse_odd_sets(sets: Sequence[Sequence[str]]) -> None:
    """Refuse sets without a choice, and words in two of them, whose meaning would be open.

    Raises:
        ValueError: with the number of the set, from 1.
    """
    seen: dict[str, int] = {}
    for number, words in enumerate(sets, start=1):
        if len(words) < 2 or not all(word.strip() for word in words):
            raise ValueError(f"set {number} needs two words or more, none of them empty")
        for word in words:
            if (before := seen.setdefault(word.strip().casefold(), number)) != number:
                raise ValueError(f"{word!r} stands in set {before} and in set {number}; keep one")


class Canaries(Section):
    """Random secrets planted in the training split, for the test of memorisation."""

    count: int = Field(8, gt=0, le=1000, description="Secrets for each number of copies.")
    copies: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = Field(
        (0, 1, 4, 16), min_length=1, description="How often a secret is planted; 0 is never learned: the control."
    )
    prompt: str = Field("What is the access code of {name}?", description="What asks for it; {name} is made up.")
    digits: int = Field(8, ge=4, le=32, description="Length of a secret; there are 10 to this power.")
    seed: int = Field(0, ge=0, lt=2**31)

    @field_validator("prompt")
    @classmethod
    def _asks_for_a_name(cls, value: str) -> str:
        if value.count("{name}") != 1:
            raise ValueError("needs {name} once, so that each secret is asked for in its own words")
        return value

    @field_validator("copies")
    @classmethod
    def _levels_differ(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value) or not any(value):
            raise ValueError("are different numbers, one of them above 0")
        return value


class Embeddings(Section):
    """What says whether texts mean the same, for `dedupe.meaning` and `leakage.meaning`."""

    model: str | None = Field(None, min_length=1, description="Folder of sentence-transformers, or 'all-minilm-l6-v2'.")
    max_rows: int = Field(200_000, gt=0, description="More texts are refused; the time grows with their square.")


class AutoMethod(Method):
    """The plan chooses."""

    type: Literal["auto"] = "auto"


if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = union_of([AutoMethod, *(facts.section for facts in METHODS.entries().values())])


if TYPE_CHECKING:
    AnyReward = RewardRule
else:
    AnyReward = union_of([facts.section for facts in REWARDS.entries().values()])


class DataEntry(Section):
    path: str = Field(min_length=1, description="File or folder of files, relative to the recipe; or a URL.")
    name: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", description="What targets call it.")
    task: Task | None = None
    format: str | None = Field(None, description="A name of the readers table.")
    sheet: str | None = Field(None, min_length=1, description="Of a workbook; None takes the first with rows.")
    query: str | None = Field(None, min_length=1, description="Of a database; None takes its only table.")
    input: str | None = Field(None, description="Template of the user's turn, e.g. '{title}: {body}'.")
    label: str | None = Field(None, description="Column of the answer: label, completion, target or preferred answer.")
    rejected: str | None = Field(None, description="Column of the other answer; of a preference task only.")
    system: str | None = Field(None, description="System prompt; '' for none.")
    license: str | None = Field(None, description="SPDX id or words; noted in the card.")
    synthetic: bool = Field(False, description="Whether the data was written for a purpose rather than collected.")
    roles_to_train: tuple[Role, ...] = Field(("assistant",), description="Whose turns are learned; 'assistant' always.")
    mask_history: bool = Field(False, description="Of a conversation's answers learn the last one only.")
    weight: float = Field(1.0, gt=0, description="What the task counts in the loss beside others.")
    method: AnyMethod | None = Field(None, description="Of this task; None takes the recipe's.")
    validation: str | None = Field(None, description="Of this task, as the keys below: in the place of data.KEY.")
    test: str | None = None
    split: Split | None = None
    limit: RowLimit | None = None
    labels: Labels | None = None
    filter: Filter | None = None
    augment: Augment | None = None
    features: dict[str, str] | None = None
    columns: dict[str, ColumnType] | None = None
    rewards: tuple[AnyReward, ...] | None = Field(
        None, min_length=1, description="What verifies a free answer: measured as NAME.reward, and learned by grpo."
    )
    glossary: str | None = Field(None, min_length=1, description="Of this task, in the place of evaluate.glossary.")

    @field_validator("roles_to_train")
    @classmethod
    def _learns_answers(cls, value: tuple[Role, ...]) -> tuple[Role, ...]:
        """In one order, so that the same roles are the same recipe."""
        if "assistant" not in value:
            raise ValueError("must name 'assistant': what the model answers is what is measured")
        return tuple(role for role in ("system", "user", "assistant") if role in value)


class Data(Section):
    train: tuple[DataEntry, ...] = Field(min_length=1)
    validation: str | None = Field(None, description="A file of the user's own instead of a split.")
    test: str | None = Field(None, description="A file of the user's own instead of a split.")
    split: Split = Field(default_factory=Split)
    limit: RowLimit = Field(default_factory=RowLimit, description="At most so many rows, drawn by label and seed.")
    steps: tuple[str, ...] | None = Field(
        None, min_length=1, description="Refining steps in their order; None is the usual one. See luthier.spec.steps."
    )
    privacy: Privacy | None = None
    clean: tuple[CleanStep, ...] | None = Field(None, description="Cleaning steps in order, of rows and of requests.")
    filter: Filter | None = None
    labels: Labels = Field(default_factory=Labels)
    dedupe: Dedupe | None = None
    leakage: LeakageRules = Field(default_factory=LeakageRules)
    bad_rows: Literal["fail", "quarantine"] = Field("quarantine", description="What to do with unreadable rows.")
    max_bad_rows: float = Field(0.01, ge=0, le=1, description="Share of unreadable rows above which a file is refused.")
    augment: Augment | None = Field(None, description="Offspring of training rows; `off` for none.")
    canaries: Canaries | None = Field(None, description="Planted secrets; `off` for none.")
    teacher: Writer | None = Field(None, description="A model elsewhere that writes answers to learn.")
    embeddings: Embeddings | None = None

    @property
    def by_meaning(self) -> bool:
        """Whether texts are compared by meaning at all."""
        return self.leakage.meaning is not None or (self.dedupe is not None and self.dedupe.meaning is not None)

    @model_validator(mode="after")
    def _embeddings_are_asked_for(self) -> Data:
        if self.embeddings is not None and not self.by_meaning:
            raise ValueError("embeddings serve dedupe.meaning and leakage.meaning; set one, e.g. 0.95, or leave it out")
        return self

    too_long: TooLong = Field(
        "drop", description="Rows above train.max_length: set aside, or the user's text cut, in requests as well."
    )
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
    def _entries_have_names(self) -> Data:
        """Several entries are several tasks, which targets, files and reports tell apart by name."""
        if len(self.train) == 1:
            return self
        for place, entry in enumerate(self.train):
            if entry.name is None:
                raise ValueError(f"train[{place}].name is missing: several tasks are told apart by their names")
            if entry.name in ("general", "tasks"):
                raise ValueError(f"train[{place}].name: {entry.name!r} means something else; choose another name")
        names = [entry.name for entry in self.train]
        if twice := sorted({name for name in names if name is not None and names.count(name) > 1}):
            raise ValueError(f"train: two entries are called {twice[0]!r}; choose another name for one")
        for key in ("validation", "test"):
            if getattr(self, key) is not None:
                raise ValueError(f"{key} is one file, and there are several tasks; write it below its entry of train")
        return self


if TYPE_CHECKING:
    AnyAdapter = Adapter
else:
    # Where no type is given it is LoRA.
    AnyAdapter = union_of([Lora, *(facts.section for facts in ADAPTERS.entries().values() if facts.section != Lora)])


Positive = Annotated[float, Field(gt=0)]
ClassWeight = Literal["balanced", "effective"] | dict[str, Positive]
"""Of rows by their label; see `luthier.data.imbalance`."""
Sampler = Literal["shuffle", "balanced", "sqrt"] | float


class Train(Section):
    learning_rate: float | None = Field(None, gt=0)
    num_train_epochs: int | None = Field(None, gt=0)
    max_tokens: int | None = Field(None, gt=0, description="Stop before more than so many tokens were computed.")
    max_length: int | None = Field(None, gt=8, description="Longest row in tokens; see data.too_long.")
    batch_size: int | None = Field(None, gt=0, description="Rows an optimizer step, over all micro-batches.")
    micro_batch_tokens: int | None = Field(None, gt=0, description="Tokens computed at once; no effect on the result.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] | None = None
    warmup_ratio: float | None = Field(None, ge=0, lt=1)
    weight_decay: float | None = Field(None, ge=0)
    max_grad_norm: float | None = Field(None, gt=0)
    validations: int | None = Field(None, gt=0, description="How often the validation split is scored, evenly spread.")
    patience: int | None = Field(None, gt=0, description="Validations without a better metric before training stops.")
    save_steps: int | None = Field(None, gt=0, description="Steps between checkpoints.")
    save_total_limit: int | None = Field(None, gt=0, description="Checkpoints that are kept, the newest of them.")
    seed: int = Field(0, ge=0, lt=2**31)
    threads: int | None = Field(None, gt=0, description="Processor threads; part of what makes a run repeatable.")
    device: Literal["cpu", "cuda"] | None = Field(None, description="Where training and evaluation compute.")
    bf16: bool | None = Field(
        None, description="Products with frozen weights in bfloat16; adapter and loss stay float32."
    )
    torch_compile: bool | None = Field(
        None, description="Compile the layers before the first step; for accelerators, no effect on the result."
    )
    gradient_checkpointing: bool | None = Field(
        None, description="Compute activations again going backward: less memory, about a third more time."
    )
    cache_trunk: bool | None = Field(
        None, description="Keep the output of the frozen layers below adapter.layers_to_transform on disk."
    )
    layer_lr_decay: float | None = Field(
        None, gt=0, lt=1, description="A layer's learning rate over that of the layer above it, from the last one down."
    )
    embedding_learning_rate: float | None = Field(
        None, gt=0, description="Of embeddings and output head where they learn; that of the rest where it is open."
    )
    loraplus_lr_ratio: float | None = Field(None, gt=1, description="Learning rate of LoRA's B over that of A.")
    neftune_noise_alpha: float | None = Field(
        None, gt=0, description="Size of noise that training adds to the embeddings of tokens; 5 is usual."
    )
    class_weight: ClassWeight | None = Field(
        None, description="What rows count in the loss by label: 'balanced', 'effective', or a number for each label."
    )
    class_weight_beta: Share | None = Field(None, description="Of 'effective', 0.999 where open: nearer 1, more even.")
    sampler: Sampler = Field(
        "shuffle", description="Which rows an epoch draws: each once, labels evenly, by 'sqrt' or by a temperature."
    )
    report_to: tuple[str, ...] = Field((), description="Names of the sinks table; they see events, never the data.")

    @field_validator("class_weight", mode="before")
    @classmethod
    def _is_a_way_to_weigh(cls, value: object) -> object:
        """One message for a union."""
        if isinstance(value, dict):
            value = {as_label(key): one for key, one in value.items()}
        numbers = isinstance(value, dict) and all(
            isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < float("inf")
            for one in value.values()
        )
        if value is None or value in ("balanced", "effective") or (numbers and value):
            return value
        raise ValueError("is 'balanced', 'effective', or a number above 0 for each label")

    @field_validator("sampler", mode="before")
    @classmethod
    def _is_a_way_to_draw(cls, value: object) -> object:
        """One message for a union."""
        number = isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value < float("inf")
        if number or value in ("shuffle", "balanced", "sqrt"):
            return value
        raise ValueError("is 'shuffle', 'balanced', 'sqrt' or a temperature of at least 1")

    @model_validator(mode="after")
    def _balances_once(self) -> Train:
        if self.class_weight is not None and self.sampler != "shuffle":
            raise ValueError("class_weight and sampler make up for the same thing; keep one")
        if self.class_weight_beta is not None and self.class_weight != "effective":
            raise ValueError("class_weight_beta belongs to class_weight: effective; set it, or leave the number out")
        return self


Baseline = Literal["majority", "tfidf_logreg", "mean", "tfidf_ridge", "length", "few_shot", "base"]


class Evaluate(Section):
    baselines: tuple[Baseline, ...] | None = Field(
        None, description="Systems beside the tuned model; the base is needed for differences."
    )
    few_shot_examples: int | None = Field(
        None, ge=1, le=64, description="Training rows that the baseline few_shot shows; a number asks for it."
    )
    resamples: int | None = Field(None, ge=200, le=100_000, description="Bootstrap resamples.")
    level: float | None = Field(None, gt=0.5, lt=1, description="Confidence level of two-sided intervals.")
    glossary: str | None = Field(
        None,
        min_length=1,
        description="File of terms: of documents, where None finds some, and of generation one a line; of translation "
        "each with what may stand for it.",
    )


class Recipe(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Also the name in the registry.")
    objective: Objective = Field(default_factory=Objective)
    model: Model
    data: Data
    method: AnyMethod = Field(default_factory=AutoMethod)
    adapter: AnyAdapter = Field(default_factory=Lora)
    train: Train = Field(default_factory=Train)
    multi_task: MultiTask | None = Field(None, description="Only where data.train has several entries.")
    merge: Merge | None = Field(None, description="Trained runs that become one model, in the place of training.")
    prune: Prune | None = Field(None, description="What of the base goes before it is trained.")
    search: Search | None = Field(None, description="What `luthier run --search` tries; nothing else reads it.")
    evaluate: Evaluate = Field(default_factory=Evaluate)
    launch: Launch = Field(default_factory=Launch)
    export: tuple[str, ...] | None = Field(None, description="Names of the exports table.")
    output_dir: str = Field("runs", description="Where run folders go; `--out` overrides.")

    @model_validator(mode="after")
    def _what_is_memorised_is_planted(self) -> Recipe:
        if self.objective.memorisation is not None and self.data.canaries is None:
            raise ValueError(
                "objective.memorisation is measured on planted secrets, and none are; add `data.canaries: {}`"
            )
        return self

    @model_validator(mode="after")
    def _canaries_are_seen_as_often_as_planted(self) -> Recipe:
        key = "sampler" if self.train.sampler != "shuffle" else "class_weight"
        if self.data.canaries is not None and (self.train.class_weight is not None or key == "sampler"):
            raise ValueError(
                f"train.{key} would change how often data.canaries are learned; leave one of them out, "
                "or measure memorisation in a run of its own"
            )
        return self

    @model_validator(mode="after")
    def _adapter_and_training_fit(self) -> Recipe:
        refuse_unfit_cache(self.adapter, self.train)
        refuse_unfit_settings(self.adapter, self.train, rows_learn=self.model.new_tokens is not None)
        refuse_unfit_measures(self)
        if self.model.load_in_4bit:
            refuse_beside_four_bits(self)
        refuse_beside_new_tokens(self)
        if self.prune is not None:
            refuse_unfit_pruning(self)
        return self

    @property
    def is_noisy(self) -> bool:
        """Whether training computes something else of a token each time, so that rows share nothing."""
        return bool(self.adapter.noise or self.train.neftune_noise_alpha)

    @model_validator(mode="after")
    def _several_tasks_share(self) -> Recipe:
        names = [entry.name for entry in self.data.train]
        if len(names) == 1:
            if self.multi_task is not None:
                raise ValueError("multi_task is how several tasks share a training; data.train has one entry")
            return self
        if self.data.teacher is not None:
            raise ValueError("data.teacher writes the answers of one task, and there are several")
        if self.data.privacy is not None and self.data.privacy.keep_mapping is not None:
            raise ValueError(
                "data.privacy.keep_mapping is the file of one task's pseudonyms, and there are several tasks"
            )
        if self.launch.strategy == "fsdp" and self.multi_task is not None and self.multi_task.loss == "pcgrad":
            raise ValueError("multi_task.loss: pcgrad compares whole gradients; with it launch.strategy is ddp")
        if self.has_own_adapters:
            refuse_unfit_own_adapters(self)
        elif self.train.sampler != "shuffle":
            raise ValueError(
                "train.sampler draws by label, and of several tasks multi_task.sampling draws; leave one of them out"
            )
        shares = self.multi_task.sampling if self.multi_task is not None else None
        if isinstance(shares, dict) and sorted(shares) != sorted(map(str, names)):
            raise ValueError(
                f"multi_task.sampling gives shares to {', '.join(shares)}; the tasks are {', '.join(map(str, names))}"
            )
        return self

    @property
    def has_own_adapters(self) -> bool:
        """Whether each of several tasks has an adapter of its own."""
        return self.multi_task is not None and self.multi_task.adapters == "per_task"

    @property
    def entry(self) -> DataEntry:
        """The one data entry; of a recipe of several tasks each has a recipe of its own, see `luthier.spec.tasks`."""
        assert len(self.data.train) == 1, "a recipe of several tasks has no one entry"
        return self.data.train[0]
