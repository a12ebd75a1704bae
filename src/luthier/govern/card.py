"""The model card: what a version is for, what it was made from, what it can do, and what is known against it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from luthier.approval_records import Standing
from luthier.data_report import DataReport
from luthier.eval_records import EvalReport, SystemScore
from luthier.govern.license import assess
from luthier.govern.lineage import lineage
from luthier.govern.origin import base_lines
from luthier.plan.looks import look_words
from luthier.prune_records import PruneResult
from luthier.records import Artifact, GateDecision, Interval, ModelShape, is_text
from luthier.search_records import SearchRecord
from luthier.spec.adapter_section import Adapter
from luthier.spec.plugins import METHODS, METRICS
from luthier.spec.resolve import ResolvedRecipe
from luthier.train_records import MergeResult, TrainResult

_QUALITY = (
    "micro_f1",
    "macro_f1",
    "accuracy",
    "mae",
    "r_squared",
    "reward",
    "chrf",
    "exact_match",
    "token_f1",
    "preference_accuracy",
    "bits_per_byte",
)
"""Metrics by which a baseline is said to beat the tuned model."""


@dataclass(frozen=True)
class Only:
    """What only some runs have."""

    search: SearchRecord | None = None
    pruned: PruneResult | None = None
    standing: Standing | None = None
    """Request and approval beside a refusal."""


def model_card(
    *,
    resolved: ResolvedRecipe,
    shape: ModelShape,
    data: DataReport,
    train: TrainResult,
    evaluation: EvalReport,
    artifacts: Sequence[Artifact],
    gate: GateDecision,
    only: Only = Only(),
) -> str:
    """The card of one run as Markdown, with the front matter that model hubs read.

    Raises:
        RunError: the records are not of one run.
    """
    graph = lineage(
        resolved=resolved,
        shape=shape,
        data=data,
        train=train,
        evaluation=evaluation,
        artifacts=artifacts,
        gate=gate,
        pruned=only.pruned,
    )
    search, pruned, standing = only.search, only.pruned, only.standing
    sections = (
        _front_matter(resolved, shape),
        [f"# {resolved.recipe.name}", "", _text(evaluation.headline)],
        ["## Intended use", "", *_intended_use(resolved, evaluation)],
        ["## Base model", "", *base_lines(shape, resolved.recipe.model), *(_pruned(pruned) if pruned else [])],
        ["## Data", "", *_data(data)],
        ["## Training", "", *_training(resolved, train), *(_searched(search) if search else [])],
        ["## Evaluation", "", *_evaluation(evaluation), *_looked(resolved, evaluation)],
        ["## Limits", "", *_limits(shape, data, evaluation, getattr(resolved.recipe.method, "abstain_below", None))],
        ["## Gate", "", *_gate(gate, standing)],
        ["## Licenses", "", *_licenses(resolved, shape, data)],
        ["## How to use", "", *_how_to_use(resolved, artifacts, gate, standing)],
        ["## Lineage", "", *_table(("what", "SHA-256"), [(one.node, f"`{one.sha256}`") for one in graph.nodes])[:-1]],
    )
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _front_matter(resolved: ResolvedRecipe, shape: ModelShape) -> list[str]:
    return [  # JSON texts are YAML texts
        "---",
        f"base_model: {json.dumps(shape.name)}",
        f"license: {json.dumps(shape.license.lower())}",
        f"tags: {json.dumps(['luthier', resolved.recipe.method.type, resolved.recipe.entry.task])}",
        "---",
    ]


def _intended_use(resolved: ResolvedRecipe, evaluation: EvalReport) -> list[str]:
    entry = resolved.recipe.entry
    if evaluation.labels:
        labels = ", ".join(map(_text, evaluation.labels))
        use = f"Choosing one of {len(evaluation.labels)} labels for a text ({entry.task}, `{entry.name}`): {labels}."
    elif entry.task == "multi_label":
        labels = ", ".join(_text(score.label) for score in evaluation.classes)
        use = f"Choosing any of {len(evaluation.classes)} labels for a text, or none (`{entry.name}`): {labels}."
    elif entry.task == "regression":
        use = f"Giving a number for a text (`{entry.name}`)."
    elif METHODS.get(resolved.recipe.method.type).scores_answers:
        use = (
            f"Scoring answers to a text (`{entry.name}`): of two, the one that people would rather have scores higher. "
            "It writes none. The difference of two scores is the log odds of the choice; a score by itself has no unit."
        )
    elif entry.task == "preference":
        use = f"Answering a text in the way that was preferred (`{entry.name}`)."
    elif is_text(entry.task):
        use = (
            f"Going on with a text of the domain (`{entry.name}`), and a base for tuning to a task. The server and "
            "`luthier predict` give it the beginning of a text without any template. It was taught nothing about turns "
            "of a conversation; what its base knew of them was not measured."
        )
    else:
        use = f"Answering a text with a text ({entry.task}, `{entry.name}`)."
    return [
        use,
        "",
        "Inputs like those of the data below, asked through the request contract of the run. "
        "It was not evaluated for anything else.",
    ]


def _made(data: DataReport) -> str:
    """Rows that stand in no file, in words."""
    parts = [f"{one.rows:,} by {one.technique}" for one in data.augmentation.techniques] if data.augmentation else []
    parts += [f"{data.canaries.rows:,} canaries (planted secrets)"] if data.canaries else []
    if replay := data.replay:
        parts.append(f"{replay.rows:,} general texts replayed ({replay.share:.1%} of what is learned)")
    if taught := data.teacher:
        parts.append(f"{taught.rows:,} with answers that `{_text(taught.endpoint.model)}` wrote")
    return f"; {data.rows_added:,} were made for training: {', '.join(parts)}" if parts else ""


def _data(data: DataReport) -> list[str]:
    origin = "**synthetic**: written for a purpose, not collected" if data.synthetic else "not marked as synthetic"
    dropped = [(reason, f"{rows:,}") for reason, rows in sorted(data.dropped.items())]
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(data.findings.items())) or "none found"
    by_head = data.answered_by == "head"
    used = f"Of {data.rows_in:,} rows, {data.rows_out - data.rows_added:,} are used{_made(data)}."
    return [
        f"`{data.name}`, {data.task}. The data is {origin}. {used}",
        "",
        *_table(("set aside because", "rows"), dropped),
        *_table(
            ("split", "rows", "groups", "tokens", *(() if by_head else ("of them learned",))),
            [
                (name, f"{one.rows:,}", f"{one.groups:,}", f"{one.tokens:,}")
                + (() if by_head else (f"{one.supervised_tokens:,}",))
                for name, one in data.splits.items()
            ],
        ),
        f"Split: {_text(data.split_rule)}.",
        "",
        *_new_tokens(data),
        f"Personal data and secrets: {found} (action `{data.findings_action}`, for secrets `{data.secrets_action}`). "
        f"{_text(data.not_looked_for[:1].upper() + data.not_looked_for[1:])}.",
    ]


def _new_tokens(data: DataReport) -> list[str]:
    """What became of the base's tokenizer."""
    new = data.new_tokens
    if new is None:
        return []
    before, after = new.texts["test"].a_byte
    first = ", ".join(f"`{_text(token.text.strip())}`" for token in new.shown[:10])
    return [
        f"The vocabulary has {new.num_tokens:,} tokens that its base does not have, each a word of the training rows: "
        f"{first}{', ...' if new.num_tokens > 10 else ''}. Texts of the test split are {after:.4f} tokens a byte, "
        f"{before:.4f} by the base's own tokenizer. Every perplexity here is a token of the base's, for both models.",
        "",
    ]


