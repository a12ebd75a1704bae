"""Exports: one module a form, of the same name as its descriptor in `luthier.spec.exports`; each is held to parity.

Of several tasks each head has a folder of its own within the artifact, a sequence classification as of a head that was
trained alone; what all share stands above them, as a language model.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from luthier.engines.next_token import NextTokenEngine, check_next_token
from luthier.engines.parity import check_parity, together
from luthier.engines.protocol import HeadEngine, LogitsEngine
from luthier.errors import ModelError, ParityError
from luthier.records import Artifact, Golden, Message, ParityCheck, RequestContract, is_text
from luthier.spec.plugins import EXPORTS, ExportFacts
from luthier.store.files import sha256_files, write_atomic, write_atomic_dir

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


@dataclass(frozen=True)
class Asked:
    """How a task is asked, and its golden prompts."""

    contract: RequestContract
    goldens: Sequence[Golden]


class Form(Protocol):
    """One form of export."""

    def write(self, *, base: Path, adapter: Path, out: Path, head: RequestContract | None) -> None:
        """Write weights and config into the existing folder `out`, where contracts and chat template stand already; of
        a task that is answered by a head, for that.
        """
        ...

    def reopen(
        self, *, base: Path, folder: Path, head: RequestContract | None
    ) -> LogitsEngine | HeadEngine | NextTokenEngine:
        """Load what was written, from disk, the way a user of it would."""
        ...


def export(
    kind: str,
    *,
    base: Path,
    adapter: Path,
    run: Path,
    asked: Sequence[Asked],
    reference: LogitsEngine,
    weights_sha256: str,
    readme: str = "",
    task: str = "",
) -> Artifact:
    """Write the form `kind` to RUN/artifacts/KIND, load it again and compare it with `reference`.

    Args:
        kind: a name of the exports table.
        base: folder of the base model.
        adapter: what was trained.
        run: the run folder.
        asked: how the model is asked for each task, and the prompts that are compared.
        reference: what was trained, opened.
        weights_sha256: of what was trained.
        readme: what the folder says of itself; '' for nothing.
        task: whose adapter it is, where each task has one: it goes to RUN/artifacts/KIND/TASK; '' for that of all.

    Raises:
        ParityError: it does not say the same; it is deleted and the first difference is named.
    """
    facts = EXPORTS.get(kind)
    form = cast(Form, importlib.import_module(f"luthier.compress.export.{kind}"))
    path = f"artifacts/{kind}/{task}".rstrip("/")
    folder = run / path
    parts = parts_of(asked)
    with write_atomic_dir(folder) as partial:
        for part in parts:
            place = partial / part.name
            place.mkdir(exist_ok=True)
            _write_beside(place, part, base=base, readme=readme)
            form.write(base=base, adapter=adapter, out=place, head=part.head)
            if not facts.in_llama_cpp:
                _copy_tokenizer(place, base=base)
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, folder)  # whatever ends this early: what was not found equal does not stay
        parity = _compare(form, facts, parts, base, folder, reference)
        if not parity.passed:
            raise ParityError(
                f"export {kind!r}{f' of task {task}' if task else ''} broke parity and was deleted: "
                f"{parity.first_difference}",
                way_out="report this with the run folder; the trained adapter in train/ is untouched",
            )
        undo.pop_all()
    hashes = sha256_files(folder)
    size = sum((folder / name).stat().st_size for name in hashes)
    return Artifact(kind=kind, path=path, sha256=hashes, num_bytes=size, parity=parity, made_from=weights_sha256)


def _compare(
    form: Form, facts: ExportFacts, parts: Sequence[Part], base: Path, folder: Path, reference: LogitsEngine
) -> ParityCheck:
    """All that was written, beside what was trained.

    Raises:
        ParityError: it cannot be asked at all.
    """
    try:
        checks = [check for part in parts for check in _check(form, facts, part, base, folder / part.name, reference)]
    except ModelError as error:
        raise ParityError(
            f"export {facts.name!r} cannot be asked and was deleted: {error.what}",
            way_out="report this with the run folder; the trained adapter in train/ is untouched",
        ) from error
    return together(checks)


def _check(
    form: Form, facts: ExportFacts, part: Part, base: Path, place: Path, reference: LogitsEngine
) -> list[ParityCheck]:
    """What a model that was written says, beside what was trained; one check a task."""
    candidate = form.reopen(base=base, folder=place, head=part.head)
    if not facts.in_llama_cpp:
        plain = cast(LogitsEngine | HeadEngine, candidate)
        return [
            check_parity(
                reference, plain, one.goldens,
                contract=one.contract, encode=plain_encoder(place, one.contract), bound=facts.bound,
            )
            for one in part.asked
        ]  # fmt: skip
    assert isinstance(candidate, NextTokenEngine)
    assert facts.measure != "logits"
    try:
        return [
            check_next_token(
                reference, candidate, one.goldens, contract=one.contract, measure=facts.measure, bound=facts.bound
            )
            for one in part.asked
        ]
    finally:
        candidate.close()


@dataclass(frozen=True)
class Part:
    """A model of an artifact."""

    name: str
    """Folder within the artifact; '' for the artifact's own."""
    asked: Sequence[Asked]
    """The tasks that it is asked for; none where it is only what others stand over."""
    head: RequestContract | None
    """Of the task that is answered by a head; None for a language model."""
    alone: bool
    """Whether it is for one task and no other."""


