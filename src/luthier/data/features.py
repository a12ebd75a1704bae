"""Columns computed from columns (`data.features`): the same code for the rows of a file and for one request.

Batches go through Arrow to DuckDB and back. Every column has the type that the request contract says, and an expression
sees nothing but its own row, so that a row gives the same in a batch of any size as alone.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from itertools import islice
from typing import Any

from luthier.data.columns import WrongCell, convert
from luthier.data.expressions import MEMORY_LIMIT, connect, duckdb, first_line, parse, refuse_unknown
from luthier.data.inputs import as_text, missing_column
from luthier.data.read import Fault, Row
from luthier.errors import DataError, RecipeError, RunError
from luthier.records import ColumnType, Feature, RequestContract
from luthier.spec.recipe import Recipe
from luthier.spec.template import fields
from luthier.store.files import sha256_json

ROWS_AT_ONCE = 8192
FAILED = "feature_failed"
"""Under which rows are counted that a feature cannot be computed for."""

_RESULTS = ("string", "int", "uint", "float", "double", "decimal", "bool", "date32", "timestamp", "time64")


@dataclass(frozen=True)
class Failure:
    """Why a row has no features; holds nothing of the row."""

    detail: str


class Features:
    """Computes features; may be asked from several threads.

    Args:
        features: in the order of computing.
        types: type of each column that they use; a column without one is a text.

    Raises:
        MissingExtra: DuckDB is not installed.
        RecipeError: an expression cannot be computed over these types, or gives another type than it was frozen with.
    """

    def __init__(self, features: Sequence[Feature], types: Mapping[str, ColumnType]) -> None:
        self.features = tuple(features)
        self.names = tuple(feature.name for feature in features)
        self.columns = raw_columns(self.names, features)
        self._types: dict[str, ColumnType] = {name: types.get(name, "text") for name in self.columns}
        self._lock = threading.Lock()
        self._engine = connect()
        for number, feature in enumerate(self.features, start=1):
            found = self._bound_type(number)
            if feature.type and found != feature.type:
                raise RecipeError(
                    f"data.features.{feature.name} gives {found}, and gave {feature.type} when the data was prepared",
                    way_out="install the version of DuckDB that prepared the data, or run `luthier prepare` again",
                )
            self.features = (
                *self.features[: number - 1], feature.model_copy(update={"type": found}), *self.features[number:],
            )  # fmt: skip

    @classmethod
    def of(cls, contract: RequestContract) -> Features | None:
        """What a request contract computes; None where that is nothing, and DuckDB is not needed."""
        if not contract.features:
            return None
        features = cls(contract.features, contract.column_types)
        if contract.features_sha256 and features.fingerprint() != contract.features_sha256:
            raise RunError(
                f"data.features gives other values here (DuckDB {duckdb().__version__}) than when data was prepared",
                way_out="install the version of DuckDB that prepared the data, or run `luthier prepare` again",
            )
        return features

    def fingerprint(self) -> str:
        """Hash of what the features make of some rows that hold a bit of everything.

        The version that is tested is the version that is served: another DuckDB may write a number in another way.
        """
        most = max(map(len, _PROBES.values()))
        rows = [
            {
                name: _PROBES[kind][(row + place) % len(_PROBES[kind])]
                for place, (name, kind) in enumerate(self._types.items())
            }
            for row in range(most)
        ]
        table = self._table([[convert(row[name], kind) for name, kind in self._types.items()] for row in rows])
        try:
            with self._lock:
                found = self._query(table, len(self.features), attempt=True).to_pylist()
        except _row_errors() as error:  # a probe that TRY does not catch; the fingerprint then tells less
            return sha256_json([type(error).__name__])
        return sha256_json([list(map(as_text, one.values())) for one in found])

    def values(self, values: Mapping[str, object]) -> dict[str, object]:
        """One row with its features.

        Raises:
            DataError: a column is missing, one that is computed here is given, or a feature cannot be computed.
        """
        for name in self.columns:
            if name not in values:
                raise missing_column(name, values, key="data.features")
        (made,) = self.batch([values])
        if isinstance(made, Failure):
            raise DataError(
                made.detail, way_out="correct the cell, or let the expression allow for it, as TRY_CAST does"
            )
        return {**values, **made}

    def each(self, read: Iterable[Row | Fault], *, whole_only: bool = False) -> Iterator[Row | Fault]:
        """Rows with their features, in order; a row that one cannot be computed for becomes a fault.

        Args:
            read: rows of a file; a column that a row does not have is empty there.
            whole_only: leave rows alone that do not have every column.

        Raises:
            DataError: a file has a column of the name of a feature.
        """
        source, reasons = iter(read), 100
        while batch := list(islice(source, ROWS_AT_ONCE)):
            asked = [
                one for one in batch
                if isinstance(one, Row) and not (whole_only and any(name not in one.values for name in self.columns))
            ]  # fmt: skip
            computed = self.batch([one.values for one in asked], reasons=reasons)
            reasons -= min(reasons, sum(isinstance(one, Failure) for one in computed))
            made = iter(computed)
            wanted = {id(one) for one in asked}
            for one in batch:
                yield _joined(one, next(made)) if isinstance(one, Row) and id(one) in wanted else one

    def batch(self, rows: Sequence[Mapping[str, object]], *, reasons: int = 100) -> list[dict[str, object] | Failure]:
        """The features of each row, or why there are none; a row is computed as if it were alone.

        Args:
            rows: of a file, or of requests.
            reasons: of so many failing rows it is found out why, which takes a query each; of others, only which
                feature it is.

        Raises:
            DataError: a row has a column of the name of a feature.
        """
        made: list[dict[str, object] | Failure] = []
        good: list[int] = []
        cells: list[list[object]] = []
        for index, values in enumerate(rows):
            self._refuse_computed(values)
            converted = self._converted(values)
            made.append(converted if isinstance(converted, Failure) else {})
            if not isinstance(converted, Failure):
                good.append(index)
                cells.append(converted)
        if good:
            with self._lock:
                for index, found in zip(good, self._computed(self._table(cells), reasons), strict=True):
                    made[index] = found
        return made

    def _refuse_computed(self, values: Mapping[str, object]) -> None:
        given = next((name for name in self.names if name in values), None)
        if given is not None:
            raise DataError(
                f"the column {given!r} is given, and data.features computes it",
                way_out=f"leave it out; {', '.join(self.columns) or 'nothing'} is what it is computed from",
            )

    def _converted(self, values: Mapping[str, object]) -> list[object] | Failure:
        cells: list[object] = []
        for name, kind in self._types.items():
            try:
                cells.append(convert(values.get(name), kind))
            except WrongCell as error:
                return Failure(f"the column {name!r} {error}; its type in expressions (data.columns) is {kind}")
        return cells

    def _table(self, cells: Sequence[Sequence[object]]) -> Any:
        import pyarrow as pa

        kinds = {
            "text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_(),
            "date": pa.date32(), "time": pa.timestamp("us"),
        }  # fmt: skip
        arrays = {
            name: pa.array([row[place] for row in cells], type=kinds[kind])
            for place, (name, kind) in enumerate(self._types.items())
        }
        return pa.table({**arrays, _COUNTED: pa.array(range(len(cells)), type=pa.int64())})

    def _computed(self, table: Any, reasons: int) -> list[dict[str, object] | Failure]:
        """Features of each row; where one fails, the failing rows are found all at once, and asked one by one why."""
        try:
            return list(self._asked(table, len(self.features)))
        except _row_errors():
            if table.num_rows == 1:
                return [self._failure(table)]
        try:
            tried = self._query(table, len(self.features), attempt=True).to_pylist()
        except _row_errors():  # what TRY does not catch, such as too little memory for so many rows
            return self._halved(table, reasons)
        made: list[dict[str, object] | Failure] = []
        unsure: list[int] = []
        for index, row in enumerate(tried):
            values = {name: row[name] for name in self.names}
            name = next((name for name in self.names if row[_JUDGED + name] is None or not _finite(row[name])), None)
            if name is None:
                made.append(values)
                if None in values.values():
                    unsure.append(index)
            elif reasons > 0:
                reasons -= 1
                made.append(self._failure(table.slice(index, 1)))
            else:
                made.append(Failure(f"data.features.{name}: it cannot be computed, see rows above for reasons"))
        for index, found in zip(unsure, self._verified(table, unsure, reasons), strict=True):
            made[index] = found
        return made

    def _verified(self, table: Any, rows: Sequence[int], reasons: int) -> list[dict[str, object] | Failure]:
        """Rows with a NULL once more, as they are: should TRY have passed over an error, it comes out here."""
        if not rows:
            return []
        some = table.take(rows)
        try:
            return list(self._asked(some, len(self.features)))
        except _row_errors():
            return self._halved(some, reasons)

    def _halved(self, table: Any, reasons: int) -> list[dict[str, object] | Failure]:
        if table.num_rows == 1:
            return self._computed(table, reasons)
        half = table.num_rows // 2
        return [*self._computed(table.slice(0, half), reasons), *self._computed(table.slice(half), reasons)]

    def _failure(self, table: Any) -> Failure:
        """The first feature of the one row that cannot be computed, and why, without repeating the row."""
        for number, feature in enumerate(self.features, start=1):
            try:
                self._asked(table, number)
            except _row_errors() as error:
                return Failure(f"data.features.{feature.name}: {_reason(error)}")
        raise AssertionError("a row failed with its features together, and with none of them")

    def _asked(self, table: Any, number: int) -> list[dict[str, object]]:
        """The first features of each row, in order; one error stops all."""
        found: list[dict[str, object]] = self._query(table, number).to_pylist()
        for row in found:
            if not all(map(_finite, row.values())):
                raise _NotFinite
        return found

    def _query(self, table: Any, number: int, *, attempt: bool = False) -> Any:
        """The first features as an Arrow table; with `attempt`, NULL where one fails, and beside it whether it is NULL.

        That is NULL itself where the feature fails, which tells it from a feature that is NULL.
        """
        query, names = f"SELECT * FROM {_TABLE}", []
        for feature in self.features[:number]:
            wrapped = f'({feature.sql}\n) AS "{feature.name}"'
            names.append(f'"{feature.name}"')
            if attempt:
                wrapped = f'TRY(({feature.sql}\n)) AS "{feature.name}"'
                wrapped += f', TRY(({feature.sql}\n) IS NULL) AS "{_JUDGED}{feature.name}"'
                names.append(f'"{_JUDGED}{feature.name}"')
            query = f"SELECT *, {wrapped} FROM ({query})"
        self._engine.register(_TABLE, table)
        return self._engine.sql(f"SELECT {', '.join(names)} FROM ({query})").to_arrow_table()

    def _bound_type(self, number: int) -> str:
        """What the feature gives over these types, found without a row."""
        feature = self.features[number - 1]
        try:
            kind = str(self._query(self._table([]), number).schema.field(feature.name).type)
        except duckdb().Error as error:
            types = ", ".join(f"{name}: {kind}" for name, kind in self._types.items() if name in feature.uses)
            raise RecipeError(
                f"data.features.{feature.name}: {first_line(error)}" + (f" ({types})" if types else ""),
                way_out="cast what is of another type, as in TRY_CAST(price AS DOUBLE), or set it in data.columns",
            ) from error
        if not kind.startswith(_RESULTS) or "tz=" in kind:
            raise RecipeError(
                f"data.features.{feature.name} gives {kind}, which has no one way to be written in a prompt",
                way_out="make it a text, as in CAST(... AS VARCHAR) or array_to_string(..., ', ')",
            )
        return kind


_PROBES: dict[ColumnType, tuple[object, ...]] = {
    "text": (
        "", "a", "Äpfel, größer", "19.90", "1e3", "2026-03-01", "2026-03-01T10:42:00", '{"a": [1, "b"]}', '["x", "y"]',
        "true", "a|b;c d", "-7", " x ", "日本 🎻", None,
    ),
    "integer": (0, 1, -1, 7, 1000, 2**40, None),
    "number": (0.0, 1.5, -2.25, 19.9, 0.1, 1e21, 1e-7, None),
    "boolean": (True, False, None),
    "date": (date(2026, 3, 1), date(2024, 2, 29), date(1969, 12, 31), None),
    "time": (datetime(2026, 3, 1, 10, 42), datetime(1999, 12, 31, 23, 59, 59, 123456), None),
}  # fmt: skip
"""Cells of each type that versions of an engine might disagree on."""

_TABLE, _COUNTED, _JUDGED = "luthier_rows", "luthier_row_number", "luthier null "


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


class _NotFinite(ValueError):
    """A feature is infinite or not a number."""


def _row_errors() -> tuple[type[Exception], ...]:
    """What one row can bring about; everything else is no fault of a row."""
    package = duckdb()
    return (
        package.ConversionException, package.OutOfRangeException, package.InvalidInputException,
        package.OutOfMemoryException, package.TypeMismatchException, ValueError, OverflowError,
    )  # fmt: skip


def _reason(error: Exception) -> str:
    package = duckdb()
    if isinstance(error, _NotFinite):
        return "the result is no finite number"
    words = {
        package.ConversionException: "a value cannot be cast",
        package.OutOfRangeException: "a number is out of range",
        package.OutOfMemoryException: f"more than {MEMORY_LIMIT} of memory is needed",
        package.InvalidInputException: "a function or operator refuses a value, as division does zero",
    }
    return next((said for kind, said in words.items() if isinstance(error, kind)), "the result cannot be held")


def _joined(row: Row, made: dict[str, object] | Failure) -> Row | Fault:
    if isinstance(made, Failure):
        return Fault(row.line, FAILED, made.detail, file=row.file, text=json.dumps(row.values, default=str))
    return replace(row, values={**row.values, **made})


# --- which columns are needed, and what of a recipe is frozen ---------------------------------------------------------


def needed(names: Iterable[str], features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Those of the features that the named columns are or depend on, in the order of computing."""
    wanted = set(names)
    for feature in reversed(features):
        wanted |= set(feature.uses) if feature.name in wanted else set()
    return tuple(feature for feature in features if feature.name in wanted)


