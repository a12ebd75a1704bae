"""Words for what was resolved and what became of the data."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.features import freeze
from luthier.data_report import DataReport, EndpointUse, MeaningReport, SplitReport
from luthier.eval_records import EvalReport
from luthier.pipeline.start import Prepared
from luthier.spec.filler import leaves
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.steps import explained_steps
from luthier.spec.tasks import OWN_KEYS, OWN_PLACES
from luthier.store.runs import RunFolder


def explained(resolved: ResolvedRecipe) -> list[str]:
    """Every value of the resolved recipe with the reason for it, one a line; then the steps of the data in order."""
    if resolved.tasks:
        mix = leaves(resolved.recipe.multi_task.model_dump(mode="json") if resolved.recipe.multi_task else {})
        lines = [f"multi_task.{key} = {_plain(value)}" for key, value in mix]
        for place, (name, part) in enumerate(zip(resolved.names, resolved.parts, strict=True)):
            own = (line.replace("data.train.0.", f"data.train.{place}.", 1) for line in explained(part))
            lines += [f"task {name}:", *(f"  {line}" for line in own)]
        return lines
    shown = [
        (f"{key} = {_plain(value)}", resolved.reasons[key])
        for key, value in leaves(resolved.recipe.model_dump(mode="json"))
        if value is not None or not _is_of_several(key)
    ]
    width = min(max(len(text) for text, _ in shown), 60)
    steps = [f"  {place}. {name}: {why}" for place, (name, why) in enumerate(explained_steps(resolved.recipe), start=1)]
    return [*(f"{text:<{width}}  {reason}" for text, reason in shown), "steps of the data, in order:", *steps]


def _is_of_several(key: str) -> bool:
    """Whether a key says for one of several tasks, or for all of them, what one task alone need not say."""
    return key == "multi_task" or key in [f"data.train.0.{own}" for own in (*OWN_PLACES, *OWN_KEYS)]


def fine_lines(prepared: Prepared) -> list[str]:
    """That the recipe is fine, and what it is about; one line a task where there are several."""
    resolved, about = prepared.resolved, f"{prepared.shape.num_parameters / 1e6:.1f} M parameters"
    lines = []
    for name, part, profile in zip(resolved.names, resolved.parts, prepared.profiles, strict=True):
        does = f"{part.recipe.method.type} for {part.recipe.entry.task}"
        lines.append(
            f"  task {name}: {profile.num_rows} rows, {does}"
            if resolved.tasks
            else f"{prepared.loaded.path}: fine ({profile.num_rows} rows, {about}, {does})"
        )
        lines += feature_lines(part)
    head = [f"{prepared.loaded.path}: fine ({len(resolved.tasks)} tasks, {about})"] if resolved.tasks else []
    return head + lines


def feature_lines(resolved: ResolvedRecipe) -> list[str]:
    """What is computed from which columns, one a line."""
    types = resolved.recipe.data.columns
    lines = []
    for feature in freeze(resolved.recipe):
        sources = ", ".join(f"{name} ({types[name]})" if name in types else name for name in feature.uses)
        lines.append(f"  feature {feature.name} ({feature.type}) from {sources or 'nothing'}: {feature.sql}")
    return lines


def _plain(value: object) -> str:
    return "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def by_task(reports: Sequence[DataReport] | Sequence[EvalReport]) -> dict[str, object]:
    """For `--json`: the report of the one task, or task -> report."""
    documents = {report.name: report.model_dump(mode="json") for report in reports}
    return documents[reports[0].name] if len(reports) == 1 else dict(documents)


def score_lines(report: EvalReport) -> list[str]:
    """What may be claimed, and every system's metrics."""
    return [report.headline] + [
        f"{score.title}: "
        + ", ".join(
            f"{name} {value.point:.3f} [{value.low:.3f}, {value.high:.3f}]" for name, value in score.metrics.items()
        )
        for score in report.systems
    ]