def _merging(merge: MergeResult, train: TrainResult) -> list[str]:
    """Of a version that was not trained but merged: from what, by which settings."""
    settings = {"density": merge.density, "seed": merge.seed, "rank": merge.rank}
    said = "".join(f", {key} {value:g}" for key, value in settings.items() if value is not None)
    form = "an adapter" if merge.into == "adapter" else "whole weights"
    lines = [
        f"Nothing was trained: {len(merge.runs)} trained runs of this base were merged by `{merge.method}`{said} into "
        f"{form}. What they learned was multiplied by the weights below.",
        "",
        *_table(
            ("run", "weight", "weights, SHA-256", "recipe, SHA-256", *(("validation",) if _tried(merge) else ())),
            [
                (one.run, f"{one.weight:g}", f"`{one.weights_sha256}`", f"`{one.recipe_sha256}`")
                + ((f"{one.validation:.3f}" if one.validation is not None else "",) if _tried(merge) else ())
                for one in merge.runs
            ],
        ),
    ]
    if _tried(merge):
        lines.append(
            f"Runs were tried in this order; one was taken in where the mean with it was no worse on the validation "
            f"split by {train.best_metric}."
        )
    if merge.kept < 1.0 - 1e-9:
        lines.append(f"The adapter's rank holds {100 * merge.kept:.2f} % of the squares of the exact merge.")
    if (sure := train.calibration) is not None:
        lines.append(f"The head's scores were divided by a temperature of {sure.temperature:.3f} after merging.")
    return lines if lines[-1] else lines[:-1]