def parts_of(asked: Sequence[Asked]) -> list[Part]:
    """Of one task one model; of several a language model, and one for each head."""
    by_head = [one for one in asked if one.contract.answered_by == "head"]
    if len(asked) == 1:
        return [Part("", asked, by_head[0].contract if by_head else None, alone=True)]
    in_words = [one for one in asked if one not in by_head]
    return [
        Part("", in_words, None, alone=False),
        *(Part(one.contract.name, [one], one.contract, alone=True) for one in by_head),
    ]


def _write_beside(place: Path, part: Part, *, base: Path, readme: str) -> None:
    """What belongs to a model beside its weights: chat template, contracts, a word on itself."""
    chats = [one.contract for one in part.asked if not is_text(one.contract.task)]
    if chats:
        write_atomic(place / "chat_template.jinja", chats[0].chat_template)
    elif (base / "chat_template.jinja").is_file():  # nothing was learned about turns: what the base knows of them
        shutil.copyfile(base / "chat_template.jinja", place / "chat_template.jinja")
    if readme:
        write_atomic(place / "README.md", readme)
    for one in part.asked:
        name = "contract.json" if part.alone else f"contract.{one.contract.name}.json"
        write_atomic(place / name, one.contract.to_json())


def _copy_tokenizer(place: Path, *, base: Path) -> None:
    """The base's tokenizer, but for what the form has written itself."""
    for name in _TOKENIZER_FILES:
        if (base / name).is_file() and not (place / name).exists():
            shutil.copyfile(base / name, place / name)


def plain_encoder(folder: Path, contract: RequestContract) -> Callable[..., tuple[str, list[int]]]:
    """User text, and the answer that is scored, -> (prompt, ids) as plain transformers does it from the artifact's own
    files.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)

    if is_text(contract.task):
        return lambda text: (contract.bos_token + text, list(tokenizer(text)["input_ids"]))

    def encode(user_text: str, answer: str = "") -> tuple[str, list[int]]:
        system = [Message(role="system", content=contract.system)] if contract.system else []
        turns = [
            message.model_dump(include={"role", "content"})
            for message in (*system, Message(role="user", content=user_text))
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
        if not contract.scores_answers:
            return text, list(ids)
        whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
        if not whole.endswith(contract.end_of_turn):  # a template that writes nothing behind an answer
            whole += contract.end_of_turn
        # By itself, as it is read behind any prompt; most templates end a prompt where no token goes on.
        return whole, [*ids, *tokenizer(whole[len(text) :], add_special_tokens=False)["input_ids"]]

    return encode
