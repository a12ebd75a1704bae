"""A GGUF file whose weight matrices are float16: merged weights, tokenizer and chat template, for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import torch

from luthier.engines.llama_cpp import LlamaCppEngine, refuse_missing_llama_cpp
from luthier.engines.next_token import NextTokenEngine
from luthier.models.adapters import merge
from luthier.models.classifier import take_off_heads
from luthier.models.gguf_tokenizer import read_tokenizer
from luthier.models.gguf_write import FloatType, write_gguf
from luthier.models.tuned import is_adapted, load_tuned
from luthier.records import RequestContract, is_text

_ROOM = 32
"""Tokens that are asked beyond the longest row."""


def write(*, base: Path, adapter: Path, out: Path, head: RequestContract | None) -> None:
    """One file; see `write_file`."""
    write_file(base=base, adapter=adapter, out=out, float_type="f16")


def reopen(*, base: Path, folder: Path, head: RequestContract | None) -> NextTokenEngine:
    """The file alone, in llama.cpp."""
    return reopen_file(folder, float_type="f16")


def write_file(*, base: Path, adapter: Path, out: Path, float_type: FloatType) -> None:
    """Merge what was learned into the base and write it; chat template and ends of turn are those of the contracts
    that stand in `out`.

    Raises:
        MissingExtra: there is no llama.cpp here, and what cannot be held to parity is not written.
        ModelError: it cannot be written so, see `write_gguf`.
    """
    refuse_missing_llama_cpp()
    tuned = load_tuned(base, adapter, as_dense=True)
    model = merge(tuned) if is_adapted(tuned) else tuned
    take_off_heads(model)
    tokenizer = read_tokenizer(base, vocab_size=model.config.vocab_size)
    template = out / "chat_template.jinja"
    source = template.read_text(encoding="utf-8") if template.is_file() else ""
    contracts = _contracts(out)
    chats = [contract for contract in contracts if not is_text(contract.task)]
    ends = {contract.stop_ids[0] for contract in chats} - {tokenizer.special.get("eos")}
    bos = contracts[0].bos_token
    writes_bos = not chats or "bos_token" in source or bool(bos and bos in source)
    write_gguf(
        file_of(out, float_type),
        model,
        tokenizer=tokenizer,
        chat_template=source,
        float_type=float_type,
        end_of_turn_id=min(ends, default=None),
        adds_bos=tokenizer.adds_bos and writes_bos,
    )


def reopen_file(folder: Path, *, float_type: FloatType) -> NextTokenEngine:
    """The file alone, in llama.cpp, with room for the longest question of the contracts beside it."""
    room = max(contract.max_length for contract in _contracts(folder)) + _ROOM
    return LlamaCppEngine(file_of(folder, float_type), n_ctx=room, threads=torch.get_num_threads())


def file_of(folder: Path, float_type: FloatType) -> Path:
    """Where the weights stand in the folder of the artifact."""
    return folder / f"model-{float_type}.gguf"


def _contracts(folder: Path) -> list[RequestContract]:
    return [RequestContract.read(path) for path in sorted(folder.glob("contract*.json"))]
