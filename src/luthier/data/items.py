"""Rows under way from file to shard, and the ledger that knows the fate of each."""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from luthier.data.contract import prepare_text
from luthier.data.dedupe import text_key
from luthier.data.inputs import as_text
from luthier.data.privacy.profiles import FAST, Detector
from luthier.data_report import DuplicateExample, RowFate, StepCount, TextChange
from luthier.records import Contamination, Message, SplitName

_SHOWN_CHANGES = 8
_SHOWN_REPEATS = 4
_LOOKED_AT = 100
_SHOWN_CHARS = 400

Verdict = tuple[str, str]
"""Why a row is set aside: reason and detail."""


@dataclass(slots=True)
class Item:
    """A row under way."""

    file: str
    """As the recipe names it; of a folder, with the file in it."""
    line: int
    origin: SplitName | None
    """The split that the row's own file stands for; None where the file is split by us."""
    values: dict[str, object]
    """The row's cells; once it is refined, only those that the split asks for."""
    row: int = 0
    """Running number over all files, from 0."""
    group: str = ""
    text: str = ""
    answer: str = ""
    rejected: str = ""
    """Of a preference: the other answer."""
    turns: tuple[Message, ...] = ()
    """Of a chat row; empty otherwise."""
    split: SplitName = "train"
    contaminated: Contamination = ""
    digest: bytes = b""
    """Of `key`, by which refined rows are told to be equal."""
    made_by: str = ""
    """Technique that made the row, or 'canary'; '' for a row of a file."""
    parent: str = ""
    """File and line of the row that an offspring was made from; '' for all other rows."""
    lost_tokens: int = 0
    """Cut out of the text, so that the row fits."""

    def __reduce__(self) -> tuple[type[Item], tuple[object, ...]]:
        """As its fields in order: rows go from process to process, and the names of fields need not go along."""
        return Item, _fields_of(self)

    @property
    def key(self) -> str:
        """What the row asks, for comparison with other rows."""
        if not self.turns:
            return text_key(self.text)
        return text_key("\n".join(f"{turn.role}: {turn.content}" for turn in self.turns[:-1]))


_fields_of = operator.attrgetter(*(one.name for one in dataclasses.fields(Item)))


def digest_of(text: str) -> bytes:
    """128 bits that stand for a text; among 2^32 texts two share them with probability 2^-65."""
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def answer_of(item: Item) -> str:
    """What the row teaches: its label, its answer, or the last turn of its conversation."""
    return item.turns[-1].content if item.turns else item.answer


def said_in(item: Item) -> str:
    """All that is answered in a row, for comparison with other rows: both answers of a preference."""
    return f"{answer_of(item)}\0{item.rejected}" if item.rejected else answer_of(item)


CANARY = "canary"
"""`made_by` of a planted row, whose answer is a secret and no label."""


def labels_of(items: Iterable[Item]) -> set[str]:
    """Answers of all rows but canaries."""
    return {item.answer for item in items if item.made_by != CANARY}


def place_beside(item: Item, first: Item) -> str:
    """Where a row stands that another one is set aside for; the file is said where it is not the same."""
    return f"line {first.line}" if item.file == first.file else f"{first.file}:{first.line}"


def item_text(item: Item) -> str:
    """As it is written, not as it is compared: small letters hide names."""
    return item.text or "\n".join(turn.content for turn in item.turns)


class Tally(NamedTuple):
    """What became of some rows, as it goes from process to process."""

    fates: list[RowFate]
    steps: list[StepCount]
    changes: list[TextChange]


