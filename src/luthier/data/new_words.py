"""Which words of the training rows become tokens (`model.new_tokens`), and the tokenizer that has them.

Only rows of the training split count, as they are learned: cleaned, redacted, with no offspring, canary or replayed
text among them. A word is letters only, more than one token to the base, and occurs in the running text (no part of a
URL, a path, an identifier) of several groups of rows; those come first that save most tokens, times * (pieces - 1).
What stands in personal data that was found and left in the rows is never taken: a token would say it to whoever opens
the tokenizer.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.data.contract import Renderer, make_contract, open_frozen, open_tokenizer
from luthier.data.crew import in_parts
from luthier.data.items import Item
from luthier.data.privacy.profiles import Detector
from luthier.data.privacy.spans import EVERY_PLACEHOLDER
from luthier.data.step import Flow
from luthier.data.vocabulary import FILE, TOKENIZER, Words, plain, refuse_other_ids, write_tokenizer
from luthier.errors import DataError
from luthier.records import RequestContract, SplitName
from luthier.spec.new_tokens import NewTokens
from luthier.store.files import sha256_file, write_atomic
from luthier.vocabulary_records import CutText, NewToken, NewWords, Vocabulary

KEY = "model.new_tokens"
SHOWN = 40
"""Tokens that the report lists."""

_NO_PROSE = re.compile(r"\S*[/\\=_@\d]\S*")
"""What no white space divides and no word of a language is: URLs, paths, addresses, identifiers, numbers."""
_PLACEHOLDERS = frozenset(one.strip("[]") for one in EVERY_PLACEHOLDER)


@dataclass(frozen=True)
class _Counted:
    """How often each word occurs in the running text of the training rows, and in how many groups of them."""

    times: Counter[str]
    groups: dict[str, set[str]]

    @classmethod
    def of(cls, items: Iterable[Item], words: Words) -> _Counted:
        times, groups = Counter[str](), defaultdict[str, set[str]](set)
        for item in items:
            found = Counter(word for text in texts_of(item) for word in words.of(_NO_PROSE.sub(" ", text)))
            times.update(found)
            for word in found:
                groups[word].add(item.group)
        return cls(times, groups)


def grow(flow: Flow, base: Path, rules: NewTokens) -> tuple[Path, NewWords]:
    """Make the tokenizer of a task, and let the flow's renderer cut with it from here on.

    Args:
        flow: its rows are refined and divided.
        base: folder of the base's tokenizer.
        rules: which words.

    Returns:
        The tokenizer.json, below `flow.out`, and what is to be told of it.

    Raises:
        ModelError: the base's tokenizer is of a kind that cannot grow.
        DataError: no word is new, or a named one is none to the tokenizer.
    """
    words = Words(flow.renderer.tokenizer, name=flow.resolved.recipe.model.name)
    learned = [item for item in flow.items if item.split == "train" and not item.made_by]
    counted = _Counted.of(learned, words)
    named, known = _named(rules, flow, words)
    found, personal = _found(rules, counted, words, flow, learned, but=named)
    tokens = tuple(
        NewToken(
            text=plain(word),
            id=words.first + number,
            pieces=words.pieces(word),
            occurrences=counted.times[word],
            documents=len(counted.groups.get(word, ())),
            is_named=number < len(named),
        )
        for number, word in enumerate([*named, *found])
    )
    if not tokens:
        raise DataError(
            f"{KEY}: no word of the training rows is new: none that the base cuts into several tokens occurs "
            f"{rules.min_count} times in {rules.min_documents} groups of rows, or those that are named are tokens",
            way_out=f"lower {KEY}.min_count and .min_documents, name words in {KEY}.terms, or leave {KEY} out",
        )
    out = flow.out / TOKENIZER
    out.mkdir(exist_ok=True)
    path = write_tokenizer(words.grown([*named, *found]), base, out)
    made = Vocabulary(
        tokens=tokens,
        base_tokenizer_sha256=sha256_file(base / "tokenizer.json"),
        tokenizer_sha256=sha256_file(path),
    )
    write_atomic(flow.out / FILE, made.to_json())
    measured = _measured(flow, base / "tokenizer.json", path, made)
    _cut_with(flow, out)
    shown = sorted(tokens, key=lambda token: (-token.saved, token.id))[:SHOWN]
    report = NewWords(
        num_tokens=len(tokens),
        named=len(named),
        shown=tuple(shown),
        known=tuple(known),
        personal=personal,
        texts=measured,
    )
    return path, report


def texts_of(item: Item) -> list[str]:
    """All that is asked and answered in a row."""
    if item.turns:
        return [turn.content for turn in item.turns]
    return [text for text in (item.text, item.answer) if text]


def read_terms(text: str, *, name: str) -> tuple[str, ...]:
    """The words of a file, one a line; empty lines and those that begin with '#' are none.

    Raises:
        DataError: there is none.
    """
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    terms = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not terms:
        raise DataError(f"{KEY}.terms: {name} holds no word", way_out="write one word a line")
    return terms


def _named(rules: NewTokens, flow: Flow, words: Words) -> tuple[list[str], list[str]]:
    """The words of the terms, in their order, and the terms that are one token already."""
    terms = rules.terms or ()
    if rules.file is not None:
        path = flow.resolved.file(rules.file)
        try:
            terms = read_terms(path.read_text(encoding="utf-8"), name=rules.file)
        except UnicodeDecodeError as error:
            raise DataError(f"{KEY}.terms: {path} is not UTF-8", way_out="save it as UTF-8") from error
    named, known = dict[str, None](), list[str]()
    for term in (one.strip() for one in terms):
        forms = words.forms(term)
        if not forms:
            raise DataError(
                f"{KEY}.terms: {term!r} is {len(words.of(f'a {term}')) - 1} words to the base's tokenizer, and a token "
                "is one whole word",
                way_out="name its words one by one, or leave it out",
            )
        new = [form for form in forms if len(words.pieces(form)) > 1]
        named |= dict.fromkeys(new)
        known += [] if new else [term]
    return list(named), known


def _found(
    rules: NewTokens, counted: _Counted, words: Words, flow: Flow, learned: Sequence[Item], *, but: Sequence[str]
) -> tuple[list[str], int]:
    """The words that save most, and how many were passed over because they stand in personal data."""
    if not rules.count:
        return [], 0
    saved: dict[str, int] = {}
    for word, times in counted.times.items():
        if times < rules.min_count or len(counted.groups[word]) < rules.min_documents or word in but:
            continue
        text = plain(word)
        if _is_word(text) and (pieces := len(words.pieces(word))) > 1:
            saved[word] = times * (pieces - 1)
    best = sorted(saved, key=lambda word: (-saved[word], word))
    personal = _personal(flow, learned) if best else set()
    taken = [word for word in best if plain(word).strip().casefold() not in personal]
    return taken[: rules.count], len(best) - len(taken)


def _is_word(text: str) -> bool:
    """Whether it is letters only, behind a blank or not; none of what stands for personal data."""
    word = text.removeprefix(" ")
    letters = bool(word) and all(unicodedata.category(char)[0] in "LM" for char in word)
    return letters and word not in _PLACEHOLDERS


def _personal(flow: Flow, items: Sequence[Item]) -> set[str]:
    """Words of the personal data that stands in the rows; where it was redacted or replaced none of it does."""
    rules = flow.resolved.recipe.data.privacy
    if rules is None or rules.action != "report":
        return set()
    texts = [text for item in items for text in texts_of(item)]
    work = _PersonalWords(flow.contract, flow.out)
    return set().union(*flow.crew.each(work, in_parts(texts, flow.part_rows)))


@dataclass(frozen=True)
class _PersonalWords:
    """Looks into some texts, wherever that is."""

    contract: RequestContract
    folder: Path

    def __call__(self, texts: Sequence[str]) -> set[str]:
        """Words of all that is found, letter case aside."""
        detector = _detector(self.contract.to_json(), self.folder)
        found = (text[span.start : span.end] for text in texts for span in detector.find(text))
        return {word for value in found for word in _letters(value)}


@functools.lru_cache(maxsize=1)
def _detector(contract_json: str, folder: Path) -> Detector:
    return open_frozen(RequestContract.model_validate_json(contract_json), folder)


def _letters(value: str) -> list[str]:
    """Runs of letters."""
    kept = "".join(char if unicodedata.category(char)[0] in "LM" else " " for char in value)
    return kept.casefold().split()


def _cut_with(flow: Flow, tokenizer: Path) -> None:
    """The same contract over the new tokenizer."""
    contract = make_contract(
        flow.resolved,
        tokenizer_folder=tokenizer,
        labels=(),
        tagger_sha256=flow.contract.privacy_tagger_sha256,
    )
    flow.renderer = Renderer(contract, open_tokenizer(tokenizer / "tokenizer.json"), flow.ledger.detector)


def _measured(flow: Flow, base: Path, made: Path, vocabulary: Vocabulary) -> dict[SplitName, CutText]:
    """Bytes and tokens of the texts of each split; every one of them is cut both ways and compared."""
    found: dict[SplitName, CutText] = {}
    for split in ("train", "validation", "test"):
        items = [item for item in flow.items if item.split == split]
        texts = [flow.renderer.defuse(text) for item in items for text in texts_of(item)]
        counts = refuse_other_ids(texts, base, made, vocabulary.pieces)
        found[split] = CutText(
            num_bytes=sum(len(text.encode()) for text in texts),
            before=sum(before for before, _ in counts),
            after=sum(after for _, after in counts),
        )
    return found
