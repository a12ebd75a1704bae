"""The one place that turns a row or a request into token ids.

Training, evaluation, export, `predict` and the server all come through `Renderer`, which reads nothing but the request
contract and the tokenizer. Shapes: every list of ids is one row, not batched.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenizers import Tokenizer

from luthier.data import clean
from luthier.data.features import Features, freeze, needed, raw_columns
from luthier.data.frame import SENTINEL, Frame, make_frame, only_places_contents, reads_pieces_alone
from luthier.data.inputs import fill
from luthier.data.privacy.profiles import FAST, Detector, open_detector
from luthier.data.privacy.spans import Span
from luthier.data.privacy.tagger import Tagger
from luthier.data.template import PLAIN_TEMPLATE, TEXT_TEMPLATE, render
from luthier.errors import DataError, ModelError, RunError
from luthier.records import Message, RequestContract, is_closed, is_text, longest_open_answer
from luthier.spec.plugins import METHODS
from luthier.spec.recipe import Privacy
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.template import fields
from luthier.store.files import sha256_file

_SENTINEL = "LuthierAnswer"

TAGGER_FILE = "tagger.safetensors"
"""Where the tagger of profile 'maximum' lies, beside the contract."""


class Renderer:
    """Asks as the contract says. What stands in a text never becomes a control token of the model.

    Attributes:
        contract: what is rendered.
        answer_prefix: what the chat template writes between its generation prompt and an answer (' ' for Llama 2, ''
            for most); it is supervised as part of the answer.
        pieces: of tokens that the base does not have, its own in their place (`model.new_tokens`).
    """

    def __init__(
        self,
        contract: RequestContract,
        tokenizer: Tokenizer,
        detector: Detector | None = None,
        *,
        pieces: Mapping[int, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.contract = contract
        self.pieces = pieces
        self._tokenizer = tokenizer
        self._detector = detector
        self._features = Features.of(contract)
        self._tokens = {"bos_token": contract.bos_token, "eos_token": contract.eos_token}
        self._control = _control_tokens(tokenizer)
        self.answer_prefix, after = _answer_frame(contract.chat_template, self._tokens, contract.system)
        self._turn_tail = after.removeprefix(contract.end_of_turn)

    @classmethod
    def open(
        cls, contract_json: Path, tokenizer_json: Path, *, pieces: Mapping[int, Sequence[int]] = MappingProxyType({})
    ) -> Renderer:
        """Read both from disk.

        Raises:
            RunError: the contract is missing, or the tagger that it names.
            ModelError: the tokenizer is not the one that the contract was made with.
            MissingExtra: what finds personal data as prepare did is not installed here.
        """
        contract = RequestContract.read(contract_json)
        tokenizer = open_tokenizer(tokenizer_json)
        if (found := sha256_file(tokenizer_json)) != contract.tokenizer_sha256:
            raise ModelError(
                f"{tokenizer_json} is not the tokenizer of {contract_json}: "
                f"its hash is {found[:12]}, not {contract.tokenizer_sha256[:12]}",
                way_out="use the tokenizer of the run's base model, or run `luthier prepare` again",
            )
        return cls(contract, tokenizer, open_frozen(contract, contract_json.parent), pieces=pieces)

    @classmethod
    def open_plain(cls, contract: RequestContract, tokenizer_json: Path) -> Renderer:
        """For rendering alone, without looking for personal data."""
        return cls(contract, open_tokenizer(tokenizer_json))

    def under(self, contract: RequestContract) -> Renderer:
        """The same tokenizer and detector under another contract."""
        return Renderer(contract, self._tokenizer, self._detector, pieces=self.pieces)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def base_tokens(self, ids: Iterable[int]) -> int:
        """Into how many tokens the base itself cuts what these ids say: what a perplexity is told by, so that models
        before and after the vocabulary grew have one unit.
        """
        return sum(len(self.pieces.get(number, (number,))) for number in ids)

    def with_features(self, values: Mapping[str, object]) -> Mapping[str, object]:
        """A row as it was given, with what the contract computes from it.

        Raises:
            DataError: a column is missing, one that is computed here is given, or a feature cannot be computed.
        """
        return values if self._features is None else self._features.values(values)

    def user_text(self, values: Mapping[str, object]) -> str:
        """The user's turn for one row: features, input template, then `clean_text`.

        Raises:
            DataError: the template names a column that `values` does not have; and what `with_features` says.
        """
        return self.filled(self.with_features(values))

    def filled(self, values: Mapping[str, object]) -> str:
        """The user's turn for one row that has its features already."""
        return self.clean_text(fill(self.contract.input, values))

    def clean_text(self, text: str) -> str:
        """A text that is the whole user turn, cleaned and redacted; doing it twice changes nothing.

        Personal data of a request stays where training used pseudonyms: the model has learned such shapes.
        """
        return prepare_text(
            text,
            transforms=self.contract.transforms,
            redact_personal=self.contract.privacy_action == "redact",
            redact_secrets=True,
            detector=self.detector,
        )

    def find(self, text: str) -> list[Span]:
        """Personal data and secrets in a text, as prepare looks for them."""
        return self.detector.find(text)

    @property
    def detector(self) -> Detector:
        """Opened when it is first needed."""
        if self._detector is None:
            self._detector = open_detector(self.contract.privacy_profile)
        return self._detector

    def messages(self, user_text: str, *, after: Sequence[Message] = ()) -> tuple[Message, ...]:
        """The conversation that asks for an answer to a prepared text, `after` other turns if there are any."""
        return self.with_system((*after, Message(role="user", content=user_text)))

    def with_system(self, turns: Sequence[Message]) -> tuple[Message, ...]:
        """A conversation under the contract's system prompt, unless it brings its own."""
        if not self.contract.system or any(turn.role == "system" for turn in turns):
            return tuple(turns)
        return (Message(role="system", content=self.contract.system), *turns)

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """What the model reads before it answers, as text.

        Raises:
            ModelError: the template cannot render these turns.
        """
        return self._render(messages, add_generation_prompt=True)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """What the model reads before it answers; no special tokens beyond those that the template writes."""
        if is_text(self.contract.task):  # as a document begins, which is not what encoding its BOS as text may give
            ids = self.document(self.defuse("".join(message.content for message in messages)))[0]
            return ids[: len(ids) - len(self.contract.end_of_turn_ids)]
        return self.encode(self.prompt_text(messages))

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer, end of turn included, on its own, so that they are the same after every prompt."""
        return [*self.encode(self.answer_prefix + self.defuse(answer)), *self.contract.end_of_turn_ids]

    def answer_text(self, answer: str) -> str:
        """What stands after a prompt: the answer as the template writes it, and its end of turn."""
        return self.answer_prefix + self.defuse(answer) + self.contract.end_of_turn

    def whole_text(self, messages: Sequence[Message]) -> str:
        """A conversation that ends with an answer, up to its end of turn.

        Raises:
            ModelError: the template cannot render these turns.
        """
        return self._render(messages, add_generation_prompt=False).removesuffix(self._turn_tail)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, control tokens left out, stripped."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def raw_text(self, ids: Sequence[int]) -> str:
        """Text of ids, control tokens included, nothing stripped."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def _render(self, messages: Iterable[Message], *, add_generation_prompt: bool) -> str:
        turns = [(message.role, self.defuse(message.content)) for message in messages]
        return render(
            self.contract.chat_template, turns, tokens=self._tokens, add_generation_prompt=add_generation_prompt
        )

    def document(self, text: str) -> tuple[list[int], list[int]]:
        """Ids of a document, its end of sequence at the end, and at which character of the text each token starts."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        bos = self._tokenizer.token_to_id(self.contract.bos_token) if self.contract.bos_token else None
        before, end = [] if bos is None else [bos], list(self.contract.end_of_turn_ids)
        starts = [start for start, _ in found.offsets]
        return [*before, *found.ids, *end], [*(0 for _ in before), *starts, *(len(text) for _ in end)]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as it is, on all processors."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def all_prompt_ids(self, user_texts: Sequence[str]) -> list[list[int]]:
        """`prompt_ids(messages(text))` of each text; what all prompts share is worked out once where it can be.

        Raises:
            ModelError: the template cannot render these turns.
        """
        frame = self._frame
        if frame is None:
            return self.encode_all([self.prompt_text(self.messages(text)) for text in user_texts])
        before, after = list(frame.before), list(frame.after)
        found = self.encode_all([frame.head + self.defuse(text) + frame.tail for text in user_texts])
        return [before + ids + after for ids in found]

    @functools.cached_property
    def _frame(self) -> Frame | None:
        """What stands around the text in every prompt; None where the template or the tokenizer may depend on it."""
        if not only_places_contents(self.contract.chat_template) or not reads_pieces_alone(self._tokenizer):
            return None
        controls = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        return make_frame(self.prompt_text(self.messages(SENTINEL)), self._tokenizer, controls)

    def all_answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """`answer_ids` of each answer."""
        found = self.encode_all([self.answer_prefix + self.defuse(answer) for answer in answers])
        return [[*ids, *self.contract.end_of_turn_ids] for ids in found]

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text stands in it: first character, and the one after the last."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).offsets)

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered text; no special tokens beyond those that stand in it."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def defuse(self, text: str) -> str:
        """A blank breaks up what the tokenizer would read as a control token: '<|im_end|>' becomes '< |im_end|>'."""
        return self._control.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text) if self._control else text


def open_frozen(contract: RequestContract, folder: Path) -> Detector:
    """The detector that a contract names, with the tagger that lies in its folder.

    Raises:
        RunError: the tagger is missing, or is not the one that the contract was made with.
        MissingExtra: a package of the profile is not installed.
    """
    if not contract.privacy_tagger_sha256:
        return open_detector(contract.privacy_profile)
    path = folder / TAGGER_FILE
    tagger = Tagger.open(path)
    if (found := sha256_file(path)) != contract.privacy_tagger_sha256:
        raise RunError(
            f"{path} is not the tagger of the contract beside it: its hash is {found[:12]}, "
            f"not {contract.privacy_tagger_sha256[:12]}",
            way_out="run `luthier prepare` again",
        )
    return open_detector(contract.privacy_profile, tagger=tagger)


def prepare_text(
    text: str, *, transforms: Sequence[str], redact_personal: bool, redact_secrets: bool, detector: Detector = FAST
) -> str:
    """Clean and redact until nothing changes, so that a prepared text stays as it is when it is asked again."""
    while True:
        prepared = clean.apply(transforms, text)
        if redact_personal or redact_secrets:
            prepared = detector.scrub(prepared, personal=redact_personal, secrets=redact_secrets)
        if prepared == text:
            return text
        text = prepared


def make_contract(
    resolved: ResolvedRecipe,
    *,
    tokenizer_folder: Path,
    labels: Iterable[str],
    tokenizer: Tokenizer | None = None,
    tagger_sha256: str = "",
) -> RequestContract:
    """Freeze how the model will be asked.

    Args:
        resolved: names, template, system prompt, privacy and lengths.
        tokenizer_folder: holds tokenizer.json, tokenizer_config.json and, unless it is a base model, a chat template.
        labels: the closed set of answers; empty for free text.
        tokenizer: the folder's, where it is open already.
        tagger_sha256: hash of the tagger file that will lie beside the contract; '' for none.

    Raises:
        ModelError: the folder has no usable tokenizer, or its chat template cannot be taken apart.
    """
    tokenizer = tokenizer or open_tokenizer(tokenizer_folder / "tokenizer.json")
    config = _tokenizer_config(tokenizer_folder)
    tokens = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token")}
    entry = resolved.recipe.entry
    source = TEXT_TEMPLATE if is_text(entry.task) else _chat_template(tokenizer_folder, config)
    if not source or source == TEXT_TEMPLATE:
        source = source or PLAIN_TEMPLATE
        tokens["bos_token"] = tokens["bos_token"] if _adds_bos(tokenizer, tokens["bos_token"]) else ""
    end_of_turn = _answer_frame(source, tokens, entry.system or "")[1]
    end_ids = tuple(tokenizer.encode(end_of_turn, add_special_tokens=False).ids)
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    first = next((number for number in end_ids if number in special), end_ids[0])
    by_head = _by_head(resolved)
    scored = bool(by_head) and entry.task == "preference"
    # What the template writes after the token that stops generation is never generated; where an answer is scored, it
    # is read to the end that plain tools give it.
    if first in special and not scored:
        control = tokenizer.decode([first], skip_special_tokens=False)
        end_of_turn = end_of_turn[: end_of_turn.index(control) + len(control)]
        end_ids = end_ids[: end_ids.index(first) + 1]
    eos = tokenizer.token_to_id(tokens["eos_token"]) if tokens["eos_token"] else None
    rules = resolved.recipe.data.privacy or Privacy(profile="fast")
    max_length = resolved.recipe.train.max_length
    assert entry.name is not None and entry.task is not None and max_length is not None  # noqa: PT018 (resolved)
    contract = RequestContract(
        name=entry.name,
        task=entry.task,
        transforms=resolved.recipe.data.clean or (),
        privacy_action=rules.action,
        privacy_profile=rules.profile or "fast",
        privacy_tagger_sha256=tagger_sha256,
        system=entry.system or "",
        input=entry.input or "",
        labels=(),
        chat_template=source,
        end_of_turn=end_of_turn,
        end_of_turn_ids=end_ids,
        stop_ids=(first,) if eos is None or eos == first else (first, eos),
        tokenizer_sha256=sha256_file(tokenizer_folder / "tokenizer.json"),
        max_length=max_length,
        max_new_tokens=longest_open_answer(max_length),
        too_long=resolved.recipe.data.too_long,
        label_order=resolved.recipe.data.labels.order if is_closed(entry.task) else (),
        separator=resolved.recipe.data.labels.separator or "",
        rewards=tuple(one.model_dump(mode="json") for one in entry.rewards or ()),
        answer_columns=(entry.label or "", entry.rejected or "") if scored and entry.input else (),
        **by_head,
        **_computed(resolved),
        **tokens,
    )
    closed = set(labels)
    return with_labels(Renderer(contract, tokenizer), closed) if closed else contract


def _by_head(resolved: ResolvedRecipe) -> dict[str, Any]:
    """Of the recipe's method, what a request must know of it."""
    method = resolved.recipe.method
    facts = METHODS.entries().get(method.type)  # 'auto' is none of them
    if facts is None or not facts.has_head:
        return {}
    given = {key: getattr(method, key, None) for key in ("abstain_below", "threshold")}
    return {"answered_by": "head", **given}


