"""Data that a command names: a file or folder of this machine, or a URL, of which a local copy is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from luthier.data.fetch import fetch, is_url
from luthier.data.profile import profile
from luthier.data.source import Source, open_source
from luthier.errors import DataError
from luthier.records import DataProfile
from luthier.spec.load import refuse_credentials


@dataclass(frozen=True)
class Named:
    """Data as the user names it."""

    text: str
    """A path, or a URL in which `${NAME}` stands for what the environment holds."""
    format: str | None = None
    sheet: str | None = None
    query: str | None = None

    @property
    def is_url(self) -> bool:
        return is_url(self.text)

    @property
    def name(self) -> str:
        """The last part, without what a URL asks or authenticates with."""
        if not self.is_url:
            return Path(self.text).name or Path(self.text).resolve().name
        last = self.text.partition("?")[0].rstrip("/").rpartition("/")[2]
        return last.partition("@")[0] or "data"

    @property
    def folder(self) -> Path:
        """Where something that belongs to it goes: beside a file, here for a URL."""
        return Path() if self.is_url else Path(self.text).parent

    def given(self) -> dict[str, str]:
        """The options that were given, as keys of a data entry."""
        options = {"format": self.format, "sheet": self.sheet, "query": self.query}
        return {key: value for key, value in options.items() if value is not None}


@dataclass(frozen=True)
class Opened:
    """Data that can be read here and now."""

    named: Named
    path: Path
    """The file, or its local copy."""

    @property
    def query(self) -> str | None:
        """Of the local file: what was fetched are the rows of the query already."""
        return None if self.named.is_url else self.named.query

    def source(self) -> Source:
        """How it is read."""
        with calling(self.path, self.named.text):
            return open_source(self.path, format=self.named.format, sheet=self.named.sheet, query=self.query)

    def profile(self) -> DataProfile:
        """What it holds, under the name that the user gave it."""
        with calling(self.path, self.named.text):
            found = profile(self.path, format=self.named.format, sheet=self.named.sheet, query=self.query)
        return found.model_copy(update={"path": self.named.text})


def opened(named: Named, *, offline: bool) -> Opened:
    """Make a local copy where that is needed.

    Raises:
        DataError: it cannot be reached.
        RecipeError: a password stands in the URL.
    """
    refuse_credentials(named.text, where="the data")
    found = fetch(named.text, query=named.query, offline=offline) if named.is_url else None
    return Opened(named, found.path if found else Path(named.text))


@contextmanager
def calling(path: Path, name: str) -> Iterator[None]:
    """Let faults of a local copy be told under the name that the user knows."""
    try:
        yield
    except DataError as error:
        if str(path) == name or str(path) not in error.what:
            raise
        raise type(error)(error.what.replace(str(path), name), way_out=error.way_out) from error
