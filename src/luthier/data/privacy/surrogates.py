"""Plausible stand-ins: the same shape as the value, taken from ranges that belong to nobody, drawn by a keyed stream.

Each function is `f(value, draw) -> surrogate` and uses nothing else, so that equal values get equal surrogates.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta

from luthier.data.privacy.dates import MONTHS
from luthier.data.privacy.patterns import luhn

# Given and family names at once, so that 'Ana Silva', 'Ana' and 'Ms Silva' keep their surrogates apart and together.
NAMES = (
    "Taylor", "Morgan", "Jordan", "Cameron", "Blake", "Parker", "Logan", "Mason", "Carter", "Hunter", "Tyler", "Riley",
    "Quinn", "Reese", "Avery", "Hayden", "Harper", "Kennedy", "Lindsay", "Leslie", "Shelby", "Sidney", "Tracy",
    "Whitney", "Kelly", "Kerry", "Casey", "Drew", "Dale", "Glenn", "Grant", "Graham", "Gordon", "Bruce", "Craig",
    "Curtis", "Dennis", "Douglas", "Duncan", "Elliott", "Francis", "Gilbert", "Harvey", "Howard", "Irving", "Keith",
    "Kendall", "Lewis", "Lloyd", "Lowell", "Marshall", "Martin", "Maxwell", "Mitchell", "Murray", "Nelson", "Oliver",
    "Owen", "Perry", "Preston", "Raymond", "Reed", "Robin", "Rodney", "Roland", "Ross", "Russell", "Scott", "Spencer",
    "Stanley", "Stewart", "Stuart", "Thomas", "Todd", "Travis", "Vernon", "Wallace", "Warren", "Wayne", "Wesley",
)  # fmt: skip
PLACES = (
    "Ashcombe", "Barleigh", "Calverton", "Denholm", "Elmsworth", "Fairhaven", "Glenmore", "Hartwell", "Inverly",
    "Kelbrook", "Larkfield", "Marlow", "Northbury", "Oakridge", "Pembury", "Quarrydale", "Redmarsh", "Stanbrook",
    "Thornhill", "Ulverby", "Wexcombe", "Westbrook", "Winfield", "Yarrowby",
)  # fmt: skip
COMPANIES = (
    "Alder", "Beacon", "Cobalt", "Dunmore", "Evergreen", "Fulcrum", "Granite", "Halcyon", "Ironbridge", "Juniper",
    "Keystone", "Lantern", "Meridian", "Northwind", "Orchard", "Pinnacle", "Quantum", "Riverside", "Summit", "Vanguard",
)  # fmt: skip
NATIONS = ("Northlander", "Southlander", "Eastlander", "Westlander", "Midlander", "Highlander", "Lowlander", "Islander")
TITLES = ("Clerk", "Manager", "Technician", "Consultant", "Assistant", "Planner", "Officer", "Advisor")
_KEPT_WORDS = (
    "de da do dos das del della der den di du des van von la le les los las bin al af y e und and of the on in at zu st"
    " inc ltd llc gmbh ag plc corp co sa sons group bank street road rd avenue ave lane ln drive dr court ct boulevard"
    " blvd way place pl square sq rue rua via calle plaza piazza apt suite unit flat box po p o apartment jr sr"
)
_KEPT = frozenset(_KEPT_WORDS.split())
"""Words of a name or an address that say nothing about whose it is."""
_WORD = re.compile(r"[^\W\d_]+")


class Draw:
    """An endless stream of numbers that depends on a key and a value: HMAC-SHA256 in counter mode."""

    def __init__(self, key: bytes, *parts: str) -> None:
        self._key = key
        self._seed = "\0".join(parts).encode(errors="surrogatepass")
        self._bytes = self._stream()

    def _stream(self) -> Iterator[int]:
        for counter in range(1 << 32):
            yield from hmac.new(self._key, counter.to_bytes(4, "big") + self._seed, hashlib.sha256).digest()

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1; the bias of the remainder is under 2**-40 for the limits used here."""
        return int.from_bytes(bytes(next(self._bytes) for _ in range(8)), "big") % limit

    def of(self, values: Sequence[str]) -> str:
        return values[self.below(len(values))]

    def digits(self, count: int) -> str:
        return "".join(str(self.below(10)) for _ in range(count))

    def word(self, word: str, values: Sequence[str]) -> str:
        """A value for a word alone, the same wherever it stands."""
        return Draw(self._key, "word", word.casefold()).of([one for one in values if one.casefold() != word.casefold()])

    def days(self) -> int:
        """By how much every date is moved: one number for a key, so that the time between two dates stays."""
        return 31 + Draw(self._key, "days").below(700)


Surrogate = Callable[[str, Draw], str]


def _like(word: str, model: str) -> str:
    return word.upper() if model.isupper() and len(model) > 1 else word if model[:1].isupper() else word.lower()


