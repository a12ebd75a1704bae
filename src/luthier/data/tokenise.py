"""Rows to tokens, and the audit that every row teaches what it should."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from luthier.data.contract import Renderer
from luthier.data.items import CANARY, Item, Ledger, Verdict, labels_of
from luthier.data.shards import ROWS_PER_BATCH, Example, Shard, shard_writer
from luthier.data_report import SplitReport
from luthier.errors import DataError, ModelError
from luthier.records import Message, RequestContract, SplitName, is_closed
from luthier.store.files import sha256_file

LENGTH_BINS = 32


def render_rows(items: Sequence[Item], renderer: Renderer, ledger: Ledger, *, spool: Path) -> list[Item]:
    """Tokenise each item into the file `spool`; what the template refuses and rows above `max_length` are set aside.

    Returns:
        The items that are left, in the order of the rows in the file.

    Raises:
        DataError: a row has nothing to learn, or an end of turn that is not supervised.
    """
    verdicts: list[Verdict | None] = []
    most = renderer.contract.max_length
    answer_ids = functools.cache(renderer.answer_ids)
    closed = is_closed(renderer.contract.task)
    # A prompt must leave room for whichever label the model may choose, not only for its own.
    longest = max((len(answer_ids(answer)) for answer in labels_of(items)), default=0) if closed else 0
    with shard_writer(spool) as writer:
        for start in range(0, len(items), ROWS_PER_BATCH):
            some = items[start : start + ROWS_PER_BATCH]
            for item, made in zip(some, _examples(some, renderer, answer_ids if closed else None), strict=True):
                if isinstance(made, str):
                    verdicts.append(("template", made))
                    continue
                length = max(len(made.input_ids), made.prompt_tokens + longest)
                if length > most:
                    verdicts.append(("too_long", f"{length} tokens, train.max_length is {most}"))
                    continue
                audit_row(made, renderer.contract, split=item.split)
                verdicts.append(None)
                writer.add(made)
    return ledger.sift("length", items, verdicts)


def _examples(
    items: Sequence[Item], renderer: Renderer, label_ids: Callable[[str], list[int]] | None
) -> Iterator[Example | str]:
    """Each item as an example, or, as text, why its conversation cannot be rendered."""
    if items and items[0].turns:
        for item in items:
            try:
                yield _conversation(item, renderer)
            except (DataError, ModelError) as error:
                yield error.what
        return
    prompts = renderer.encode_all([renderer.prompt_text(renderer.messages(item.text)) for item in items])
    answers = (
        [label_ids(item.answer) for item in items]
        if label_ids is not None
        else renderer.all_answer_ids([item.answer for item in items])
    )
    for item, prompt, answer in zip(items, prompts, answers, strict=True):
        yield Example(
            line=item.line,
            group=item.group,
            text=item.text,
            answer=item.answer,
            prompt_tokens=len(prompt),
            input_ids=prompt + answer,
            supervised=[False] * len(prompt) + [True] * len(answer),
            contaminated=item.contaminated,
            made_by=item.made_by,
            parent=item.parent,
        )


def _conversation(item: Item, renderer: Renderer) -> Example:
    system = renderer.contract.system
    turns = item.turns
    if system and turns[0].role != "system":
        turns = (Message(role="system", content=system), *turns)
    ids, supervised = renderer.conversation(turns)
    return Example(
        line=item.line,
        group=item.group,
        text=next(turn.content for turn in reversed(turns) if turn.role == "user"),
        answer=turns[-1].content,
        prompt_tokens=len(ids) - len(renderer.answer_ids(turns[-1].content)),
        input_ids=ids,
        supervised=supervised,
        contaminated=item.contaminated,
        made_by=item.made_by,
        parent=item.parent,
    )


def audit_row(row: Example, contract: RequestContract, *, split: SplitName) -> None:
    """Check that a row has supervised tokens and that each of its answers ends in a supervised end of turn.

    Raises:
        DataError: it has not, with its split and line.
    """
    end = list(contract.end_of_turn_ids)
    stops = [
        index + 1
        for index, (now, after) in enumerate(zip(row.supervised, [*row.supervised[1:], False], strict=True))
        if now and not after
    ]
    problem = None
    if not stops:
        problem = "no token is supervised"
    elif any(row.input_ids[stop - len(end) : stop] != end for stop in stops):
        problem = "an answer's end of turn is not supervised"
    elif stops[-1] != len(row.input_ids) or not 0 < row.prompt_tokens < len(row.input_ids):
        problem = "the row does not consist of a prompt and its answer"
    if problem is not None:
        raise DataError(
            f"{split} split, line {row.line}: {problem}",
            way_out="take the row out of the file, or use a model with another chat template",
        )


def split_reports(shards: Mapping[SplitName, Path], *, closed: bool) -> dict[SplitName, SplitReport]:
    """Counts of each split."""
    longest = max(max(Shard(path).lengths, default=0) for path in shards.values())
    return {split: _split_report(path, closed=closed, longest=int(longest)) for split, path in shards.items()}


def _split_report(path: Path, *, closed: bool, longest: int) -> SplitReport:
    """Lengths are in tokens, percentiles by nearest rank."""
    shard = Shard(path)
    counts, _ = np.histogram(shard.lengths, bins=LENGTH_BINS, range=(0, max(1, longest)))
    lengths = sorted(shard.lengths.tolist())
    columns = zip(shard.column("answer"), shard.column("made_by"), strict=True) if closed else ()
    labels = Counter(answer for answer, made_by in columns if made_by != CANARY)
    return SplitReport(
        rows=len(shard),
        tokens=sum(lengths),
        supervised_tokens=shard.supervised_tokens,
        groups=len(set(shard.column("group"))),
        labels=dict(sorted(labels.items())),
        length_p50=_percentile(lengths, 0.50),
        length_p95=_percentile(lengths, 0.95),
        length_max=_percentile(lengths, 1.0),
        length_counts=tuple(counts.tolist()),
        sha256=sha256_file(path) if len(shard) else "",
        contaminated=sum(map(bool, shard.column("contaminated"))),
    )


def _percentile(ordered: Sequence[int], share: float) -> int:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0
