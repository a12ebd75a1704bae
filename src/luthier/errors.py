"""One exception tree. Each class knows its exit code and its HTTP status; each message ends with the way out.

Exit codes are a public contract: 0 done, 1 our own fault, 2 the user's, 3 the gate refused, 4 it refused and an
approval is waited for, 5 stopped and resumable, 6 the machine's, 7 an artifact broke parity.
"""

from __future__ import annotations

from typing import Any, ClassVar


class LuthierError(Exception):
    """Base of all errors that Luthier raises on purpose.

    Args:
        what: what was wrong, with the file, line or key and the value found.
        way_out: what to do about it, as one sentence; empty only where nothing can be done.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __init__(self, what: str, *, way_out: str = "") -> None:
        super().__init__(f"{what}\n  -> {way_out}" if way_out else what)
        self.what = what
        self.way_out = way_out

    def __reduce__(self) -> tuple[Any, ...]:
        """So that an error of another process is the same error here, whatever its class takes."""
        return _restored, (type(self), self.what, self.way_out), self.__dict__


def _restored(kind: type[LuthierError], what: str, way_out: str) -> LuthierError:
    error = kind.__new__(kind)
    LuthierError.__init__(error, what, way_out=way_out)
    return error


class UserError(LuthierError):
    """The recipe, the data or the arguments are wrong."""

    exit_code = 2
    http_status = 400


class RecipeError(UserError):
    """A recipe cannot be read, or says something that cannot be done.

    Args:
        what: what was wrong.
        way_out: what to do about it.
        key: of the recipe, e.g. 'train.max_length'; whoever knows the file adds where it stands.
    """

    def __init__(self, what: str, *, way_out: str = "", key: str = "") -> None:
        super().__init__(what, way_out=way_out)
        self.key = key


class DataError(UserError):
    """A data file cannot be used."""


class SecretFound(DataError):
    """A secret was found in the data and the recipe does not say what to do about it."""


class ModelError(UserError):
    """A base model or adapter cannot be found, read or trusted."""


class RunError(UserError):
    """A run folder or registry entry is missing, locked or incomplete."""


class MissingExtra(UserError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed",
            way_out=f"pip install 'luthier[{extra}]'",
        )


class AuthError(UserError):
    """A request came without a valid API key."""

    http_status = 401


class GateRefused(LuthierError):
    """The gate's decision is no."""

    exit_code = 3
    http_status = 403


class ApprovalPending(GateRefused):
    """The gate's decision is no, and somebody has asked to go on all the same; nobody has approved it yet."""

    exit_code = 4


class Stopped(LuthierError):
    """The work was stopped and can be resumed with the same command."""

    exit_code = 5
    http_status = 503


class RankLost(Stopped):
    """Another process of the same training has ended; what it says is the news, this is what follows from it."""


class MachineError(LuthierError):
    """The machine could not: out of memory, disk full."""

    exit_code = 6
    http_status = 507


class OutOfMemory(MachineError):
    """More memory was needed than there was."""


class DiskFull(MachineError):
    """No space left where something had to be written."""


class NonFinite(LuthierError):
    """The loss or a gradient became infinite or not a number; the weights before that step are kept."""

    exit_code = 1


class ParityError(LuthierError):
    """An artifact does not say the same as what was trained."""

    exit_code = 7
