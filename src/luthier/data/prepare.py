"""From files to shards: every row is either in a shard or in the report with its line and the reason."""

from __future__ import annotations

import secrets as random_key
from collections.abc import Sequence
from pathlib import Path

from luthier.data.contract import TAGGER_FILE, Renderer, make_contract, open_tokenizer, with_labels
from luthier.data.dedupe import conflicting, repeated
from luthier.data.goldens import make_goldens, write_goldens
from luthier.data.guard import (
    count_kinds,
    guard,
    guard_labels,
    open_pseudonyms,
    open_rules,
    personal_wording,
    refuse_secrets_in_wording,
)
from luthier.data.interpret import interpret
from luthier.data.items import Item, Ledger, Verdict, load, name_group
from luthier.data.privacy.profiles import NOT_LOOKED_FOR
from luthier.data.privacy.pseudonyms import mapping_passphrase, write_mapping
from luthier.data.separate import check_labels, separate, split_rule
from luthier.data.shards import Example, write_shard
from luthier.data.tokenise import audit, render_rows, split_report
from luthier.errors import DataError
from luthier.records import DataReport, Finding, Leakage, RequestContract, SplitName, is_closed
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_file, write_atomic

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

_SHORTEST_OPEN_ANSWER = 16


def prepare(resolved: ResolvedRecipe, *, tokenizer_folder: Path, out: Path) -> DataReport:
    """Make the shards, the request contract, the golden prompts and the report of a recipe's data.

    The same recipe, files and tokenizer give the same bytes, but for findings.jsonl, whose hashes are keyed anew.

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
    (out / "report.json").unlink(missing_ok=True)  # a report never stands beside shards that it is not about
    ledger = Ledger()
    tokenizer = open_tokenizer(tokenizer_folder / "tokenizer.json")
    detector, tagger = open_rules(resolved, out / TAGGER_FILE)
    contract = make_contract(
        resolved, tokenizer_folder=tokenizer_folder, labels=(), tokenizer=tokenizer, tagger_sha256=tagger
    )
    renderer = Renderer(contract, tokenizer, detector)
    items = load(resolved, ledger)
    items = interpret(items, contract, label=resolved.recipe.entry.label or "", ledger=ledger)
    items, findings = _guard(items, resolved, renderer, ledger)
    items, conflicts = _settle(items, contract, resolved.recipe.data.split.group_by or "", ledger)
    items, leaks = separate(items, resolved, ledger)
    examples = _render(items, renderer, resolved, ledger)
    audit(examples, contract)
    contract = _completed(renderer, examples["train"])
    for split in SPLITS:
        write_shard(out / f"{split}.arrow", examples[split])
    write_atomic(out / "contract.json", contract.to_json())
    goldens = make_goldens(
        Renderer(contract, tokenizer, detector), examples["test"], seed=resolved.recipe.data.split.seed
    )
    write_goldens(out / "goldens.json", goldens)
    write_atomic(out / "findings.jsonl", "".join(f"{finding.model_dump_json()}\n" for finding in findings))
    report = _report(resolved, out, ledger=ledger, examples=examples, findings=count_kinds(findings),
                     conflicts=conflicts, leaks=leaks)  # fmt: skip
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


def _render(
    items: list[Item], renderer: Renderer, resolved: ResolvedRecipe, ledger: Ledger
) -> dict[SplitName, list[Example]]:
    """Tokenise; rows that are too long may have been the last of their label, so labels are looked at once more."""
    offered = items
    items, made = render_rows(items, renderer, ledger)
    _refuse_short_length(offered, items, renderer.contract, ledger)
    items = check_labels(items, resolved, ledger, step="labels after length")
    examples: dict[SplitName, list[Example]] = {split: [] for split in SPLITS}
    for item in items:
        examples[item.split].append(made[id(item)])
    for split in ("train", "test"):
        if not examples[split]:
            raise DataError(
                f"{resolved.file(resolved.recipe.entry.path)}: no row is left for the {split} split "
                f"({ledger.rows_in} rows read: {ledger.summary()})",
                way_out=f"give more rows, or another data.split.test, or a file of its own as data.{split}",
            )
    return examples


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


def _completed(renderer: Renderer, train: Sequence[Example]) -> RequestContract:
    """The contract with what only the training rows tell: the labels, or how long answers get."""
    contract = renderer.contract
    if is_closed(contract.task):
        return with_labels(renderer, {one.answer for one in train})
    longest = max(len(one.input_ids) - len(one.prompt_ids) for one in train)
    return contract.model_copy(
        update={"max_new_tokens": min(max(longest, _SHORTEST_OPEN_ANSWER), contract.max_length // 2)}
    )


def _report(
    resolved: ResolvedRecipe,
    out: Path,
    *,
    ledger: Ledger,
    examples: dict[SplitName, list[Example]],
    findings: dict[str, int],
    conflicts: int,
    leaks: tuple[Leakage, ...],
) -> DataReport:
    data, entry = resolved.recipe.data, resolved.recipe.entry
    rows_out = sum(len(rows) for rows in examples.values())
    assert ledger.rows_in == rows_out + len(ledger.fates), (
        f"{ledger.rows_in} rows came in, {rows_out} went out and {len(ledger.fates)} were set aside"
    )
    rules = data.privacy
    assert entry.name is not None and entry.task is not None and rules is not None  # noqa: PT018 (resolved)
    files = [file for file in (entry.path, data.validation, data.test) if file is not None]
    closed = is_closed(entry.task)
    return DataReport(
        name=entry.name,
        task=entry.task,
        rows_in=ledger.rows_in,
        rows_out=rows_out,
        dropped=ledger.dropped,
        fates=tuple(sorted(ledger.fates, key=lambda fate: (files.index(fate.file), fate.line))),
        steps=tuple(ledger.steps),
        splits={split: split_report(out / f"{split}.arrow", examples[split], closed=closed) for split in SPLITS},
        split_rule=split_rule(resolved),
        findings=findings,
        findings_action=rules.action,
        secrets_action=rules.secrets,
        not_looked_for=NOT_LOOKED_FOR[rules.profile or "fast"],
        personal_wording=personal_wording(entry),
        conflicts=conflicts,
        leakage=leaks,
        end_of_turn_supervised=True,  # `audit` stops otherwise
        truncated_rows=0,  # rows that are too long are set aside, never cut
        license=entry.license or "unknown",
        synthetic=entry.synthetic,
        contract_sha256=sha256_file(out / "contract.json"),
        source_sha256={file: sha256_file(resolved.file(file)) for file in files},
    )
