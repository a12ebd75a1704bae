"""How much there is to compute: rows, tokens and labels, before any row was cleaned or tokenized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from luthier.errors import DataError, RecipeError
from luthier.records import DataProfile, is_text, longest_open_answer
from luthier.spec.fill_baselines import examples_of, shows_examples
from luthier.spec.plugins import METHODS, MethodFacts
from luthier.spec.recipe import Data, DataEntry, Recipe, RowLimit
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.suits import is_counted, labels_of
from luthier.spec.template import Field, literals, parse

TURN_TOKENS = 5
"""Tokens of a turn beside its text, e.g. '<|im_start|>', role, line break, '<|im_end|>', line break."""

CLOSING_TOKENS = 2
"""Of these, what closes the turn: '<|im_end|>', line break."""

END_TOKENS = 1
"""Tokens that end an answer and are supervised with it, e.g. '<|im_end|>'."""

LONG_STEP = 1.5
"""The longest step of a run over the mean one; memory is planned for it."""


FEATURE_CHARS = 12
"""Length that is taken for a computed column."""


@dataclass(frozen=True)
class Workload:
    """Rows and mean lengths; the rows are those of the file, so cleaning can only make them fewer."""

    read_rows: int
    """Of all files, before any limit."""
    train_rows: int
    validation_rows: int
    test_rows: int
    num_labels: int
    """0 where the answers are not a closed set."""
    rarest_share: float
    """Share of the rows that carry the rarest label; 0 where unknown."""
    prompt_tokens: float
    shared_tokens: float
    """Of a prompt, what all rows begin with: the system turn and the start of the user's."""
    answer_tokens: float
    """Mean length of an answer, its end included."""
    max_answer_tokens: float
    """What free text may take; the mean answer where answers are labels."""
    trained_tokens: int
    """Tokens that training computes, over all epochs."""
    whole_epochs: float
    """Epochs that `trained_tokens` make."""
    micro_batch_rows: float
    """Mean rows that are computed at once."""
    largest_micro_batch: float
    """Tokens of the largest micro-batch, what rows share counted once; never less than the longest row."""
    longest_prompt: float
    """Tokens of it, as far as train.max_length lets it be."""
    is_paired: bool = False
    """Whether a row is a prompt with two answers, which `answer_tokens` counts together and which are scored."""
    reference_rows: int = 0
    """Rows that the base reads once before training, for methods that measure from it."""
    head: bool = False
    """Whether a head answers: no answer is computed but those of a pair, which it scores, and no label scored token by
    token.
    """
    counted: tuple[float, float] | None = None
    """Tokens that training computes and that it supervises, where they have been counted."""
    is_text: bool = False
    """Whether rows are pieces of documents, all of them learned: nothing is answered when they are evaluated."""
    shown_tokens: float = 0.0
    """What the examples of a few-shot prompt add to it, as far as they fit; 0 where rows are none."""
    asks_few_shot: bool = False
    """Whether the recipe evaluates few-shot prompting."""
    answers_written: int = 0
    """That the model writes to a row while it learns, and learns from; 0 where it learns the one that is there."""
    written_tokens: float = 0.0
    """Of each, at most."""

    @property
    def few_shot(self) -> Workload:
        """The same rows asked with examples before them."""
        return replace(self, prompt_tokens=self.prompt_tokens + self.shown_tokens)

    @property
    def row_tokens(self) -> float:
        return self.prompt_tokens + self.answer_tokens

    @property
    def computed_tokens(self) -> float:
        """Tokens that training really computes: what rows share, once a micro-batch."""
        if self.counted is not None:
            return self.counted[0]
        rows = self.trained_tokens / self.row_tokens
        return rows * self.own_tokens + rows / self.micro_batch_rows * self.shared_tokens

    @property
    def own_tokens(self) -> float:
        """Tokens that training computes for a row beside what all rows share."""
        answers = self.learned_tokens if self.is_paired or not self.head else 0.0
        return max(1.0, self.prompt_tokens - self.shared_tokens + answers)

    @property
    def learned_tokens(self) -> float:
        """Of the answers of a row."""
        return self.answers_written * self.written_tokens if self.answers_written else self.answer_tokens

    @property
    def supervised_tokens(self) -> float:
        """Positions of all rows, over all epochs, that have logits of the vocabulary in training."""
        if self.head or self.counted is not None:
            return 0.0 if self.counted is None else self.counted[1]
        return self.trained_tokens / self.row_tokens * self.learned_tokens

    @property
    def distinct_tokens(self) -> float:
        """Tokens that one pass over the rows really computes."""
        return self.computed_tokens / max(1.0, self.whole_epochs)

    @property
    def rows_per_label(self) -> float:
        """Training rows a label; infinite rows for an open task would mislead, so it is NaN there."""
        return self.train_rows / self.num_labels if self.num_labels else float("nan")


