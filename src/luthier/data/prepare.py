"""From files to shards: every row is either in a shard or in the report with its line and the reason."""

from __future__ import annotations

import itertools
import secrets as random_key
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from luthier.data.augment import augment, set_orphans_aside
from luthier.data.augment import reported as report_offspring
from luthier.data.by_meaning import open_meanings
from luthier.data.canaries import plant
from luthier.data.canaries import reported as report_canaries
from luthier.data.contract import TAGGER_FILE, Renderer, make_contract, open_tokenizer, with_labels
from luthier.data.crew import Alone, Crew, in_parts
from luthier.data.cut import SHORTEST_OPEN_ANSWER, cut_rows
from luthier.data.dedupe import conflicting, repeated
from luthier.data.encoder import Embedder
from luthier.data.filters import tell_languages
from luthier.data.goldens import make_goldens, write_goldens
from luthier.data.guard import (
    count_kinds,
    guard_labels,
    open_rules,
    personal_wording,
    pseudonym_key,
    refuse_secrets_in_expressions,
    refuse_secrets_in_wording,
    stop_at_secrets,
)
from luthier.data.imbalance import balance
from luthier.data.interpret import chat_column
from luthier.data.items import CANARY, Item, Ledger, Verdict, labels_of, read_parts
from luthier.data.labels import rare_labels, refuse_unknown, similar_names, suspected
from luthier.data.likeness import Likeness
from luthier.data.masks import Supervision
from luthier.data.privacy.profiles import NOT_LOOKED_FOR
from luthier.data.privacy.pseudonyms import mapping_passphrase, write_mapping
from luthier.data.refine import Name, Refine, part_rows
from luthier.data.separate import Separated, check_labels, comparisons, separate, set_near_aside, split_rule
from luthier.data.shards import ROWS_PER_BATCH, Shard, distribute
from luthier.data.show import row_views
from luthier.data.source import fingerprint
from luthier.data.tokenise import render_rows, split_reports
from luthier.data_report import DataReport, Finding, LabelReview, LabelSuspect, NearReport, RowView
from luthier.errors import DataError
from luthier.records import Contamination, RequestContract, SplitName, is_closed
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_file, write_atomic

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")

_NAMED_LINES = 20
_OVERLAP: dict[Contamination, str] = {
    "exact": "by text", "near": "by nearly the same text", "group": "by group", "meaning": "by meaning",
}  # fmt: skip


