"""Rows to tokens, and the audit that every row teaches what it should."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from luthier.data.audit import Faults, fault_of, supervision
from luthier.data.contract import Renderer
from luthier.data.items import Item, Ledger, Verdict
from luthier.data.masks import Supervision, mask
from luthier.data.shards import ROWS_PER_BATCH, Example, Shard, shard_writer
from luthier.data_report import SplitReport
from luthier.errors import DataError, ModelError
from luthier.records import Message, RequestContract, SplitName, is_closed
from luthier.store.files import sha256_file

LENGTH_BINS = 32
_ANSWERS = Supervision()


def render_rows(
    items: Sequence[Item],
    renderer: Renderer,
    ledger: Ledger,
    *,
    spool: Path,
    asked: Supervision = _ANSWERS,
) -> list[Item]:
    """Tokenise each item into the file `spool`; what the template refuses and rows above `max_length` are set aside.

    Returns:
        The items that are left, in the order of the rows in the file.

    Raises:
        DataError: rows have nothing to learn, or an end of turn that is not supervised; or the template refuses all.
    """
    verdicts: list[Verdict | None] = []
    faults = Faults()
    most = renderer.contract.max_length
    uncut = "" if renderer.contract.too_long == "drop" else "; no cut of the user's text makes it fit"
    answer_ids = functools.cache(renderer.answer_ids)
    closed = is_closed(renderer.contract.task)
    # A prompt must leave room for whichever label the model may choose, not only for its own.
    longest = max((len(answer_ids(answer)) for answer in {item.answer for item in items}), default=0) if closed else 0
    with shard_writer(spool) as writer:
        for start in range(0, len(items), ROWS_PER_BATCH):
            some = items[start : start + ROWS_PER_BATCH]
            made_of = _examples(some, renderer, answer_ids if closed else None, asked)
            for item, made in zip(some, made_of, strict=True):
                if isinstance(made, str):
                    verdicts.append(("template", made))
                    continue
                length = max(len(made.input_ids), made.prompt_tokens + longest)
                if length > most:
                    verdicts.append(("too_long", f"{length} tokens, train.max_length is {most}{uncut}"))
                    continue
                faults.add(f"{item.file}:{item.line}", fault_of(made, renderer.contract))
                verdicts.append(None)
                writer.add(made)
    faults.refuse()
    _refuse_template(items, verdicts)
    return ledger.sift("length", items, verdicts)


def _refuse_template(items: Sequence[Item], verdicts: Sequence[Verdict | None]) -> None:
    """Where the template refuses every row, that is what is to be told, not that no row is left."""
    refused = [verdict[1] for verdict in verdicts if verdict is not None and verdict[0] == "template"]
    if refused and len(refused) == len(items):
        what, _, way_out = refused[0].partition("; ")
        raise DataError(f"{items[0].file}:{items[0].line} and all other rows, {len(items)}: {what}", way_out=way_out)


def _examples(
    items: Sequence[Item],
    renderer: Renderer,
    label_ids: Callable[[str], list[int]] | None,
    asked: Supervision,
) -> Iterator[Example | str]:
    """Each item as an example, or, as text, why it cannot be rendered."""
    if items and (items[0].turns or not asked.answers_only):
        for item in items:
            try:
                yield _conversation(item, renderer, asked)
            except (DataError, ModelError) as error:
                yield f"{error.what}; {error.way_out}"
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
            lost_tokens=item.lost_tokens,
        )


def _conversation(item: Item, renderer: Renderer, asked: Supervision) -> Example:
    turns = item.turns or (*renderer.messages(item.text), Message(role="assistant", content=item.answer))
    masked = mask(renderer, renderer.with_system(turns), asked)
    return Example(
        line=item.line,
        group=item.group,
        text=next(turn.content for turn in reversed(turns) if turn.role == "user"),
        answer=turns[-1].content,
        prompt_tokens=masked.prompt_tokens,
        input_ids=masked.ids,
        supervised=masked.supervised,
        contaminated=item.contaminated,
        supervised_user=masked.learned["user"],
        supervised_system=masked.learned["system"],
        lost_tokens=item.lost_tokens,
    )


def split_reports(shards: Mapping[SplitName, Path], contract: RequestContract) -> dict[SplitName, SplitReport]:
    """Counts of each split."""
    longest = max(max(Shard(path).lengths, default=0) for path in shards.values())
    return {split: _split_report(path, contract, longest=int(longest)) for split, path in shards.items()}


def _split_report(path: Path, contract: RequestContract, *, longest: int) -> SplitReport:
    """Lengths are in tokens, percentiles by nearest rank."""
    shard = Shard(path)
    counts, _ = np.histogram(shard.lengths, bins=LENGTH_BINS, range=(0, max(1, longest)))
    lengths = sorted(shard.lengths.tolist())
    closed = is_closed(contract.task)
    labels = Counter(shard.column("answer")) if closed else Counter[str]()
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
        supervision=supervision(shard, end_ids=contract.end_of_turn_ids, closed=closed),
    )


def _percentile(ordered: Sequence[int], share: float) -> int:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0