def workload(resolved: ResolvedRecipe, profile: DataProfile, *, tokens_per_char: float) -> Workload:
    """Rows, tokens and labels of a run.

    Raises:
        RecipeError: the input template or the label names a column that the file does not have.
        DataError: a split file of the user's own is missing, or a closed set of labels is of one label.
    """
    recipe = resolved.recipe
    entry, split, limit, train = recipe.entry, recipe.data.split, recipe.data.limit, recipe.train
    assert split.test is not None
    assert split.validation is not None
    assert train.max_length is not None
    assert train.num_train_epochs is not None
    assert train.batch_size is not None
    assert train.micro_batch_tokens is not None
    own_test, own_validation = recipe.data.test, recipe.data.validation
    texts = is_text(entry.task)
    input_chars = (
        _template_chars(entry.input, profile, computed=recipe.data.features)
        if entry.input
        else profile.mean_input_chars
    )
    rows = profile.num_rows
    piece = min(float(train.max_length), 1 + input_chars * tokens_per_char)
    if texts:  # rows are pieces; a limit counts documents, taken for as long as the rows of the file
        pieces = (1 + input_chars * tokens_per_char) / piece
        rows = max(1, round(rows * pieces))
        limit = RowLimit.model_validate(
            {name: round(most * pieces) for name, most in limit.model_dump(exclude_none=True).items()}
        )
    like = [_rows_like(resolved, profile, one, rows=rows) if one else 0 for one in (own_test, own_validation)]
    test = like[0] if own_test else round(rows * split.test)
    validation = like[1] if own_validation else round(rows * split.validation)
    train_rows = rows - (0 if own_test else test) - (0 if own_validation else validation)
    train_rows = max(1, min(train_rows, limit.train or train_rows))
    labels, counted = _labels(recipe, profile), is_counted(entry.label, profile)
    if counted and len(labels) == 1:
        raise _one_label(next(iter(labels)), profile)
    learned_rows = float(train_rows + made_rows(recipe.data, train_rows, labels))
    if recipe.data.teacher is not None and recipe.data.teacher.path is not None:
        written = _rows_like(resolved, profile, recipe.data.teacher.path, rows=profile.num_rows)
        learned_rows += min(written, recipe.data.teacher.max_requests)
    if (replay := getattr(recipe.method, "replay", None)) is not None:  # a share of all tokens that are learned
        learned_rows /= 1.0 - replay.share

    turns = 3 if entry.system else 2
    prompt = TURN_TOKENS * turns - CLOSING_TOKENS + (len(entry.system or "") + input_chars) * tokens_per_char
    answer = _answer_chars(entry.label, profile) * tokens_per_char + END_TOKENS
    if entry.task == "preference":
        answer = _both_chars(entry, profile) * tokens_per_char + 2 * END_TOKENS
    prompt = min(prompt, train.max_length - 1.0)
    answer = max(1.0, min(answer, train.max_length - prompt))
    shared = min(
        prompt, TURN_TOKENS * (turns - 2) + len(entry.system or "") * tokens_per_char + TURN_TOKENS - CLOSING_TOKENS
    )
    own_turns = prompt - (len(entry.system or "") * tokens_per_char + (TURN_TOKENS if entry.system else 0)) + answer
    shown = max(0.0, min(examples_of(recipe) * own_turns, train.max_length - prompt - answer))
    if texts:
        prompt, answer, shared = 1.0, piece - 1.0, 0.0
    if recipe.is_noisy:  # every row is its own then
        shared = 0.0
    head = METHODS.get(recipe.method.type).has_head
    written, each = recipe.method.answers, 0.0
    if written:
        each = float(recipe.method.answer_tokens or longest_open_answer(train.max_length))
    unread = head and entry.task != "preference"
    own = max(1.0, prompt - shared + (0.0 if unread else written * each if written else answer))
    more = max(0.0, _longest_chars(entry, profile) - input_chars) * tokens_per_char
    longest_prompt = prompt if texts else min(train.max_length - 1.0, prompt + more)
    longest_row = piece if texts else min(float(train.max_length), longest_prompt + own - (prompt - shared))
    step = max(LONG_STEP * train.batch_size * own, (train.batch_size - 1) * own + longest_row - shared) + shared
    at_once = max(1.0, min(float(train.batch_size), (train.micro_batch_tokens - shared) / own))
    asked = round(learned_rows * (prompt + answer) * train.num_train_epochs)
    trained = min(asked, train.max_tokens or asked)

    return Workload(
        read_rows=rows + (test if own_test else 0) + (validation if own_validation else 0),
        train_rows=train_rows,
        validation_rows=min(validation, limit.validation or validation),
        test_rows=max(1, min(test, limit.test or test)),
        num_labels=len(labels),
        rarest_share=min(labels.values(), default=0) / max(1, sum(labels.values())) if counted else 0.0,
        prompt_tokens=prompt,
        shared_tokens=shared,
        answer_tokens=answer,
        max_answer_tokens=answer,
        trained_tokens=trained,
        whole_epochs=train.num_train_epochs * trained / asked,
        micro_batch_rows=at_once,
        largest_micro_batch=max(min(train.micro_batch_tokens, step), longest_row),
        longest_prompt=longest_prompt,
        head=head,
        is_paired=entry.task == "preference",
        reference_rows=_reference_rows(METHODS.get(recipe.method.type), train_rows, validation),
        is_text=texts,
        shown_tokens=shown if shows_examples(entry.task) else 0.0,
        asks_few_shot="few_shot" in (recipe.evaluate.baselines or ()),
        answers_written=written,
        written_tokens=each,
    )