def prepare(
    resolved: ResolvedRecipe,
    *,
    tokenizer_folder: Path,
    out: Path,
    crew: Crew | None = None,
    embedder: Embedder | None = None,
) -> DataReport:
    """Make the shards, the request contract, the golden prompts and the report of a recipe's data.

    The same recipe, files and tokenizer give the same bytes, but for findings.jsonl, whose hashes are keyed anew, and
    for paraphrases that are asked for anew.

    Rows that cannot be read are kept in quarantine.jsonl, which is not left where there are none.

    Args:
        resolved: the recipe with nothing left open.
        tokenizer_folder: holds tokenizer.json, tokenizer_config.json and the chat template of the base model.
        out: receives {train,validation,test}.arrow, contract.json, goldens.json, findings.jsonl, canaries.json where
            there are any and, last, report.json.
        crew: shares the work on the rows; None does it all in this process. The result is the same.
        embedder: what compares by meaning, where the recipe asks for it; None opens `data.embeddings.model`.

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
    meanings = open_meanings(resolved, contract, ledger, embedder)
    crew = crew or Alone()
    items, findings, likeness, renderer = _refine(resolved, renderer, ledger, out=out, crew=crew)
    items, conflicts = _settle(items, contract, ledger)
    items, near = set_near_aside(items, contract, resolved, likeness, ledger)
    items = meanings.set_aside(items) if meanings is not None else items
    separated = separate(items, contract, resolved, ledger, likeness=likeness, meanings=meanings)
    del likeness, meanings  # what they know of each row takes room that rendering needs
    review = _review(separated.items, resolved)
    ledger.languages = tell_languages(separated.items)
    grown = augment(separated.items, renderer, resolved, ledger)
    planted = plant(grown.items, renderer, resolved, ledger, out=out)
    _render(planted, renderer, resolved, ledger, tokenizer_folder / "tokenizer.json", out=out, crew=crew)
    train = Shard(out / "train.arrow")
    ledger.augmentation = report_offspring(grown, train, ledger, closed=is_closed(contract.task))
    ledger.canaries = report_canaries(train, resolved)
    contract = _completed(renderer, train)
    write_atomic(out / "contract.json", contract.to_json())
    goldens = make_goldens(
        Renderer(contract, tokenizer, detector), Shard(out / "test.arrow"), seed=resolved.recipe.data.split.seed
    )
    write_goldens(out / "goldens.json", goldens)
    write_atomic(out / "findings.jsonl", "".join(f"{finding.model_dump_json()}\n" for finding in findings))
    report = _report(
        resolved, out, ledger=ledger, findings=count_kinds(findings), conflicts=conflicts, near=near,
        separated=separated, review=review,
        views=row_views({split: Shard(out / f"{split}.arrow") for split in SPLITS}, renderer),
    )  # fmt: skip
    write_atomic(out / "report.json", report.to_json())
    return report


def _refine(
    resolved: ResolvedRecipe, renderer: Renderer, ledger: Ledger, *, out: Path, crew: Crew
) -> tuple[list[Item], list[Finding], Likeness, Renderer]:
    """Read the rows, let the crew refine them part by part, and look at what only all of them tell.

    Returns:
        The rows, what was found in them, which of them are alike, and a renderer that knows how long a prompt may be.
    """
    contract, data, label = renderer.contract, resolved.recipe.data, resolved.recipe.entry.label or ""
    rules = data.privacy
    assert rules is not None  # resolved
    parts = read_parts(resolved, ledger, size=part_rows(contract.privacy_profile), bad=out / "quarantine.jsonl")
    chat = ""
    if not contract.input and (first := next(parts, None)):
        chat, parts = chat_column(first), itertools.chain([first], parts)
    name = Name(data.split, comparisons(resolved, contract))
    cuts = contract.too_long != "drop"
    work = Refine(
        data=data,
        contract=contract,
        folder=out,
        label=label,
        chat_column=chat,
        hmac_key=(key := random_key.token_bytes(32)),
        pseudonym_key=pseudonym_key(rules),
        name=None if cuts else name,
    )
    items: list[Item] = []
    findings: list[Finding] = []
    signatures, labels = [], set[str]()
    mapping: dict[tuple[str, str], str] = {}
    for part in crew.each(work, parts):
        items += part.items
        findings += part.findings
        signatures.append(part.signatures)
        labels |= part.labels
        mapping |= part.mapping
        ledger.join(part.tally)
    refuse_unknown(data.labels.rename, labels, key="data.labels.rename")
    stop_at_secrets(findings, rules)
    found = guard_labels(items, rules, column=label, key=key) if is_closed(contract.task) else []
    findings = sorted([*found, *findings], key=lambda one: (one.file, one.line)) if found else findings
    if rules.keep_mapping is not None:
        write_mapping(resolved.file(rules.keep_mapping), mapping, passphrase=mapping_passphrase())
    if cuts:
        items, renderer = cut_rows(items, renderer, Supervision.of(resolved.recipe.entry), ledger)
        named = list(crew.each(name, in_parts(items, ROWS_PER_BATCH)))
        items = [item for part, _ in named for item in part]
        signatures = [made for _, made in named]
    return items, findings, Likeness([item.row for item in items], signatures, crew), renderer


def _settle(items: list[Item], contract: RequestContract, ledger: Ledger) -> tuple[list[Item], int]:
    """Set aside contradictions (of labels; free text may have several right answers) and repetitions, file by file."""
    conflicts = 0
    if is_closed(contract.task):
        marks = conflicting([(item.origin, item.digest) for item in items], [item.answer for item in items])
        lines: dict[tuple[SplitName | None, bytes], list[str]] = {}
        for item, mark in zip(items, marks, strict=True):
            if mark:
                lines.setdefault((item.origin, item.digest), []).append(str(item.line))
        conflicts = len(lines)
        found: list[Verdict | None] = [
            ("conflicting_labels", f"same text, other labels in lines {_few(lines[item.origin, item.digest])}")
            if mark
            else None
            for item, mark in zip(items, marks, strict=True)
        ]
        items = ledger.sift("conflicts", items, found)
    first = repeated(
        [(item.origin, item.digest) for item in items], [item.answer or item.turns[-1].content for item in items]
    )
    verdicts: list[Verdict | None] = [
        None if index is None else ("duplicate", f"of line {items[index].line}") for index in first
    ]
    for item, index in zip(items, first, strict=True):
        if index is not None:
            ledger.repeats(item, items[index], 1.0)
    return ledger.sift("duplicates", items, verdicts), conflicts


def _few(lines: Sequence[str]) -> str:
    more = f" and {len(lines) - _NAMED_LINES} more" if len(lines) > _NAMED_LINES else ""
    return ", ".join(lines[:_NAMED_LINES]) + more


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


def _render(
    items: list[Item],
    renderer: Renderer,
    resolved: ResolvedRecipe,
    ledger: Ledger,
    tokenizer: Path,
    *,
    out: Path,
    crew: Crew,
) -> None:
    """Tokenise; rows that are too long may have been the last of their label, so labels are looked at once more."""
    parts = out / "parts"
    asked = Supervision.of(resolved.recipe.entry)
    rendered, files = render_rows(items, renderer, ledger, asked=asked, tokenizer=tokenizer, parts=parts, crew=crew)
    _refuse_short_length(items, rendered, renderer.contract, ledger)
    kept = set_orphans_aside(rendered, ledger)
    kept = check_labels(kept, resolved, ledger, step="labels after length")
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
        files,
        {split: out / f"{split}.arrow" for split in SPLITS},
        [item.split if id(item) in left else None for item in rendered],
    )
    shutil.rmtree(parts)


def _refuse_seen_test(test: Sequence[Item]) -> None:
    if all(item.contaminated for item in test):
        counts = Counter(item.contaminated for item in test)
        found = ", ".join(f"{count} {_OVERLAP[kind]}" for kind, count in counts.items() if kind)
        raise DataError(
            f"training has seen every one of the {len(test)} rows of the test split: {found}",
            way_out="give other rows as data.test, or, where likeness or groups are no leak here, "
            "set data.leakage.near or .meaning higher or data.split.group_by to ''",
        )


def _refuse_short_length(
    before: Sequence[Item], after: Sequence[Item], contract: RequestContract, ledger: Ledger
) -> None:
    """Stop where length alone left nothing, or fewer than two labels, to learn from or to test with."""
    too_long = ledger.dropped.get("too_long", 0)
    learned = [labels_of(item for item in items if item.split == "train") for items in (before, after)]
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
        answers = zip(train.column("answer"), train.column("made_by"), strict=True)
        return with_labels(renderer, {answer for answer, made_by in answers if made_by != CANARY})
    longest = max(length - prompt for length, prompt in zip(train.lengths, train.column("prompt_tokens"), strict=True))
    return contract.model_copy(
        update={"max_new_tokens": min(max(int(longest), SHORTEST_OPEN_ANSWER), contract.max_length // 2)}
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
    contract = RequestContract.read(out / "contract.json")
    splits = split_reports({split: out / f"{split}.arrow" for split in SPLITS}, contract)
    audits = [split.supervision for split in splits.values() if split.supervision is not None]
    rows_out = sum(split.rows for split in splits.values())
    added = sum(one.rows for one in (ledger.augmentation, ledger.canaries) if one is not None)
    assert ledger.rows_in + added == rows_out + len(ledger.fates), (
        f"{ledger.rows_in} rows came in, {added} were added, {rows_out} went out and {len(ledger.fates)} were set aside"
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
        bad_rows=ledger.bad_rows.records(),
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
        duplicates=tuple(ledger.duplicates),
        languages=ledger.languages,
        rows_left_apart=separated.rows_left_apart,
        meaning=separated.meaning,
        balance=balance(splits["train"].labels, resolved.recipe.train),
        end_of_turn_supervised=sum(audit.rows_ended for audit in audits) == rows_out,
        truncated_rows=sum(audit.rows_cut for audit in audits),
        license=entry.license or "unknown",
        synthetic=entry.synthetic,
        features=ledger.features,
        contract_sha256=sha256_file(out / "contract.json"),
        source_sha256={file: fingerprint(resolved.file(file)) for file in read},
        augmentation=ledger.augmentation,
        canaries=ledger.canaries,
    )


def _place_of(file: str, files: Sequence[str]) -> int:
    """Which of the recipe's files it is, or which of its folders it lies in."""
    return next(index for index, one in enumerate(files) if file == one or file.startswith(f"{one}/"))
