"""Rows to tokens, and the audit that every row teaches what it should."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from luthier import __version__
from luthier.data.contract import Renderer, open_tokenizer
from luthier.data.crew import Crew, in_parts
from luthier.data.items import CANARY, Item, Ledger, Verdict, labels_of
from luthier.data.shards import (
    MARKS,
    ROWS_PER_BATCH,
    SHARD_VERSION,
    Example,
    Shard,
    ShardWriter,
    pairs_batch,
    shard_writer,
)
from luthier.data_report import SplitReport
from luthier.errors import DataError, ModelError
from luthier.records import Message, RequestContract, SplitName, is_closed
from luthier.store.files import sha256_file, write_atomic

LENGTH_BINS = 32


def render_rows(
    items: Sequence[Item], renderer: Renderer, ledger: Ledger, *, tokenizer: Path, parts: Path, crew: Crew
) -> tuple[list[Item], list[Path]]:
    """Tokenise the items, a part at a time; what the template refuses and rows above `max_length` are set aside.

    A part that an earlier, interrupted call has finished is taken as it is: its name says what it was made of.

    Args:
        items: rows with their splits.
        renderer: of the contract.
        ledger: learns of rows that are set aside.
        tokenizer: the renderer's tokenizer.json.
        parts: folder for the shards of the parts.
        crew: does the work.

    Returns:
        The items that are left, and the parts, whose rows are these in this order.

    Raises:
        DataError: a row has nothing to learn, or an end of turn that is not supervised.
    """
    contract = renderer.contract
    # A prompt must leave room for whichever label the model may choose, not only for its own.
    labels = labels_of(items) if is_closed(contract.task) else ()
    longest = max((len(renderer.answer_ids(label)) for label in labels), default=0)
    parts.mkdir(parents=True, exist_ok=True)
    work = RenderPart(contract, tokenizer, parts, longest)
    verdicts: list[Verdict | None] = []
    files = []
    for number, made in enumerate(crew.each(work, in_parts(items, ROWS_PER_BATCH))):
        here: list[Verdict | None] = [None] * len(items[number * ROWS_PER_BATCH : (number + 1) * ROWS_PER_BATCH])
        for place, verdict in made.verdicts.items():
            here[place] = verdict
        verdicts += here
        files.append(made.path)
    return ledger.sift("length", items, verdicts), files


@dataclass(frozen=True)
class RenderedPart:
    """A part on disk."""

    path: Path
    verdicts: dict[int, Verdict]
    """Place of each row that is not in the file -> why."""


@dataclass(frozen=True)
class RenderPart:
    """Tokenises one part, wherever that is."""

    contract: RequestContract
    tokenizer: Path
    folder: Path
    longest: int
    """Tokens of the longest label, end of turn included; 0 for free answers."""

    def __call__(self, rows: Sequence[Item]) -> RenderedPart:
        """Write the part, unless it is there."""
        path = self.folder / f"{self._name(rows)}.arrow"
        fates = path.with_suffix(".json")
        if path.is_file() and fates.is_file():
            known = json.loads(fates.read_text(encoding="utf-8"))
            return RenderedPart(path, {int(place): (reason, detail) for place, (reason, detail) in known.items()})
        renderer = _open(self.contract, self.tokenizer)
        verdicts: dict[int, Verdict] = {}
        with shard_writer(path) as writer:
            self._write(rows, renderer, writer, verdicts)
            write_atomic(fates, json.dumps(verdicts))
        return RenderedPart(path, verdicts)

    def _name(self, rows: Sequence[Item]) -> str:
        """Hash of all that the part follows from."""
        what = blake2b(digest_size=16)
        what.update(f"{SHARD_VERSION}\n{__version__}\n{self.longest}\n{self.contract.to_json()}".encode())
        for row in rows:
            marks = [getattr(row, name) for name in MARKS]
            what.update(repr([*marks, row.split, row.turns]).encode(errors="surrogatepass"))
        return what.hexdigest()

    def _write(
        self, rows: Sequence[Item], renderer: Renderer, writer: ShardWriter, verdicts: dict[int, Verdict]
    ) -> None:
        most = self.contract.max_length

        def fits(place: int, length: int) -> bool:
            if length > most:
                verdicts[place] = ("too_long", f"{length} tokens, train.max_length is {most}")
            return length <= most

        if rows and rows[0].turns:
            for place, row in enumerate(rows):
                try:
                    made = _conversation(row, renderer)
                except (DataError, ModelError) as error:
                    verdicts[place] = ("template", error.what)
                    continue
                if fits(place, max(len(made.input_ids), made.prompt_tokens + self.longest)):
                    audit_row(made, self.contract, split=row.split)
                    writer.add(made)
            return
        prompts = renderer.all_prompt_ids([row.text for row in rows])
        answers = _answer_ids(rows, renderer)
        kept = [
            place
            for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            if fits(place, len(prompt) + max(len(answer), self.longest))
        ]
        for place in kept:
            audit_pair(prompts[place], answers[place], self.contract, split=rows[place].split, line=rows[place].line)
        writer.add_batch(
            pairs_batch(
                {name: [getattr(rows[place], name) for place in kept] for name in MARKS},
                [prompts[place] for place in kept],
                [answers[place] for place in kept],
            )
        )


def _answer_ids(rows: Sequence[Item], renderer: Renderer) -> list[list[int]]:
    """Ids of each answer, which are worked out once where answers are few."""
    answers = list(dict.fromkeys(row.answer for row in rows))
    ids = dict(zip(answers, renderer.all_answer_ids(answers), strict=True))
    return [ids[row.answer] for row in rows]


@functools.lru_cache(maxsize=1)
def _open(contract: RequestContract, tokenizer: Path) -> Renderer:
    return Renderer(contract, open_tokenizer(tokenizer))


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


def audit_pair(
    prompt: Sequence[int], answer: Sequence[int], contract: RequestContract, *, split: SplitName, line: int
) -> None:
    """As `audit_row`, for a row whose answer is supervised as a whole and stands at its end.

    Raises:
        DataError: there is no prompt or answer, or the answer does not end in an end of turn.
    """
    end = list(contract.end_of_turn_ids)
    if prompt and answer and answer[-len(end) :] == end:
        return
    ids = [*prompt, *answer]
    supervised = [False] * len(prompt) + [True] * len(answer)
    audit_row(Example(line, "", "", "", len(prompt), ids, supervised), contract, split=split)


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
