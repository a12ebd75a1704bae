"""Phone numbers by shape and by the words before them."""

from __future__ import annotations

import re
from collections.abc import Iterator

# A run of digits on one line with at most two separators between neighbors; it does not begin inside a word, a code
# such as 'F88-201', a price or a date, and does not end inside one.
_CANDIDATE = re.compile(
    r"(?<![\w#@/=.,+-])(?<!\d[ (])"
    r"(?P<number>\+?(?:\((?=\+?\d{1,5}\)))?\+?\d(?:(?:[ ().\-\u2011\u2013/\u00a0]{1,2}|(?<=\d) ?\(0\) ?)?\d){6,16})"
    r"(?: ?(?:x|ext\.?) ?\d{1,5})?(?![\w%])(?!-\d)(?![.,]\d)"
)

_CALLS = re.compile(
    r"(?<![A-Za-z])(?:phone|desk|telephone|tel|fon|telefon|handy|mobile|mob|cell|call|called|calling|ring|text|whatsapp|fax|reach|dial|numero|"
    r"n[uú]mero|t[eé]l[eé]phone|answering|contact|"
    r"(?:my|our|his|her|their|['’]s|work|home|office|cell|mobile|new|old) number)"
    r"(?:\W{1,3}(?:me|us|him|her|them|my|our|his|is|on|at|under|up|back|no|nr|number|evenings|the|office|work|home|to|s)){0,4}"
    r"\W{0,3}$",
    re.IGNORECASE,
)
_SAID_AFTER = re.compile(r"[ -](?:office|home|cell|mobile|fax|desk|work)\b", re.IGNORECASE)
_NO_PHONE = re.compile(
    r"(?<![A-Za-z])(?:order|orders|invoice|inv|ref|reference|serial|s/n|sn|tracking|track|code|vat|tva|ust|customer|account|ticket|case|"
    r"model|sku|isbn|issn|doi|id|purchase|bestellung|rechnung|commande|facture|batch|lot|version|subscription|policy|#|no|nr)"
    r"(?:\W{0,3}(?:no|nr|number|num|id|code|is|was|of)){0,2}[\s.:#№°]{0,3}$",
    re.IGNORECASE,
)
_DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?!\d)|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2})(?!\d|[-/.]\d)")

_SHAPES = tuple(
    re.compile(shape)
    for shape in (
        r"\(?\+\(?[1-9].*",  # +44 20 7946 0123
        r"00[1-9]\d{0,2}[ ./(-].*",  # 0049 89 5550 1177; without a gap after the country it is a tracking code
        r"\((?:0\d{1,4}|[2-9]\d{2,4})\)[ -]?\d{3,4}.*",  # (555) 010-2290, (0151) 555 0199
        r"(?:1[ .-])?[2-9]\d{2}[ .-][2-9]\d{2}[ .-]\d{4}",  # 415-555-0132, North American plan
        r"(?:1[ .-])?555[ .-]01\d{2}",  # 555-0142
        r"0[1-9]\d{0,4}(?:[ ./-]{1,2}\d{2,8}){1,5}",  # 0151 555 0199, 06 12 34 56 78, national prefix 0
        r"0[1-9]\d{8,9}",  # 07700900461
    )
)
_AFTER_A_CALLING_WORD = re.compile(r"\(?[1-9].*")


def phones(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each phone number in `text`.

    A number counts when it is written the way phone numbers are (`_SHAPES`), or follows a word such as 'call' or
    'tel'; a word such as 'order' or 'serial' before it, or the shape of a date, speaks against it.
    """
    for match in _CANDIDATE.finditer(text):
        number = match["number"]
        digits = sum(char.isdigit() for char in number)
        before = text[max(0, match.start() - 40) : match.start()]
        international = number.lstrip("(").startswith(("+", "00"))
        if not 7 <= digits <= 15 or (digits < 9 and number.startswith("0") and not international):
            continue
        called = (_CALLS.search(before) or _SAID_AFTER.match(text, match.end())) is not None
        if not called and (_DATE.match(number) or (_NO_PHONE.search(before) and not number.startswith("+"))):
            continue
        shaped = any(shape.fullmatch(number) for shape in _SHAPES)
        if shaped or (called and _AFTER_A_CALLING_WORD.fullmatch(number)):
            yield match.start(), match.end()