def _words(values: Sequence[str]) -> Surrogate:
    """Each word by another from `values`; particles, legal forms and words such as 'Street' stay, digits change."""

    def replaced(value: str, draw: Draw) -> str:
        def word(match: re.Match[str]) -> str:
            one = match[0]
            if one.casefold() in _KEPT:
                return one
            if len(one) == 1:
                return _letter(one, draw)
            return _like(draw.word(one, values), one)

        return _digits(_WORD.sub(word, value), draw)

    return replaced


def _letter(char: str, draw: Draw) -> str:
    letter = chr(ord("a") + draw.below(26))
    return letter.upper() if char.isupper() else letter


def _digits(value: str, draw: Draw) -> str:
    """Digits by digits; a run does not begin with 0 unless it did."""
    return re.sub(
        r"\d+", lambda run: ("0" if run[0][0] == "0" else str(1 + draw.below(9))) + draw.digits(len(run[0]) - 1), value
    )


def same_classes(value: str, draw: Draw) -> str:
    """Letters by letters of the same case, digits by digits, the rest as it is."""
    return "".join(
        str(draw.below(10)) if char.isdecimal() else _letter(char, draw) if char.isalpha() else char for char in value
    )


def _fill_digits(value: str, digits: str) -> str:
    """`value` with its digits replaced one by one."""
    ours = iter(digits)
    return "".join(next(ours) if char.isdecimal() else char for char in value)


def _email(value: str, draw: Draw) -> str:
    """At example.com, .net or .org (RFC 2606); words of the local part as in names, and digits, so that few collide."""
    local = value.rpartition("@")[0]
    words = "".join(
        part for part in re.split(r"([._+-])", _WORD.sub(lambda one: _like(draw.word(one[0], NAMES), one[0]), local))
    )
    plain = re.sub(r"[^A-Za-z._+-]", "", words).strip("._+-") or "user"
    return f"{plain}{draw.digits(4)}@{draw.of(('example.com', 'example.net', 'example.org'))}"


# Numbers that the regulators keep free for fiction: national digits after the country code, by how they begin.
_FICTION: dict[str, Surrogate] = {
    "1": lambda rest, draw: f"{2 + draw.below(8)}0{2 + draw.below(8)}55501{draw.digits(2)}",
    "44": lambda rest, draw: {"7": "7700900", "2": "2079460"}.get(rest[:1], "1632960") + draw.digits(3),
    "33": lambda rest, draw: ("6399" + str(8) if rest[:1] in "67" else "19900") + draw.digits(4),
    "49": lambda rest, draw: "17139200" + draw.digits(2) if rest[:1] == "1" else "3023125" + draw.digits(3),
    "61": lambda rest, draw: "49157" + draw.digits(4) if rest[:1] == "4" else "25550" + draw.digits(4),
}  # fmt: skip


def _phone(value: str, draw: Draw) -> str:
    """In a fictional range where there is one of that country and length, else ending in 555 01xx or in free digits."""
    digits = "".join(char for char in value if char.isdecimal())
    if value.lstrip(" (").startswith(("+", "00")):
        prefix = 2 if not value.lstrip(" (").startswith("+") else 0
        code = next((one for one in _FICTION if digits[prefix:].startswith(one)), "")
        head = digits[: prefix + len(code)] if code else digits[: prefix + 2]
        rest = digits[len(head) :]
        if code and rest:
            national = _FICTION[code](rest.lstrip("0"), draw)
            zero = "0" if rest.startswith("0") else ""
            if len(zero + national) <= len(rest):
                return _fill_digits(value, head + zero + national + draw.digits(len(rest) - len(zero + national)))
        return _fill_digits(value, head + _unassigned(rest, draw))
    if digits.startswith("1") and len(digits) == 11:
        return _fill_digits(value, "1" + _FICTION["1"]("", draw))
    if len(digits) == 10 and digits[0] not in "01":
        return _fill_digits(value, _FICTION["1"]("", draw))
    if digits.startswith("0") and len(digits) == 11:
        return _fill_digits(value, "0" + _FICTION["44"](digits[1:], draw))
    return _fill_digits(value, _unassigned(digits, draw))


def _unassigned(digits: str, draw: Draw) -> str:
    if len(digits) < 7:
        return digits[:1] + draw.digits(len(digits) - 1) if digits else ""
    return (
        digits[:1] + draw.digits(len(digits) - 8) + f"55501{draw.digits(2)}"
        if len(digits) > 7
        else f"55501{draw.digits(2)}"
    )


_TEST_CARDS = {"3": "378282", "4": "424242", "5": "555555", "6": "601111", "2": "222300", "1": "180000"}
"""First digits of the numbers that payment processors publish for tests."""


def _card(value: str, draw: Draw) -> str:
    """In a published test range, with the right check digit."""
    count = sum(char.isdecimal() for char in value)
    if count < 12:
        return same_classes(value, draw)
    first = next(char for char in value if char.isdecimal())
    body = _TEST_CARDS.get(first, "424242") + draw.digits(count - 7)
    check = next(digit for digit in range(10) if luhn([*map(int, body), digit]))
    return _fill_digits(value, f"{body}{check}")