class Ledger:
    """Counts rows in and out of every step and keeps the fate of each row that is set aside."""

    def __init__(self, detector: Detector = FAST, transforms: Sequence[str] = ()) -> None:
        self.detector = detector
        """What masks the texts that are shown; that of the recipe."""
        self._transforms = transforms
        self.rows_in = 0
        self.fates: list[RowFate] = []
        self.steps: list[StepCount] = []
        self.changes: list[TextChange] = []
        self._looked_at = 0
        self.duplicates: list[DuplicateExample] = []
        self.unmade: Counter[tuple[str, str]] = Counter()
        """(technique, reason) -> rows that were made here and set aside again; they stand in no file."""

    def fault(self, file: str, line: int, verdict: Verdict) -> None:
        """A row that never became an item."""
        self.fates.append(RowFate(file=file, line=line, reason=verdict[0], detail=verdict[1]))

    def sift(
        self, step: str, items: Sequence[Item], verdicts: Sequence[Verdict | None], *, changed: int = 0
    ) -> list[Item]:
        """Set aside each item that has a verdict and hand on the others."""
        kept = [item for item, verdict in zip(items, verdicts, strict=True) if verdict is None]
        for item, verdict in zip(items, verdicts, strict=True):
            if verdict is not None and item.made_by:
                self.unmade[item.made_by, verdict[0]] += 1
            elif verdict is not None:
                self.fault(item.file, item.line, verdict)
        self.steps.append(StepCount(step=step, rows_in=len(items), rows_out=len(kept), rows_changed=changed))
        return kept

    def grown(self, step: str, rows: int, added: int) -> None:
        """A step that adds rows to those that came in."""
        self.steps.append(StepCount(step=step, rows_in=rows, rows_out=rows + added, rows_changed=0))

    def changed(self, item: Item, before: str) -> None:
        """What cleaning made of a text; the first few in which nothing is found are kept, for people to look at.

        Before it was cleaned, a find may be written so that no detector knows it ('ana&#64;example.org').
        """
        if len(self.changes) == _SHOWN_CHANGES or self._looked_at == _LOOKED_AT or before.strip() == item.text:
            return
        self._looked_at += 1
        if not self.detector.find(item.text):
            change = TextChange(
                file=item.file, line=item.line, before=self._masked(before), after=self._masked(item.text)
            )
            self.changes.append(change)

    def tally(self) -> Tally:
        """What was counted, without what counts."""
        return Tally(self.fates, self.steps, self.changes)

    def join(self, part: Tally) -> None:
        """Take over what became of some of the rows, counted elsewhere; parts come in the order of their rows."""
        self.fates += part.fates
        self.changes += part.changes[: _SHOWN_CHANGES - len(self.changes)]
        places = {one.step: place for place, one in enumerate(self.steps)}
        for one in part.steps:
            if one.step not in places:
                self.steps.append(one)
                continue
            known = self.steps[places[one.step]]
            self.steps[places[one.step]] = StepCount(
                step=one.step,
                rows_in=known.rows_in + one.rows_in,
                rows_out=known.rows_out + one.rows_out,
                rows_changed=known.rows_changed + one.rows_changed,
            )

    def repeats(self, item: Item, first: Item, likeness: float) -> None:
        """A row that says what an earlier one says; the first few of each kind are kept, masked."""
        same = likeness == 1.0
        if sum((one.likeness == 1.0) == same for one in self.duplicates) < _SHOWN_REPEATS:
            text, of_text = (self.shown(item_text(one))[:_SHOWN_CHARS] for one in (item, first))
            example = DuplicateExample(
                file=item.file, line=item.line, of_file=first.file, of_line=first.line, likeness=likeness, text=text,
                of_text=of_text,
            )  # fmt: skip
            self.duplicates.append(example)

    def shown(self, text: str) -> str:
        """As it may be shown at any time: cleaning, which may be still to come, uncovers what must be masked."""
        return prepare_text(
            text, transforms=self._transforms, redact_personal=True, redact_secrets=True, detector=self.detector
        )

    def _masked(self, text: str) -> str:
        """Cut after masking, so that no half of an address is left over."""
        return self.detector.scrub(text, personal=True, secrets=True)[:_SHOWN_CHARS]

    @property
    def dropped(self) -> dict[str, int]:
        """Reason -> rows, most frequent first."""
        counts = Counter(fate.reason for fate in self.fates)
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def summary(self) -> str:
        """Why rows were set aside, in one line."""
        return ", ".join(f"{count} {reason}" for reason, count in self.dropped.items()) or "none was set aside"


def group_of(column: str, value: str) -> str:
    """Name of the group of all rows with this value in a column."""
    return blake2b(f"{column}={value}".encode(errors="surrogatepass"), digest_size=8).hexdigest()


def name_item(item: Item, group_by: str) -> None:
    """Set digest and group: a pseudonym for what the column holds, else for what the row asks; it may be an address."""
    key = item.key
    item.digest = digest_of(key)
    value = as_text(item.values.get(group_by)).strip() if group_by else ""
    item.group = group_of(group_by, value) if value else group_of("text", key)