def _reference_rows(method: MethodFacts, train_rows: int, validation: int) -> int:
    """That the base reads: those that are learned and judged; with other answers too, where steps are read so."""
    if method.reward != "implicit":
        return 0
    return train_rows * (2 if method.reads_steps else 1) + validation


def made_rows(data: Data, train_rows: int, labels: Mapping[str, int]) -> int:
    """Offspring and canaries that will be learned beside so many rows, should all that is asked for be made."""
    made = data.canaries.count * sum(data.canaries.copies) if data.canaries is not None else 0
    rules = data.augment
    if rules is None:
        return made
    if rules.balance is not None:
        shares = [count / sum(labels.values()) for count in labels.values()]
        goal = rules.balance * max(shares, default=0.0)
        missing = sum(min(goal - share, rules.max_per_row * share) for share in shares if share < goal)
        return made + round(train_rows * missing)
    asked = sum(share or 0.0 for share in (rules.typos, rules.case, rules.punctuation, rules.swap))
    rows = train_rows * asked
    if rules.paraphrase is not None:
        rows += min(train_rows * rules.paraphrase.share, rules.paraphrase.max_requests)
    return made + round(min(rows, train_rows * rules.max_per_row))


def _rows_like(resolved: ResolvedRecipe, profile: DataProfile, path: str, *, rows: int) -> int:
    """Rows of another file of the same kind, from its size beside that of `rows`: it is read when data is prepared."""
    file = resolved.file(path)
    if not file.exists():
        raise DataError(f"{path}: the split file is missing", way_out="correct data.test or data.validation")
    size = sum(one.stat().st_size for one in file.rglob("*") if one.is_file()) if file.is_dir() else file.stat().st_size
    return max(1, round(size * rows / max(1, profile.num_bytes)))


def _column_chars(name: str, key: str, profile: DataProfile) -> float:
    for column in profile.columns:
        if column.name == name:
            return column.mean_chars
    have = ", ".join(column.name for column in profile.columns)
    raise RecipeError(f"{key} names the column {name!r}, which {profile.path} does not have", way_out=f"it has: {have}")


def _template_chars(template: str, profile: DataProfile, *, computed: Mapping[str, str]) -> float:
    """Mean length of the filled-in template in characters; features are taken for short, none is computed yet."""
    named = [part.name for part in parse(template) if isinstance(part, Field)]
    columns = [name for name in named if name not in computed]
    short = FEATURE_CHARS * (len(named) - len(columns))
    return (
        len(literals(template)) + short + sum(_column_chars(name, "data.train[0].input", profile) for name in columns)
    )


def _labels(recipe: Recipe, profile: DataProfile) -> Mapping[str, int]:
    return labels_of(recipe.entry.task, recipe.entry.label, profile, rename=recipe.data.labels.rename)


def _one_label(label: str, profile: DataProfile) -> DataError:
    return DataError(
        f"{profile.path}: all rows have the label {label!r}, so there is nothing to tell apart",
        way_out="give rows of other labels, or name another column as data.train[0].label",
    )


def _longest_chars(entry: DataEntry, profile: DataProfile) -> float:
    """Of the columns that the input names, each at its longest: no row is longer. Of chats only the mean is known."""
    if not entry.input:
        return profile.mean_input_chars
    named = {part.name for part in parse(entry.input) if isinstance(part, Field)}
    return len(literals(entry.input)) + sum(one.longest_chars for one in profile.columns if one.name in named)


def _answer_chars(label: str | None, profile: DataProfile) -> float:
    return _column_chars(label, "data.train[0].label", profile) if label else profile.mean_answer_chars


def _both_chars(entry: DataEntry, profile: DataProfile) -> float:
    """Mean length of both answers of a pair together; conversations are profiled as such."""
    if not entry.input:
        return profile.mean_answer_chars
    return sum(
        _column_chars(column, f"data.train[0].{key}", profile)
        for key, column in (("label", entry.label or ""), ("rejected", entry.rejected or ""))
    )
