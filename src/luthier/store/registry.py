"""The registry: numbered versions of a name, and aliases that move between them with their history kept."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from luthier.errors import DiskFull, RunError
from luthier.records import Version
from luthier.store.clock import Clock, stamp, utc_now
from luthier.store.files import disk_errors

_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_SCHEMA_VERSION = 1
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS versions (
    name TEXT NOT NULL, version INTEGER NOT NULL, run TEXT NOT NULL, gate_passed INTEGER NOT NULL,
    gate_seal TEXT NOT NULL, weights_sha256 TEXT NOT NULL, created_at TEXT NOT NULL,
    PRIMARY KEY (name, version), UNIQUE (name, run, weights_sha256));
-- An alias is held by its newest promotion that was not rolled back.
CREATE TABLE IF NOT EXISTS promotions (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, alias TEXT NOT NULL, version INTEGER NOT NULL,
    promoted_at TEXT NOT NULL, rolled_back_at TEXT,
    FOREIGN KEY (name, version) REFERENCES versions (name, version));
CREATE VIEW IF NOT EXISTS holders AS
    SELECT name, alias, version, max(id) AS id FROM promotions WHERE rolled_back_at IS NULL GROUP BY name, alias;
PRAGMA user_version = {_SCHEMA_VERSION};
"""


