"""Personal data that a pattern and a checksum can tell: e-mails, cards, IBANs, IP addresses, phones, web addresses.

What is found by shape alone (phones) is held back where the words around say otherwise: order, invoice, serial and
tracking numbers, dates, prices and years are not personal data.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from ipaddress import AddressValueError, IPv6Address

from luthier.data.privacy.phones import phones as phone_places
from luthier.data.privacy.spans import Span

_EMAIL = re.compile(r"(?<![\w.+%-])[\w+%'-](?:[\w.+%'-]{0,62}[\w+%-])?@(?:\w[\w-]{0,62}\.){1,6}[^\W\d_]{2,24}(?![\w@])")
_CARD = re.compile(r"[1-6](?<![\w.,+-].)(?<!\d[ /].)(?:[ -]?\d){11,18}(?![\d-])(?!\.\d)")
_CARD_GROUPS = re.compile(r"\d{13,19}|\d{4}([ -])(?:\d{4}\1\d{4}\1\d{1,7}|\d{6}\1\d{4,5})")
_CARD_ISSUER = re.compile(
    r"1800|2131|3[0-9]|4|5[0-8]|6|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"
)  # ISO/IEC 7812 ranges in use
_CARD_BEFORE = re.compile(
    r"(?:visa|mastercard|maestro|amex|american express|\bcard)(?:\W+(?:number|no|nr|is)){0,2}\W{0,3}$", re.IGNORECASE
)
_IBAN = re.compile(r"\d\d(?<=[A-Za-z]{2}..)(?<![A-Za-z0-9]....)(?:[ -]?[A-Za-z0-9]){11,30}")  # from its check digits on
_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = re.compile(rf"(?<![\w.,\[-])(?!0)(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|[.,]\d)")
_VERSION_BEFORE = re.compile(r"(?:version|firmware|release|build|v)\s*[:.]?\s*$", re.IGNORECASE)

# Length of an IBAN by country, from the SWIFT IBAN registry.
_IBAN_LENGTH = {
    **dict.fromkeys(("NO",), 15), **dict.fromkeys(("BE",), 16), **dict.fromkeys(("DK", "FI", "FO", "GL", "NL"), 18),
    **dict.fromkeys(("MK", "SI"), 19), **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK"), 20),
    **dict.fromkeys(("CH", "CR", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "DE", "GB", "GE", "IE", "ME", "RS"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "OM", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VA", "VG"), 24),
    **dict.fromkeys(("PT", "ST", "LY"), 25), **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("FR", "GR", "IT", "MC", "SM", "MR"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "GT", "HU", "LB", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "EG", "PS", "QA", "UA"), 29), **dict.fromkeys(("JO", "KW", "MU"), 30),
    **dict.fromkeys(("MT", "SC"), 31), **dict.fromkeys(("LC",), 32), **dict.fromkeys(("RU",), 33),
}  # fmt: skip


def emails(text: str) -> Iterator[Span]:
    """Addresses with a domain that has a dot."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield Span(match.start(), match.end(), "email")


def cards(text: str) -> Iterator[Span]:
    """Card numbers with the right check digit, and any after a word such as 'card'."""
    for match in _CARD.finditer(text):
        digits = [int(char) for char in match[0] if char.isdigit()]
        named = _CARD_BEFORE.search(text[max(0, match.start() - 30) : match.start()])
        issued = _CARD_GROUPS.fullmatch(match[0]) and _CARD_ISSUER.match("".join(map(str, digits)))
        if named or (len(digits) >= 13 and issued and luhn(digits)):  # a mistyped card number is one all the same
            yield Span(match.start(), match.end(), "card")


def luhn(digits: Sequence[int]) -> bool:
    """Check digit of ISO/IEC 7812-1: every second digit from the right doubled, the sum divisible by ten."""
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def ibans(text: str) -> Iterator[Span]:
    """Account numbers of the right length and check digits for their country."""
    for match in _IBAN.finditer(text):
        begin = match.start() - 2
        length = _IBAN_LENGTH.get(text[begin : begin + 2].upper())
        places = [index for index in range(begin, match.end()) if text[index].isalnum()]
        if length is None or len(places) < length:
            continue
        end = places[length - 1] + 1
        if iban_checksum("".join(text[place] for place in places[:length])) and not text[end : end + 1].isalnum():
            yield Span(begin, end, "iban")


def iban_checksum(iban: str) -> bool:
    """ISO 13616: first four characters to the end, letters as 10 to 35, the number is 1 modulo 97."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


def ip_addresses(text: str) -> Iterator[Span]:
    """IPv4 addresses that are not said to be versions."""
    if text.count(".") < 3:
        return
    for match in _IPV4.finditer(text):
        is_version = _VERSION_BEFORE.search(text[max(0, match.start() - 12) : match.start()])
        if not is_version:
            yield Span(match.start(), match.end(), "ipv4")


_SEVEN_DIGITS = re.compile(r"\d(?:[^\dA-Za-z]{0,4}\d){6}")


def phones(text: str) -> Iterator[Span]:
    """Phone numbers, see `luthier.data.privacy.phones`."""
    for start, end in phone_places(text) if _SEVEN_DIGITS.search(text) else ():
        yield Span(start, end, "phone")


_URL = re.compile(r"(?<![\w@])(?:https?://|www\.)[^\s<>\"'\[\]{}|\\^`]{3,2000}", re.IGNORECASE)
_OWN_URL = re.compile(
    r"(?:(?:my|our|personal|her|his) (?:web ?site|site|page|home ?page|blog|profile|portfolio)(?: is|:| at)?|"
    r"web ?site:|home ?page:|blog:|shared files with you)\s{0,2}$",
    re.IGNORECASE,
)
_PROFILE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:linkedin\.com/in|facebook\.com|instagram\.com|twitter\.com|x\.com|github\.com)/[\w.-]+/?$"
    r"|https?://[^/\s@]+@",
    re.IGNORECASE,
)


def urls(text: str) -> Iterator[Span]:
    """Web addresses that belong to a person: said to be somebody's own, profiles, or with a user's name in them."""
    for span in all_urls(text):
        before = text[max(0, span.start - 40) : span.start]
        if _OWN_URL.search(before) or _PROFILE.match(text[span.start : span.end]):
            yield span


def all_urls(text: str) -> Iterator[Span]:
    """Every web address."""
    if "://" in text or "www." in text.lower():
        for match in _URL.finditer(text):
            address = match[0].rstrip(".,;:!?)")
            if "." in address:
                yield Span(match.start(), match.start() + len(address), "url")


_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")


def ipv6_addresses(text: str) -> Iterator[Span]:
    """Addresses that the standard library can read; '12:30:45' and '::' are none."""
    if text.count(":") < 2:
        return
    for match in _IPV6.finditer(text):
        try:
            address = IPv6Address(match[0])
        except AddressValueError:
            continue
        if not address.is_unspecified and sum(char.isalnum() for char in match[0]) >= 6:
            yield Span(match.start(), match.end(), "ipv6")
