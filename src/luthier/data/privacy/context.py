"""Personal data that the words around give away: numbers of documents, birthdays, ages, postcodes and names.

No word list of names and no model: a name counts after 'Mr.', 'my name is' or above a signature's end, nowhere else.
Plain words are looked for first, because `in` is many times faster than a pattern, and most texts have none of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.data.privacy.dates import DATE
from luthier.data.privacy.spans import Span

DIGIT = re.compile(r"\d")

# --- numbers that belong to a person ----------------------------------------------------------------------------------

_DOCUMENT_WORDS = {
    "driver_license": r"driv(?:er|ing)['’]?s?['’]? licen[cs]e",
    "medical_record": r"mrn|medical record|patient (?:id|no|number)|nhs (?:no|number)",
    "passport": r"passport",
    "national_id": r"national (?:id|identity|insurance)|identity card|id card|personnummer|nino|tax id|steuer-?id",
    "ssn": r"social security|ssn",
}
_DOCUMENT_HINTS = (
    "licen", "mrn", "record", "patient", "nhs", "passport", "national i", "identity", "id card", "nummer", "nino",
    "tax id", "steuer", "social sec", "ssn",
)  # fmt: skip
_DOCUMENT = re.compile(
    r"(?<![a-z])(?:" + "|".join(f"(?P<{kind}>{words})" for kind, words in _DOCUMENT_WORDS.items()) + r")"
    r"(?:[ -](?:card|number|num|no|nr|id|#)\b\.?){0,2}(?: is| was|:|=)?[\s:#]{0,3}"
    r"(?P<value>(?=[a-z-]{0,8}\d)[a-z0-9](?:[- ]?[a-z0-9]){4,19})(?![\w-])",
    re.IGNORECASE,
)
# SSA: no area 000, 666 or 900 to 999, no group 00, no serial 0000. The first digit comes before what is said about the
# character before it, because a pattern that begins with a set of characters is searched for much faster.
_SSN = re.compile(r"[0-8](?<![\w.,+-].)(?!00|(?<=6)66)\d\d-(?!00)\d\d-(?!0000)\d{4}(?![\w-]|[.,]\d)")
_AGE = re.compile(r"[1-9]\d(?<![\w.,+/:$€£#-]..)\d?(?![\w%/:]|[.,]\d|-\d)")
_AGE_BEFORE = re.compile(
    r"(?:['’]ll turn|(?<![A-Za-z])(?:i['’]m|i am|s?he['’]s|s?he is|just turned|(?:will|to) turn|turning|aged?|age of|"
    r"when s?he was))[: ]{1,2}$",
    re.IGNORECASE,
)
_AGE_END = re.compile(r"$|[.,;!?)\n]| y/?o\b| years? old| and\b", re.IGNORECASE)
_AGE_AFTER = re.compile(r"[ -]years?[ -]old\b| ?y/o\b", re.IGNORECASE)
_OLDEST = 119
_POSTCODE = re.compile(
    r"(?<![a-z])(?:zip|zip ?code|post(?:al)? ?code|plz)(?: is| was|:|=)?[\s:#]{0,3}"
    r"(?P<value>(?=[a-z]{0,3}[ -]?\d)[a-z0-9]{2,5}(?:[ -][a-z0-9]{3,5})?)(?![\w-])",
    re.IGNORECASE,
)


def numbered(text: str) -> Iterator[Span]:
    """Numbers of documents, ages and postcodes, after the words that announce them."""
    if not DIGIT.search(text):
        return
    low = text.lower()
    if "-" in text:
        for match in _SSN.finditer(text):
            yield Span(match.start(), match.end(), "ssn")
    if any(hint in low for hint in _DOCUMENT_HINTS):
        for match in _DOCUMENT.finditer(text):
            kind = next(kind for kind in _DOCUMENT_WORDS if match[kind] is not None)
            start, end = match.span("value")
            words = match["value"].split(" ")
            while not DIGIT.search(words[-1]):  # 'A1234567 and then': words that follow are none of it
                end -= len(words.pop()) + 1
            yield Span(start, end, kind)
    if "zip" in low or "post" in low or "plz" in low:
        for match in _POSTCODE.finditer(text):
            yield Span(*match.span("value"), "postcode")
    for match in _AGE.finditer(text):
        said_before = _AGE_BEFORE.search(text[max(0, match.start() - 16) : match.start()])
        said = _AGE_AFTER.match(text, match.end()) or (said_before and _AGE_END.match(text, match.end()))
        if said and int(match[0]) <= _OLDEST:
            yield Span(match.start(), match.end(), "age")


_BORN = re.compile(
    rf"(?<![a-z])(?:born|birth ?da(?:y|te)|date of birth|d\.?o\.?b\b\.?|geboren)[^\d\n]{{0,24}}?(?P<date>{DATE})",
    re.IGNORECASE,
)


def dates_of_birth(text: str) -> Iterator[Span]:
    """Dates after 'born', 'date of birth', 'DOB'."""
    low = text.lower()
    if any(hint in low for hint in ("born", "birth", "dob", "d.o.b", "geboren")):
        for match in _BORN.finditer(text):
            yield Span(*match.span("date"), "date_of_birth")


# --- names ------------------------------------------------------------------------------------------------------------

_NAME_WORD = (
    r"(?!(?:I|The|This|That|My|Your|We|You|It|And|For|Please|Thanks?|Just|In|On|At|To|Is)\b)"
    r"(?:[^\W\d_a-zß-öø-ÿ](?:\.|(?![\w'’]))|[^\W\d_a-zß-öø-ÿ][\w'’-]+)"
)
_PARTICLE = r"(?:(?:de|da|do|dos|del|der|den|van|von|la|le|di|bin|al|af|y|e) )"
_NAME = rf"{_NAME_WORD}(?: {_PARTICLE}{{0,2}}{_NAME_WORD}){{0,3}}"
_FULL_NAME = rf"{_NAME_WORD}(?: {_PARTICLE}{{0,2}}{_NAME_WORD}){{1,3}}"
_TITLES = (
    "Mr", "MR", "Ms", "MS", "Miss", "Mx", "Mme", "mr", "ms", "Dr", "DR", "dr", "Prof", "Herr", "Frau", "Sr", "Sig",
)  # fmt: skip
_TITLED = re.compile(  # each begins with one of the above
    r"(?:M(?:r|R|rs|RS|s|S|iss|x|me)|m(?:r|rs|s)|D[rR]|dr|Prof|Herr|Frau|S(?:r|ra|ig))\.? "
    rf"(?P<name>{_PARTICLE}{{0,2}}{_NAME})"
)
_INTRODUCED: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = (
    (
        ("name",),
        re.compile(
            rf"(?i:(?<![a-z])(?:my (?:full |last |first )?name(?:['’]s| is)|(?:last |full |first |account |card )?"
            rf"name(?: is|[:?])|named))(?:\s|[ \t]{{2,12}})(?P<name>{_NAME})"
        ),
    ),
    (
        (":",),
        re.compile(
            rf"(?i:(?<![a-z])(?:by|author|attn|contact(?: person)?|employee|manager|patient|client|recipient|sender|"
            rf"beneficiary|guest|passenger|(?:account|card) ?holder)):[ \t]{{1,12}}"
            rf"(?P<name>{_FULL_NAME})(?=\s*(?:$|\n))"
        ),
    ),
    (
        ("call", "change it to", "signed by", "attn"),
        re.compile(
            rf"(?i:(?<![a-z])(?:call me|(?:is|was|be|man|woman) called|change it to|signed by|attn:?))\s"
            rf"(?P<name>{_NAME})"
        ),
    ),
    (
        (" am ", "'m ", "’m ", "this is ", "'s ", "’s ", "speak", "sai", "says", "follow up"),
        re.compile(
            rf"(?i:(?<![a-z])(?:i am|i['’]m|this is|it['’]s|speak(?:ing)? (?:to|with)|said|says|follow up with))\s"
            rf"(?P<name>{_FULL_NAME})"
        ),
    ),
    (
        ("dear", "hi ", "hello", "hey"),
        re.compile(rf"(?i:(?:^|\n)(?:dear|hi|hello|hey)) (?P<name>{_NAME})(?=[,!.\n]|$| I\b)"),
    ),
    (
        ("\n",),
        re.compile(
            rf"(?i:(?<![a-z])(?:regards|sincerely|cheers|best wishes|yours truly|thanks|thank you))[,.!]?\n+"
            rf"(?P<name>{_NAME})(?=\s*(?:$|\n))"
        ),
    ),
)  # fmt: skip
_NO_NAME = re.compile(
    r"(?:sirs?|madam|madame|team|all|support|customer|services?|friends?|everyone|folks|there|colleagues?|"
    r"ladies|gentlemen|hiring|manager|department|office|help|sales|(?:mon|tues|wednes|thurs|fri|satur|sun)day|"
    r"not|no|yes|ok|dear|company|shop|store|order|account|bank|card|amazon|paypal|google|apple|microsoft|a)\b",
    re.IGNORECASE,
)


def names(text: str) -> Iterator[Span]:
    """Names after a title, an introduction or a greeting, and under a letter."""
    if any(title in text for title in _TITLES):
        for match in _TITLED.finditer(text):
            if not text[match.start() - 1 : match.start()].isalnum():
                yield from _named(match)
    low = text.lower()
    for hints, pattern in _INTRODUCED:
        if any(hint in low for hint in hints):
            for match in pattern.finditer(text):
                yield from _named(match)


def _named(match: re.Match[str]) -> Iterator[Span]:
    name = match["name"].rstrip(".'’-")
    if name.lower().endswith(("'s", "’s")):
        name = name[:-2]
    if len(name) > 1 and not _NO_NAME.match(name):
        yield Span(match.start("name"), match.start("name") + len(name), "name")
