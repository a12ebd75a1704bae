"""From files to shards: every row is either in a shard or in the report with its line and the reason."""

from __future__ import annotations

import secrets as random_key
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from luthier.data.contract import TAGGER_FILE, Renderer, make_contract, open_tokenizer, with_labels
from luthier.data.dedupe import conflicting, repeated
from luthier.data.filters import filtered
from luthier.data.goldens import make_goldens, write_goldens
from luthier.data.guard import (
    count_kinds,
    guard,
    guard_labels,
    open_pseudonyms,
    open_rules,
    personal_wording,
    refuse_secrets_in_expressions,
    refuse_secrets_in_wording,
)
from luthier.data.interpret import interpret
from luthier.data.items import Item, Ledger, Verdict, load, name_group
from luthier.data.labels import rare_labels, similar_names, suspected
from luthier.data.privacy.profiles import NOT_LOOKED_FOR
from luthier.data.privacy.pseudonyms import mapping_passphrase, write_mapping
from luthier.data.separate import Separated, check_labels, separate, set_near_aside, split_rule
from luthier.data.shards import Shard, distribute
from luthier.data.show import row_views
from luthier.data.source import fingerprint
from luthier.data.tokenise import render_rows, split_reports
from luthier.data_report import DataReport, Finding, LabelReview, LabelSuspect, NearReport, RowView
from luthier.errors import DataError
from luthier.records import Contamination, RequestContract, SplitName, is_closed
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_file, temporary_file, write_atomic

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

_SHORTEST_OPEN_ANSWER = 16
_OVERLAP: dict[Contamination, str] = {"exact": "by text", "near": "by nearly the same text", "group": "by group"}


def prepare(resolved: ResolvedRecipe, *, tokenizer_folder: Path, out: Path) -> DataReport:
    """Make the shards, the request contract, the golden prompts and the report of a recipe's data.

    The same recipe, files and tokenizer give the same bytes, but for findings.jsonl, whose hashes are keyed anew.

    Rows that cannot be read are kept in quarantine.jsonl, which is not left where there are none.

    Args:
        resolved: the recipe with nothing left open.
        tokenizer_folder: holds tokenizer.json, tokenizer_config.json and the chat template of the base model.
        out: receives {train,validation,test}.arrow, contract.json, goldens.json, findings.jsonl and, last, report.json.

    Raises:
        DataError: a file cannot be used, or what is left of it cannot be learned from.
        SecretFound: there is a secret and the recipe does not say what to do about it.
        ModelError: the tokenizer or its chat template cannot be used.
    """
    refuse_secrets_in_wording(resolved.recipe.entry)
    refuse_secrets_in_expressions(resolved.recipe.data.features)
    (out / "report.json").unlink(missing_ok=True)  # a report never stands beside shards that it is not about
    tokenizer = open_tokenizer(tokenizer_folder / "tokenizer.json")
    detector, tagger = open_rules(resolved, out / TAGGER_FILE)
    ledger = Ledger(detector)
    contract = make_contract(
        resolved, tokenizer_folder=tokenizer_folder, labels=(), tokenizer=tokenizer, tagger_sha256=tagger
    )
    renderer = Renderer(contract, tokenizer, detector)
    items = load(resolved, ledger, bad=out / "quarantine.jsonl")
    entry, rename = resolved.recipe.entry, resolved.recipe.data.labels.rename
    items = interpret(items, contract, label=entry.label or "", rename=rename, ledger=ledger)
    items, findings = _guard(items, resolved, renderer, ledger)
    if resolved.recipe.data.filter is not None:
        items = ledger.sift("filter", items, filtered(items, resolved.recipe.data.filter))
    items, conflicts = _settle(items, contract, resolved.recipe.data.split.group_by or "", ledger)
    items, near = set_near_aside(items, contract, resolved, ledger)
    separated = separate(items, contract, resolved, ledger)
    review = _review(separated.items, resolved)
    _render(separated.items, renderer, resolved, ledger, out=out)
    contract = _completed(renderer, Shard(out / "train.arrow"))
    write_atomic(out / "contract.json", contract.to_json())
    clean = [row for row in Shard(out / "test.arrow") if not row.contaminated]
    goldens = make_goldens(Renderer(contract, tokenizer, detector), clean, seed=resolved.recipe.data.split.seed)
    write_goldens(out / "goldens.json", goldens)
    write_atomic(out / "findings.jsonl", "".join(f"{finding.model_dump_json()}\n" for finding in findings))
    report = _report(
        resolved, out, ledger=ledger, findings=count_kinds(findings), conflicts=conflicts, near=near,
        separated=separated, review=review,
        views=row_views({split: Shard(out / f"{split}.arrow") for split in SPLITS}, renderer),
    )  # fmt: skip
    write_atomic(out / "report.json", report.to_json())
    return report


