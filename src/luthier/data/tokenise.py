"""Rows to tokens, and the audit that every row teaches what it should."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from luthier.data.contract import Renderer
from luthier.data.items import Item, Ledger, Verdict
from luthier.data.shards import Example
from luthier.errors import DataError, ModelError
from luthier.records import Message, RequestContract, SplitName, SplitReport, is_closed
from luthier.store.files import sha256_file


def render_rows(items: Sequence[Item], renderer: Renderer, ledger: Ledger) -> tuple[list[Item], dict[int, Example]]:
    """Tokenise each item; conversations that the template refuses and rows above `max_length` are set aside.

    Returns:
        The items that are left, and their examples by the items' identity.
    """
    made: dict[int, Example] = {}
    verdicts: list[Verdict | None] = []
    most = renderer.contract.max_length
    answer_ids = functools.cache(renderer.answer_ids)
    closed = is_closed(renderer.contract.task)
    # A prompt must leave room for whichever label the model may choose, not only for its own.
    longest = max((len(answer_ids(answer)) for answer in {item.answer for item in items}), default=0) if closed else 0
    for item in items:
        if item.turns:
            try:
                example = _conversation(item, renderer)
            except (DataError, ModelError) as error:
                verdicts.append(("template", error.what))
                continue
        else:
            example = _row(item, renderer, answer_ids)
        length = max(len(example.input_ids), len(example.prompt_ids) + longest)
        verdicts.append(("too_long", f"{length} tokens, train.max_length is {most}") if length > most else None)
        made[id(item)] = example
    return ledger.sift("length", items, verdicts), made


def _row(item: Item, renderer: Renderer, answer_ids: Callable[[str], list[int]]) -> Example:
    prompt = renderer.prompt_ids(renderer.messages(item.text))
    answer = answer_ids(item.answer)
    return Example(
        line=item.line,
        group=item.group,
        text=item.text,
        answer=item.answer,
        prompt_ids=prompt,
        input_ids=prompt + answer,
        supervised=[False] * len(prompt) + [True] * len(answer),
        contaminated=item.contaminated,
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
        prompt_ids=ids[: len(ids) - len(renderer.answer_ids(turns[-1].content))],
        input_ids=ids,
        supervised=supervised,
        contaminated=item.contaminated,
    )


def audit(examples: Mapping[SplitName, Sequence[Example]], contract: RequestContract) -> None:
    """Check that every row has supervised tokens and that each of its answers ends in a supervised end of turn.

    Raises:
        DataError: one does not, with its split and line.
    """
    end = list(contract.end_of_turn_ids)
    for split, rows in examples.items():
        for row in rows:
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
            elif stops[-1] != len(row.input_ids) or row.input_ids[: len(row.prompt_ids)] != row.prompt_ids:
                problem = "the row does not consist of a prompt and its answer"
            if problem is not None:
                raise DataError(
                    f"{split} split, line {row.line}: {problem}",
                    way_out="take the row out of the file, or use a model with another chat template",
                )


def split_report(path: Path, rows: Sequence[Example], *, closed: bool) -> SplitReport:
    """Counts of one split; lengths are in tokens, percentiles by nearest rank."""
    lengths = sorted(len(row.input_ids) for row in rows)
    labels = Counter(row.answer for row in rows) if closed else Counter[str]()
    return SplitReport(
        rows=len(rows),
        tokens=sum(lengths),
        supervised_tokens=sum(sum(row.supervised) for row in rows),
        groups=len({row.group for row in rows}),
        labels=dict(sorted(labels.items())),
        length_p50=_percentile(lengths, 0.50),
        length_p95=_percentile(lengths, 0.95),
        length_max=_percentile(lengths, 1.0),
        sha256=sha256_file(path) if rows else "",
        contaminated=sum(bool(row.contaminated) for row in rows),
    )


def _percentile(ordered: Sequence[int], share: float) -> int:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0
