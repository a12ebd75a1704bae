"""What a stage works with, and how it makes the machine ready."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.data.contract import Renderer
from luthier.errors import RunError
from luthier.pipeline.bases import model_source
from luthier.pipeline.order import tokens
from luthier.pipeline.progress import Progress
from luthier.pipeline.vocabulary import as_base, tokenizer_of, vocabulary_of
from luthier.prune_records import PruneResult
from luthier.records import ModelShape, RequestContract
from luthier.spec.recipe import Train
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_json
from luthier.store.runs import RunFolder

if TYPE_CHECKING:
    from luthier.engines.ask import Asker
    from luthier.engines.protocol import Engine


@dataclass(frozen=True)
class Context:
    """What a stage works with."""

    run: RunFolder
    progress: Progress
    part: ResolvedRecipe | None = None
    """Of a task of a run: what the run's own recipe says of it."""

    @cached_property
    def resolved(self) -> ResolvedRecipe:
        return self.part or ResolvedRecipe.read(self.run.resolved)

    @cached_property
    def shape(self) -> ModelShape:
        return ModelShape.read(self.run.shape)

    @cached_property
    def original(self) -> Path:
        """Folder of the base model as it is."""
        from luthier.models.base import import_base

        return import_base(model_source(self.shape))

    @cached_property
    def base(self) -> Path:
        """Folder of the base model as it is trained and asked with an adapter: the original, that in four bits, that
        with new tokens, which are known once the data is prepared, or what pruning left of it.

        Raises:
            RunError: it was pruned, and what was left is gone.
        """
        from luthier.models.quantised import quantise_base
        from luthier.models.vocabulary import grow_base

        model, pruned = self.resolved.recipe.model, self.run.whole.pruned_model
        if model.new_tokens is not None:
            pieces = vocabulary_of(self.run).pieces
            return grow_base(model_source(self.shape), self.original, tokenizer_of(self.run), pieces)
        if self.resolved.recipe.prune is not None:
            if not (pruned / "config.json").is_file():
                raise RunError(f"{pruned}, the pruned base, is missing", way_out=f"luthier train {self.run.whole.path}")
            return pruned
        return quantise_base(model_source(self.shape), self.original, model) if model.load_in_4bit else self.original

    @property
    def base_sha256(self) -> str:
        """Hash of what is trained on: that of the original, and what was pruned or how it is held where it is not as
        it was.
        """
        if self.resolved.recipe.prune is not None:
            return sha256_json([self.shape.sha256, PruneResult.read(self.run.whole.pruned_result).weights_sha256])
        held = self.resolved.recipe.model.held
        return sha256_json([self.shape.sha256, *held]) if held else self.shape.sha256

    @cached_property
    def contract(self) -> RequestContract:
        return RequestContract.read(self.run.contract)

    @cached_property
    def renderer(self) -> Renderer:
        if self.resolved.recipe.model.new_tokens is None:
            return Renderer.open(self.run.contract, self.original / "tokenizer.json")
        pieces = vocabulary_of(self.run).pieces
        return Renderer.open(self.run.contract, tokenizer_of(self.run) / "tokenizer.json", pieces=pieces)

    def asker(self, engine: Engine) -> Asker:
        from luthier.engines.ask import Asker

        return Asker(self.contract, self.renderer, engine)

    def base_asker(self, engine: Engine) -> Asker:
        """The model before it was tuned: it has no head, so it is asked in words, and in its own tokens."""
        from luthier.engines.ask import Asker, in_words

        engine = as_base(engine, self.renderer, self.shape)
        if self.contract.answered_by == "words":
            return self.asker(engine)
        contract = in_words(self.contract)
        return Asker(contract, self.renderer.under(contract), engine)

    @cached_property
    def tasks(self) -> tuple[Context, ...]:
        """The same for each task; one task alone is the whole."""
        folders = self.run.tasks(self.resolved.names)
        if len(folders) == 1:
            return (self,)
        return tuple(
            Context(folder, self.progress, part) for folder, part in zip(folders, self.resolved.parts, strict=True)
        )

    @property
    def data_sha256(self) -> str:
        """Hash over shards and contracts."""
        return sha256_json(tokens(self.run, self.resolved))


def set_up_device(train: Train, *, threads: int | None = None) -> str:
    """Where a stage computes, made ready; on the recipe's threads unless fewer are its own.

    Raises:
        RunError: it is not there.
    """
    import torch

    set_up_torch(threads or train.threads or 1)
    device = train.device or "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError(
            f"train.device is 'cuda', and torch {torch.__version__} sees no such device",
            way_out="run where there is one, install torch's CUDA build, or set train.device to cpu",
        )
    return device


def set_up_torch(threads: int) -> None:
    """Threads and deterministic kernels, before the first computation of a stage."""
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode otherwise writes NaN into every fresh tensor, to make reads of unset memory show.
    quiet_libraries()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def quiet_libraries() -> None:
    """Progress bars and warnings of libraries would stand between ours; what they warn of is handled or dated here."""
    import logging
    import warnings

    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of a kernel on a hub that it does without
    # peft 0.21 calls a name that transformers 5.23 renamed; drop when PEFT uses is_activation_checkpointing.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
