"""Rows for people to look at: what cleaning changed, and which tokens of a row are learned."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.data.contract import Renderer
from luthier.data.items import CANARY
from luthier.data.shards import Example, Shard
from luthier.data_report import RowView, TokenView
from luthier.records import SplitName

_ROWS_PER_SPLIT = 2
_MOST_TOKENS = 400
_LOOKED_AT = 200


def row_views(shards: Mapping[SplitName, Shard], renderer: Renderer) -> tuple[RowView, ...]:
    """The first rows of each split that hold nothing personal and are not too long to be shown, token by token."""
    views = []
    for split, shard in shards.items():
        fit = (
            row for row in shard[:_LOOKED_AT] if len(row.input_ids) <= _MOST_TOKENS and not _is_personal(row, renderer)
        )
        for row, _ in zip(fit, range(_ROWS_PER_SPLIT), strict=False):
            views.append(RowView(split=split, line=row.line, tokens=_tokens(row, renderer)))
    return tuple(views)


def _is_personal(row: Example, renderer: Renderer) -> bool:
    if row.made_by == CANARY or renderer.find(row.text) or renderer.find(row.answer):
        return True
    asked = renderer.prompt_ids(renderer.messages(row.text))
    if row.input_ids[: row.prompt_tokens] == asked:
        return False
    # A conversation: earlier turns may hold something too. The recipe's own words are no finding.
    whole = renderer.raw_text(row.input_ids).replace(renderer.defuse(renderer.contract.system), " ")
    return bool(renderer.find(whole))


def _tokens(row: Example, renderer: Renderer) -> tuple[TokenView, ...]:
    """Tokens as text; those that make up one character only together are shown together."""
    shown: list[TokenView] = []
    held: list[int] = []
    for token, supervised, following in zip(
        row.input_ids, row.supervised, [*row.supervised[1:], not row.supervised[-1]], strict=True
    ):
        held.append(token)
        text = renderer.raw_text(held)
        if "\ufffd" not in text or supervised != following:
            shown.append(TokenView(text=text, supervised=supervised, num_tokens=len(held)))
            held = []
    return tuple(shown)
