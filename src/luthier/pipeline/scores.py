"""`luthier predict` with a reward model: the score of each answer of a file."""

from __future__ import annotations

import json
from collections.abc import Collection

from luthier.data.read import Fault, Row
from luthier.engines.ask import Asker
from luthier.engines.pair import answer_columns, score_values
from luthier.errors import DataError, ModelError, UserError
from luthier.pipeline.context import Context
from luthier.records import RequestContract


def place_of(row: Row | Fault) -> dict[str, object]:
    """Where a row stands, as a line of the output begins."""
    return {"file": row.file, "line": row.line} if row.file else {"line": row.line}


def refuse_padded_ends(context: Context) -> None:
    """Check, before anything is trained, that plain tools read an answer to its end beside the base as it is.

    They score the last token of a row that is not the one that the base's own config pads with; a merged model has a
    config of its own.

    Raises:
        ModelError: an answer ends with that token, and the recipe asks for the adapter.
    """
    if not context.contract.scores_answers or "adapter" not in (context.resolved.recipe.export or ()):
        return
    config = json.loads((context.original / "config.json").read_text(encoding="utf-8"))
    pads = config.get("text_config", config).get("pad_token_id", config.get("pad_token_id"))
    if pads == context.contract.end_of_turn_ids[-1]:
        raise ModelError(
            f"{context.shape.name} pads with token {pads}, with which every answer ends: plain tools would score an "
            "adapter beside it one token too early",
            way_out="leave 'adapter' out of export: 'merged' has another token to pad with",
        )


def columns_of(contract: RequestContract, given: Collection[str], *, of: str) -> tuple[str, ...]:
    """Columns of a file that hold the answers.

    Raises:
        DataError: there is none.
    """
    try:
        return answer_columns(contract, given)
    except UserError as error:
        raise DataError(f"{of}: {error.what}", way_out=error.way_out) from error


def score_row(asker: Asker, row: Row | Fault, *, columns: tuple[str, ...]) -> dict[str, object]:
    """One line of the output: `score`, or of a pair `scores` and `preferred`; or why there is none."""
    place = place_of(row)
    if isinstance(row, Fault):
        return place | {"error": row.reason, "detail": row.detail}
    try:
        scored = score_values(asker, row.values, columns)
    except UserError as error:
        return place | {"error": "cannot_be_asked", "detail": error.what}
    lost = scored.answers[0].lost_tokens
    return place | scored.said | ({"lost_tokens": lost} if lost else {})
