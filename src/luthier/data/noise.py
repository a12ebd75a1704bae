"""What people do to a text without meaning another thing: typing errors, letter case, punctuation, exchanged words.

All of it is pure: the same text and the same dice give the same result, and a text that offers nothing to change gives
None. `kept` marks the characters that stay as they are, one for each character of the text.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

from luthier.data.privacy.spans import placeholders
from luthier.spec.template import parse

# Each row of keys is set off to the right of the one above.
_KEYS = {
    letter: (offset + place, float(row))
    for row, (offset, letters) in enumerate(((0.0, "qwertyuiop"), (0.25, "asdfghjkl"), (0.75, "zxcvbnm")))
    for place, letter in enumerate(letters)
}
NEIGHBOURS = {
    letter: "".join(other for other, there in _KEYS.items() if other != letter and math.dist(here, there) <= 1.25)
    for letter, here in _KEYS.items()
}
"""Letters beside each other on a QWERTY keyboard; letters of other scripts are left out, doubled or exchanged only."""

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\S+")
_FIXED_TOKEN = re.compile(r"\d|@|https?://|www\.|(?:^|\W)#\w")
"""What makes a whole token fixed: a digit (numbers, dates, codes), an address, a name after @ or #."""
_MARKUP = re.compile(r"<[^<>\s][^<>]*>|\{[^{}]*\}|`[^`]*`|\[[A-Z][A-Z_ ]*\]")
"""Tags, fields, code, and what redaction wrote or looks like it."""

Kept = bytearray
Dice = random.Random
Pair = tuple[str, str]
"""A text and its answer."""
T = TypeVar("T")


def _fixed(text: str) -> list[tuple[int, int]]:
    """Where addresses, numbers, masks and markup stand."""
    tokens = [match.span() for match in _TOKEN.finditer(text) if _FIXED_TOKEN.search(match[0])]
    return tokens + [match.span() for match in _MARKUP.finditer(text)] + placeholders(text)


def dice(seed: int, *words: str) -> Dice:
    """Chance that follows from its arguments alone; of the generator only `random()` is used, which never changes."""
    digest = hashlib.blake2b("\0".join([str(seed), *words]).encode(errors="surrogatepass"), digest_size=16).digest()
    return random.Random(int.from_bytes(digest))


def pick(options: Sequence[T], chance: Dice) -> T:
    """One of them, each as likely."""
    return options[int(chance.random() * len(options))]


def keep(text: str, *, template: str = "", words: Set[str] = frozenset(), phrase: str = "") -> Kept:
    """Marks what stays: addresses, numbers, masks, markup, the template's own words, `words` and each `phrase`."""
    kept = bytearray(len(text))
    spans = _fixed(text) + [span for span, _ in wording(text, template)]
    if words:
        spans += [match.span() for match in _WORD.finditer(text) if match[0] in words]
    if phrase:
        spans += [match.span() for match in re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text)]
    for start, end in spans:
        kept[start:end] = b"\1" * (end - start)
    return kept


def wording(text: str, template: str) -> list[tuple[tuple[int, int], str]]:
    """Where the input template's own words stand in a text that it was filled in to, and what they are."""
    found, at = [], 0
    for part in parse(template) if template else ():
        words = part.strip() if isinstance(part, str) else ""
        if words and (start := text.find(words, at)) >= 0:
            at = start + len(words)
            found.append(((start, at), words))
    return found


def words_of(text: str) -> list[str]:
    """Words in small letters, without what stands between them; an underscore is a blank."""
    return _WORD.findall(text.casefold().replace("_", " "))


def protected(text: str) -> list[str]:
    """Parts of a text that whoever says it in other words must leave as they are."""
    parts = (text[start:end].strip(".,;:!?()\"'") for start, end in _fixed(text))
    return list(dict.fromkeys(part for part in parts if part))


def typos(text: str, kept: Kept, chance: Dice, *, rate: float) -> str | None:
    """Letters mistyped at `rate`, one at least: a neighbouring key, two exchanged, one left out, one doubled."""
    places = [at for at in range(len(text)) if _is_free_letter(text, kept, at)]
    if not places:
        return None
    hit = {at for at in places if chance.random() < rate} or {pick(places, chance)}
    written: list[str] = []
    at = 0
    while at < len(text):
        letter = text[at]
        at += 1
        if at - 1 not in hit:
            written.append(letter)
            continue
        ways = ["double"]
        if letter.lower() in NEIGHBOURS:
            ways += ["neighbour", "neighbour"]
        if _is_inside_word(text, at - 1):
            ways += ["omit", "omit"]
        if at < len(text) and text[at] != letter and _is_free_letter(text, kept, at):
            ways += ["exchange", "exchange"]
        way = pick(ways, chance)
        if way == "neighbour":
            near = pick(NEIGHBOURS[letter.lower()], chance)
            written.append(near.upper() if letter.isupper() else near)
        elif way == "exchange":
            written += [text[at], letter]
            at += 1
        elif way == "double":
            written.append(letter * 2)
    made = "".join(written)
    return made if made != text else None