def _tried(merge: MergeResult) -> bool:
    return any(one.validation is not None for one in merge.runs)


def _training(resolved: ResolvedRecipe, train: TrainResult) -> list[str]:
    if train.merge is not None:
        return _merging(train.merge, train)
    adapter, settings = resolved.recipe.adapter, resolved.recipe.train
    kept = (
        f"the best on the validation split by {train.best_metric} ({train.best_value:.3f})"
        if train.best_metric
        else "the last: there were no validation rows to choose a better one by"
    )
    sure = train.calibration or train.calibrations.get(resolved.recipe.entry.name or "")
    calibrated = (
        f" The head's scores were divided by a temperature of {sure.temperature:.3f}, fitted on {sure.num_items} "
        "validation rows."
        if sure
        else ""
    )
    return [
        f"Method `{train.method}` with adapter `{adapter.type}`{_settings(adapter)}: "
        f"{train.trainable_parameters:,} trained parameters, learning rate {settings.learning_rate:g}, "
        f"seed {settings.seed}.{_taught_by(resolved)}",
        "",
        f"{train.steps} steps over {train.trained_tokens:,} tokens in {train.seconds / 60:.1f} minutes with "
        f"{train.threads} threads and {train.peak_memory_gib:.1f} GiB at most. The weights are those of step "
        f"{train.best_step}, {kept}.{calibrated}",
    ]


def _pruned(pruned: PruneResult) -> list[str]:
    return [
        "",
        f"It was made smaller before it was trained: {pruned.words} What is compared with below as the base model is "
        "the whole one.",
    ]


def _searched(search: SearchRecord) -> list[str]:
    """That its settings were chosen, and by what."""
    return [
        "",
        f"Its settings are those of the best of {len(search.trials)} trials by `{search.metric}` on "
        "the validation rows (`search.json`), so what it reached there is too good to be expected again. The test "
        "rows were asked once, after that.",
    ]


def _taught_by(resolved: ResolvedRecipe) -> str:
    teacher = resolved.teacher
    if teacher is None:
        return ""
    given = ", ".join(
        f"{key} {_value(value)}"
        for key, value in resolved.recipe.method.model_dump(exclude={"type", "teacher"}).items()
        if value not in (None, 0.0)
    )
    what = f"tuned from `{teacher.shape.name}`" if teacher.tuned else f"`{teacher.shape.name}` as it is"
    return f" It was taught by `{teacher.named}` ({what}, {teacher.sha256[:12]}; {given})."


def _settings(adapter: Adapter) -> str:
    """What its section says, as far as it says something unusual or a number."""
    shown = {"r": None, **adapter.model_dump(exclude={"type", "target_modules"})}
    said = [f"{key} {_value(value)}" for key, value in shown.items() if value not in (None, False, True, "none", 0.0)]
    return f" ({', '.join(said)})" if said else ""


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _evaluation(evaluation: EvalReport) -> list[str]:
    metrics = sorted({metric for system in evaluation.systems for metric in system.metrics})
    rows = [
        (system.title, *(_interval(system.metrics[metric]) if metric in system.metrics else "" for metric in metrics))
        for system in evaluation.systems
    ]
    differences = [
        (
            f"{one.system} - {one.against}",
            one.metric,
            _interval(one.interval),
            f"{one.p_value:.2g}" if one.p_value == one.p_value else "",
        )  # NaN where no test is defined
        for one in evaluation.differences
    ]
    general = evaluation.general
    return [
        f"On the {evaluation.split} split: {evaluation.num_items} rows in {evaluation.num_groups} groups. "
        f"Intervals: {_text(evaluation.interval_method)}, {evaluation.resamples} resamples.",
        "",
        *_table(("system", *metrics), rows),
        *[f"**{sentence}**\n" for sentence in _beaten(evaluation.systems)],
        *_with_contaminated(evaluation),
        *_table(("paired difference", "metric", "value", "p"), differences),
        *_terms(evaluation),
        *_glossary(evaluation),
        *_memorised(evaluation),
        f"Perplexity of a general text ({_text(general.source)}, {general.num_tokens} tokens): base "
        f"{_interval(general.base)}, tuned {_interval(general.tuned)}, ratio {_interval(general.ratio)}.",
    ]


