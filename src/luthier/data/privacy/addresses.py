"""Postal addresses by their numbers: what stands right before or after a number says whether it is one of a house."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from luthier.data.privacy.context import DIGIT
from luthier.data.privacy.spans import Span

_STREET_END = (
    r"street|st|road|rd|avenue|ave|lane|ln|drive|dr|court|ct|boulevard|blvd|way|place|pl|square|sq|terrace|crescent|"
    r"close|highway|hwy|parkway|pkwy|trail|circle|row|mews|gardens|alley"
)
_STREET_START = (
    r"rue|rua|via|calle|avenue|avenida|av\.?|avda\.?|plaza|piazza|piazzetta|boulevard|chemin|strada|ul\.|ulica|"
    r"viale|corso|largo|paseo|carrer|travessa|allée|impasse"
)
_STREET_TAIL = (
    r"straße|strasse|str\.|gasse|weg|allee|platz|gade|vej|gatan|gata|vägen|veien|vegen|laan|straat|plein|kade|"
    r"katu|tie|utca|vænget|stræde|alléen"
)
_WORD = r"[^\W\d_][\w.'’-]*"
_GAP = r"[,\s>|]"
"""What stands between the parts of an address, also in a letter that is quoted."""
_FLAT = r"(?:,?(?:\s|\n[>|] ?){1,3}(?i:apt|suite|unit|flat|apartment|ste)\b\.? ?#?\d{1,5}[A-Z]?)"
_CITY = r"[^\W\d_a-zß-öø-ÿ][\w.'’()∆-]*"
_TOWNS = rf"(?:{_GAP}{{1,4}}(?:{_CITY}|nan|de|del|di|do|da|la|le|am|an|der)){{1,7}}?"
_ZIP = rf"{_GAP}{{1,3}}\d{{4,6}}(?:-\d{{3,4}})?\b"
_PLACE = rf"{_TOWNS}{_ZIP}"
_NUMBER = re.compile(r"\d{1,6}(?![\d%$€£/]|[.,:]\d)[A-Za-z]?(?!\w)")
_FLAT_HINTS = ("apt", "suite", "unit", "flat", "apartment", "ste ", "ste.")
_NO_HOUSE_BEFORE = frozenset(".,#/:$€£+-_")
_ENGLISH = re.compile(  # 12 High Street, 12 Avenue du Golf 3
    rf",? (?:(?:{_CITY}|of|the) ){{1,5}}?(?i:{_STREET_END})\b"
)
_NUMBERED_FLAT = re.compile(rf"(?: \d{{1,5}})?(?: {_WORD}){{1,6}}(?: \d{{1,5}}\.?)?(?={_FLAT})")  # 40 Kuuse 53 Apt. 6
_NUMBER_BEFORE = re.compile(r"(?<![^\s>|])\d{1,5} $")  # of the house, where the street's own comes next
_ROMANCE = re.compile(rf" (?i:{_STREET_START})(?: (?:(?:d[aeiou]s?|del|las?|les?)\b|{_CITY})){{1,5}}(?: \d{{1,5}}\b)?")
_LAST = re.compile(  # Hauptstraße 5, Rue du Lac 7
    rf"(?<!\w)(?:\d{{1,6}} )?(?:(?:{_STREET_START}) (?:{_WORD} ){{1,5}}|[^\W\d_][\w-]{{2,24}}(?:{_STREET_TAIL}) )$",
    re.IGNORECASE,
)
_LAST_WORDS = f"{_STREET_START}|{_STREET_TAIL}".replace("\\", "").replace("?", "")
_LAST_HINTS = tuple(f"{word} " for word in _LAST_WORDS.split("|"))
_FLATS = re.compile(rf"{_FLAT}{{0,2}}")
_TOWN = re.compile(_PLACE)
_TOWN_AT_END = re.compile(rf"{_TOWNS}(?=\s*(?:[.?!;]|\Z|\n\n))")
_BOX = re.compile(
    r"(?<!\w)(?:p\.? ?o\.? box \d{1,6}|psc \d{1,5},? box \d{1,5}|unit \d{1,5} box \d{1,5}|US(?:S|NS|NV|CGC) \w+"
    r"(?=\s{1,2}[afd]po))(?:\s{1,2}[afd]po a[aep] \d{5})?",
    re.IGNORECASE,
)
_ZIP_OF_STATE = re.compile(r"\s{0,3},?\s{0,3}[A-Z]{2}\s{1,3}\d{5}(?:-\d{4})?(?!\w)")
_ANNOUNCED = re.compile(  # 'lives at 172 Maneeži 75, Saareküla'
    r"(?i:(?<!\w)(?:(?:lives?|living|lived|located|meet (?:me|you|us)|arrived|office is) at|"
    r"(?:my|our|his|her|new|the|home|postal|billing|shipping|delivery) address(?: is|:)|address:|deliver(?:ed)? to|"
    r"ship(?:ped)? to|corner of))\s{1,2}"
    rf"(?P<address>(?:(?:\d{{1,6}}[A-Za-z]?|{_CITY}|de|del|di|la|le|do|da|des|du|der|u\.|út|utca|tér)(?:[,\s]{{1,3}}|(?=[.?!;]|$)))"
    r"{2,14})"
)
_PART = rf"(?:\d{{1,5}}|{_CITY}|d[aeiou]s?|del|la|le)"
_CORNER = re.compile(rf"(?i:(?<!\w)(?:the )?corner of) {_PART}(?: {_PART}){{0,5}} (?:and|&) {_PART}(?: {_PART}){{0,4}}")
_UNNAMED = re.compile(  # 3421 Fagradalsbraut 71, Pisão 46381: no word says street, but two numbers and a town do
    rf" {_WORD}(?: {_WORD}){{0,5}} \d{{1,5}}(?=[,\n]{_TOWNS}{_ZIP})"
)
_ANNOUNCING = (
    "ved at",
    "ves at",
    "ve at",
    "ing at",
    "cated at",
    "address",
    "meet ",
    " to ",
    "corner of",
    " is at",
)


def addresses(text: str) -> Iterator[Span]:
    """Street addresses and post boxes, with flat, town and postcode where these follow."""
    if not DIGIT.search(text):
        return
    low = text.lower()
    if "corner of" in low:
        for match in _CORNER.finditer(text):
            yield Span(match.start(), match.end() - match[0].endswith("."), "address")
    end = 0
    starts = [_ROMANCE, _ENGLISH]
    if any(hint in low for hint in _FLAT_HINTS):
        starts.insert(1, _NUMBERED_FLAT)
    if "\n" in text or "," in text:
        starts.append(_UNNAMED)
    may_end = any(hint in low for hint in _LAST_HINTS)
    for match in _NUMBER.finditer(text):
        before = text[match.start() - 1 : match.start()]
        if match.start() < end or before.isalnum() or (before and before in _NO_HOUSE_BEFORE):
            continue
        found = _from(text, match, starts) or (_up_to(text, match, end) if may_end else None)
        if found:
            unit = _NUMBER_BEFORE.search(text, max(end, found[0] - 7), found[0])
            yield Span(unit.start() if unit else found[0], found[1], "address")
            end = found[1]
    if any(hint in low for hint in _ANNOUNCING):
        for match in _ANNOUNCED.finditer(text):
            address = match["address"].rstrip(", \n.")
            if any(char.isdigit() for char in address):
                yield Span(match.start("address"), match.start("address") + len(address), "address")
    if "box" in low or "po a" in low:
        for match in _BOX.finditer(text):
            yield Span(match.start(), match.end(), "address")


def _from(text: str, match: re.Match[str], starts: Iterable[re.Pattern[str]]) -> tuple[int, int] | None:
    """An address that begins with the number."""
    for pattern in starts:
        street = pattern.match(text, match.end())
        if street and any(word[:1].isupper() for word in street[0].split()):
            return match.start(), _tail(text, street.end())
    return None


def _up_to(text: str, match: re.Match[str], floor: int) -> tuple[int, int] | None:
    """An address whose street ends with the number."""
    start = max(floor, match.start() - 60)
    street = _LAST.search(text[start : match.start()])
    if street is None or not any(word[:1].isupper() for word in street[0].split()):
        return None  # 'via a competition in 2002'
    return start + street.start(), _tail(text, match.end())


def _tail(text: str, end: int) -> int:
    """Where flat, town and postcode that follow come to an end."""
    flat = _FLATS.match(text, end)
    assert flat is not None  # it may be empty
    place = (
        _TOWN.match(text, flat.end())
        or _TOWN_AT_END.match(text, flat.end())
        or (None if flat[0] else _ZIP_OF_STATE.match(text, flat.end()))
    )
    end = place.end() if place and (flat[0] or place[0][-1:].isdigit()) else flat.end()
    return end - 1 if place and text[end - 1] == "." else end
