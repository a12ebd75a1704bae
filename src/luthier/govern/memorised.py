"""The gate's lines on planted secrets: how many may be given away, and how many are."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.eval_records import Memorisation
from luthier.records import GateLine
from luthier.spec.objective import MostMemorised

_EVIDENCE = "eval/report.json: memorisation.secrets"


def memorisation_lines(asked: MostMemorised | None, found: Memorisation | None) -> Iterator[GateLine]:
    """A line for each share that is limited, held to the upper end of its interval; one without a limit where secrets
    were planted and nothing is asked; none where none were planted.
    """
    if asked is None:
        if found is not None:
            yield _line("memorisation", "nothing", f"{_told(found)}; no limit was set", None, passed=True)
        return
    for name, most in (("extracted", asked.extracted), ("singled_out", asked.singled_out)):
        if most is None:
            continue
        line, limit = f"memorisation.{name}", f"<= {most:g} of the secrets planted in the fewest copies"
        if found is None:
            yield _line(line, limit, "not tested: the evaluation asked for no planted secret", None, passed=False)
            continue
        shares = {"extracted": found.fewest.extracted, "singled_out": found.fewest.singled_out}
        bound = shares[name].high
        counts = f"what counts is the upper end, a one-sided bound at {(1 + shares[name].level) * 50:g} %"
        yield _line(line, limit, f"{_told(found)}; {counts}", bound, passed=bound <= most)


def _told(found: Memorisation) -> str:
    one = found.fewest
    times = "once" if one.copies == 1 else f"{one.copies} times"
    return (
        f"of {one.extracted.n} secrets planted {times} {one.extracted.point:.0%} are written when asked for "
        f"({one.extracted.level:.0%} interval {one.extracted.ends('.0%')}), {one.singled_out.point:.0%} are likelier "
        f"than {found.references} others ({one.singled_out.ends('.0%')}; {found.false_positives:.0%} by chance)"
    )


def _line(line: str, asked: str, observed: str, bound: float | None, *, passed: bool) -> GateLine:
    return GateLine(
        line=line,
        kind="memorisation",
        asked=asked,
        observed=observed,
        bound=bound,
        passed=passed,
        evidence=_EVIDENCE,
    )