class Registry:
    """Versions and aliases in a SQLite file; run folders are kept relative to it, so that both can move together."""

    def __init__(self, path: Path, *, clock: Clock = utc_now) -> None:
        self.path = path
        self._clock = clock

    def register(self, name: str, run: Path, *, gate_passed: bool, gate_seal: str, weights_sha256: str) -> Version:
        """Add the next version of `name`; the same run with the same weights is the version it already is.

        Raises:
            DiskFull: no space.
            RunError: the registry cannot be written.
        """
        with self._transaction() as db:
            db.execute(
                "INSERT INTO versions "
                "SELECT :name, coalesce(max(version), 0) + 1, :run, :passed, :seal, :weights, :now "
                "FROM versions WHERE name = :name "
                "ON CONFLICT (name, run, weights_sha256) DO UPDATE SET gate_passed = :passed, gate_seal = :seal",
                {
                    "name": name,
                    "run": self._stored(run),
                    "passed": gate_passed,
                    "seal": gate_seal,
                    "weights": weights_sha256,
                    "now": stamp(self._clock),
                },
            )
            where = "name = ? AND run = ? AND weights_sha256 = ?"
            return self._select(db, where, name, self._stored(run), weights_sha256)[0]

    def versions(self, name: str | None = None) -> list[Version]:
        """All versions, or those of one name, by name and number."""
        with self._transaction(write=False) as db:
            return self._select(db, "name = ?", name) if name is not None else self._select(db, "TRUE")

    def get(self, name: str, alias_or_version: str = "") -> Version:
        """One version: 'NAME' is the newest, 'NAME@3' a number, 'NAME@production' an alias.

        Args:
            name: the name, alone or with '@' and what follows.
            alias_or_version: what follows the '@', where `name` has none.

        Raises:
            RunError: there is none; the message lists what is known.
        """
        name, _, after = name.partition("@")
        with self._transaction(write=False) as db:
            return self._find(db, name, after or alias_or_version.removeprefix("@"))

    def promote(self, name: str, version: int, alias: str = "production") -> Version:
        """Let `alias` point to this version.

        Raises:
            RunError: the version is not known, or the alias is not a word.
        """
        if not _ALIAS.fullmatch(alias):
            raise RunError(f"{alias!r} cannot be an alias", way_out="use letters, digits, - and _, a letter first")
        with self._transaction() as db:
            found = self._find(db, name, str(version))
            if alias not in found.aliases:
                db.execute(
                    "INSERT INTO promotions (name, alias, version, promoted_at) VALUES (?, ?, ?, ?)",
                    (name, alias, version, stamp(self._clock)),
                )
            return self._find(db, name, str(version))

    def rollback(self, name: str, alias: str = "production") -> Version:
        """Give `alias` back to the version that held it before; once more goes one further back.

        Raises:
            RunError: the alias is not known, or no other version held it before.
        """
        with self._transaction() as db:
            current = self._find(db, name, alias)
            held = db.execute(
                "SELECT id FROM promotions WHERE name = ? AND alias = ? AND rolled_back_at IS NULL "
                "ORDER BY id DESC LIMIT 2",
                (name, alias),
            ).fetchall()
            if len(held) < 2:
                raise RunError(
                    f"{name}@{alias} is version {current.version}, and no other version held it before",
                    way_out=f"promote another version: {_numbers(self._select(db, 'name = ?', name))}",
                )
            db.execute("UPDATE promotions SET rolled_back_at = ? WHERE id = ?", (stamp(self._clock), held[0]["id"]))
            return self._find(db, name, alias)

    def _find(self, db: sqlite3.Connection, name: str, which: str) -> Version:
        known = self._select(db, "name = ?", name)
        if not known:
            names = sorted({version.name for version in self._select(db, "TRUE")})
            raise RunError(
                f"{self.path} has no {name!r}",
                way_out=f"known: {', '.join(names)}" if names else "it is empty; `luthier run` registers a version",
            )
        matching = [v for v in known if not which or which == str(v.version) or which in v.aliases]
        if not matching:
            aliases = sorted({alias for version in known for alias in version.aliases})
            raise RunError(
                f"{self.path} has no {name}@{which}",
                way_out=f"versions: {_numbers(known)}; aliases: {', '.join(aliases) or 'none'}",
            )
        return matching[-1]

    def _select(self, db: sqlite3.Connection, where: str, *values: str) -> list[Version]:
        rows = db.execute(
            "SELECT versions.*, (SELECT group_concat(alias) FROM holders WHERE holders.name = versions.name "
            f"AND holders.version = versions.version) AS aliases FROM versions WHERE {where} ORDER BY name, version",
            values,
        )
        return [
            Version.model_validate(
                {
                    **dict(row),
                    "run": str(self.path.parent / row["run"]),
                    "gate_passed": bool(row["gate_passed"]),
                    "aliases": tuple(sorted((row["aliases"] or "").split(","))) if row["aliases"] else (),
                }
            )
            for row in rows
        ]

    def _stored(self, run: Path) -> str:
        """The run's path relative to the registry's folder where it is inside, else absolute."""
        inside = os.path.relpath(run.resolve(), self.path.parent.resolve())
        return str(run.resolve()) if inside.startswith("..") else inside

    @contextmanager
    def _transaction(self, *, write: bool = True) -> Iterator[sqlite3.Connection]:
        """A connection in one transaction, undone when the block fails; reading where no registry is makes none."""
        if write:
            with disk_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            target = self.path if write or self.path.exists() else ":memory:"
            with closing(sqlite3.connect(target, timeout=10, isolation_level=None)) as db:
                db.row_factory = sqlite3.Row
                self._prepare(db)
                db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                try:
                    yield db
                    db.execute("COMMIT")
                finally:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
                raise DiskFull(
                    f"{self.path}: no space left on the disk", way_out="free some space and run the same command again"
                ) from error
            raise RunError(
                f"{self.path} cannot be used as a registry: {error}",
                way_out="restore it, or move it away to begin a new one",
            ) from error

    def _prepare(self, db: sqlite3.Connection) -> None:
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found > _SCHEMA_VERSION:
            raise RunError(
                f"{self.path} was written by a newer version of Luthier (schema {found})",
                way_out="use that version, or another --out folder",
            )
        if found < _SCHEMA_VERSION:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")


def registry_of(out: Path) -> Registry:
    """The registry beside the runs in `out`."""
    return Registry(out / "registry.sqlite")


def _numbers(versions: list[Version]) -> str:
    return ", ".join(str(version.version) for version in versions)
