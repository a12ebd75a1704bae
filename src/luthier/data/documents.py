"""Whole documents: the parts that readers make of one are joined again, and long ones are divided into pieces.

A document is `[BOS where the tokenizer adds one] text [end of sequence]`. It is divided into as few pieces of at most
`max_length` tokens as will do, all about as long. A piece that goes on with a document begins with the last tokens of
the piece before (a `CONTEXT`th of `max_length`), which are read and not learned. So every token of a document is
learned exactly once, but for its first, before which there is nothing. A piece is a row of its own: pieces never see
each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil

from luthier.data.contract import Renderer
from luthier.data.items import Item
from luthier.data.read import Fault, Row, bad_text, read_source
from luthier.data.shards import Example
from luthier.data.source import Source
from luthier.spec.plugins import READERS

CONTEXT = 8
"""Of a piece that goes on with a document, one in so many tokens was learned in the piece before."""

_AS_IT_IS = ("markdown", "text")
"""Formats whose file is the text itself; of the others what their readers find is put together."""


def read_documents(source: Source) -> Iterator[Row | Fault]:
    """A row for each document of a source, in order; rows of tables are documents already."""
    for part in source.parts or (source,):
        name = part.path.relative_to(source.path).as_posix() if source.parts else ""
        read = _whole(part) if READERS.get(part.format).is_document else read_source(part)
        for item in read:
            yield replace(item, file=name) if name else item


def _whole(part: Source) -> Iterator[Row | Fault]:
    if part.format in _AS_IT_IS:
        with part.open_text() as file:
            text = file.read()
        bad = bad_text((text,))
        yield Fault(1, *bad, text=text) if bad else Row(1, {"text": text.strip("\ufeff\r\n"), "heading": ""})
        return
    texts, heading, line = list[str](), "", 1
    for item in read_source(part):
        if isinstance(item, Fault):
            yield item
            continue
        line = line if texts else item.line
        if item.values["heading"] and item.values["heading"] != heading:
            heading = str(item.values["heading"])
            texts.append(heading)
        texts.append(str(item.values["text"]))
    if texts:
        yield Row(line, {"text": "\n\n".join(texts), "heading": heading})


def bounds(total: int, most: int) -> list[int]:
    """Where the pieces of a document of `total` tokens begin, and the end: what piece k learns is [b[k], b[k + 1]).

    With c tokens of context, n = ceil((total - c) / (most - c)) pieces, and b[k] = c + floor(k (total - c) / n) for
    k > 0: so a piece and its context are ceil((total - c) / n) + c <= most tokens.
    """
    if total <= most:
        return [0, total]
    kept = most // CONTEXT
    count = ceil((total - kept) / (most - kept))
    return [0, *(kept + (total - kept) * number // count for number in range(1, count + 1))]


def pieces(item: Item, renderer: Renderer) -> list[Example]:
    """The rows of a document; none where it has no token with another before it."""
    text = renderer.defuse(item.text)
    ids, starts = renderer.document(text)
    if len(ids) - len(renderer.contract.end_of_turn_ids) < 2:
        return []
    edges = bounds(len(ids), renderer.contract.max_length)
    kept = renderer.contract.max_length // CONTEXT
    made = []
    for number, (begin, end) in enumerate(pairwise(edges)):
        context = min(kept, begin) if number else 0
        first = max(1, begin)  # nothing stands before a document's first token
        made.append(
            Example(
                line=item.line,
                group=item.group,
                text=text[starts[first] : starts[end] if end < len(ids) else len(text)],
                answer="",
                prompt_tokens=context,
                input_ids=ids[begin - context : end],
                supervised=[place >= first for place in range(begin - context, end)],
                contaminated=item.contaminated,
                made_by=item.made_by,
                parent=item.parent,
            )
        )
    return made


def learned_tokens(items: Sequence[Item], renderer: Renderer) -> list[int]:
    """Of each document: all its tokens but the first; 0 for one that has none to learn."""
    texts = renderer.encode_all([renderer.defuse(item.text) for item in items])
    around = bool(renderer.contract.bos_token) + len(renderer.contract.end_of_turn_ids)
    begun = 1 - bool(renderer.contract.bos_token)
    return [len(ids) + around - 1 if len(ids) > begun else 0 for ids in texts]