def _is_free_letter(text: str, kept: Kept, at: int) -> bool:
    """Whether a letter may be changed by itself: none that a mark is written on, such as a vowel sign."""
    follows = text[at + 1 : at + 2]
    return not kept[at] and text[at].isalpha() and not (follows and unicodedata.category(follows).startswith("M"))


def _is_inside_word(text: str, at: int) -> bool:
    return text[at - 1 : at].isalpha() and text[at + 1 : at + 2].isalpha()


def case(text: str, kept: Kept, chance: Dice) -> str | None:
    """All small, all capitals, or the first letter of a sentence the other way round; what is kept stays."""
    small = "".join(char if stays else char.lower() for char, stays in zip(text, kept, strict=True))
    large = "".join(char if stays else char.upper() for char, stays in zip(text, kept, strict=True))
    first = next((at for at, char in enumerate(text) if char.isalpha() and not kept[at]), None)
    begins = first is not None and not text[:first].rstrip()[-1:].isalnum()
    turned = f"{text[:first]}{text[first].swapcase()}{text[first + 1 :]}" if first is not None and begins else text
    ways = [made for made in (small, small, large, turned) if made != text]
    return pick(ways, chance) if ways else None


_END = re.compile(r"[.!?…。！？]+$")


def punctuation(text: str, kept: Kept, chance: Dice) -> str | None:
    """The final mark dropped, doubled or added, or inner commas and apostrophes left out."""
    ways = []
    end = _END.search(text)
    if end and not any(kept[end.start() :]):
        ways += [text[: end.start()], text[: end.start()], text + text[-1]]
    elif text and text[-1].isalnum() and not kept[-1]:
        ways += [f"{text}.", f"{text}!"]
    for mark in (",", "'", "\u2019"):
        thinner = "".join(c for c, stays in zip(text, kept, strict=True) if c != mark or stays)
        ways += [thinner] if thinner != text else []
    ways = [made for made in ways if made and made != text]
    return pick(ways, chance) if ways else None


@dataclass(frozen=True)
class Swaps:
    """Sets of words that may stand for one another, ready to be found in texts."""

    pattern: re.Pattern[str]
    others: dict[str, tuple[str, ...]]
    """Casefolded word -> the rest of its set, as listed."""
    listed: dict[str, str]
    """Casefolded word -> the word as listed."""

    @classmethod
    def over(cls, sets: Iterable[Sequence[str]]) -> Swaps:
        """Longer words are found before shorter ones that they begin with."""
        others: dict[str, tuple[str, ...]] = {}
        listed: dict[str, str] = {}
        for words in sets:
            clean = [word.strip() for word in words]
            for word in clean:
                listed[word.casefold()] = word
                rest = tuple(one for one in clean if one.casefold() != word.casefold())
                others[word.casefold()] = rest
        longest = sorted(listed.values(), key=lambda word: (-len(word), word))
        # Letters beside a word make it another word; a word that is itself a mark has no such border.
        pattern = "|".join(map(re.escape, longest))
        return cls(re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE), others, listed)

    def swap(self, text: str, kept: Kept, chance: Dice, *, answer: str = "", both: bool = False) -> Pair | None:
        """The text and its answer with words exchanged, the same one by the same other wherever it stands.

        Args:
            text: what is asked.
            kept: of the text.
            chance: which words, and for which.
            answer: a free one, which must go on fitting; '' for a label.
            both: whether only words may be exchanged that stand in the answer as well, as in translations.
        """
        kept_of_answer = keep(answer)
        in_answer = {match[0].casefold() for match in self.pattern.finditer(answer)}
        found = [match for match in self.pattern.finditer(text) if not any(kept[slice(*match.span())])]
        words = list(dict.fromkeys(match[0].casefold() for match in found))
        words = [word for word in words if self.others.get(word) and (not both or word in in_answer)]
        if not words:
            return None
        chosen = [word for word in words if chance.random() < 0.5] or [pick(words, chance)]
        new = {word: pick(self.others[word], chance) for word in chosen}
        made = self._exchanged(text, kept, new)
        return (made, self._exchanged(answer, kept_of_answer, new)) if made != text else None

    def _exchanged(self, text: str, kept: Kept, new: Mapping[str, str]) -> str:
        def put(match: re.Match[str]) -> str:
            word = match[0].casefold()
            stays = word not in new or any(kept[slice(*match.span())])
            return match[0] if stays else self._cased(match[0], new[word])

        return self.pattern.sub(put, text)

    def _cased(self, old: str, new: str) -> str:
        """The new word in the letter case of the old one; one that stands as it is listed gives one as listed."""
        if old == self.listed[old.casefold()]:
            return new
        if old.isupper() and len(old) > 1:
            return new.upper()
        if old.islower():
            return new.lower()
        return new[:1].upper() + new[1:]