def raw_columns(names: Iterable[str], features: Sequence[Feature]) -> tuple[str, ...]:
    """The columns of the file behind the named columns, each once."""
    computed = {feature.name for feature in features}
    used = [*names, *(name for feature in needed(names, features) for name in feature.uses)]
    return tuple(dict.fromkeys(name for name in used if name not in computed))


def input_columns(template: str | None, features: Sequence[Feature]) -> tuple[str, ...]:
    """The columns of the file that an input template needs, itself or through features."""
    return raw_columns(fields(template), features) if template else ()


def freeze(recipe: Recipe, columns: Sequence[str] = ()) -> tuple[Feature, ...]:
    """The recipe's features, looked at: structure, names and types.

    Args:
        recipe: resolved.
        columns: those of the file; without them every name is taken for one of them, and the rows will show.

    Raises:
        MissingExtra: DuckDB is not installed.
        RecipeError: an expression may not be computed, one is used by nothing, or one tells the answer.
    """
    data, entry = recipe.data, recipe.entry
    if not data.features:
        return ()
    engine = connect()
    parsed = [parse(engine, name, sql) for name, sql in data.features.items()]
    made: list[Feature] = []
    for place, expression in enumerate(parsed):
        later = [one.name for one in parsed[place + 1 :]]
        known = [*(columns or data.columns), *(one.name for one in made)]
        refuse_unknown(expression, known, later, is_complete=bool(columns))
        made.append(Feature(name=expression.name, sql=expression.sql, uses=expression.columns, type=""))
    _refuse_misuse(made, recipe)
    folded: dict[str, str] = {}
    for name in raw_columns([one.name for one in made], made):
        if (other := folded.setdefault(name.casefold(), name)) != name:
            raise RecipeError(
                f"data.features: the columns {other!r} and {name!r} differ in capitals only, and SQL does not"
                " tell those apart",
                way_out="rename one of them in the file, or use one only",
            )
    frozen = Features(made, data.columns).features
    answer = raw_columns(fields(entry.input), frozen) if entry.input else ()
    if entry.label and entry.label in answer:
        teller = next(one.name for one in needed(fields(entry.input or ""), frozen) if entry.label in one.uses)
        raise RecipeError(
            f"data.features.{teller} uses the column {entry.label!r}, which is the answer (data.train[0].label), and "
            "reaches the input",
            way_out=f"take {entry.label!r} out of the expression",
        )
    return frozen


