"""The gate: one line for everything that was asked, each with what was seen, the bound that counts and where it stands.

A target is met when its bound clears it, not its point. The bound is the worse end of the two-sided interval, so a
95 % interval holds a target to a one-sided confidence of 97.5 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from luthier.data_report import DataReport
from luthier.eval_records import EvalReport, GlossaryUse
from luthier.govern.license import assess
from luthier.govern.memorised import memorisation_lines
from luthier.records import Artifact, GateDecision, GateLine, Interval, ModelShape, is_text
from luthier.spec.limits import Limit
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_json

MEASURED = {
    "logits": ("logit error", "of the largest logit"),
    "log_probabilities": ("log-probability error", "of the largest log-probability"),
    "kl": ("KL divergence", "nats"),
}
"""How an artifact was compared -> what that is called, and in what it is given."""

_SAID = {"words": "greedy text", "head": "chosen label", "both": "greedy text or chosen label"}


def decide(
    *,
    resolved: ResolvedRecipe,
    shape: ModelShape,
    report: EvalReport,
    artifacts: Sequence[Artifact],
    data: DataReport,
    eval_sha256: str,
    artifacts_sha256: str,
    now: datetime,
) -> GateDecision:
    """Decide whether this version may be used, and seal the decision.

    Args:
        resolved: what was asked.
        shape: of the base model, for its license.
        report: on the test split.
        artifacts: what was exported.
        data: the report of prepare.
        eval_sha256: hash of eval/report.json.
        artifacts_sha256: hash of artifacts/index.json.
        now: with a time zone.
    """
    assert now.tzinfo is not None, "a decision carries a time with its zone"
    lines = (
        *_objective_lines(resolved, report),
        *_parity_lines(resolved, report, artifacts),
        *_data_lines(report, data),
        *memorisation_lines(resolved.recipe.objective.memorisation, report.memorisation),
        _license_line("license of the base", shape.license, "the base model", "shape.json: license"),
        _license_line("license of the data", data.license, "the data", "data/report.json: license"),
        *_teacher_lines(resolved),
    )
    decision = GateDecision(
        passed=all(line.passed for line in lines),
        lines=lines,
        decided_at=now.astimezone(UTC).isoformat(timespec="seconds"),
        recipe_sha256=resolved.sha256,
        eval_sha256=eval_sha256,
        artifacts_sha256=artifacts_sha256,
        seal="",
    )
    return decision.model_copy(update={"seal": _seal(decision)})


def combine(
    decisions: Mapping[str, GateDecision],
    *,
    recipe_sha256: str,
    eval_sha256: str,
    artifacts_sha256: str,
    now: datetime,
    own_adapters: bool = False,
) -> GateDecision:
    """The decision on a run of several tasks: every line of every task has to pass.

    Args:
        decisions: task -> the decision on it alone.
        recipe_sha256: of the recipe of all.
        eval_sha256: hash over the reports of all.
        artifacts_sha256: hash of artifacts/index.json.
        now: with a time zone.
        own_adapters: whether each task has an adapter of its own.
    """
    lines = joined_lines(decisions, own_adapters=own_adapters)
    decision = GateDecision(
        passed=all(line.passed for line in lines),
        lines=lines,
        decided_at=now.astimezone(UTC).isoformat(timespec="seconds"),
        recipe_sha256=recipe_sha256,
        eval_sha256=eval_sha256,
        artifacts_sha256=artifacts_sha256,
        seal="",
    )
    return decision.model_copy(update={"seal": _seal(decision)})


def joined_lines(decisions: Mapping[str, GateDecision], *, own_adapters: bool = False) -> tuple[GateLine, ...]:
    """The lines of all tasks: what is of the model itself once, what is of a task with its name.

    Where each task has an adapter of its own, what was measured of the model is of a task too.
    """
    lines: dict[tuple[str, str], GateLine] = {}
    for task, decision in decisions.items():
        for line in decision.lines:
            of_model = not own_adapters and (line.kind == "parity" or line.line.startswith("general."))
            if of_model or line.evidence.startswith("shape.json"):
                name = line.line  # of the model itself, the same for all tasks
            else:
                name = line.line if line.line.startswith(f"{task}.") else f"{task}: {line.line}"
            where = line.evidence if line.kind == "parity" else f"tasks/{task}/{line.evidence}"
            lines.setdefault((name, line.observed), line.model_copy(update={"line": name, "evidence": where}))
    return tuple(lines.values())


def verify_seal(decision: GateDecision) -> bool:
    """Whether the decision is as it was taken."""
    return decision.seal == _seal(decision)


def sealed(decision: GateDecision, *, approvers_sha256: str, signed_by: str) -> GateDecision:
    """The decision with who may approve against it and whose key signs it, sealed anew."""
    named = decision.model_copy(update={"approvers_sha256": approvers_sha256, "signed_by": signed_by})
    return named.model_copy(update={"seal": _seal(named)})


def _seal(decision: GateDecision) -> str:
    content = decision.model_dump(mode="json")
    for key in ("approvers_sha256", "signed_by"):  # older decisions were sealed without them
        if not content[key]:
            del content[key]
    return sha256_json({**content, "seal": ""})


def _objective_lines(resolved: ResolvedRecipe, report: EvalReport) -> Iterator[GateLine]:
    if not resolved.recipe.objective.targets:
        yield GateLine(
            line="target",
            kind="target",
            asked="nothing",
            observed="no target was set",
            bound=None,
            passed=True,
            evidence="recipe.resolved.json: recipe.objective.targets",
        )
    for limit in resolved.limits:
        strict = report.bounds
        if limit.relative and limit.subject == "general":
            yield _limit_line(
                limit,
                report.general.ratio,
                "tuned / base",
                "general.ratio",
                _Stricter.of(report, strict.general if strict else None, "bounds.general"),
            )
            continue
        if limit.relative:
            yield _terms_line(limit, report)
            continue
        found = [
            (place, system)
            for place, system in enumerate(report.systems)
            if system.system == "tuned" and limit.metric in system.metrics
        ]
        if found:
            place, system = found[0]
            later = _Stricter.of(
                report, strict.metrics.get(limit.metric) if strict else None, f"bounds.metrics.{limit.metric}"
            )
            where = f"systems[{place}].metrics.{limit.metric}"
            yield _limit_line(limit, system.metrics[limit.metric], "tuned", where, later)
        else:
            yield _unmeasured(limit, report.glossary)


def _unmeasured(limit: Limit, use: GlossaryUse | None) -> GateLine:
    """What has no number is not met."""
    observed = f"{limit.metric} was not measured"
    if limit.metric == "term_accuracy" and use is not None:
        observed += f", the test items hold none of the {use.num_terms} terms of {use.source}"
    return GateLine(
        line=limit.key,
        kind="non_regression" if limit.relative else "target",
        asked=limit.text,
        observed=observed,
        bound=None,
        passed=False,
        evidence="eval/report.json: systems",
    )


def _terms_line(limit: Limit, report: EvalReport) -> GateLine:
    """Of terms, what the tuned model keeps against what the base keeps; where that is nothing, nothing can be lost."""
    use = report.glossary
    if use is None or not use.met:
        return _unmeasured(limit, use)
    if use.ratio is not None:
        strict = report.bounds.glossary if report.bounds is not None else None
        later = _Stricter.of(report, strict, "bounds.glossary")
        return _limit_line(limit, use.ratio, "tuned / base", "glossary.ratio", later)
    return GateLine(
        line=limit.key,
        kind="non_regression",
        asked=limit.text,
        observed="the base model keeps no term, so there is none to lose",
        bound=None,
        passed=True,
        evidence="eval/report.json: glossary.ratio",
    )


@dataclass(frozen=True)
class _Stricter:
    """The interval that counts at a later look, and which look it is."""

    interval: Interval
    key: str
    look: int

    @classmethod
    def of(cls, report: EvalReport, interval: Interval | None, key: str) -> _Stricter | None:
        """None at the first look."""
        if report.look is None or report.look.number == 1:
            return None
        nothing = report.general.ratio.model_copy(update={"low": math.nan, "high": math.nan})
        return cls(interval or nothing, key, report.look.number)  # what has no bound is not met


def _limit_line(
    limit: Limit, interval: Interval, subject: str, key: str, stricter: _Stricter | None = None
) -> GateLine:
    """A limit against the worse end of the interval, or of the one that later looks are held to."""
    end, side = ("low", "lower") if limit.op == ">=" else ("high", "upper")
    decisive = stricter.interval if stricter is not None else interval
    bound = decisive.low if end == "low" else decisive.high
    found = f"{_number(interval.low, limit.value)} to {_number(interval.high, limit.value)} (n = {interval.n})"
    counts = f"what counts is its {side} end, a one-sided bound at {(1 + interval.level) * 50:g} %"
    if math.isnan(interval.low) or math.isnan(interval.high):
        found = f"not known (n = {interval.n})"
        counts = f"its {side} end would count, and groups of rows are too few, or too much alike, to have one"
    if stricter is not None:
        shown = "not known" if math.isnan(bound) else _number(bound, limit.value)
        found += f", {side} bound of look {stricter.look} {shown}"
        counts = f"what counts is that bound, one-sided at {(1 + decisive.level) * 50:.5g} %"
        key = stricter.key
    return GateLine(
        line=limit.key,
        kind="non_regression" if limit.relative else "target",
        asked=limit.text,
        observed=(
            f"{subject} {_number(interval.point, limit.value)}, {interval.level * 100:g} % interval {found}; {counts}"
        ),
        bound=None if math.isnan(bound) else bound,
        passed=limit.holds(bound),
        evidence=f"eval/report.json: {key}.{end}",
    )


def _number(value: float, limit: float, style: str = ".3f") -> str:
    """`value` in `style`, with as many decimals more as it takes to see on which side of `limit` it lies."""
    for decimals in range(int(style[1]), 17):
        shown = float(text := f"{value:.{decimals}{style[2]}}")
        if (shown < limit, shown > limit) == (value < limit, value > limit):
            return text
    return repr(value)


def _parity_lines(resolved: ResolvedRecipe, report: EvalReport, artifacts: Sequence[Artifact]) -> Iterator[GateLine]:
    """One line for each artifact, and one for each that was asked for and is not there."""
    evidence = "artifacts/index.json"
    for artifact in artifacts:
        parity = artifact.parity
        said = _SAID[parity.answered_by]
        same_weights = artifact.made_from == report.weights_sha256
        observed = (
            f"token ids {'equal' if parity.ids_equal else 'differ'} on {parity.prompts} prompts, "
            f"largest {MEASURED[parity.measure][0]} {_number(parity.max_logit_error, parity.bound, '.1e')}, "
            f"{said} equal on {parity.greedy_equal}"
        )
        if parity.listed:
            observed += f"; {'; '.join(parity.listed)}"
        if parity.first_difference:
            observed += f"; first difference: {parity.first_difference}"
        if not same_weights:
            observed += "; it was made from other weights than those that were evaluated: export again"
        yield GateLine(
            line=f"parity of {artifact.kind}",
            kind="parity",
            asked=f"token ids equal, {MEASURED[parity.measure][0]} <= {parity.bound:g} {MEASURED[parity.measure][1]}",
            observed=observed,
            bound=parity.max_logit_error,
            passed=parity.passed and parity.ids_equal and parity.max_logit_error <= parity.bound and same_weights,
            evidence=f"{evidence}: {artifact.kind}, parity",
        )
    for kind in sorted(set(resolved.recipe.export or ()) - {artifact.kind for artifact in artifacts}):
        yield GateLine(
            line=f"parity of {kind}",
            kind="parity",
            asked="exported",
            observed=f"there is no artifact {kind!r}",
            bound=None,
            passed=False,
            evidence=evidence,
        )


def _data_lines(report: EvalReport, data: DataReport) -> Iterator[GateLine]:
    test, by_head = data.splits["test"], data.answered_by == "head"
    yield GateLine(
        line="leakage",
        kind="data",
        asked="evaluated on rows that training has not seen",
        observed=f"{report.split} split, {report.num_items} rows in {report.num_groups} groups; "
        f"{test.contaminated} more overlap with training and do not count",
        bound=None,
        passed=report.split == "test" and 0 < report.num_items <= test.rows - test.contaminated,
        evidence="data/report.json: leakage, splits.test.contaminated",
    )
    yield GateLine(
        line="supervision",
        kind="data",
        asked="both answers of every row are scored"
        if by_head and data.task == "preference"
        else "every row's label is learned"
        if by_head
        else f"every {'document' if is_text(data.task) else 'answer'} is learned to its end",
        observed=(
            "a head reads every answer to its end, "
            if by_head and data.task == "preference"
            else "a head learns the label of every row, "
            if by_head
            else f"the end of the {'sequence' if is_text(data.task) else 'turn'} is "
            f"{'' if data.end_of_turn_supervised else 'not '}supervised, "
        )
        + f"{data.truncated_rows} rows were truncated",
        bound=None,
        passed=data.end_of_turn_supervised,
        evidence="data/report.json: end_of_turn_supervised",
    )
    secrets = {kind: count for kind, count in data.findings.items() if kind.startswith("secret.")}
    personal = {kind: count for kind, count in data.findings.items() if kind not in secrets}
    yield _findings_line("secrets", secrets, data.secrets_action, {"redact", "drop"})
    line = _findings_line("personal data", personal, data.findings_action, {"redact", "pseudonymise", "drop"})
    yield _with_limits(line, data)


def _with_limits(line: GateLine, data: DataReport) -> GateLine:
    """What the recipe's own words hold, which nothing takes out, and what the detectors cannot find."""
    observed, passed = line.observed, line.passed
    if data.personal_wording:
        observed += f"; {'; '.join(data.personal_wording)}, left in: take it out of the recipe"
        passed = False
    if data.not_looked_for:
        observed += f" ({data.not_looked_for})"
    return line.model_copy(update={"observed": observed, "passed": passed})