def _guard(
    items: list[Item], resolved: ResolvedRecipe, renderer: Renderer, ledger: Ledger
) -> tuple[list[Item], list[Finding]]:
    rules, contract = resolved.recipe.data.privacy, renderer.contract
    assert rules is not None  # resolved
    pseudonyms = open_pseudonyms(rules)
    key = random_key.token_bytes(32)
    column = resolved.recipe.entry.label or ""
    labels = guard_labels(items, rules, column=column, key=key) if is_closed(contract.task) else []
    verdicts, findings, changed = guard(
        items, rules, contract, key=key, detector=renderer.detector, pseudonyms=pseudonyms
    )
    if pseudonyms is not None and rules.keep_mapping is not None:
        path = resolved.file(rules.keep_mapping)
        write_mapping(path, pseudonyms.mapping, passphrase=mapping_passphrase())
    findings = sorted([*labels, *findings], key=lambda one: (one.file, one.line)) if labels else findings
    return ledger.sift("privacy", items, verdicts, changed=changed), findings


def _settle(items: list[Item], contract: RequestContract, group_by: str, ledger: Ledger) -> tuple[list[Item], int]:
    """Set aside contradictions (of labels; free text may have several right answers) and repetitions, file by file."""
    conflicts = 0
    if is_closed(contract.task):
        keys = [f"{item.origin}:{item.key}" for item in items]
        marks = conflicting(keys, [item.answer for item in items])
        lines: dict[str, list[str]] = {}
        for key, item, mark in zip(keys, items, marks, strict=True):
            if mark:
                lines.setdefault(key, []).append(str(item.line))
        conflicts = len(lines)
        details = [f"same text, other labels in lines {', '.join(lines[key])}" if key in lines else "" for key in keys]
        items = ledger.sift("conflicts", items, [("conflicting_labels", one) if one else None for one in details])
    keys = [f"{item.origin}:{item.key}" for item in items]
    first = repeated(keys, [item.answer or item.turns[-1].content for item in items])
    verdicts: list[Verdict | None] = [
        None if index is None else ("duplicate", f"of line {items[index].line}") for index in first
    ]
    items = ledger.sift("duplicates", items, verdicts)
    for item in items:
        item.group = name_group(item, group_by)
    return items, conflicts


def _review(items: Sequence[Item], resolved: ResolvedRecipe) -> LabelReview | None:
    """Rows whose label a simple model of the other rows contradicts, the surest first; for people to look at."""
    if not resolved.recipe.data.labels.review:
        return None
    found = suspected(
        [item.text for item in items],
        [item.answer for item in items],
        [item.group for item in items],
        seed=resolved.recipe.data.split.seed,
    )
    if found is None:
        return None
    suspects = tuple(
        LabelSuspect(
            file=items[one.index].file,
            line=items[one.index].line,
            label=items[one.index].answer,
            suggested=one.suggested,
            given_probability=one.given_probability,
            suggested_probability=one.suggested_probability,
        )
        for one in found.suspects
    )
    return LabelReview(agreement=found.agreement, suspects=suspects)


def _render(items: list[Item], renderer: Renderer, resolved: ResolvedRecipe, ledger: Ledger, *, out: Path) -> None:
    """Tokenise; rows that are too long may have been the last of their label, so labels are looked at once more."""
    with temporary_file(out / "rows.arrow") as spool:
        rendered = render_rows(items, renderer, ledger, spool=spool)
        _refuse_short_length(items, rendered, renderer.contract, ledger)
        kept = check_labels(rendered, resolved, ledger, step="labels after length")
        for split in ("train", "test"):
            if not any(item.split == split for item in kept):
                raise DataError(
                    f"{resolved.file(resolved.recipe.entry.path)}: no row is left for the {split} split "
                    f"({ledger.rows_in} rows read: {ledger.summary()})",
                    way_out=f"give more rows, or another data.split.test, or a file of its own as data.{split}",
                )
        _refuse_seen_test([item for item in kept if item.split == "test"])
        left = {id(item) for item in kept}
        distribute(
            spool,
            {split: out / f"{split}.arrow" for split in SPLITS},
            [item.split if id(item) in left else None for item in rendered],
        )


