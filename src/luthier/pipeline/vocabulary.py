"""What stages know of a vocabulary that has grown (`model.new_tokens`): where its tokenizer and its base stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.data.contract import open_tokenizer
from luthier.data.shards import Example
from luthier.data.vocabulary import FILE, TOKENIZER, Words, in_pieces
from luthier.errors import DataError
from luthier.pipeline.bases import model_source
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.runs import RunFolder
from luthier.vocabulary_records import Vocabulary

if TYPE_CHECKING:
    from luthier.data.contract import Renderer
    from luthier.engines.protocol import Engine
    from luthier.records import ModelShape


def refuse_unfit_tokenizer_if_seen(resolved: ResolvedRecipe, shape: ModelShape) -> None:
    """Where the base has been read on this machine, whether its vocabulary can grow is known before any row is.

    Raises:
        ModelError: it cannot.
    """
    from luthier.models.base import import_base, is_imported

    if resolved.recipe.model.new_tokens is not None and is_imported(source := model_source(shape)):
        Words(open_tokenizer(import_base(source) / "tokenizer.json"), name=shape.name)


def tokenizer_of(run: RunFolder) -> Path:
    """Folder of the tokenizer that prepare made."""
    return run.data / TOKENIZER


def vocabulary_of(run: RunFolder) -> Vocabulary:
    """The new tokens of a prepared run."""
    return Vocabulary.read(run.data / FILE)


def as_base(engine: Engine, renderer: Renderer, shape: ModelShape) -> Engine:
    """The untuned model, asked in its own tokenizer whatever the ids; the engine itself where no token is new."""
    from luthier.engines.in_pieces import InPieces

    if not renderer.pieces:
        return engine
    return InPieces(
        engine,
        renderer.pieces,
        again=lambda ids: renderer.encode(renderer.raw_text(ids)),
        most=shape.max_positions,
    )


def refuse_too_long_for_base(test: Iterable[Example], shape: ModelShape, pieces: Mapping[int, Sequence[int]]) -> None:
    """The base reads the same texts in more tokens, and must have places for them.

    Raises:
        DataError: a row of the test split has more than the base has positions.
    """
    for row in test:
        if (length := len(in_pieces(row.input_ids, pieces))) > shape.max_positions:
            raise DataError(
                f"line {row.line} (test): {len(row.input_ids)} tokens are {length} to the base's own tokenizer, in "
                f"which it is asked, and it has {shape.max_positions} positions",
                way_out="lower train.max_length",
            )
