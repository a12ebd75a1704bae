"""Personal data and secrets by pattern and checksum. Names and postal addresses are not looked for: that needs a model.

What is found by shape alone (phones) is held back where the words around say otherwise: order, invoice, serial and
tracking numbers, dates, prices and years are not personal data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from luthier.data.phones import phones

DETECTOR = "patterns/1"
NOT_LOOKED_FOR = "names and postal addresses are not looked for"


@dataclass(frozen=True, slots=True)
class Span:
    """A find at `text[start:end]`."""

    start: int
    end: int
    kind: str
    """'email', 'phone', 'card', 'iban', 'ipv4', or 'secret.' and the sort of secret."""

    @property
    def is_secret(self) -> bool:
        return self.kind.startswith("secret.")


PLACEHOLDERS = {"email": "[EMAIL]", "phone": "[PHONE]", "card": "[CARD]", "iban": "[IBAN]", "ipv4": "[IP]"}
SECRET_PLACEHOLDER = "[SECRET]"


def find(text: str) -> list[Span]:
    """All finds in `text`, in order; where two claim the same characters, the earlier detector wins."""
    taken: list[Span] = []
    for detect in _DETECTORS:
        for span in detect(text):
            if all(span.end <= other.start or other.end <= span.start for other in taken):
                taken.append(span)
    return sorted(taken, key=lambda span: span.start)


def redact(text: str, spans: Iterable[Span]) -> str:
    """`text` with each span replaced by its placeholder."""
    for span in sorted(spans, key=lambda span: span.start, reverse=True):
        placeholder = SECRET_PLACEHOLDER if span.is_secret else PLACEHOLDERS[span.kind]
        text = text[: span.start] + placeholder + text[span.end :]
    return text


def scrub(text: str, *, personal: bool, secrets: bool) -> str:
    """Redact until nothing more of what is asked for is found; each round leaves less that can match."""
    while spans := [span for span in find(text) if (secrets if span.is_secret else personal)]:
        text = redact(text, spans)
    return text


# --- secrets: prefixes that their issuers document --------------------------------------------------------------------

_SECRETS = {
    "private_key_block": r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"
    r"(?:[\s\S]{0,20000}?-----END [A-Z ]{0,30}PRIVATE KEY-----|[\s\S]*)",
    "aws_access_key": r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "github_token": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255})",
    "gitlab_token": r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}",
    "slack_token": r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,}|https://hooks\.slack\.com/services/[A-Za-z0-9/]{20,}",
    "google_api_key": r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}",
    "anthropic_key": r"(?<![A-Za-z0-9])sk-ant-[A-Za-z0-9_-]{20,}",
    "openai_key": r"(?<![A-Za-z0-9])sk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{20,}",
    "stripe_key": r"(?<![A-Za-z0-9])[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "huggingface_token": r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}",
    "jwt": r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
}
_SECRET = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _SECRETS.items()))

_MARKERS = (
    "PRIVATE KEY", "AKIA", "ASIA", "_", "glpat-", "xox", "hooks.slack.com", "AIza", "sk-", "eyJ",
)  # fmt: skip

_ASSIGNMENT = re.compile(
    r"(?<![A-Za-z])(?:password|passwd|passphrase|passwort|pwd|api[ _-]?key|secret(?:[ _-]?key)?|(?:access[ _-]?)?token)"
    r"[\"']?\s{0,3}(?:[:=]|\bis\b:?)\s{0,3}[\"']?(?P<value>[^\s\"'\[\]<>{}]{6,})",
    re.IGNORECASE,
)


def _secrets(text: str) -> Iterator[Span]:
    if any(marker in text for marker in _MARKERS):  # words are found much faster than the pattern
        for match in _SECRET.finditer(text):
            yield Span(match.start(), match.end(), f"secret.{match.lastgroup}")


def _assignments(text: str) -> Iterator[Span]:
    """'password: xyz' where xyz mixes letters with digits or signs, as passwords do and words of a sentence do not."""
    for match in _ASSIGNMENT.finditer(text):
        value = match["value"].rstrip(".,;:)")
        inner = value[1:-1]
        mixed = any(char.isdigit() for char in value) or any(not (char.isalnum() or char in "-'’/") for char in inner)
        if len(value) >= 6 and mixed and any(char.isalpha() for char in value) and "://" not in value:
            yield Span(match.start("value"), match.start("value") + len(value), "secret.password")


# --- personal data ----------------------------------------------------------------------------------------------------

_EMAIL = re.compile(r"(?<![\w.+%-])[\w+%'-](?:[\w.+%'-]{0,62}[\w+%-])?@(?:\w[\w-]{0,62}\.){1,6}[^\W\d_]{2,24}(?![\w@])")
_CARD = re.compile(r"(?<![\w.,+-])(?<!\d[ /])[2-6](?:[ -]?\d){12,18}(?![\d-])(?!\.\d)")
_CARD_GROUPS = re.compile(r"\d{13,19}|\d{4}([ -])(?:\d{4}\1\d{4}\1\d{1,7}|\d{6}\1\d{4,5})")
_CARD_ISSUER = re.compile(r"3[0-9]|4|5[0-8]|6|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)")  # ISO/IEC 7812 ranges in use
_CARD_BEFORE = re.compile(
    r"(?:visa|mastercard|maestro|amex|american express|\bcard)(?:\W+(?:number|no|is)){0,2}\W{0,3}$", re.IGNORECASE
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}", re.IGNORECASE)
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


def _emails(text: str) -> Iterator[Span]:
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield Span(match.start(), match.end(), "email")


def _cards(text: str) -> Iterator[Span]:
    for match in _CARD.finditer(text):
        digits = [int(char) for char in match[0] if char.isdigit()]
        named = _CARD_BEFORE.search(text[max(0, match.start() - 30) : match.start()])
        issued = _CARD_GROUPS.fullmatch(match[0]) and _CARD_ISSUER.match("".join(map(str, digits)))
        if len(digits) >= 13 and (named or (issued and luhn(digits))):  # a mistyped card number is one all the same
            yield Span(match.start(), match.end(), "card")


def luhn(digits: Sequence[int]) -> bool:
    """Check digit of ISO/IEC 7812-1: every second digit from the right doubled, the sum divisible by ten."""
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _ibans(text: str) -> Iterator[Span]:
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTH.get(match[0][:2].upper())
        places = [match.start() + index for index, char in enumerate(match[0]) if char.isalnum()]
        if length is None or len(places) < length:
            continue
        end = places[length - 1] + 1
        if iban_checksum("".join(text[place] for place in places[:length])) and not text[end : end + 1].isalnum():
            yield Span(match.start(), end, "iban")


def iban_checksum(iban: str) -> bool:
    """ISO 13616: first four characters to the end, letters as 10 to 35, the number is 1 modulo 97."""
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97 == 1


def _addresses(text: str) -> Iterator[Span]:
    for match in _IPV4.finditer(text):
        is_version = _VERSION_BEFORE.search(text[max(0, match.start() - 12) : match.start()])
        if not is_version:
            yield Span(match.start(), match.end(), "ipv4")


def _phones(text: str) -> Iterator[Span]:
    for start, end in phones(text):
        yield Span(start, end, "phone")


_DETECTORS: tuple[Callable[[str], Iterator[Span]], ...] = (
    _secrets, _emails, _assignments, _ibans, _cards, _addresses, _phones,
)  # fmt: skip
