"""Rows that cannot be read: counted by reason, refused where there are too many, kept in quarantine where not."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from luthier.data.privacy.profiles import Detector
from luthier.data.read import Fault
from luthier.data_report import BadRow
from luthier.errors import DataError
from luthier.records import FaultCount
from luthier.spec.recipe import Data
from luthier.store.files import beside, disk_errors

_FIRST = 5
_SHOWN_CHARS = 160
_MOST_CHARS = 1 << 16
"""Of a row that are kept."""
_MARGIN = 4096
"""Characters beyond, which are looked at too: what is found must not be cut in two."""
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_INVISIBLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")

Keep = Callable[[str, Fault, str], None]
"""Puts a row into quarantine: file, fault, encoding of the file."""


@dataclass
class FaultCounts:
    """Faults by reason."""

    _counts: dict[str, int] = field(default_factory=dict)
    _first: dict[str, list[Fault]] = field(default_factory=dict)

    def add(self, fault: Fault) -> None:
        self._counts[fault.reason] = self._counts.get(fault.reason, 0) + 1
        first = self._first.setdefault(fault.reason, [])
        if len(first) < _FIRST:
            first.append(fault)

    def records(self) -> tuple[FaultCount, ...]:
        """Most frequent reason first."""
        return tuple(
            FaultCount(
                reason=reason,
                rows=count,
                first=tuple(f"{one.file}:{one.line}" if one.file else str(one.line) for one in self._first[reason]),
                detail=self._first[reason][0].detail,
            )
            for reason, count in sorted(self._counts.items(), key=lambda pair: (-pair[1], pair[0]))
        )


def refuse_bad_rows(file: Path | str, faults: Sequence[FaultCount], num_rows: int, data: Data) -> None:
    """Stop where the recipe allows fewer unreadable rows than there are.

    Raises:
        DataError: with counts by reason and the first lines of each.
    """
    bad = sum(one.rows for one in faults)
    if not bad or (data.bad_rows == "quarantine" and bad <= data.max_bad_rows * num_rows):
        return
    limit = (
        "data.bad_rows is 'fail'"
        if data.bad_rows == "fail"
        else f"more than data.max_bad_rows allows ({data.max_bad_rows:.2%})"
    )
    reasons = "; ".join(
        f"{one.rows} {one.reason} in {'line' if one.rows == 1 else 'lines'} {', '.join(one.first)}"
        f"{', ...' if one.rows > len(one.first) else ''} ({one.detail})"
        for one in faults
    )
    raise DataError(
        f"{file}: {bad} of {num_rows} rows cannot be read ({bad / num_rows:.2%}), {limit}: {reasons}",
        way_out="correct these lines, or set data.bad_rows: quarantine and data.max_bad_rows to the share that may go "
        f"missing; `luthier data inspect {file}` shows what was found",
    )


def shown(fault: Fault, detector: Detector) -> str:
    """The beginning of a row as it may be shown: no secret, no personal data, nothing invisible."""
    plain = " ".join(_plain(fault.text[:_MARGIN]).split())
    text = detector.scrub(plain, personal=True, secrets=True)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


@dataclass
class FirstBadRows:
    """The first rows of each reason, for people to look at."""

    detector: Detector
    _rows: dict[str, list[BadRow]] = field(default_factory=dict)

    def add(self, file: str, fault: Fault) -> None:
        rows = self._rows.setdefault(fault.reason, [])
        if len(rows) < _FIRST:
            text = shown(fault, self.detector)
            rows.append(BadRow(file=file, line=fault.line, reason=fault.reason, detail=fault.detail, text=text))

    def records(self) -> tuple[BadRow, ...]:
        """In the order of the reasons' first rows."""
        return tuple(row for rows in self._rows.values() for row in rows)


@contextmanager
def quarantine(path: Path | None, *, detector: Detector, keep_personal: bool) -> Iterator[Keep]:
    """Write rows that cannot be read to `path`, one JSON object each, for the eyes of its owner only (mode 0600).

    The raw bytes are kept (base64) where no secret and no personal data is found in them. Otherwise the text is kept,
    with a placeholder for each find; personal data stands only where the recipe lets it stand in the shards too. No
    file is left where no row was kept.

    Args:
        path: of the quarantine; None keeps nothing.
        detector: what looks; that of the recipe, so that nothing stands here that it takes out of the shards.
        keep_personal: whether personal data may stand: data.privacy.action is 'report'.
    """
    out: IO[str] | None = None
    temporary = beside(path, "tmp") if path is not None else Path()

    def keep(file: str, fault: Fault, encoding: str) -> None:
        nonlocal out
        if path is None:
            return
        with disk_errors(path):
            if out is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                owned = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                out = os.fdopen(owned, "w", encoding="utf-8", newline="\n")
            out.write(json.dumps(_entry(file, fault, encoding, detector=detector, keep_personal=keep_personal)) + "\n")

    try:
        yield keep
    finally:
        if out is not None and path is not None:
            _put_in_place(out, temporary, path)
        elif path is not None:
            path.unlink(missing_ok=True)


def _put_in_place(out: IO[str], temporary: Path, path: Path) -> None:
    with disk_errors(path):
        try:
            with out:
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _entry(file: str, fault: Fault, encoding: str, *, detector: Detector, keep_personal: bool) -> dict[str, object]:
    entry: dict[str, object] = {
        "file": file, "line": fault.line, "reason": fault.reason, "detail": fault.detail, "chars": len(fault.text),
    }  # fmt: skip
    text = fault.text[: _MOST_CHARS + _MARGIN]
    plain = _plain(text)
    unsafe = [span for one in (text, plain) for span in detector.find(one) if span.is_secret or not keep_personal]
    if unsafe:
        kinds = ", ".join(sorted({span.kind for span in unsafe}))
        scrubbed = detector.scrub(plain, personal=not keep_personal, secrets=True)
        return entry | {"text": scrubbed[:_MOST_CHARS], "note": f"the raw bytes are not kept: {kinds}"}
    # The text was decoded from this encoding, so that it goes back to the bytes it came from.
    name = {"utf-16": "utf-16-le", "utf-8-sig": "utf-8", "": "utf-8"}.get(encoding, encoding)
    raw = text[:_MOST_CHARS].encode(name, "surrogatepass" if _has_wide_surrogate(text) else "surrogateescape")
    return entry | {"encoding": name, "raw": base64.b64encode(raw).decode("ascii")}


def _plain(text: str) -> str:
    """As a person would read it: escapes resolved, and what hides between characters left out."""
    return _INVISIBLE.sub("", _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text))


def _has_wide_surrogate(text: str) -> bool:
    """Whether there is a lone surrogate that stands for no byte; those come from escapes and databases."""
    return any("\ud800" <= char <= "\udfff" and not "\udc80" <= char <= "\udcff" for char in text)