def data_lines(report: DataReport, run: RunFolder) -> list[str]:
    """Rows in, rows out, and every reason in between."""
    added = f", {report.rows_added} of them made for training" if report.rows_added else ""
    lines = [f"{report.rows_in} rows in, {report.rows_out} used{added}"]
    lines += [
        f"  set aside: {count} {reason.replace('_', ' ')}" for reason, count in sorted(report.dropped.items()) if count
    ]
    if report.quarantined:
        lines.append(f"  of these, {report.quarantined} cannot be read: {run.data / 'quarantine.jsonl'}")
    lines += [f"  feature {one.name}: {one.empty} empty, {one.failed} failed" for one in report.features]
    lines += [
        f"  {name}: {_rows(split)}, {split.tokens} tokens, {split.supervised_tokens} supervised"
        for name, split in report.splits.items()
    ]
    if report.truncated_rows:
        audits = [split.supervision for split in report.splits.values() if split.supervision]
        lost = sum(audit.tokens_lost for audit in audits)
        lines.append(f"  cut to fit: {report.truncated_rows} rows, {lost} tokens of their texts")
    if report.balance:
        shares = ", ".join(f"{one.label} {one.share:.0%} -> {one.effective_share:.0%}" for one in report.balance[:12])
        more = ", ..." if len(report.balance) > 12 else ""
        lines.append(f"  what labels count in training: {shares}{more}")
    lines += [
        f"  seen in training: {leak.exact} rows of {leak.split} by text, {leak.near} nearly, {leak.group} by group"
        + (f", {leak.meaning} by meaning; " if report.meaning else "; ")
        + ("marked, they do not count" if leak.split == "test" else "set aside")
        for leak in report.leakage
        if leak.rows
    ]
    lines += [
        f"  benchmark {one.file}: {one.exact} rows of train stand in it, {one.near} nearly"
        + (f", {one.meaning} by meaning" if report.meaning else "")
        + "; set aside"
        for one in report.benchmarks
    ]
    if report.rows_left_apart:
        lines.append(f"  {report.rows_left_apart} rows form chains of near-duplicates too long to be kept in one split")
    if report.near is not None and report.near.num_conflicts:
        pairs = ", ".join(f"{one.file}:{one.line} and {one.of_file}:{one.of_line}" for one in report.near.conflicts[:5])
        more = ", ..." if report.near.num_conflicts > 5 else ""
        lines.append(f"  nearly the same text under other labels: {report.near.num_conflicts}, {pairs}{more}")
    lines += _added(report)
    if report.meaning is not None:
        lines += _meaning_lines(report.meaning)
    if report.findings:
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(report.findings.items()))
        lines.append(f"  personal data ({report.findings_action}; secrets: {report.secrets_action}): {found}")
    lines += [f"  labels that read alike: {', '.join(map(repr, group))}" for group in report.similar_labels]
    if report.rare_labels:
        lines.append(
            "  rare labels: " + ", ".join(f"{label!r} ({rows} rows)" for label, rows in report.rare_labels.items())
        )
    if report.review and report.review.suspects:
        lines.append(f"  labels to look at: {len(report.review.suspects)} rows, the surest of them in the report")
    return [*lines, f"report: {run.data / 'report.html'}"]


def _rows(split: SplitReport) -> str:
    of = "" if split.documents is None else f" (pieces of {split.documents} documents)"
    return f"{split.rows} rows{of}"


def _added(report: DataReport) -> list[str]:
    """Offspring by technique, what the budget or the rows did not give, and canaries."""
    lines = []
    if made := report.augmentation:
        for one in made.techniques:
            gone = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in one.dropped.items())
            short = f" of {one.asked} asked for" if one.rows < one.asked else ""
            lines.append(f"  {one.technique}: {one.rows} offspring{short}" + (f" (set aside: {gone})" if gone else ""))
        if made.short:
            lines.append(f"  {len(made.short)} labels have fewer than {made.goal} rows all the same")
        if made.endpoint:
            lines.append(_asked(made.endpoint))
    if (taught := report.teacher) is not None:
        gone = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in taught.dropped.items())
        both = taught.rewritten + taught.kept
        own = f", {taught.rewritten} of {both} training rows rewritten" if both else ""
        new = f"{taught.rows} of {taught.available} rows of {taught.file} answered" if taught.file else "no new rows"
        without = f" (without its answer: {gone})" if gone else ""
        lines += [f"  teacher: {new}{own}{without}", _asked(taught.endpoint)]
    if general := report.replay:
        lines.append(
            f"  replayed: {general.rows} of {general.available} texts of {general.file}, {general.tokens} tokens, "
            f"{general.share:.1%} of what is learned ({general.asked:.1%} asked for)"
        )
    if words := report.new_tokens:
        cut = words.texts["test"]
        first = ", ".join(token.text.strip() for token in words.shown[:8])
        lines.append(
            f"  new tokens: {words.num_tokens} ({first}{', ...' if words.num_tokens > 8 else ''}); texts of the test "
            f"split are {cut.after} tokens, {cut.before} by the base's tokenizer"
        )
    if report.canaries:
        lines.append(f"  canaries: {report.canaries.rows} rows")
    return lines


def _asked(use: EndpointUse) -> str:
    left = f"; the budget did not reach for {use.unanswered} rows" if use.unanswered else ""
    return (
        f"  {use.model} was asked {use.requests} times ({use.tokens} tokens), "
        f"{use.from_cache} answers were kept from before{left}"
    )


def _meaning_lines(meaning: MeaningReport) -> list[str]:
    """What was compared by meaning, beside the rows that were set aside or marked for it."""
    long = f"; {meaning.too_long} are longer than it reads and were not compared" if meaning.too_long else ""
    lines = [f"  by meaning: {meaning.texts} texts compared with {meaning.model}{long}"]
    if meaning.num_conflicts:
        lines.append(f"  the same meaning under other labels: {meaning.num_conflicts} rows, kept; some in the report")
    if meaning.rows_left_apart:
        lines.append(f"  {meaning.rows_left_apart} rows form chains of like meaning too long to be kept in one split")
    return lines