def _computed(resolved: ResolvedRecipe) -> dict[str, Any]:
    """Of the recipe's features those that reach the input, and the types of the columns behind them."""
    recipe = resolved.recipe
    if not recipe.data.features:
        return {}
    features = needed(fields(recipe.entry.input or ""), freeze(recipe))
    columns = raw_columns([feature.name for feature in features], features)
    types = {name: recipe.data.columns.get(name, "text") for name in columns}
    return {
        "features": features,
        "column_types": types,
        "features_sha256": Features(features, types).fingerprint() if features else "",
    }


def with_labels(renderer: Renderer, labels: Iterable[str]) -> RequestContract:
    """The renderer's contract over a closed set of answers, with room for the longest of them.

    They stand in the order that they have, else in that of the alphabet.

    Raises:
        DataError: two of them are written alike.
    """
    order = renderer.contract.label_order
    names = tuple(sorted(set(labels), key=order.index if order else None))
    written: dict[tuple[int, ...], str] = {}
    for label in names:
        first = written.setdefault(tuple(renderer.answer_ids(label)), label)
        if first != label:
            raise DataError(
                f"the labels {first!r} and {label!r} are written with the same tokens, so no model can tell them apart",
                way_out="rename one of them in data.labels.rename",
            )
    longest = max(map(len, written))
    return renderer.contract.model_copy(update={"labels": names, "max_new_tokens": longest})


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json.

    Raises:
        ModelError: the file is missing, or no tokenizer.
    """
    way_out = "give a model whose folder holds a tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{path} is missing", way_out=way_out)
    try:
        return Tokenizer.from_buffer(path.read_bytes())
    except ValueError as error:  # what the binding raises for every fault of the file
        raise ModelError(f"{path} is not a tokenizer: {error}", way_out=way_out) from error


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}", way_out="fetch the model again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object", way_out="fetch the model again")
    return config


def _token_text(value: object) -> str:
    """Tokens stand in the config as text, as null, or as an object with its text under 'content'."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str:
    """The folder's template: its file, the config's text, or the one named 'default' of the config's list; else ''."""
    if (path := folder / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        value = next((one.get("template") for one in value if one.get("name") == "default"), None)
    return value if isinstance(value, str) else ""


def _adds_bos(tokenizer: Tokenizer, bos_token: str) -> bool:
    return bool(bos_token) and tokenizer.encode("a").ids[:1] == [tokenizer.token_to_id(bos_token)]


def _control_tokens(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    texts = sorted((text for text in special if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def _answer_frame(source: str, tokens: Mapping[str, str], system: str) -> tuple[str, str]:
    """What the template writes before and after an answer, found by rendering one that cannot be mistaken.

    Returns:
        Text between generation prompt and answer, and the end of turn; the end-of-sequence token where the template
        itself writes nothing after an answer.

    Raises:
        ModelError: an answer is rendered differently from the prompt for it, or nothing ends an answer.
    """
    asked = [("system", system)] if system else []
    asked.append(("user", "question"))
    prompt = render(source, asked, tokens=tokens, add_generation_prompt=True)
    whole = render(source, [*asked, ("assistant", _SENTINEL)], tokens=tokens, add_generation_prompt=False)
    before, found, after = whole[len(prompt) :].partition(_SENTINEL)
    if not whole.startswith(prompt) or not found:
        raise ModelError(
            "the model's chat template does not render an answer after its own generation prompt",
            way_out="use a model with a plain chat template, or put one into chat_template.jinja of its folder",
        )
    end_of_turn = after or tokens["eos_token"]
    if not end_of_turn:
        raise ModelError(
            "nothing ends an answer: the chat template writes no end of turn and the tokenizer names no eos_token",
            way_out="set eos_token in tokenizer_config.json of the model's folder",
        )
    return before, end_of_turn