def _refuse_misuse(features: Sequence[Feature], recipe: Recipe) -> None:
    data, split = recipe.data, recipe.data.split
    if not recipe.entry.input:
        raise RecipeError(
            "data.features: the rows are conversations, which no template is filled into",
            way_out="leave it out, or set data.train[0].input and .label",
        )
    used = {*fields(recipe.entry.input), *filter(None, (split.group_by, split.by_time, split.column))}
    used |= {name for feature in needed(used, features) for name in feature.uses}
    idle = [feature.name for feature in features if feature.name not in used]
    if idle:
        raise RecipeError(
            f"data.features.{idle[0]} is used by nothing",
            way_out=f"write {{{idle[0]}}} into data.train[0].input, or leave the feature out",
        )
    own = {column.casefold(): column for column in data.columns}
    for feature in features:
        if feature.name.casefold() in own:
            raise shadowed(feature.name, own[feature.name.casefold()])


def shadowed(name: str, column: str) -> RecipeError:
    """The error for a feature that has the name of a column of the file."""
    return RecipeError(
        f"data.features.{name} has the name of the column {column!r} of the file, capitals aside",
        way_out="give the feature a name of its own",
    )


def check_features(recipe: Recipe, columns: Sequence[str]) -> tuple[Feature, ...]:
    """`freeze`, and every name held against the columns of the file.

    Raises:
        DataError: a type is given for a column that is not there.
        RecipeError: a feature has the name of a column; and what `freeze` says.
    """
    folded = {column.casefold(): column for column in columns}
    for name in recipe.data.features:
        if name.casefold() in folded:
            raise shadowed(name, folded[name.casefold()])
    for name in recipe.data.columns:
        if name not in columns:
            raise missing_column(name, columns, key="data.columns")
    return freeze(recipe, columns)
