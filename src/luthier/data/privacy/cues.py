"""What a text says about the finds of a small language model: where they end, and of which kind they are.

Such a model takes an unusual name for a company, and runs from the end of one line into the next. The words around a
find, its shape, and the other mentions of the same thing are better witnesses. Nothing here knows a list of names or
places. Finds are taken away only where the text itself speaks against them: see `unusual` and the labels of forms.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from luthier.data.privacy.dates import MONTHS
from luthier.data.privacy.spans import Span, add_free

NAME = "cues/1"
_SOFT = frozenset(("name", "location", "organization"))
"""Kinds that a model confuses."""
_NO_PLACE = "|".join(("I", "The", *(month.capitalize() for month in MONTHS)))
_UPPER = r"[^\W\d_a-zß-öø-ÿ]"
_CAPITAL = rf"{_UPPER}[\w’'-]*\w"
_PARTICLE = r"(?:d[aeiou]s?|del|den|der|van|von|la|le|bin|al|af|y)"

# --- ends -------------------------------------------------------------------------------------------------------------

_PIECE = re.compile(r"[^\n\r\t\"“”:;|<>{}\[\]]+")
_LEAD = re.compile(r"(?:[\s,.'’)&-]|(?:the|an?|i['’]m|and)\s)+", re.IGNORECASE)
_POSSESSIVE = re.compile(r"['’]s?$")
_LABEL = re.compile(
    r"(?:(?:first|last|full|home|work|office|e-?mail|phone|mobile|street|postal|zip)[ -]?)?(?:name|address|e-?mail|"
    r"mail|phone|telephone|tel|mobile|cell|fax|desk|office|home|work|web ?site|date|time|subject|title|company|city|"
    r"country|state|zip|code|number|no|id|age|sex|gender|note|notes|contact|department|position|reference|from|to|cc)",
    re.IGNORECASE,
)

_ABBREVIATIONS_TEXT = (
    "IBAN ATM SSN PIN VAT CVV BIC SWIFT URL API FAQ PDF USB SMS ID IP CEO CFO CTO HR IT TV PC DIY EMAIL E-MAIL APT APT."
    " SUITE ST ST. RD RD. AVE AVE. MR MR. MRS MRS. MS MS. DR DR. BOX"
)
_ABBREVIATIONS = frozenset((*_ABBREVIATIONS_TEXT.split(), "P.O. BOX", "PO BOX"))


def tidy(found: Iterable[Span], text: str) -> Iterator[Span]:
    """Finds that end where a name ends: on their line, without quotes, article and possessive; no labels of a form."""
    for span in found:
        if span.kind not in _SOFT:
            yield span
            continue
        for piece in _PIECE.finditer(text, span.start, span.end):
            value = piece[0]
            lead = _LEAD.match(value)
            start = piece.start() + (lead.end() if lead else 0)
            end = piece.start() + len(_POSSESSIVE.sub("", value.rstrip(" ,-(&")))
            is_label = _LABEL.fullmatch(text, start, end) and text[end : end + 2].strip()[:1] == ":"
            if start < end and not is_label and text[start:end].upper() not in _ABBREVIATIONS:
                yield Span(start, end, span.kind, span.detector)


_SMALL_WORDS = frozenset(
    ("hi", "hello", "hey", "dear", "and", "or", "of", "at", "in", "to", "from", "for", "is", "the", "a", "an", "by",
     "with")
)  # fmt: skip
_TOKEN = re.compile(r"[\w'’-]+\)?\.?")


def trimmed(found: Iterable[Span], text: str) -> Iterator[Span]:
    """Finds without the signs, blanks and small words at their ends, and never half a code such as 'AB-20'."""
    for span in found:
        words = [one for one in _TOKEN.finditer(text, span.start, span.end) if one[0].lower() not in _SMALL_WORDS]
        if words:
            start, end = words[0].start(), words[-1].end()
            while start and (text[start - 1].isalnum() or (text[start - 1] == "-" and text[start].isalnum())):
                start -= 1
            rest = _REST.match(text, end) if text[end - 1].isalnum() or text[end - 1] == "-" else None
            yield Span(start, rest.end() if rest else end, span.kind, span.detector)


_REST = re.compile(r"\w*(?:-\w+)*")


# --- kinds ------------------------------------------------------------------------------------------------------------

_FAMILY = (
    r"son|daughter|wife|husband|mother|father|mom|mum|dad|brother|sister|kid|child|niece|nephew|cousin|uncle|aunt|"
    r"grand(?:mother|father|son|daughter|ma|pa)|girlfriend|boyfriend|fianc[ée]e?"
)
_BEFORE = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("name", rf"\b(?:my|his|her|our|your|their) (?:\w+ )?(?:{_FAMILY}|friend|colleague|boss|neighbou?r)"
         r"(?: is)?,? $"),
        ("location", r"\b(?:flew|fly|flying|moved?|moving|travel(?:l?ed|l?ing)?|drove|emigrated|relocated|returned|"
         r"trip) (?:\w+ )?(?:to|from) $|\b(?:based|located|situated|headquartered|lives?|lived|living|born|raised|"
         r"resid(?:es?|ing)|am|are|stay(?:s|ing)?) (?:now )?in $|\boriginally from $|\bhome (?:town|city) (?:of )?$|"
         r"\bcity of $|\barriv(?:ed?|ing) (?:in|at) $"),
        ("organization", r"\b(?:works?|worked|working|employed|job|internship) (?:for|at|with|by) $|"
         r"\b(?:C[EFTIO]O|founder|employees?|customers?|shareholders?|subsidiary|division|offices?) of $"),
    )
)  # fmt: skip
_AFTER = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("name", rf",? (?:lives?|lived|was born|is married|is my|smiled|laughed)\b|['’]s? (?:{_FAMILY})\b"),
        ("organization", r" (?:Inc|LLC|Ltd|GmbH|Corp|plc)\b"),
    )
)
_HOUSE_AT_END = re.compile(r" \d{1,4}$")
_HOUSE = re.compile(r" \d{1,4}(?!\w|[.,:]\d)")
_AT = re.compile(r"\b(?:at|on) $")
_INITIAL = re.compile(rf"{_CAPITAL} {_UPPER}\.? (?:{_PARTICLE} )*{_CAPITAL}")
_LEGAL = r"Inc|LLC|LLP|Ltd|Limited|GmbH|Corp|Corporation|PLC|plc|AG|SE|NV|BV|Oy|AB|SpA|S\.A|Pty"
_FIRM = re.compile(
    rf"(?<![\w.-])(?!The\b|At\b|For\b|In\b|From\b|With\b|By\b)(?:{_CAPITAL}|{_UPPER}|\d{{1,3}})"
    rf"(?:,? (?:(?:&|and|of) )?{_CAPITAL}){{0,3}},? (?:{_LEGAL})(?!\w)\.?"
)
_SONS = re.compile(
    rf"(?<![\w.-]){_CAPITAL}(?:, {_CAPITAL}){{0,5}},? (?:and|&) (?:Sons|Company|Co|Partners|Associates)\b\.?"
)
_LEGAL_END = re.compile(rf"(?:{_LEGAL}|Group|Bank|University|Institute|Association|Foundation)\.?$")


def firms(text: str) -> Iterator[Span]:
    """Companies that say so: 'Alder Systems Ltd.', 'Alder and Sons'."""
    for match in chain(_FIRM.finditer(text), _SONS.finditer(text)):
        end = match.end() - (match[0].endswith(".") and text[match.end() : match.end() + 1] in ("", "\n"))
        yield Span(match.start(), end, "organization", NAME)


_SAID = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("name", rf"(?i:\b(?:my|his|her|our|your|their) (?:\w+ )?(?:{_FAMILY})),? (?P<said>(?!I\b){_CAPITAL}"
         rf"(?: {_CAPITAL}){{0,2}})"),
        ("location", r"(?i:\b(?:lives?|lived|living|born|grew up|raised) in|\b(?:flew|moved(?: here)?|flight) (?:to|"
         rf"from)|\b(?:am|is|are|was|come|comes) (?:originally )?from|\boriginally from) "
         rf"(?P<said>(?!(?:{_NO_PLACE})\b){_CAPITAL}(?: (?:{_PARTICLE} )?{_CAPITAL}){{0,2}})"),
    )
)  # fmt: skip


def said(text: str) -> Iterator[Span]:
    """What an unmistakable word announces: 'my daughter Ana', 'I was born in Porto'."""
    for kind, pattern in _SAID:
        for match in pattern.finditer(text):
            yield Span(*match.span("said"), kind, NAME)


def unusual(found: Iterable[Span], text: str) -> Iterator[Span]:
    """Finds without those that the text itself speaks against.

    No company whose every word it also writes small ('Create Account' is a button), nor a single word of which it does;
    nothing without a capital in a text that has capitals; no abbreviation as a person; no blank of a form letter.
    """
    small: set[str] | None = None
    has_capitals = text != text.lower()
    for span in found:
        if span.kind in _SOFT:
            small = set(_SMALL.findall(text)) if small is None else small
            value = text[span.start : span.end]
            words = re.findall(r"[^\W\d_]+", value)
            single = span.kind == "organization" or len(words) == 1
            if has_capitals and (value == value.lower() or (single and all(word.lower() in small for word in words))):
                continue
            if text[span.start - 1 : span.start] == "{" or (span.kind == "name" and _ABBREVIATION.fullmatch(value)):
                continue
        yield span


_ABBREVIATION = re.compile(r"[A-Z]{2,4}|[A-Z][a-z][A-Z]")


def retyped(found: Iterable[Span], text: str) -> Iterator[Span]:
    """Finds of a model, with the kind that the words around them or their shape say."""
    for span in found:
        house = _HOUSE.match(text, span.end) if span.kind in ("name", "location") else None
        if house and _AT.search(text[max(0, span.start - 4) : span.start]):
            yield Span(span.start, house.end(), "address", span.detector)
            continue
        yield _as(span, _kind(span, text)) if span.kind in _SOFT else span


def _kind(span: Span, text: str) -> str:
    value = text[span.start : span.end]
    if _LEGAL_END.search(value):
        return "organization"
    if _INITIAL.fullmatch(value):
        return "name"
    if _HOUSE_AT_END.search(value) and span.kind != "organization":
        return "address"
    before = text[max(0, span.start - 40) : span.start]
    for kind, pattern in _AFTER:
        if pattern.match(text, span.end):
            return kind
    return next((kind for kind, pattern in _BEFORE if pattern.search(before)), span.kind)


def _as(span: Span, kind: str) -> Span:
    return span if kind == span.kind else Span(span.start, span.end, kind, span.detector)


# --- mentions that agree ----------------------------------------------------------------------------------------------

_ITEM = rf"{_CAPITAL}(?: (?:{_PARTICLE} )*{_CAPITAL}){{0,2}}"
_LIST = re.compile(rf"(?<!\w){_ITEM}(?:, {_ITEM}){{1,30}},? (?:and|or|&) {_ITEM}")
_ONE = re.compile(_ITEM)
_WORD = re.compile(rf"{_UPPER}[\w’'-]*\w")
_ALSO_WORDS = frozenset(
    ("Will", "May", "Mark", "Bill", "Art", "Grant", "Rose", "Grace", "Hope", "Faith", "Joy", "April", "June", "August",
     "Summer", "Jack")
)  # fmt: skip
"""Names that are also words with which a sentence may begin."""


def agreed(spans: Sequence[Span], text: str) -> list[Span]:
    """Finds in which mentions of one thing are of one kind, and lists are whole."""
    return sorted(_lists(_one_kind(spans, text), text), key=lambda span: span.start)


def _one_kind(spans: Sequence[Span], text: str) -> list[Span]:
    """What is spelled alike is of the kind of most mentions; a word of a longer name is a name."""
    votes: dict[str, Counter[str]] = {}
    parts: set[str] = set()
    for span in spans:
        if span.kind in _SOFT:
            value = text[span.start : span.end]
            votes.setdefault(value, Counter())[span.kind] += 1
            words = _WORD.findall(value) if span.kind == "name" else []
            parts.update(words if len(words) > 1 else ())
    kinds = {
        value: "name" if value in parts or count["name"] == max(count.values()) else count.most_common(1)[0][0]
        for value, count in votes.items()
    }
    return [_as(span, kinds[text[span.start : span.end]]) if span.kind in _SOFT else span for span in spans]


def _lists(spans: Sequence[Span], text: str) -> list[Span]:
    """'Ana, Erik, Quixnar and Donald' are all of one kind, where half of them are found; names win a tie."""
    whole = list(spans)
    for row in _LIST.finditer(text) if "," in text else ():
        items = [match.span() for match in _ONE.finditer(text, row.start(), row.end())]
        kinds = Counter(one.kind for one in whole if one.kind in _SOFT and (one.start, one.end) in items)
        if 2 * kinds.total() < len(items):
            continue
        kind = "name" if kinds["name"] == max(kinds.values()) else kinds.most_common(1)[0][0]
        whole = [_as(one, kind) if one.kind in _SOFT and (one.start, one.end) in items else one for one in whole]
        add_free(whole, (Span(start, end, kind, NAME) for start, end in items))
    return whole


def again(spans: Sequence[Span], text: str) -> Iterator[Span]:
    """Other mentions of the names and places that were found: whole, or one word of a name.

    A word that the text also writes small ('Your Order', 'the order') is no name and is not looked for.
    """
    known: dict[str, str] = {}
    for span in spans:
        if span.kind in ("name", "location"):
            value = text[span.start : span.end]
            words = _WORD.findall(value) if span.kind == "name" else []
            for one in (value, *words):
                if len(one) > 2 and _WORD.match(one) and one not in _ALSO_WORDS:
                    known.setdefault(one, span.kind)
    small = set(_SMALL.findall(text)) if known else set()
    longest = sorted((one for one in known if one.lower() not in small), key=lambda one: (-len(one), one))
    for one in longest:
        start = text.find(one)
        while start >= 0:
            if not _BEFORE_WORD.search(text[max(0, start - 1) : start]) and not _GOES_ON.match(text, start + len(one)):
                yield Span(start, start + len(one), known[one], NAME)
            start = text.find(one, start + len(one))


_BEFORE_WORD = re.compile(r"[\w@./-]$")
_GOES_ON = re.compile(r"[\w@]|\.\w")
_SMALL = re.compile(r"(?<![\w'’-])[a-zß-öø-ÿ][^\W\d_]*")


# --- titles -----------------------------------------------------------------------------------------------------------

_TITLE = re.compile(r"(?<!\w)(?P<title>(?:Mrs?|Ms|Mx|Miss|Mister|Madam|Dr|Prof|Professor|Herr|Frau|Sir|Dame)\b\.?) $")


def titles(spans: Iterable[Span], text: str) -> Iterator[Span]:
    """What stands before a name and tells whether it is a man's, a wife's or a doctor's."""
    for span in spans:
        if span.kind == "name" and (match := _TITLE.search(text[max(0, span.start - 12) : span.start])):
            start = span.start - len(match[0])
            yield Span(start, start + len(match["title"]), "title", NAME)