def _iban(value: str, draw: Draw) -> str:
    """Of the same country, each character of its class, with the right check digits (ISO 13616: 98 - n mod 97)."""
    letters = "".join(char for char in value if char.isalnum())
    if len(letters) < 15 or not letters.isascii():
        return same_classes(value, draw)
    body = same_classes(letters[4:], draw)
    number = int("".join(str(int(char, 36)) for char in body + letters[:2] + "00"))
    ours = iter(letters[:2] + f"{98 - number % 97:02d}" + body)
    return "".join(next(ours) if char.isalnum() else char for char in value)


def _ipv4(value: str, draw: Draw) -> str:
    """In a documentation range, RFC 5737."""
    return f"{draw.of(('192.0.2', '198.51.100', '203.0.113'))}.{1 + draw.below(254)}"


def _ipv6(value: str, draw: Draw) -> str:
    """In the documentation range, RFC 3849."""
    return "2001:db8:" + ":".join(f"{1 + draw.below(0xFFFF):x}" for _ in range(3)) + f"::{1 + draw.below(0xFFFF):x}"


def _url(value: str, draw: Draw) -> str:
    """Another host under example.com; path and query, which may say as much as the host, go."""
    scheme = re.match(r"(?i)https?://", value)
    www = "www." if "www." in value.lower()[:12] else ""
    return f"{scheme[0] if scheme else ''}{www}{draw.of(COMPANIES).lower()}{draw.digits(4)}.example.com"


def _ssn(value: str, draw: Draw) -> str:
    """Of area 987, which was never given out."""
    digits = "".join(char for char in value if char.isdecimal())
    return _fill_digits(value, "987" + draw.digits(len(digits) - 3)) if len(digits) == 9 else same_classes(value, draw)


def _age(value: str, draw: Draw) -> str:
    if not value.isdecimal():
        return same_classes(value, draw)
    age = int(value)
    low = 18 if age >= 18 else 1
    near = [one for one in range(max(low, age - 3), age + 4) if one != age and len(str(one)) == len(value)]
    return str(near[draw.below(len(near))]) if near else same_classes(value, draw)


_ISO = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})")
_NUMERIC = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d{2})")
_MONTH_NAME = re.compile("(?i)" + "|".join(f"{month}|{month[:3]}" for month in MONTHS))


def _date(value: str, draw: Draw) -> str:
    """Moved by the key's number of days, written as it was; where it cannot be read, digits and month change."""
    for pattern, order in ((_ISO, "ymd"), (_NUMERIC, "mdy"), (_NUMERIC, "dmy")):
        found = pattern.search(value)
        if found is None:
            continue
        parts = dict(zip(order, (int(found[1]), int(found[3]), int(found[4])), strict=True))
        short = len(found[{"y": 1, "m": 4, "d": 4}[order[0]]]) == 2
        try:
            moved = date(parts["y"] + (1900 if short else 0), parts["m"], parts["d"]) - timedelta(draw.days())
        except (ValueError, OverflowError):
            continue
        year = f"{moved.year % 100:02d}" if short else f"{moved.year:04d}"
        said = {"y": year, "m": _padded(moved.month, found, order, "m"), "d": _padded(moved.day, found, order, "d")}
        new = found[2].join(said[part] for part in order)
        return value[: found.start()] + new + value[found.end() :]
    months = [month.capitalize() for month in MONTHS]
    named = _MONTH_NAME.sub(lambda one: _like(_short(draw.word(one[0], months), one[0]), one[0]), value)
    return re.sub(
        r"\d+", lambda run: str(int(run[0]) - 1 - draw.below(2)) if len(run[0]) == 4 else _day(run[0], draw), named
    )


def _padded(number: int, found: re.Match[str], order: str, part: str) -> str:
    old = found[(1, 3, 4)[order.index(part)]]
    return f"{number:02d}" if len(old) == 2 else str(number)


def _short(month: str, model: str) -> str:
    return month[: len(model)] if len(model) == 3 else month


def _day(run: str, draw: Draw) -> str:
    return f"{1 + draw.below(28):0{len(run)}d}"


_ADDRESSES = ("Mr", "Ms", "Mx", "Dr", "Prof")


def _title(value: str, draw: Draw) -> str:
    """'Mrs.' by another way to address somebody, with its dot; an occupation by an occupation."""
    if len(value.rstrip(".")) <= 4 or value.lower() in ("madam", "mister", "professor"):
        return draw.word(value.rstrip("."), _ADDRESSES) + "." * value.endswith(".")
    return _words(TITLES)(value, draw)


SURROGATES: dict[str, Surrogate] = {
    "email": _email,
    "phone": _phone,
    "card": _card,
    "iban": _iban,
    "ipv4": _ipv4,
    "ipv6": _ipv6,
    "url": _url,
    "ssn": _ssn,
    "age": _age,
    "date": _date,
    "date_of_birth": _date,
    "name": _words(NAMES),
    "title": _title,
    "address": _words(PLACES),
    "location": _words(PLACES),
    "organization": _words(COMPANIES),
    "nationality": _words(NATIONS),
}
"""Kind -> how its surrogate is made; other kinds (numbers of documents, the user's own kinds) keep their classes."""
