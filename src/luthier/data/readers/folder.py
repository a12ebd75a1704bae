"""A folder of files of one format, or of documents, read one after the other in the order of their names.

What `datasets` saves is such a folder: `data-00000-of-00002.arrow` beside some JSON; so is a data set from the hub:
`data/train-00000-of-00002.parquet`. Lines are counted file by file, and each row says which file it is from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from luthier.data.read import Fault, Row, read_source
from luthier.data.source import Source, open_source
from luthier.data.text_file import SUFFIXES
from luthier.errors import DataError
from luthier.spec.plugins import READERS

_ABOUT = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|validation|valid|val|dev|test)(?:[^a-z]|$)")
_NUMBER = re.compile(r"\d+")


def look(source: Source, start: str) -> Source:
    """Open every file, so that the last is as sound as the first."""
    files = _files(source.path)
    if not files:
        known = ", ".join(suffix for facts in READERS.entries().values() for suffix in facts.suffixes)
        raise DataError(f"{source.path} is a folder without data files", way_out=f"give a file; known: {known}")
    _refuse_several_splits(source.path, files)
    parts = tuple(open_source(file) for file in files)
    formats = sorted({part.format for part in parts})
    if len(formats) > 1 and not all(READERS.get(format).is_document for format in formats):
        raise DataError(
            f"{source.path} holds files of several formats: {', '.join(formats)}", way_out="give one file, or move some"
        )
    columns = tuple(dict.fromkeys(name for part in parts for name in part.columns))
    for part in parts:
        if missing := [name for name in columns if name not in part.columns]:
            raise DataError(
                f"{part.path} has no column {missing[0]!r}, which other files of {source.path} have",
                way_out="give one file, or files with the same columns",
            )
    return replace(source, columns=columns, parts=parts, encoding=parts[0].encoding, delimiter=parts[0].delimiter)


def read(source: Source) -> Iterator[Row | Fault]:
    """The rows of all files, each with the name of its own."""
    for part in source.parts:
        name = part.path.relative_to(source.path).as_posix()
        for item in read_source(part):
            yield replace(item, file=name)


def is_data_file(relative: str) -> bool:
    """Whether a file of a folder is read as rows; notes, licenses and what tools keep of their own are not.

    Args:
        relative: its path in the folder, with slashes.
    """
    *_, name = parts = relative.split("/")
    return (
        name.lower().endswith(_suffixes())
        and name not in _ABOUT
        and not name.lower().startswith(("readme", "license", "changelog"))
        and not name.startswith("cache-")  # what `datasets` keeps of its own computations
        and not any(part.startswith((".", "_")) for part in parts)
    )


@lru_cache(maxsize=1)
def _suffixes() -> tuple[str, ...]:
    return tuple(
        suffix + packed
        for facts in READERS.entries().values()
        for suffix in facts.suffixes
        for packed in (("", *SUFFIXES) if facts.is_text else ("",))
    )


def _files(folder: Path) -> list[Path]:
    """Data files, those of folders in it too, in the order of their names with numbers read as numbers."""
    found = [path for path in folder.rglob("*") if is_data_file(path.relative_to(folder).as_posix()) and path.is_file()]
    documents = tuple(suffix for facts in READERS.entries().values() if facts.is_document for suffix in facts.suffixes)
    tables = [path for path in found if not path.name.lower().removesuffix(".gz").endswith(documents)]
    found = tables or found  # notes beside data are about it
    return sorted(found, key=lambda path: (_NUMBER.sub(lambda match: match[0].zfill(12), path.as_posix()), str(path)))


def splits_of(names: Iterable[str]) -> dict[str, str]:
    """Split -> the first file that is named after it."""
    splits: dict[str, str] = {}
    for name in names:
        for match in _SPLIT.finditer(name.lower()):
            splits.setdefault(match[1], name)
    return splits


def _refuse_several_splits(folder: Path, files: list[Path]) -> None:
    """Reading a test split as training rows would make every number of the evaluation a lie."""
    splits = splits_of(file.relative_to(folder).as_posix() for file in files)
    if len(splits) > 1:
        first = next(iter(splits.values()))
        raise DataError(
            f"{folder} holds several splits: {', '.join(sorted(splits))}",
            way_out=f"give each by itself, e.g. data.train[0].path: {first}, and the others as data.validation and "
            "data.test; several files of one split go into a folder of their own",
        )