def _findings_line(what: str, findings: dict[str, int], action: str, removing: set[str]) -> GateLine:
    """Passes where nothing was found, or what was found was taken out."""
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(findings.items())) or "none found"
    done = {"redact": "redacted", "pseudonymise": "replaced by pseudonyms", "drop": "their rows dropped"}.get(
        action, "left in"
    )
    observed = f"{listed}; {done}" if findings else listed
    passed = not findings or action in removing
    if not passed:
        observed += f"; set data.privacy.{'secrets' if what == 'secrets' else 'action'} to redact or drop"
    return GateLine(
        line=what,
        kind="data",
        asked=f"no {what} in what the model learns",
        observed=observed,
        bound=None,
        passed=passed,
        evidence="data/report.json: findings",
    )


def _teacher_lines(resolved: ResolvedRecipe) -> list[GateLine]:
    """A model that learned what another one says is made from that one."""
    if resolved.teacher is None:
        return []
    where = "recipe.resolved.json: teacher"
    return [_license_line("license of the teacher", resolved.teacher.shape.license, "the teacher", where)]


def _license_line(line: str, license_id: str, subject: str, evidence: str) -> GateLine:
    assessment = assess(license_id, subject)
    return GateLine(
        line=line,
        kind="license",
        asked="may be used, also commercially",
        observed=assessment.observed,
        bound=None,
        passed=assessment.passed,
        evidence=evidence,
    )