def _looked(resolved: ResolvedRecipe, evaluation: EvalReport) -> list[str]:
    """How often these test rows were looked at."""
    if evaluation.look is None:
        return []
    return ["", look_words(evaluation.look.number, resolved.recipe.evaluate.level or 0.95)]


def _with_contaminated(evaluation: EvalReport) -> list[str]:
    every = evaluation.with_contaminated
    if every is None:
        return []
    values = ", ".join(f"{name} {value:.3f}" for name, value in sorted(every.metrics.items()))
    return [
        f"{every.num_items - evaluation.num_items} more rows of the split overlap with training and do not count. "
        f"With them the tuned model would have: {values}.",
        "",
    ]


def _beaten(systems: Sequence[SystemScore]) -> list[str]:
    """One sentence for each other system that scores higher than the tuned one."""
    tuned = {system.system: system for system in systems}.get("tuned")
    return [
        f"{system.title} scores {_better(metric)} than the tuned model on {metric}: "
        f"{system.metrics[metric].point:.3f} against {tuned.metrics[metric].point:.3f}."
        for system in systems
        if tuned is not None and system is not tuned
        for metric in _QUALITY
        if metric in system.metrics
        and metric in tuned.metrics
        and _beats(metric, system.metrics[metric].point, tuned.metrics[metric].point)
    ]


def _better(metric: str) -> str:
    return "higher" if METRICS.get(metric).higher_is_better else "better"


def _beats(metric: str, one: float, other: float) -> bool:
    return one > other if METRICS.get(metric).higher_is_better else one < other


def _terms(evaluation: EvalReport) -> list[str]:
    terms = evaluation.terms
    if terms is None:
        return []
    rows = [(one.term, f"{one.occurrences}", f"{one.base:.2f}", f"{one.tuned:.2f}") for one in terms.terms[:20]]
    return [
        f"Perplexity of {terms.num_terms} terms of the domain ({_text(terms.source)}) where they stand, "
        f"{terms.occurrences} times: base {_interval(terms.base)}, tuned {_interval(terms.tuned)}, "
        f"ratio {_interval(terms.ratio)}.",
        "",
        *_table(("term", "times", "base", "tuned"), rows),
    ]


def _glossary(evaluation: EvalReport) -> list[str]:
    """How often answers keep the terms of a glossary, and which are missed most."""
    use = evaluation.glossary
    if use is None:
        return []
    if not use.met:
        return [
            f"Term accuracy was not measured: the test items hold none of the {use.num_terms} terms of "
            f"{_text(use.source)}.",
            "",
        ]
    values = {one.system: one.metrics["term_accuracy"] for one in evaluation.systems if "term_accuracy" in one.metrics}
    rows = [
        (one.term, ", ".join(one.accepted), f"{one.occurrences}", f"{one.base}", f"{one.tuned}")
        for one in use.missed[:20]
    ]
    return [
        f"Terms of {_text(use.source)} that answers keep: {use.met} of its {use.num_terms} terms stand in "
        f"{use.num_items} test items, {use.occurrences} times: base {_interval(values['base'])}, tuned "
        f"{_interval(values['tuned'])}.",
        "",
        *_table(("most missed", "accepted", "times", "kept by base", "by tuned"), rows),
    ]


def _memorised(evaluation: EvalReport) -> list[str]:
    """What was given away of planted secrets."""
    planted = evaluation.memorisation
    if planted is None:
        return []
    rows = [
        (
            f"{one.copies}",
            f"{one.extracted.n}",
            _interval(one.extracted),
            _interval(one.singled_out),
            f"{one.exposure:.1f}",
        )
        for one in planted.secrets
    ]
    return [
        f"Random secrets that were planted in the training rows, each asked for, and ranked among {planted.references} "
        f"that were not ({planted.false_positives:.0%} come first by chance):",
        "",
        *_table(("copies", "secrets", "written when asked for", "ranked first", "exposure (bits)"), rows),
    ]