def _refuse_seen_test(test: Sequence[Item]) -> None:
    if all(item.contaminated for item in test):
        counts = Counter(item.contaminated for item in test)
        found = ", ".join(f"{count} {_OVERLAP[kind]}" for kind, count in counts.items() if kind)
        raise DataError(
            f"training has seen every one of the {len(test)} rows of the test split: {found}",
            way_out="give other rows as data.test, or, where likeness or groups are no leak here, "
            "set data.leakage.near higher or data.split.group_by to ''",
        )


def _refuse_short_length(
    before: Sequence[Item], after: Sequence[Item], contract: RequestContract, ledger: Ledger
) -> None:
    """Stop where length alone left nothing, or fewer than two labels, to learn from or to test with."""
    too_long = ledger.dropped.get("too_long", 0)
    learned = [{item.answer for item in items if item.split == "train"} for items in (before, after)]
    few = is_closed(contract.task) and len(learned[0]) >= 2 and len(learned[1]) < 2
    gone = {item.split for item in before} - {item.split for item in after} - {"validation"}
    if too_long and (few or gone):
        left = "no row" if gone else "fewer than two labels"
        raise DataError(
            f"{left} is left for the {max(gone, default='train')} split: {too_long} of {len(before)} rows "
            f"are longer than train.max_length, {contract.max_length} tokens",
            way_out="raise train.max_length, or shorten the texts or data.train[0].system",
        )


def _completed(renderer: Renderer, train: Shard) -> RequestContract:
    """The contract with what only the training rows tell: the labels, or how long answers get."""
    contract = renderer.contract
    if is_closed(contract.task):
        return with_labels(renderer, set(train.column("answer")))
    longest = max(length - prompt for length, prompt in zip(train.lengths, train.column("prompt_tokens"), strict=True))
    return contract.model_copy(
        update={"max_new_tokens": min(max(int(longest), _SHORTEST_OPEN_ANSWER), contract.max_length // 2)}
    )


def _report(
    resolved: ResolvedRecipe,
    out: Path,
    *,
    ledger: Ledger,
    findings: dict[str, int],
    conflicts: int,
    review: LabelReview | None,
    views: tuple[RowView, ...],
    near: NearReport | None,
    separated: Separated,
) -> DataReport:
    data, entry = resolved.recipe.data, resolved.recipe.entry
    closed = is_closed(entry.task)
    splits = split_reports({split: out / f"{split}.arrow" for split in SPLITS}, closed=closed)
    rows_out = sum(split.rows for split in splits.values())
    assert ledger.rows_in == rows_out + len(ledger.fates), (
        f"{ledger.rows_in} rows came in, {rows_out} went out and {len(ledger.fates)} were set aside"
    )
    rules = data.privacy
    assert entry.name is not None and entry.task is not None and rules is not None  # noqa: PT018 (resolved)
    files = [file for file in (entry.path, data.validation, data.test) if file is not None]
    read = [*files, *data.leakage.benchmarks]
    return DataReport(
        name=entry.name,
        task=entry.task,
        rows_in=ledger.rows_in,
        rows_out=rows_out,
        dropped=ledger.dropped,
        quarantined=ledger.quarantined,
        fates=tuple(sorted(ledger.fates, key=lambda fate: (_place_of(fate.file, files), fate.file, fate.line))),
        steps=tuple(ledger.steps),
        splits=splits,
        split_rule=split_rule(resolved),
        findings=findings,
        findings_action=rules.action,
        secrets_action=rules.secrets,
        not_looked_for=NOT_LOOKED_FOR[rules.profile or "fast"],
        personal_wording=personal_wording(entry, data.features),
        conflicts=conflicts,
        similar_labels=tuple(similar_names(splits["train"].labels)),
        rare_labels=rare_labels(splits["train"].labels, fewer_than=data.labels.min_rows or 0),
        review=review,
        changes=tuple(ledger.changes),
        views=views,
        near=near,
        leakage=separated.leakage,
        benchmarks=separated.benchmarks,
        rows_left_apart=separated.rows_left_apart,
        end_of_turn_supervised=True,  # `audit_row` stops otherwise
        truncated_rows=0,  # rows that are too long are set aside, never cut
        license=entry.license or "unknown",
        synthetic=entry.synthetic,
        features=ledger.features,
        contract_sha256=sha256_file(out / "contract.json"),
        source_sha256={file: fingerprint(resolved.file(file)) for file in read},
    )


def _place_of(file: str, files: Sequence[str]) -> int:
    """Which of the recipe's files it is, or which of its folders it lies in."""
    return next(index for index, one in enumerate(files) if file == one or file.startswith(f"{one}/"))
