"""The supervision audit: that every row teaches what it should, checked while it is made and counted in the shards."""

from __future__ import annotations

from luthier.data.shards import Example
from luthier.errors import DataError
from luthier.records import RequestContract

_NAMED = 5


def fault_of(row: Example, contract: RequestContract) -> str:
    """What is wrong with a row: nothing to learn, an end of turn that is not learned, no answer at its end; or ''."""
    end = list(contract.end_of_turn_ids)
    stops = [
        index + 1
        for index, (now, after) in enumerate(zip(row.supervised, [*row.supervised[1:], False], strict=True))
        if now and not after
    ]
    answers = stops[-1:] if row.supervised_user or row.supervised_system else stops
    if not stops:
        return "no token is supervised"
    if any(row.input_ids[stop - len(end) : stop] != end for stop in answers):
        return "an answer's end of turn is not supervised"
    if stops[-1] != len(row.input_ids) or not 0 < row.prompt_tokens < len(row.input_ids):
        return "the row does not consist of a prompt and its answer"
    return ""


class Faults:
    """Rows that must not be learned from: all are counted, the first few are named."""

    def __init__(self) -> None:
        self._places: dict[str, list[str]] = {}
        self._rows = 0

    def add(self, place: str, fault: str) -> None:
        """A row at FILE:LINE, and what is wrong with it; '' for nothing."""
        if fault:
            self._rows += 1
            places = self._places.setdefault(fault, [])
            if len(places) < _NAMED:
                places.append(place)

    def refuse(self) -> None:
        """Stop where there is any.

        Raises:
            DataError: with the rows.
        """
        if self._rows:
            found = "; ".join(f"{fault}: {', '.join(places)}" for fault, places in self._places.items())
            raise DataError(
                f"{self._rows} row{'s' if self._rows > 1 else ''} would teach something wrong: {found}",
                way_out="take these rows out of the file, or use a model with another chat template",
            )
