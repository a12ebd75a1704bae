"""From files to shards: every row is either in a shard or in the report with its line and the reason."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.data.by_meaning import open_meanings
from luthier.data.canaries import FILE as CANARIES
from luthier.data.contract import TAGGER_FILE, Renderer, make_contract, open_tokenizer
from luthier.data.crew import Alone, Crew
from luthier.data.encoder import Embedder
from luthier.data.goldens import make_goldens, write_goldens
from luthier.data.guard import open_rules, personal_wording, refuse_secrets_in_expressions, refuse_secrets_in_wording
from luthier.data.imbalance import balance
from luthier.data.interpret import Fill, chat_column
from luthier.data.items import Ledger
from luthier.data.labels import rare_labels, similar_names
from luthier.data.new_words import grow
from luthier.data.privacy.profiles import NOT_LOOKED_FOR
from luthier.data.reading import Reading
from luthier.data.refine import make_step, part_rows, refine
from luthier.data.replay import replay_of
from luthier.data.review import looked_at
from luthier.data.shards import Shard
from luthier.data.show import row_views
from luthier.data.source import fingerprint
from luthier.data.step import Facts, Flow
from luthier.data.steps.split import split_rule
from luthier.data.to_shards import completed, write_shards
from luthier.data.tokenise import split_reports
from luthier.data.vocabulary import Words
from luthier.data_report import DataReport
from luthier.records import SplitName
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.steps import steps_of
from luthier.store.files import sha256_file, write_atomic


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
    for paraphrases and answers that are asked for anew.

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
    for file in ("report.json", CANARIES):  # neither ever stands beside shards that it is not about
        (out / file).unlink(missing_ok=True)
    flow = _open(resolved, tokenizer_folder, out=out, crew=crew or Alone(), embedder=embedder)
    reading = Reading(resolved, flow.ledger, bad=out / "quarantine.jsonl")
    parts = reading.parts(flow.part_rows)
    entry = resolved.recipe.entry
    chat = entry.label or ""
    if not flow.contract.input and not chat and (first := next(parts, None)):
        chat, parts = chat_column(first), itertools.chain([first], parts)
    steps = [make_step(name, flow) for name in steps_of(resolved.recipe)]
    fill = Fill(flow.contract, entry.label or "", chat, entry.rejected or "")
    facts = dict(refine(flow, [fill, *steps], parts))
    facts |= {**reading.facts(), **looked_at(flow.items, resolved)}
    tokenizer = tokenizer_folder / "tokenizer.json"
    if (rules := resolved.recipe.model.new_tokens) is not None:
        tokenizer, facts["new_tokens"] = grow(flow, tokenizer_folder, rules)
    shards = write_shards(flow, tokenizer)
    flow.items, train = [], Shard(shards["train"])
    for step in steps:
        facts |= step.tell(train, flow)
    written = resolved.recipe.method.answer_tokens or 0
    contract = completed(flow.renderer, train, written=written)
    write_atomic(out / "contract.json", contract.to_json())
    seed = resolved.recipe.data.split.seed
    write_goldens(out / "goldens.json", make_goldens(flow.renderer.under(contract), Shard(shards["test"]), seed=seed))
    report = _report(flow, facts, shards)
    write_atomic(out / "report.json", report.to_json())
    return report


def _open(
    resolved: ResolvedRecipe, tokenizer_folder: Path, *, out: Path, crew: Crew, embedder: Embedder | None
) -> Flow:
    """All that the rows will be held against, before the first is read."""
    tokenizer = open_tokenizer(tokenizer_folder / "tokenizer.json")
    if resolved.recipe.model.new_tokens is not None:
        Words(tokenizer, name=resolved.recipe.model.name)  # refuses what cannot grow
    detector, tagger = open_rules(resolved, out / TAGGER_FILE)
    contract = make_contract(
        resolved, tokenizer_folder=tokenizer_folder, labels=(), tokenizer=tokenizer, tagger_sha256=tagger
    )
    ledger = Ledger(detector, contract.transforms)
    return Flow(
        resolved=resolved,
        renderer=Renderer(contract, tokenizer, detector),
        ledger=ledger,
        crew=crew,
        out=out,
        part_rows=part_rows(contract.privacy_profile),
        meanings=open_meanings(resolved, contract, ledger, embedder),
    )


def _report(flow: Flow, found: Facts, shards: Mapping[SplitName, Path]) -> DataReport:
    """What the steps found out, and what the shards tell."""
    resolved, ledger, out = flow.resolved, flow.ledger, flow.out
    data, entry = resolved.recipe.data, resolved.recipe.entry
    renderer = flow.renderer
    splits = split_reports(shards, renderer.contract)
    audits = [split.supervision for split in splits.values() if split.supervision is not None]
    rows_out = sum(split.used for split in splits.values())
    rules = data.privacy
    assert entry.name is not None and entry.task is not None and rules is not None  # noqa: PT018 (resolved)
    files = [file for file in (entry.path, data.validation, data.test) if file is not None]
    replay = replay_of(resolved.recipe)
    read = [*files, *data.leakage.benchmarks, *([replay.path] if replay else [])]
    read += [data.teacher.path] if data.teacher is not None and data.teacher.path is not None else []
    facts: dict[str, Any] = {"conflicts": 0, **found}  # of free text there are none
    for added in (facts.get("replay"), facts.get("teacher")):
        if added is not None:
            kinds = Counter(facts["findings"]) + Counter(added.findings)
            facts["findings"] = dict(sorted(kinds.items(), key=lambda pair: (-pair[1], pair[0])))
    report = DataReport(
        name=entry.name,
        task=entry.task,
        rows_out=rows_out,
        dropped=ledger.dropped,
        fates=tuple(sorted(ledger.fates, key=lambda fate: (_place_of(fate.file, files), fate.file, fate.line))),
        steps=tuple(ledger.steps),
        splits=splits,
        split_rule=split_rule(resolved),
        findings_action=rules.action,
        secrets_action=rules.secrets,
        not_looked_for=NOT_LOOKED_FOR[rules.profile or "fast"],
        personal_wording=personal_wording(entry, data.features),
        similar_labels=tuple(similar_names(splits["train"].labels)),
        rare_labels=rare_labels(splits["train"].labels, fewer_than=data.labels.min_rows or 0),
        changes=tuple(ledger.changes),
        views=row_views({split: Shard(path) for split, path in shards.items()}, renderer),
        duplicates=tuple(ledger.duplicates),
        balance=balance(splits["train"].labels, resolved.recipe.train),
        answered_by=renderer.contract.answered_by,
        end_of_turn_supervised=sum(audit.rows_ended for audit in audits) == rows_out,
        truncated_rows=sum(audit.rows_cut for audit in audits),
        license=entry.license or "unknown",
        synthetic=entry.synthetic,
        contract_sha256=sha256_file(out / "contract.json"),
        own_files=tuple(name for name, file in (("validation", data.validation), ("test", data.test)) if file),
        source_sha256={file: fingerprint(resolved.file(file)) for file in read},
        **facts,
    )
    assert report.rows_in + report.rows_added == rows_out + len(ledger.fates), (
        f"{report.rows_in} rows came in, {report.rows_added} were added, {rows_out} went out and "
        f"{len(ledger.fates)} were set aside"
    )
    return report


def _place_of(file: str, files: Sequence[str]) -> int:
    """Which of the recipe's files it is, or which of its folders it lies in."""
    return next(index for index, one in enumerate(files) if file == one or file.startswith(f"{one}/"))
