"""Pseudonyms are the same everywhere, look like what they stand for, belong to nobody, and never say what they hide."""

from __future__ import annotations

import re
from datetime import date
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from luthier.data.privacy import find
from luthier.data.privacy.patterns import iban_checksum, luhn
from luthier.data.privacy.pseudonyms import (
    KEY_VARIABLE,
    Pseudonyms,
    mapping_passphrase,
    read_key,
    read_mapping,
    write_mapping,
)
from luthier.data.privacy.spans import PLACEHOLDERS, Span
from luthier.errors import DataError, RecipeError

KEY = b"k" * 32
VALUES = {
    "email": ["ana.silva@acme.com", "o'neil@mail.example.co.uk", "x@y.de", "JÜRGEN@müller.de"],
    "phone": [
        "+44 20 7946 0123", "07700 900461", "+44 (0)7911 123456", "0049 89 5550 1177", "+49 171 2345678",
        "(415) 867-5309", "+1 415 867 5309", "1-415-867-5309", "867-5309", "06 12 34 56 78", "+33 6 12 34 56 78",
        "+61 412 345 678", "416 60 039", "+353 1 555 0164",
    ],
    "card": ["4012 8888 8888 1881", "378282246310005", "5105-1051-0510-5100", "675984103431", "180020497005751"],
    "iban": ["GB82 WEST 1234 5698 7654 32", "de89370400440532013000"],
    "ipv4": ["8.8.8.8"],
    "ipv6": ["2607:f8b0:4005:805::200e"],
    "url": ["https://anasilva.net/about?me=1", "www.anasilva.net"],
    "ssn": ["853-37-1694"],
    "age": ["7", "43", "101"],
    "date": ["1984-03-02", "3/2/1984", "27/02/1984", "2 March 1984", "Mar 2nd, 1984", "Tuesday 12 May", "2019"],
    "name": ["Ana Silva", "ANA", "van der Berg", "J. R. O'Hara", "Zoë Müller-Lüdenscheidt", "naomi ryan"],
    "address": ["12 High Street, Flat 3", "Hauptstraße 5", "172 Maneeži 75"],
    "location": ["London", "New South Wales"],
    "organization": ["Acme Ltd", "Thomas and Sons"],
    "nationality": ["Czech"],
    "title": ["Staff development specialist", "Mrs.", "Dr"],
    "postcode": ["EC1A 1BB", "90210"],
    "driver_license": ["F162823540116"],
    "medical_record": ["MRN-0012345"],
    "passport": ["X1234567"],
    "badge_of_ours": ["AB-77"],
}  # fmt: skip
PAIRS = [(kind, value) for kind, values in VALUES.items() for value in values]


@pytest.mark.parametrize(("kind", "value"), PAIRS)
def test_a_surrogate_is_never_the_value_and_always_the_same(kind: str, value: str) -> None:
    surrogate = Pseudonyms(KEY).of(kind, value)
    assert surrogate == Pseudonyms(KEY).of(kind, value)
    assert re.sub(r"\W", "", surrogate.casefold()) != re.sub(r"\W", "", value.casefold())
    others = {Pseudonyms(bytes([number]) * 32).of(kind, value) for number in range(12)}
    assert len(others) > 1, "another key gives other surrogates"


def test_every_kind_is_tried() -> None:
    assert set(PLACEHOLDERS) - set(VALUES) <= {"date_of_birth", "national_id"}  # like 'date' and 'passport'


def shape(text: str) -> str:
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d", "0", text))


@pytest.mark.parametrize(
    ("kind", "value"), [pair for pair in PAIRS if pair[0] not in ("email", "ipv4", "ipv6", "url", "date")]
)
def test_the_shape_stays(kind: str, value: str) -> None:
    assert shape(Pseudonyms(KEY).of(kind, value)) == shape(value)


@pytest.mark.parametrize(("kind", "value"), [pair for pair in PAIRS if pair[0] in ("email", "phone", "iban", "ipv4")])
def test_a_surrogate_is_found_as_what_it_stands_for(kind: str, value: str) -> None:
    surrogate = Pseudonyms(KEY).of(kind, value)
    assert [(one.kind, one.start) for one in find(f"call {surrogate} now")] == [(kind, 5)]


@given(st.binary(min_size=32, max_size=32), st.sampled_from(VALUES["card"]), st.sampled_from(VALUES["iban"]))
def test_numbers_are_valid_and_from_reserved_ranges(key: bytes, card: str, iban: str) -> None:
    made = Pseudonyms(key)
    assert luhn([int(char) for char in made.of("card", card) if char.isdigit()])
    account = "".join(char for char in made.of("iban", iban) if char.isalnum())
    assert iban_checksum(account)
    assert account[:2] == iban[:2]
    networks = [ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]
    assert any(ip_address(made.of("ipv4", "8.8.8.8")) in network for network in networks)
    assert ip_address(made.of("ipv6", "2607:f8b0::1")) in ip_network("2001:db8::/32")
    assert made.of("email", "ana@acme.com").rpartition("@")[2] in ("example.com", "example.net", "example.org")
    assert made.of("url", "http://acme.com/ana").startswith("http://")
    assert made.of("url", "http://acme.com/ana").endswith(".example.com")
    assert made.of("ssn", "853-37-1694").startswith("987-")


