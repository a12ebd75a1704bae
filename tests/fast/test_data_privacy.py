"""Personal data is found by shape and checksum; order numbers, dates and prices are not; nothing is left over."""

from __future__ import annotations

import time
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.privacy import find, scrub
from luthier.data.privacy.patterns import iban_checksum, luhn
from luthier.data.privacy.spans import redact

PERSONAL = {
    "email": ["ana.b+x@example.org", "o'neil@mail.example.co.uk", "jürgen@müller.de"],
    "phone": [
        "+44 20 7946 0123", "0049 89 5550 1177", "(555) 010-2290", "+1 (555) 010-2298", "0151 555 0199", "07700 900461",
        "07700900461", "06 12 34 56 78", "06.12.34.56.78", "415-555-0132", "030/555 01772", "+353 1 555 0164",
        "415-555-0132 ext 12",
    ],
    "card": ["4111 1111 1111 1111", "5555-5555-5555-4444", "378282246310005", "3782 822463 10005", "6011000990139424"],
    "iban": ["GB82 WEST 1234 5698 7654 32", "DE89370400440532013000", "fr14 2004 1010 0505 0001 3m02 606"],
    "ipv4": ["203.0.113.7", "10.0.0.1"],
    "ipv6": ["2001:db8::8a2e:370:7334", "fe80::1ff:fe23:4567:890a"],
    "ssn": ["853-37-1694"],
    "address": [
        "12 High Street", "4 Mill Lane, Flat 3", "Hauptstraße 5", "Rua das Flores 88", "P.O. Box 104",
        "1659 Hoog St\n Apt. 839\n Brakpan\n South Africa 70651",
    ],
}  # fmt: skip
SECRETS = {
    "aws_access_key": "AKIA" + "IOSFODNN7EXAMPLE",
    "github_token": "ghp_" + "a1B2" * 9,
    "gitlab_token": "glpat-" + "a1B2c" * 4,
    "slack_token": "xoxb-" + "123456789012-abcdef",
    "google_api_key": "AIza" + "a1B2c3D" * 5,
    "anthropic_key": "sk-ant-" + "a1B2" * 6,
    "openai_key": "sk-proj-" + "a1B2" * 6,
    "stripe_key": "sk_live_" + "a1B2" * 6,
    "huggingface_token": "hf_" + "aBcD" * 9,
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27",
    "private_key_block": "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
}
HARMLESS = [
    "order 88213", "Order #CS-40912.", "#CS-40912", "ticket T50001 of customer C11680", "on 2026-03-02 21:38",
    "01/11/2015", "2024-3388", "£349 or 1,299.00", "serial F88-201-7764", "serial 0093817", "S/N LP88-31146",
    "Sn 8-114-2207",
    "tracking code 00340434161094", "proof of posting (RR 4471 0093 2)", "VAT number GB 284 5519 02",
    "FR00 000000000", "in 2019, 2020 and 2021", "2000-2001 2014 2015", "43120\n43121\n43133",
    "version 1.2.3.4", "since the 0.11.0.0 release",
    "tricyclo[5.5.0.02,4]dodecane", "the order with the number 370795561790", "order number 113542617735902",
    "ISSN 1099-4300", "doi 10.3390/e17127853", "4111 1111 1111 1112", "my password is wrong", "password reset please",
    "passphrase=ask_for_it(who=me", "token: contract.bos_token,", "the passphrase is MY_PASSPHRASE.",
    "Forgot the password: help!", "passwords? token of love", "I'm @home, ping me", "3.14159265358979", "secret-santa",
    "2000000-400000=1600000", "12:30:45", "std::vector", "000-12-3456", "I am 2 days late", "version 24, really",
    "Dear Sirs,", "Dear Customer Service,", "Hi there!", "i am really sorry", "call me Monday", "in 5 minutes",
    "room 12 on the high street", "born to run", "my passport has expired", "zip it", "the age of steam",
    "see https://example.com/help", "experts via a competition in 2002", "name: unknown",
]  # fmt: skip
CALLED = ["call 555-0134", "Phone: 737 219 628", "my number is 4155550132", "ring me on 416 60 039", "Tel. 8747 6301"]


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in PERSONAL.items() for value in values])
@pytest.mark.parametrize("frame", ["{}", "Write to {}, please.", "({})\nthanks", "It's {}."])
def test_personal_data_is_found_exactly(kind: str, value: str, frame: str) -> None:
    text = frame.format(value)
    assert [(span.kind, text[span.start : span.end]) for span in find(text)] == [(kind, value)]


@pytest.mark.parametrize(("kind", "value"), SECRETS.items())
def test_secrets_are_found_exactly(kind: str, value: str) -> None:
    text = f"my config: {value} , see?"
    (span,) = find(text)
    assert (span.kind, text[span.start : span.end], span.is_secret) == (f"secret.{kind}", value, True)


@pytest.mark.parametrize(
    "text",
    [
        "password: hunter2x",
        "password: correct_horse",
        'token="contract.key"',
        'api_key = "a8f5f167f44f"',
        "Passwort: geheim!1",
        "pwd=Summer2024!",
    ],
)
def test_passwords_are_found_after_their_word(text: str) -> None:
    assert [span.kind for span in find(text)] == ["secret.password"]
    assert redact(text, find(text)).startswith(text[: find(text)[0].start] + "[SECRET]")


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_numbers_and_words_are_not_found(text: str) -> None:
    assert find(text) == []


