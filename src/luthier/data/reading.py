"""From files to rows under way; those that cannot be read go to quarantine."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from luthier.data.bad_rows import FaultCounts, FirstBadRows, Keep, quarantine, refuse_bad_rows
from luthier.data.documents import read_documents
from luthier.data.feature_report import FeatureTally
from luthier.data.features import FAILED, Features, freeze, input_columns
from luthier.data.inputs import missing_column
from luthier.data.items import Item, Ledger
from luthier.data.read import Row, read_source
from luthier.data.source import open_source
from luthier.data.step import Facts
from luthier.data_report import StepCount
from luthier.records import Feature, SplitName, is_text
from luthier.spec.resolve import ResolvedRecipe


class Reading:
    """Reads all files of a recipe once, and knows what is to be told of it."""

    def __init__(self, resolved: ResolvedRecipe, ledger: Ledger, *, bad: Path | None = None) -> None:
        """Args:
        resolved: names the files.
        ledger: learns of rows that cannot be read.
        bad: where rows that cannot be read are kept; None keeps them nowhere.
        """
        self._resolved = resolved
        self._ledger = ledger
        self._bad = bad
        self._bad_rows = FirstBadRows(ledger.detector)
        self._quarantined = 0
        self._features = freeze(resolved.recipe)
        self._tally = FeatureTally(self._features, ledger.detector)

    def facts(self) -> Facts:
        """For the report, once all parts were read."""
        failures = [fate for fate in self._ledger.fates if fate.reason == FAILED]
        return {
            "rows_in": self._ledger.rows_in,
            "quarantined": self._quarantined,
            "bad_rows": self._bad_rows.records(),
            "features": self._tally.records(failures) if self._features else (),
        }

    def parts(self, size: int) -> Iterator[list[Item]]:
        """All readable rows, in order, `size` at a time; the last part has fewer.

        Raises:
            DataError: a file cannot be used, has too many rows that cannot be read, or does not have a column that the
                recipe names.
        """
        ledger, data, entry = self._ledger, self._resolved.recipe.data, self._resolved.recipe.entry
        files: list[tuple[str | None, SplitName | None]] = [
            (entry.path, None), (data.validation, "validation"), (data.test, "test"),
        ]  # fmt: skip
        keep_personal = data.privacy is None or data.privacy.action == "report"
        first, names = len(ledger.steps), ["read", "features"] if self._features else ["read"]
        ledger.steps += [StepCount(step=name, rows_in=0, rows_out=0, rows_changed=0) for name in names]
        with quarantine(self._bad, detector=ledger.detector, keep_personal=keep_personal) as keep:
            readable = (item for file, origin in files if file for item in self._read(file, origin, keep))
            numbered = self._numbered(readable)
            while part := list(itertools.islice(numbered, size)):
                yield part
        good = ledger.rows_in - self._quarantined
        had = good + sum(fate.reason == FAILED for fate in ledger.fates)
        ledger.steps[first] = StepCount(step="read", rows_in=ledger.rows_in, rows_out=had, rows_changed=0)
        if self._features:
            ledger.steps[first + 1] = StepCount(step="features", rows_in=had, rows_out=good, rows_changed=good)

    def _numbered(self, items: Iterable[Item]) -> Iterator[Item]:
        for number, item in enumerate(items):
            item.row = number
            self._tally.add(item.line, item.values)
            yield item

    def _read(self, file: str, origin: SplitName | None, keep: Keep) -> Iterator[Item]:
        resolved, ledger = self._resolved, self._ledger
        entry, path = resolved.recipe.entry, resolved.file(file)
        faults = FaultCounts()
        query = None if file in resolved.fetched else entry.query  # what was fetched are the rows of the query
        source = (
            open_source(path, format=entry.format, sheet=entry.sheet, query=query)
            if origin is None
            else open_source(path)
        )
        before = ledger.rows_in
        columns: dict[str, None] = {}
        computed = Features(self._features, resolved.recipe.data.columns).each if self._features else iter
        for read in computed(read_documents(source) if is_text(entry.task) else read_source(source)):
            ledger.rows_in += 1
            name = f"{file}/{read.file}" if read.file else file
            if isinstance(read, Row):
                columns.update(dict.fromkeys(read.values))
                yield Item(name, read.line, origin, read.values)
                continue
            ledger.fault(name, read.line, (read.reason, read.detail))
            self._quarantined += 1
            faults.add(read)
            self._bad_rows.add(name, read)
            keep(name, read, source.encoding_of(read.file))
        refuse_bad_rows(path, faults.records(), ledger.rows_in - before, resolved.recipe.data)
        _check_columns(resolved, str(path), columns, computed=self._features, is_train=origin is None)


def _check_columns(
    resolved: ResolvedRecipe, file: str, columns: Collection[str], *, computed: Sequence[Feature], is_train: bool
) -> None:
    entry = resolved.recipe.entry
    for name in input_columns(entry.input, computed):
        if name not in columns:
            raise missing_column(
                name, columns, key=f"{file}: data.train[0].input{' or data.features' * bool(computed)}"
            )
    for key, answer in (("label", entry.label), ("rejected", entry.rejected)):
        if answer and answer not in columns:
            raise missing_column(answer, columns, key=f"{file}: data.train[0].{key}")
    split = resolved.recipe.data.split
    for key, column in (("group_by", split.group_by), ("by_time", split.by_time), ("column", split.column)):
        if is_train and column and column not in columns:
            raise missing_column(column, columns, key=f"{file}: data.split.{key}")
