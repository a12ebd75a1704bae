"""What a data file holds and what its columns are for, by the names people use and by what stands in them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from luthier.data.bad_rows import FaultCounts
from luthier.data.chat import looks_like_chat, parse_chat
from luthier.data.columns import common_type, type_of
from luthier.data.inputs import as_text
from luthier.data.license import stated_license
from luthier.data.privacy import scrub
from luthier.data.read import Row, read_source
from luthier.data.source import Source, fingerprint, num_bytes, open_source
from luthier.records import ColumnProfile, ColumnType, DataProfile, Shape, Task
from luthier.spec.plugins import READERS
from luthier.spec.template import field as field_of

Kind = Literal["text", "label", "number", "date", "id", "messages", "empty"]

_LABEL_CHARS = 100
_MOST_LABELS = 500
_LOOKED_AT = 2000
"""Cells of a column that are looked at closely; counts are taken over all."""
_MOST_VALUES = 200_000
"""Different values of a column that are told apart; a bound on memory."""

_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:[ ,.]\d{3})+|\d+)?(?:[.,]\d+)?(?:[eE][-+]?\d+)?%?")
_DATE = re.compile(
    r"(?:\d{4}[-/.]\d{1,2}(?:[-/.]\d{1,2})?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}|\d{1,2}\.? [A-Za-z]{3,9}\.?,? \d{4})"
    r"(?:[T ]+\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?(?:Z|UTC|[+-]\d{2}:?\d{2}))?)?"
)
_ID_NAME = re.compile(r"(?:^|[^a-z])(?:id|uuid|guid|ids|doi|url|uri|link|issn|isbn|sku|hash)s?$")

_TEXT_NAMES = (
    "message", "text", "body", "content", "review", "comment", "utterance", "sentence", "description",
    "question", "query", "input", "email", "document", "post", "tweet", "headline", "nachricht", "texte",
    "texto", "mensaje",
)  # fmt: skip
_LABEL_NAMES = (
    "label", "labels", "intent", "category", "class", "sentiment", "topic", "tag", "polarity", "target", "type",
    "queue", "answer", "output", "response", "completion", "rating", "stars", "score", "kategorie", "categorie",
    "categoria", "klasse",
)  # fmt: skip
_SIDE_NAMES = frozenset((
    "channel", "lang", "language", "source", "status", "country", "split", "gender", "month", "year", "weekday",
    "licence", "license", "format", "version", "region",
))  # fmt: skip
"""Columns that repeat, but that describe how a row came to be rather than what it says."""
_GROUP_WORDS = frozenset((
    "customer", "client", "user", "patient", "account", "person", "member", "contact", "sender", "thread",
    "conversation", "dialog", "dialogue", "session", "case", "document", "doc", "page", "article", "book",
    "file", "group", "household", "speaker", "subject", "author", "kunde", "kunden", "cliente", "email",
))  # fmt: skip
_PROMPT_NAMES = ("prompt", "instruction", "question", "query", "input", "text", "document", "article")
_ANSWER_NAMES = (
    "completion", "response", "output", "answer", "reply", "summary", "solution", "canonical_solution", "code",
)  # fmt: skip
_CONTEXT_NAMES = ("context", "input", "passage")
_PAIRS = (("source", "target"), ("src", "tgt"), ("source_text", "target_text"))
_LANGUAGES = frozenset((
    "ar", "cs", "da", "de", "el", "en", "es", "fi", "fr", "he", "hi", "hu", "id", "it", "ja", "ko", "nl", "no",
    "pl", "pt", "ro", "ru", "sv", "tr", "uk", "vi", "zh",
))  # fmt: skip
_SENTIMENTS = frozenset((
    "positive", "negative", "neutral", "pos", "neg", "mixed",
))  # fmt: skip


@dataclass
class _Column:
    """Counts of one column."""

    name: str
    filled: int = 0
    empty: int = 0
    chars: int = 0
    longest: int = 0
    values: Counter[str | int] = field(default_factory=Counter)
    """Short values as they are, long ones as hashes."""
    looked_at: int = 0
    numbers: int = 0
    dates: int = 0
    chats: int = 0
    sharegpt: int = 0
    """Chats whose turns have 'from' and 'value'."""
    tokens: int = 0
    """Values without a blank."""
    digits: int = 0
    """Values with a digit."""
    lists: int = 0
    """Values such as 'a|b|c'."""
    answer_chars: int = 0
    """Characters of the assistant's turns, for chats."""
    cell_types: set[ColumnType] = field(default_factory=set)
    """Of cells that are not empty."""

    def add(self, cell: object) -> None:
        text = cell.strip() if isinstance(cell, str) else as_text(cell).strip()
        if not text or cell == []:
            self.empty += 1
            return
        self.cell_types.add("text" if isinstance(cell, str) else type_of(cell))
        length = len(text)
        self.filled += 1
        self.chars += length
        if length > self.longest:
            self.longest = length
        value = text if length <= _LABEL_CHARS else hash(text)  # equal texts only need to be told from others
        count = self.values.get(value)
        if count is not None:
            self.values[value] = count + 1
        elif len(self.values) < _MOST_VALUES:
            self.values[value] = 1
        is_chat = isinstance(cell, list) and looks_like_chat(cell)
        if is_chat:
            self._add_chat(cell, length)
        if self.looked_at < _LOOKED_AT:
            self._look_at(cell, text, is_chat)

    def _look_at(self, cell: object, text: str, is_chat: bool) -> None:
        self.looked_at += 1
        self.chats += is_chat
        self.sharegpt += is_chat and isinstance(cell, list) and "from" in cell[0]
        self.numbers += isinstance(cell, int | float) or _NUMBER.fullmatch(text) is not None
        self.dates += _DATE.fullmatch(text) is not None
        self.tokens += not any(char.isspace() for char in text)
        self.digits += any(char.isdigit() for char in text)
        self.lists += "|" in text

    def _add_chat(self, cell: object, counted: int) -> None:
        turns = parse_chat(cell)
        if not isinstance(turns, str):
            self.chars += sum(len(turn.content) for turn in turns if turn.role != "assistant") - counted
            self.answer_chars += sum(len(turn.content) for turn in turns if turn.role == "assistant")

    @property
    def mean_chars(self) -> float:
        return self.chars / self.filled if self.filled else 0.0

    @property
    def word(self) -> str:
        """The name in the way that names are compared."""
        return self.name.strip().lower().replace(" ", "_").replace("-", "_")

    @property
    def kind(self) -> Kind:
        if not self.filled:
            return "empty"
        most = 0.9 * self.looked_at
        if self.chats >= most:
            return "messages"
        if self.dates >= most:
            return "date"
        token_like = self.tokens >= most and self.mean_chars <= 200
        if token_like and _ID_NAME.search(self.word):
            return "id"
        if self.numbers >= most:
            return "label" if self.word in _LABEL_NAMES and self._repeats() else "number"
        if self._repeats():
            return "label"
        return "id" if token_like and self.digits >= 0.8 * self.looked_at else "text"

    def _repeats(self) -> bool:
        share = 2 if self.filled < 50 else 5
        return len(self.values) <= min(_MOST_LABELS, max(1, self.filled // share)) and self.longest <= _LABEL_CHARS

    @property
    def entropy(self) -> float:
        """Of the values, in nats: how much there is to predict."""
        return -sum(count / self.filled * math.log(count / self.filled) for count in self.values.values())

    def record(self) -> ColumnProfile:
        return ColumnProfile(
            name=self.name,
            kind=self.kind,
            distinct=len(self.values),
            empty=self.empty,
            mean_chars=self.mean_chars,
            longest_chars=self.longest,
            type=common_type(self.cell_types),
        )


@dataclass(frozen=True)
class _Reading:
    """What the columns seem to be for."""

    shape: Shape
    task: Task | None
    inputs: tuple[_Column, ...] = ()
    label: _Column | None = None
    rejected: _Column | None = None


def profile(
    path: Path, *, format: str | None = None, sheet: str | None = None, query: str | None = None
) -> DataProfile:
    """Read the file once and say what it holds.

    Args:
        path: a file of any format of the readers table, or a folder of such files.
        format: a name of the table; None detects it.
        sheet: of a workbook.
        query: of a database.

    Raises:
        DataError: the file as a whole cannot be used.
    """
    source = open_source(path, format=format, sheet=sheet, query=query)
    faults = FaultCounts()
    columns = {name: _Column(name) for name in source.columns}
    num_rows = good_rows = 0
    for item in read_source(source):
        num_rows += 1
        if not isinstance(item, Row):
            faults.add(item)
            continue
        for name, cell in item.values.items():
            if name not in columns:
                columns[name] = _Column(name, empty=good_rows)
            columns[name].add(cell)
        if len(item.values) < len(columns):
            for name in columns.keys() - item.values.keys():
                columns[name].empty += 1
        good_rows += 1
    return _record(source, list(columns.values()), num_rows, faults)


def _record(source: Source, columns: list[_Column], num_rows: int, faults: FaultCounts) -> DataProfile:
    part = source.parts[0] if source.parts else source
    reading = _document(columns) if READERS.get(part.format).is_document else _reading(columns)
    label = reading.label
    taken = [column for column in (*reading.inputs, label, reading.rejected) if column]
    is_chat = _is_chat(reading)
    counts = label.values.most_common() if label and reading.shape == "text_label" else []
    return DataProfile(
        path=str(source.path),
        sha256=fingerprint(source.path),
        num_bytes=num_bytes(source.path),
        format=source.format,
        encoding=source.encoding,
        delimiter=source.delimiter,
        num_rows=num_rows,
        columns=tuple(column.record() for column in columns),
        shape=reading.shape,
        task=reading.task,
        input="" if is_chat else "\n\n".join(field_of(column.name) for column in reading.inputs),
        label=label.name if label else "",
        rejected=reading.rejected.name if reading.rejected else "",
        group_by=_group([column for column in columns if column not in taken]),
        labels=_without_findings(sorted(((str(text), n) for text, n in counts), key=lambda pair: (-pair[1], pair[0]))),
        mean_input_chars=sum(column.mean_chars for column in reading.inputs),
        mean_answer_chars=_mean_answer(reading),
        sheet=source.sheet,
        query=source.query,
        license=stated_license(source.path),
        faults=faults.records(),
    )


def _without_findings(counts: Sequence[tuple[str, int]]) -> dict[str, int]:
    """Label -> rows, with placeholders for secrets and personal data: a profile is kept and shown."""
    labels: dict[str, int] = {}
    for text, count in counts:
        name = shown = scrub(text, personal=True, secrets=True)
        number = 1
        while name in labels:
            number += 1
            name = f"{shown} ({number})"
        labels[name] = count
    return labels


def _mean_answer(reading: _Reading) -> float:
    answers = [column for column in (reading.label, reading.rejected) if column]
    if _is_chat(reading):
        return sum(chat.answer_chars / chat.filled for chat in answers or reading.inputs)
    return sum(column.mean_chars for column in answers)


def _is_chat(reading: _Reading) -> bool:
    return bool(reading.inputs) and reading.inputs[0].kind == "messages"


def _document(columns: Sequence[_Column]) -> _Reading:
    """Parts of a running text, whatever their headings look like."""
    return _Reading("plain_text", "domain", tuple(column for column in columns if column.name == "text"))


def _reading(columns: Sequence[_Column]) -> _Reading:
    by_word = {column.word: column for column in columns}
    if {"chosen", "rejected"} <= by_word.keys():  # before chats, which both may be
        return _preference(by_word["chosen"], by_word["rejected"], _named(_PROMPT_NAMES, columns))
    for column in columns:
        if column.kind == "messages":
            return _Reading("sharegpt" if column.sharegpt * 2 > column.chats else "messages", "generation", (column,))
    texts = [column for column in columns if column.kind == "text"]
    for source, target in _PAIRS:
        if source in by_word and target in by_word and by_word[source] in texts and by_word[target] in texts:
            return _Reading("source_target", "translation", (by_word[source],), by_word[target])
    spoken = [column for column in texts if column.word[:2] in _LANGUAGES and len(column.word) in (2, 5)]
    if len(spoken) == 2:
        return _Reading("source_target", "translation", (spoken[0],), spoken[1])
    answer = _named(_ANSWER_NAMES, [column for column in columns if column.kind in ("text", "number")])
    prompt = _named(_PROMPT_NAMES, [column for column in texts if column is not answer])
    label = _label(columns)
    if answer and prompt and (label is None or label.word not in _LABEL_NAMES):
        context = _named(_CONTEXT_NAMES, [one for one in columns if one not in (answer, prompt) and one.longest > 0])
        shape: Shape = "alpaca" if (prompt.word, answer.word) == ("instruction", "output") else "prompt_completion"
        return _Reading(shape, "generation", (prompt, context) if context else (prompt,), answer)
    text = _input([column for column in columns if column is not label])
    if label is None and text is not None and (texts == [text] or text.word in _TEXT_NAMES):
        return _Reading("plain_text", "domain", (text,))
    if label is None or text is None:
        return _Reading("unknown", None)
    words = {str(value).lower() for value in label.values}
    sentiment = len(words) > 1 and words <= _SENTIMENTS
    return _Reading("text_label", "sentiment" if sentiment else "classification", (text,), label)


def _preference(chosen: _Column, rejected: _Column, prompt: _Column | None) -> _Reading:
    """Two answers to a prompt, or two conversations that differ in their last turn."""
    if chosen.kind == "messages":
        return _Reading("preference", "preference", (chosen,), chosen, rejected)
    inputs = (prompt,) if prompt is not None and prompt.kind != "messages" else ()
    return _Reading("preference", "preference" if inputs else None, inputs, chosen, rejected)


def _named(names: Sequence[str], columns: Sequence[_Column]) -> _Column | None:
    """The column with the first of the names that there is."""
    return next((column for name in names for column in columns if column.word == name), None)


def _label(columns: Sequence[_Column]) -> _Column | None:
    """A label column by name; else the one that says most, numbers last; side facts never: nobody asks for those."""
    candidates = [column for column in columns if column.kind == "label"]
    named = _named(_LABEL_NAMES, candidates)
    if named is not None:
        return named
    candidates = [column for column in candidates if len(column.values) > 1]
    telling = [column for column in candidates if not set(re.split(r"\W|_", column.word)) & _SIDE_NAMES]
    numbers = [column for column in columns if column.kind == "number" and 2 <= len(column.values) <= 20]
    repeated = [column for column in numbers if len(column.values) * 5 <= column.filled]
    return max(telling or repeated, key=lambda column: column.entropy, default=None)


def _input(columns: Sequence[_Column]) -> _Column | None:
    """A text column by name; else the longest one that is prose rather than a list or a token."""
    texts = [column for column in columns if column.kind == "text"]
    prose = [column for column in texts if column.tokens < column.looked_at / 2 and column.lists < column.looked_at / 2]
    return _named(_TEXT_NAMES, texts) or max(prose or texts, key=lambda column: column.mean_chars, default=None)


def _group(columns: Sequence[_Column]) -> str:
    """A column that names whom or what a row is about: its values repeat, and none covers a fifth of the rows."""

    def repeated(column: _Column) -> int:
        return sum(count for count in column.values.values() if count > 1)

    candidates = []
    for column in columns:
        if column.kind not in ("id", "text", "label") or column.mean_chars > 80 or len(column.values) < 3:
            continue
        named = bool(set(re.split(r"\W|_", column.word)) & _GROUP_WORDS)
        enough = repeated(column) >= (2 if named else 0.1 * column.filled)
        largest = column.values.most_common(1)[0][1]
        if (named or column.kind == "id") and enough and largest <= max(2, 0.2 * column.filled):
            candidates.append((named, repeated(column), column.name))
    return max(candidates, default=(False, 0, ""))[2]
