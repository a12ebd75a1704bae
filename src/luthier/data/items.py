"""Rows under way from file to shard, and the ledger that knows the fate of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from luthier.data.bad_rows import FaultCounts, Keep, quarantine, refuse_bad_rows
from luthier.data.dedupe import text_key
from luthier.data.features import FAILED, Features, freeze, input_columns
from luthier.data.inputs import as_text, missing_column
from luthier.data.privacy.profiles import FAST, Detector
from luthier.data.read import Row, read_source
from luthier.data.source import open_source
from luthier.data_report import FeatureExample, FeatureReport, RowFate, StepCount, TextChange
from luthier.records import Contamination, Feature, Message, SplitName
from luthier.spec.recipe import Data, Recipe
from luthier.spec.resolve import ResolvedRecipe

_SHOWN_CHANGES = 8
_SHOWN_CHARS = 400
_EXAMPLES, _LOOKED_AT = 4, 200

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
    group: str = ""
    text: str = ""
    answer: str = ""
    turns: tuple[Message, ...] = ()
    """Of a chat row; empty otherwise."""
    split: SplitName = "train"
    contaminated: Contamination = ""

    @property
    def key(self) -> str:
        """What the row asks, for comparison with other rows."""
        if not self.turns:
            return text_key(self.text)
        return text_key("\n".join(f"{turn.role}: {turn.content}" for turn in self.turns[:-1]))


class Ledger:
    """Counts rows in and out of every step and keeps the fate of each row that is set aside."""

    def __init__(self, detector: Detector = FAST) -> None:
        self.detector = detector
        """What masks the texts that are shown; that of the recipe."""
        self.rows_in = 0
        self.fates: list[RowFate] = []
        self.quarantined = 0
        self.steps: list[StepCount] = []
        self.changes: list[TextChange] = []
        self.features: tuple[FeatureReport, ...] = ()

    def fault(self, file: str, line: int, verdict: Verdict) -> None:
        """A row that never became an item."""
        self.fates.append(RowFate(file=file, line=line, reason=verdict[0], detail=verdict[1]))

    def sift(
        self, step: str, items: Sequence[Item], verdicts: Sequence[Verdict | None], *, changed: int = 0
    ) -> list[Item]:
        """Set aside each item that has a verdict and hand on the others."""
        kept = [item for item, verdict in zip(items, verdicts, strict=True) if verdict is None]
        for item, verdict in zip(items, verdicts, strict=True):
            if verdict is not None:
                self.fault(item.file, item.line, verdict)
        self.steps.append(StepCount(step=step, rows_in=len(items), rows_out=len(kept), rows_changed=changed))
        return kept

    def changed(self, item: Item, before: str) -> None:
        """What cleaning made of a text; the first few are kept, masked, for people to look at."""
        if len(self.changes) < _SHOWN_CHANGES and before.strip() != item.text:
            change = TextChange(
                file=item.file, line=item.line, before=self._masked(before), after=self._masked(item.text)
            )
            self.changes.append(change)

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


def load(resolved: ResolvedRecipe, ledger: Ledger, *, bad: Path | None = None) -> list[Item]:
    """All readable rows of the recipe's files, in order; the others go to the ledger, and into quarantine.

    Args:
        resolved: names the files.
        ledger: learns of rows that cannot be read.
        bad: where those are kept; None keeps them nowhere.

    Raises:
        DataError: a file cannot be used, has too many rows that cannot be read, or does not have a column that the
            recipe names.
    """
    data, entry = resolved.recipe.data, resolved.recipe.entry
    files: list[tuple[str, SplitName | None]] = [(entry.path, None)]
    files += [(file, name) for file, name in _own_splits(data) if file is not None]
    items: list[Item] = []
    keep_personal = data.privacy is None or data.privacy.action == "report"
    with quarantine(bad, detector=ledger.detector, keep_personal=keep_personal) as keep:
        for file, origin in files:
            items += _load(resolved, ledger, file=file, origin=origin, keep=keep)
    failed = ledger.dropped.get(FAILED, 0)
    ledger.steps.append(StepCount(step="read", rows_in=ledger.rows_in, rows_out=len(items) + failed, rows_changed=0))
    if data.features:
        count = StepCount(
            step="features", rows_in=len(items) + failed, rows_out=len(items), rows_changed=len(items)
        )  # fmt: skip
        ledger.steps.append(count)
        ledger.features = report_features(resolved.recipe, items, ledger)
    return items


def _own_splits(data: Data) -> tuple[tuple[str | None, SplitName], ...]:
    return (data.validation, "validation"), (data.test, "test")


def _load(resolved: ResolvedRecipe, ledger: Ledger, *, file: str, origin: SplitName | None, keep: Keep) -> list[Item]:
    entry, path = resolved.recipe.entry, resolved.file(file)
    own: list[Item] = []
    faults = FaultCounts()
    query = None if file in resolved.fetched else entry.query  # what was fetched are the rows of the query
    source = (
        open_source(path, format=entry.format, sheet=entry.sheet, query=query) if origin is None else open_source(path)
    )
    before = ledger.rows_in
    frozen = freeze(resolved.recipe)
    computed = Features(frozen, resolved.recipe.data.columns).each if frozen else iter
    for read in computed(read_source(source)):
        ledger.rows_in += 1
        name = f"{file}/{read.file}" if read.file else file
        if isinstance(read, Row):
            own.append(Item(name, read.line, origin, read.values))
            continue
        ledger.fault(name, read.line, (read.reason, read.detail))
        ledger.quarantined += 1
        faults.add(read)
        keep(name, read, source.encoding)
    refuse_bad_rows(path, faults.records(), ledger.rows_in - before, resolved.recipe.data)
    _check_columns(resolved, str(path), own, computed=frozen, is_train=origin is None)
    return own


def _check_columns(
    resolved: ResolvedRecipe, file: str, items: Sequence[Item], *, computed: Sequence[Feature], is_train: bool
) -> None:
    columns = dict.fromkeys(name for item in items for name in item.values)
    entry = resolved.recipe.entry
    for name in input_columns(entry.input, computed):
        if name not in columns:
            raise missing_column(
                name, columns, key=f"{file}: data.train[0].input{' or data.features' * bool(computed)}"
            )
    if entry.label and entry.label not in columns:
        raise missing_column(entry.label, columns, key=f"{file}: data.train[0].label")
    split = resolved.recipe.data.split
    for key, column in (("group_by", split.group_by), ("by_time", split.by_time), ("column", split.column)):
        if is_train and column and column not in columns:
            raise missing_column(column, columns, key=f"{file}: data.split.{key}")


def report_features(recipe: Recipe, items: Sequence[Item], ledger: Ledger) -> tuple[FeatureReport, ...]:
    """Counts of each feature, and its first values in rows in which nothing personal is found."""
    made = []
    for feature in freeze(recipe):
        key = f"data.features.{feature.name}: "
        made.append(
            FeatureReport(
                name=feature.name,
                sql=feature.sql,
                type=feature.type,
                rows=len(items),
                empty=sum(item.values.get(feature.name) is None for item in items),
                failed=sum(fate.reason == FAILED and fate.detail.startswith(key) for fate in ledger.fates),
                examples=tuple(islice(_examples(feature, items[:_LOOKED_AT], ledger.detector), _EXAMPLES)),
            )
        )
    return tuple(made)


def _examples(feature: Feature, items: Sequence[Item], detector: Detector) -> Iterator[FeatureExample]:
    """Rows with values that were not shown yet. An address may be made of cells that are none by themselves."""
    shown = set[str]()
    for item in items:
        cells = {name: as_text(item.values.get(name)) for name in feature.uses}
        value = as_text(item.values.get(feature.name))
        if value not in shown and not any(detector.find(text) for text in (value, " ".join(cells.values()))):
            shown.add(value)
            short = {name: text[:_SHOWN_CHARS] for name, text in cells.items()}
            yield FeatureExample(line=item.line, cells=short, value=value[:_SHOWN_CHARS])


def name_group(item: Item, group_by: str) -> str:
    """A pseudonym for the row's group: what the column holds, else what the row asks, hashed (it may be an address)."""
    value = as_text(item.values.get(group_by)).strip() if group_by else ""
    source = f"{group_by}={value}" if value else f"text={item.key}"
    return blake2b(source.encode(errors="surrogatepass"), digest_size=8).hexdigest()