CONTEXT = [
    ("my name is Ana Silva and", "name", "Ana Silva"), ("Mr. O'Hara called", "name", "O'Hara"),
    ("Dear Ms van der Berg, hello", "name", "van der Berg"), ("Hi Zoë,\nthanks", "name", "Zoë"),
    ("it broke.\nRegards,\nAna Silva", "name", "Ana Silva"), ("I'm Ana Silva, a client", "name", "Ana Silva"),
    ("born on 3/2/1984 in", "date_of_birth", "3/2/1984"), ("DOB: 1984-03-02", "date_of_birth", "1984-03-02"),
    ("date of birth is 2 March 1984.", "date_of_birth", "2 March 1984"), ("I just turned 46", "age", "46"),
    ("a 52 year old woman", "age", "52"), ("I'll turn 65.", "age", "65"), ("My zip code is 90210", "postcode", "90210"),
    ("postcode: EC1A 1BB", "postcode", "EC1A 1BB"),
    ("driver's license number is F162823540116", "driver_license", "F162823540116"),
    ("passport no. X1234567", "passport", "X1234567"), ("MRN: 00123456", "medical_record", "00123456"),
    ("national insurance number QQ123456C", "national_id", "QQ123456C"),
    ("social security 853 37 1694", "ssn", "853 37 1694"),
    ("My website is https://anasilva.net/me.", "url", "https://anasilva.net/me"),
    ("see https://www.linkedin.com/in/ana-silva", "url", "https://www.linkedin.com/in/ana-silva"),
    ("Guest:   Ana Silva\nRoom 4", "name", "Ana Silva"), ("Name:    Ana Silva\nRoom 4", "name", "Ana Silva"),
    ("meet at the corner of Mill Road and Kuusiku 7, then", "address", "the corner of Mill Road and Kuusiku 7"),
    ("to 5521 119 Countess Close, please", "address", "5521 119 Countess Close"),
    ("> 12 High Street\n> Apt. 4\n> Porto 40123", "address", "12 High Street\n> Apt. 4\n> Porto 40123"),
    ("write to 3421 Fagradalsbraut 71, Pisão 46381 now", "address", "3421 Fagradalsbraut 71, Pisão 46381"),
    ("at 4 Paseo del Norte 81, today", "address", "4 Paseo del Norte 81"),
    ("she lives at 172 Maneeži 75, Saareküla.", "address", "172 Maneeži 75, Saareküla"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind", "value"), CONTEXT)
def test_the_words_around_give_it_away(text: str, kind: str, value: str) -> None:
    assert [(span.kind, text[span.start : span.end]) for span in find(text)] == [(kind, value)]


TITLES = (
    "Mr", "MR", "Mrs", "MRS", "Ms", "MS", "Miss", "Mx", "Mme", "mr", "mrs", "ms", "Dr", "DR", "dr", "Prof", "Herr",
    "Frau", "Sr", "Sra", "Sig",
)  # fmt: skip


@pytest.mark.parametrize("title", TITLES)
def test_every_title_gives_a_name_away(title: str) -> None:
    assert [(span.kind, span.start) for span in find(f"ask {title}. Valdés")] == [("name", len(title) + 6)]
    assert find(f"ask x{title}. Valdés") == []


@pytest.mark.parametrize("text", CALLED)
def test_a_calling_word_makes_a_number_a_phone(text: str) -> None:
    assert [span.kind for span in find(text)] == ["phone"]


def test_a_card_with_a_typing_error_is_found_after_its_word() -> None:
    assert [span.kind for span in find("my Visa 4012888881882")] == ["card"]


def test_redaction_says_what_stood_there() -> None:
    text = "Ana, ana@example.org, +44 20 7946 0123, 4111 1111 1111 1111, DE89370400440532013000, 203.0.113.7"
    assert redact(text, find(text)) == "Ana, [EMAIL], [PHONE], [CARD], [IBAN], [IP]"


PIECES = st.sampled_from(
    [*chain(*PERSONAL.values()), *SECRETS.values(), *HARMLESS, *CALLED, *(one[0] for one in CONTEXT)]
)


@given(st.lists(st.one_of(PIECES, st.text(max_size=6), st.sampled_from([" ", "", "\n", "-", "+", "."])), max_size=12))
def test_redaction_leaves_no_finding(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert find(scrub(text, personal=True, secrets=True)) == []
    assert not any(span.is_secret for span in find(scrub(text, personal=False, secrets=True)))
    spans = find(text)
    assert all(0 <= span.start < span.end <= len(text) for span in spans)
    assert all(one.end <= two.start for one, two in pairwise(spans))


@given(st.integers(10**14, 10**15 - 1))
def test_one_check_digit_in_ten_passes(payload: int) -> None:
    digits = [int(char) for char in str(payload)]
    assert sum(luhn([*digits, last]) for last in range(10)) == 1


@pytest.mark.parametrize(
    "piece", ["a" * 9, "1 ", "1-", "a.", "Aa ", "1:", "12 Aa ", "@a.", "https://", "Dear A", "at 1 "]
)
def test_long_texts_take_linear_time(piece: str) -> None:
    def seconds(times: int) -> float:
        text, best = piece * times, 9.0
        for _ in range(3):
            began = time.process_time()
            find(text)
            best = min(best, time.process_time() - began)
        return best

    seconds(100)
    assert seconds(16_000) < 16 * max(seconds(2_000), 0.002)  # eight times as long, with room for a busy machine


def test_iban_checksum_notices_a_swap() -> None:
    assert iban_checksum("GB82WEST12345698765432")
    assert not iban_checksum("GB82WEST12345698765423")