def _limits(shape: ModelShape, data: DataReport, evaluation: EvalReport, bar: float | None) -> list[str]:
    limits = [
        f"- The numbers rest on {evaluation.num_items} rows of one split; the intervals say how far they carry.",
        f"- Other inputs than those of `{data.name}` (other languages, lengths, topics) were not measured.",
    ]
    if evaluation.labels:
        always = (
            "It always chooses one of its labels" if bar is None else f"It gives no label below {bar:g}, and else one"
        )
        limits.append(f"- {always}, also for a text to which none of them applies.")
    elif data.answered_by == "words":
        limits.append("- Its answers are not checked for truth.")
    elif evaluation.task == "preference":
        limits.append(
            "- Scores of answers to different prompts were not compared, nor answers by a model that was trained to "
            "score high, which finds what a reward model overlooks."
        )
    if data.synthetic:
        limits.append("- The data is synthetic: expect other numbers on real inputs.")
    if shape.quantisation:
        limits.append(f"- Its weights carry the rounding of {shape.quantisation}.")
    change = evaluation.general.ratio.point - 1
    side = "higher" if change >= 0 else "lower"
    limits.append(f"- Its perplexity on general text is {abs(change) * 100:.1f} % {side} than that of the base.")
    unfound = data.not_looked_for[:1].upper() + data.not_looked_for[1:]
    limits.append(f"- {_text(unfound)}; what was not found may have been learned.")
    return limits


def _gate(gate: GateDecision, standing: Standing | None) -> list[str]:
    passed = gate.passed and (standing is None or standing.state == "passed")
    approved = standing is not None and standing.state == "approved"
    word = "Passed" if passed else "Refused, and approved all the same" if approved else "Refused"
    more = [_text(standing.words), ""] if standing is not None and standing.words and not passed else []
    if gate.passed and not passed:
        more = ["This task meets its own conditions; the run that it is a part of was refused.", "", *more]
    keys = [f"Approvers' file when it was decided: SHA-256 `{gate.approvers_sha256}`."] if gate.approvers_sha256 else []
    keys += [f"gate.json is signed by `{gate.signed_by}`."] if gate.signed_by else []
    rows = [(line.line, line.asked, line.observed, "yes" if line.passed else "**no**") for line in gate.lines]
    return [
        f"**{word}** at {gate.decided_at}.",
        "",
        *more,
        *([" ".join(keys), ""] if keys else []),
        *_table(("line", "asked", "seen", "passed"), rows),
    ][:-1]


def _licenses(resolved: ResolvedRecipe, shape: ModelShape, data: DataReport) -> list[str]:
    base, rows = assess(shape.license, "the base model"), assess(data.license, "the data")
    lines = [f"- {_text(base.observed)} (read in: {_text(shape.license_source)}).", f"- {_text(rows.observed)}."]
    if (teacher := resolved.teacher) is not None:
        theirs = assess(teacher.shape.license, "the teacher")
        lines.append(f"- {_text(theirs.observed)} (read in: {_text(teacher.shape.license_source)}).")
    return lines


def _how_to_use(
    resolved: ResolvedRecipe, artifacts: Sequence[Artifact], gate: GateDecision, standing: Standing | None
) -> list[str]:
    name = resolved.recipe.name
    lines = ["```sh", f"luthier serve {name}", f"luthier predict {name} FILE", "```"]
    if not (gate.passed if standing is None else standing.may_be_used):
        lines = [
            "The gate refused this version, so `luthier serve` refuses it too until somebody else approves it "
            "(`luthier gate RUN --request REASON`); where there is no approvers' file, with `--allow-refused` it "
            "serves it and notes that in the audit log.",
            "",
            "```sh",
            f"luthier serve {name} --allow-refused",
            *lines[2:],
        ]
    if artifacts:
        lines += [
            "",
            *_table(
                ("artifact", "where in the run folder", "bytes"),
                [(artifact.kind, f"`{artifact.path}`", f"{artifact.num_bytes:,}") for artifact in artifacts],
            ),
        ][:-1]
    return lines


def _interval(interval: Interval) -> str:
    return f"{interval.point:.3f} ({interval.level * 100:g} %: {interval.ends()})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table with an empty line after it; nothing where there are no rows."""
    lines = ["| " + " | ".join(map(_text, row)) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *lines, ""] if lines else []


def _text(text: str) -> str:
    """One line in which nothing is taken for a cell's end or for HTML: labels and file names come from outside."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
