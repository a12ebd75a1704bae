"""Rows to tokens, and the audit that every row teaches what it should."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from luthier import __version__
from luthier.data.audit import Faults, fault_of, supervision
from luthier.data.contract import Renderer, open_tokenizer
from luthier.data.crew import Crew, in_parts
from luthier.data.documents import pieces
from luthier.data.items import CANARY, Item, Ledger, Verdict, labels_of
from luthier.data.masks import Supervision, mask
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
from luthier.records import Message, RequestContract, SplitName, is_closed, is_text
from luthier.store.files import sha256_file, write_atomic

LENGTH_BINS = 32
_ANSWERS = Supervision()


def render_rows(
    items: Sequence[Item],
    renderer: Renderer,
    ledger: Ledger,
    *,
    asked: Supervision,
    tokenizer: Path,
    parts: Path,
    crew: Crew,
) -> tuple[list[Item], list[Path], list[int]]:
    """Tokenise the items, a part at a time; what the template refuses and rows above `max_length` are set aside.

    A part that an earlier, interrupted call has finished is taken as it is: its name says what it was made of.

    Args:
        items: rows with their splits.
        renderer: of the contract.
        ledger: learns of rows that are set aside.
        asked: which turns are learned.
        tokenizer: the renderer's tokenizer.json.
        parts: folder for the shards of the parts.
        crew: does the work.

    Returns:
        The items that are left, and the parts, whose rows are these in this order; and of how many rows each item is:
        one, but for documents.

    Raises:
        DataError: rows have nothing to learn, or an end of turn that is not supervised; or the template refuses all.
    """
    contract = renderer.contract
    # A prompt must leave room for whichever label the model may choose, not only for its own.
    labels = labels_of(items) if is_closed(contract.task) else ()
    longest = max((len(renderer.answer_ids(label)) for label in labels), default=0)
    parts.mkdir(parents=True, exist_ok=True)
    work = RenderPart(contract, asked, tokenizer, parts, longest)
    verdicts: list[Verdict | None] = [None] * len(items)
    faults, files, divided = Faults(), list[Path](), list[int]()
    for number, made in enumerate(crew.each(work, in_parts(items, ROWS_PER_BATCH))):
        first = number * ROWS_PER_BATCH
        for place, verdict in made.verdicts.items():
            verdicts[first + place] = verdict
        for place, fault in made.faults.items():
            faults.add(f"{items[first + place].file}:{items[first + place].line}", fault)
        files.append(made.path)
        divided += made.divided
    faults.refuse()
    _refuse_template(items, verdicts)
    kept = ledger.sift("length", items, verdicts)
    return kept, files, divided if is_text(contract.task) else [1] * len(kept)


def _refuse_template(items: Sequence[Item], verdicts: Sequence[Verdict | None]) -> None:
    """Where the template refuses every row, that is what is to be told, not that no row is left."""
    refused = [verdict[1] for verdict in verdicts if verdict is not None and verdict[0] == "template"]
    if refused and len(refused) == len(items):
        what, _, way_out = refused[0].partition("; ")
        raise DataError(f"{items[0].file}:{items[0].line} and all other rows, {len(items)}: {what}", way_out=way_out)


@dataclass(frozen=True)
class RenderedPart:
    """A part on disk."""

    path: Path
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    """Place of each row that is not in the file -> why."""
    faults: dict[int, str] = field(default_factory=dict)
    """Place of each row that would teach something wrong -> what."""
    divided: list[int] = field(default_factory=list)
    """Of documents: rows that each was divided into, in order."""


@dataclass(frozen=True)
class RenderPart:
    """Tokenises one part, wherever that is."""

    contract: RequestContract
    asked: Supervision
    tokenizer: Path
    folder: Path
    longest: int
    """Tokens of the longest label, end of turn included; 0 for free answers."""

    def __call__(self, rows: Sequence[Item]) -> RenderedPart:
        """Write the part, unless it is there."""
        path = self.folder / f"{self._name(rows)}.arrow"
        notes = path.with_suffix(".json")
        if path.is_file() and notes.is_file():
            known = json.loads(notes.read_text(encoding="utf-8"))
            verdicts = {int(place): (reason, detail) for place, (reason, detail) in known["verdicts"].items()}
            faults = {int(place): fault for place, fault in known["faults"].items()}
            return RenderedPart(path, verdicts, faults, known["divided"])
        made = RenderedPart(path)
        renderer = _open(self.contract.to_json(), self.tokenizer)
        with shard_writer(path) as writer:
            if is_text(self.contract.task):
                self._write_documents(rows, renderer, writer, made)
            elif any(row.turns for row in rows) or not self.asked.answers_only:
                self._write_conversations(rows, renderer, writer, made)
            else:
                self._write_pairs(rows, renderer, writer, made)
            known = {"verdicts": made.verdicts, "faults": made.faults, "divided": made.divided}
            write_atomic(notes, json.dumps(known))
        return made

    def _name(self, rows: Sequence[Item]) -> str:
        """Hash of all that the part follows from."""
        what = blake2b(digest_size=16)
        settings = (SHARD_VERSION, __version__, str(self.longest), repr(self.asked), self.contract.to_json())
        what.update("\n".join(settings).encode())
        for row in rows:
            marks = [getattr(row, name) for name in MARKS]
            what.update(repr([*marks, row.turns]).encode(errors="surrogatepass"))
        return what.hexdigest()

    def _write_documents(
        self, rows: Sequence[Item], renderer: Renderer, writer: ShardWriter, made: RenderedPart
    ) -> None:
        for place, row in enumerate(rows):
            found = pieces(row, renderer)
            for piece in found:
                writer.add(piece)
            if found:
                made.divided.append(len(found))
            else:
                made.verdicts[place] = ("too_short", "a text of one token, before which there is nothing")

    def _write_conversations(
        self, rows: Sequence[Item], renderer: Renderer, writer: ShardWriter, made: RenderedPart
    ) -> None:
        for place, row in enumerate(rows):
            try:
                example = _conversation(row, renderer, self.asked)
            except (DataError, ModelError) as error:
                made.verdicts[place] = ("template", f"{error.what}; {error.way_out}")
                continue
            if verdict := _alike(example.input_ids[example.prompt_tokens :], example.rejected_ids):
                made.verdicts[place] = verdict
                continue
            room = self.contract.max_prompt_tokens
            if room is not None and example.prompt_tokens > room:
                # The server would cut this prompt, so nothing may be learned from it uncut.
                made.verdicts[place] = (
                    "too_long",
                    f"its prompt has {example.prompt_tokens} tokens, there is room for {room}",
                )
                continue
            longest = max(self.longest, len(example.rejected_ids))
            if self._fits(place, max(len(example.input_ids), example.prompt_tokens + longest), made):
                if fault := fault_of(example, self.contract):
                    made.faults[place] = fault
                writer.add(example)

    def _write_pairs(self, rows: Sequence[Item], renderer: Renderer, writer: ShardWriter, made: RenderedPart) -> None:
        prompts = renderer.all_prompt_ids([row.text for row in rows])
        answers = _answer_ids([row.answer for row in rows], renderer)
        paired = self.contract.task == "preference"
        others = _answer_ids([row.rejected for row in rows], renderer) if paired else [[] for _ in rows]
        room = self.contract.max_prompt_tokens
        kept = []
        for place, (prompt, answer, other) in enumerate(zip(prompts, answers, others, strict=True)):
            if verdict := _alike(answer, other):
                made.verdicts[place] = verdict
            elif room is not None and len(prompt) > room:
                made.verdicts[place] = ("too_long", f"its prompt has {len(prompt)} tokens, there is room for {room}")
            elif self._fits(place, len(prompt) + max(len(answer), len(other), self.longest), made):
                kept.append(place)
        for place in kept:
            if fault := _fault_of_pair(prompts[place], answers[place], others[place], self.contract):
                made.faults[place] = fault
        marks = {name: [getattr(rows[place], name) for place in kept] for name in MARKS}
        columns = [[part[place] for place in kept] for part in (prompts, answers, others)]
        writer.add_batch(pairs_batch(marks, *columns))

    def _fits(self, place: int, length: int, made: RenderedPart) -> bool:
        most = self.contract.max_length
        if length <= most:
            return True
        uncut = "" if self.contract.too_long == "drop" else "; no cut of the user's text makes it fit"
        made.verdicts[place] = ("too_long", f"{length} tokens, train.max_length is {most}{uncut}")
        return False


def _alike(answer: Sequence[int], rejected: Sequence[int]) -> Verdict | None:
    """Of two answers that read the same, neither is preferred; redaction may have made them so."""
    return ("equal_answers", "both answers read the same") if rejected and answer == rejected else None


def _fault_of_pair(
    prompt: Sequence[int], answer: Sequence[int], rejected: Sequence[int], contract: RequestContract
) -> str:
    """As `fault_of`, for a row whose answers are supervised as a whole and stand at its end."""
    end = list(contract.end_of_turn_ids)
    if prompt and answer and answer[-len(end) :] == end and (not rejected or rejected[-len(end) :] == end):
        return ""
    supervised = [False] * len(prompt) + [True] * len(answer)
    row = Example(0, "", "", "", len(prompt), [*prompt, *answer], supervised, rejected_ids=list(rejected))
    return fault_of(row, contract)


def _answer_ids(answers: Sequence[str], renderer: Renderer) -> list[list[int]]:
    """Ids of each answer, which are worked out once where answers are few."""
    distinct = list(dict.fromkeys(answers))
    ids = dict(zip(distinct, renderer.all_answer_ids(distinct), strict=True))
    return [ids[answer] for answer in answers]


@functools.lru_cache(maxsize=1)
def _open(contract_json: str, tokenizer: Path) -> Renderer:
    return Renderer(RequestContract.model_validate_json(contract_json), open_tokenizer(tokenizer))


def _conversation(item: Item, renderer: Renderer, asked: Supervision) -> Example:
    turns = item.turns or (*renderer.messages(item.text), Message(role="assistant", content=item.answer))
    paired = renderer.contract.task == "preference"
    if paired:  # of which the last answers alone are compared
        turns = (*(turn.model_copy(update={"weight": 0}) for turn in turns[:-1]), turns[-1])
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
        made_by=item.made_by,
        parent=item.parent,
        supervised_user=masked.learned["user"],
        supervised_system=masked.learned["system"],
        lost_tokens=item.lost_tokens,
        rejected=item.rejected,
        rejected_ids=renderer.answer_ids(item.rejected) if paired else [],
    )


def split_reports(shards: Mapping[SplitName, Path], contract: RequestContract) -> dict[SplitName, SplitReport]:
    """Counts of each split."""
    longest = max(max(_lengths(Shard(path)), default=0) for path in shards.values())
    return {split: _split_report(path, contract, longest=int(longest)) for split, path in shards.items()}


def _lengths(shard: Shard) -> NDArray[np.int64]:
    """Tokens of each row, those of both answers of a pair."""
    return shard.lengths + shard.rejected_lengths


def _split_report(path: Path, contract: RequestContract, *, longest: int) -> SplitReport:
    """Lengths are in tokens, percentiles by nearest rank."""
    shard = Shard(path)
    counts, _ = np.histogram(_lengths(shard), bins=LENGTH_BINS, range=(0, max(1, longest)))
    lengths = sorted(_lengths(shard).tolist())
    closed = is_closed(contract.task)
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
        documents=shard.column("prompt_tokens").count(0) if is_text(contract.task) else None,
        supervision=supervision(shard, end_ids=contract.end_of_turn_ids, closed=closed),
    )


def _percentile(ordered: Sequence[int], share: float) -> int:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0
