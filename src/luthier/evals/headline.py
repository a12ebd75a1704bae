"""The one sentence that may be claimed: no more than the intervals show, and a better baseline comes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from luthier.eval_records import Difference, SystemScore
from luthier.records import Interval
from luthier.spec.plugins import METRICS
from luthier.systems import PARENT, is_in_first_line, subject


def headline(systems: Sequence[SystemScore], differences: Sequence[Difference], *, num_items: int, metric: str) -> str:
    """One sentence about the tuned model; where a baseline reaches more, the sentence is about that.

    Args:
        systems: with 'tuned' and 'base' among them.
        differences: tuned - other, of the task's main metric at least.
        num_items: size of the test split.
        metric: that the sentence is about.
    """
    word, higher = METRICS.get(metric).title, METRICS.get(metric).higher_is_better
    sign = 1.0 if higher else -1.0
    values: dict[str, Interval] = {one.system: one.metrics[metric] for one in systems if metric in one.metrics}
    gaps = {gap.against: gap.interval for gap in differences if gap.metric == metric}
    tuned = values["tuned"]
    best = max(
        (name for name in values if is_in_first_line(name)), key=lambda name: sign * values[name].point, default=""
    )
    if best and sign * values[best].point > sign * tuned.point:
        is_shown = gaps[best].high < 0 if higher else gaps[best].low > 0
        shown = "a difference that" + (" the intervals show" if is_shown else " may be chance")
        return (
            f"{subject(best)} beats the tuned model on {num_items} test items: "
            f"{word} {_show(values[best])} against {_show(tuned)}, {shown}."
        )
    sentence = (
        f"On {num_items} test items the tuned model reaches {word} {_show(tuned)}, "
        f"{_against_base(gaps['base'])} (base model {values['base'].point:.3f})"
    )
    read_off = metric in ("macro_f1", "micro_f1", "mae")
    sentence += _labelled(systems) if read_off else _perplexity(systems, differences) + _terms(systems, differences)
    return sentence + against_parent(values, gaps, higher_is_better=higher) + "."


def _labelled(systems: Sequence[SystemScore]) -> str:
    """Of a version that may abstain, what it labels; macro-F1 counts what it would have said elsewhere."""
    tuned = next(system.metrics for system in systems if system.system == "tuned")
    if "coverage" not in tuned:
        return ""
    return (
        f"; it labels {tuned['coverage'].point:.3f} of the items, {_show(tuned['answered_accuracy'])} of them rightly"
    )


def _perplexity(systems: Sequence[SystemScore], differences: Sequence[Difference]) -> str:
    """Free answers are seldom equal to the letter, so their likelihood belongs in the sentence."""
    values = {one.system: one.metrics["perplexity"].point for one in systems if "perplexity" in one.metrics}
    if "tuned" not in values:  # which writes nothing
        return ""
    gap = next(gap.interval for gap in differences if (gap.metric, gap.against) == ("perplexity", "base"))
    return (
        f"; perplexity of the expected answers is {values['tuned']:.2f} against {values['base']:.2f} "
        f"(difference {gap.ends('+.2f')})"
    )


def _terms(systems: Sequence[SystemScore], differences: Sequence[Difference]) -> str:
    """Of a glossary, where items hold its terms."""
    values = {one.system: one.metrics["term_accuracy"] for one in systems if "term_accuracy" in one.metrics}
    if "tuned" not in values:
        return ""
    gap = next(gap.interval for gap in differences if (gap.metric, gap.against) == ("term_accuracy", "base"))
    return f"; term accuracy {_show(values['tuned'])}, {_against_base(gap)} (base model {values['base'].point:.3f})"


def against_parent(values: Mapping[str, Interval], gaps: Mapping[str, Interval], *, higher_is_better: bool) -> str:
    """What the best of the merged runs reaches alone."""
    parents = [name for name in values if name.startswith(PARENT)]
    if not parents:
        return ""
    best = (max if higher_is_better else min)(parents, key=lambda name: values[name].point)
    gap = gaps[best]
    return (
        f"; the best of the merged runs, {best.removeprefix(PARENT)}, reaches {values[best].point:.3f} (the merge "
        f"{gap.point:+.3f}, {gap.ends('+.3f')})"
    )


def _show(value: Interval) -> str:
    return f"{value.point:.3f} ({value.level:.0%} interval {value.ends()})"


def _against_base(gap: Interval) -> str:
    span = f"({gap.ends('+.3f')})"
    if gap.low > 0:
        return f"{gap.point:.3f} more than the base model {span}"
    if gap.high < 0:
        return f"{-gap.point:.3f} less than the base model {span}"
    return f"no difference to the base model is shown, {gap.point:+.3f} {span}"