@pytest.mark.parametrize(
    ("number", "fiction"),
    [
        ("+44 20 7946 9999", r"\+44 20 7946 0\d{3}"),
        ("07911 123456", r"07700 900\d{3}"),
        ("0161 496 0000", r"0163 296 0\d{3}"),
        ("(415) 867-5309", r"\([2-9]0[2-9]\) 555-01\d\d"),
        ("+1-415-867-5309", r"\+1-[2-9]0[2-9]-555-01\d\d"),
        ("867-5309", r"555-01\d\d"),
        ("+33 6 12 34 56 78", r"\+33 6 39 98 \d\d \d\d"),
        ("+49 171 2345678", r"\+49 171 39200\d\d"),
    ],
)
def test_phones_are_in_ranges_kept_for_fiction(number: str, fiction: str) -> None:
    assert re.fullmatch(fiction, Pseudonyms(KEY).of("phone", number))


def test_names_keep_who_is_who() -> None:
    made = Pseudonyms(KEY)
    given_name, family = made.of("name", "Ana Silva").split()
    assert made.of("name", "Ana") == given_name
    assert made.of("name", "SILVA") == family.upper()
    assert made.of("name", "Ana de Silva") == f"{given_name} de {family}"
    assert made.of("email", "ana.silva@acme.com").startswith(f"{given_name}.{family}".lower())


@given(st.dates(date(1930, 1, 1), date(2030, 1, 1)), st.dates(date(1930, 1, 1), date(2030, 1, 1)))
def test_time_between_two_dates_stays(one: date, two: date) -> None:
    assume(one != two)
    made = Pseudonyms(KEY)
    moved = [date.fromisoformat(made.of("date_of_birth", day.isoformat())) for day in (one, two)]
    assert moved[1] - moved[0] == two - one
    month, day, year = map(int, made.of("date", f"{one.month}/{one.day}/{one.year}").split("/"))
    assert date(year, month, day) == moved[0]


@given(st.sampled_from(sorted(VALUES)), st.text(min_size=1, max_size=30))
def test_any_text_has_a_surrogate(kind: str, value: str) -> None:
    made = Pseudonyms(KEY)
    assert made.of(kind, value) == Pseudonyms(KEY).of(kind, value)
    if any(char.isalnum() for char in value):
        assert made.of(kind, value) != value


def test_secrets_are_never_pseudonymised() -> None:
    made = Pseudonyms(KEY)
    text = "key hunter2! of ana@acme.com"
    replaced = made.replace(text, [Span(4, 12, "secret.password"), Span(16, 28, "email")])
    assert replaced.startswith("key [SECRET] of ")
    assert list(made.mapping) == [("email", "ana@acme.com")]


def test_the_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    key = read_key(tmp_path, {})
    assert (len(key), read_key(tmp_path, {})) == (32, key)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(DataError, match=r"others may read the key of pseudonyms\n  -> chmod 600"):
        read_key(tmp_path, {})
    path.chmod(0o600)
    path.write_text("x")
    with pytest.raises(DataError, match="is no key of pseudonyms") as error:
        read_key(tmp_path, {})
    assert error.value.way_out


def test_the_key_of_the_environment_wins(tmp_path: Path) -> None:
    key = read_key(tmp_path, {KEY_VARIABLE: "sixteen letters!"})
    assert key != read_key(tmp_path, {KEY_VARIABLE: "sixteen letters?"})
    assert not list(tmp_path.iterdir())
    with pytest.raises(RecipeError, match=r"LUTHIER_PRIVACY_KEY has 5 characters\n  -> give at least 16"):
        read_key(tmp_path, {KEY_VARIABLE: "short"})


def test_the_mapping_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    made = Pseudonyms(KEY)
    made.of("email", "ana@acme.com")
    made.of("name", "Ana \ud800")  # a lone surrogate is a character too
    path = tmp_path / "folder" / "mapping.json"
    write_mapping(path, made.mapping, passphrase="correct horse")
    assert read_mapping(path, passphrase="correct horse") == made.mapping
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["mapping.json"]
    assert not any(word in path.read_text() for word in ("ana", "Ana", "acme", made.of("email", "ana@acme.com")))
    with pytest.raises(DataError, match="the passphrase is not its own, or the file was changed"):
        read_mapping(path, passphrase="wrong")
    path.write_text(path.read_text().replace('"token": "', '"token": "A'))
    with pytest.raises(DataError, match="the passphrase is not its own, or the file was changed"):
        read_mapping(path, passphrase="correct horse")
    path.write_text("{}")
    with pytest.raises(DataError, match="is not a mapping of pseudonyms"):
        read_mapping(path, passphrase="correct horse")
    with pytest.raises(DataError, match="is missing"):
        read_mapping(tmp_path / "none", passphrase="correct horse")
    with pytest.raises(RecipeError, match="LUTHIER_MAPPING_PASSPHRASE is not set"):
        mapping_passphrase({})
