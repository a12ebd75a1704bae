"""What was found is nowhere in the clear: not in the run folder, not in what is said; a scanner opens no socket."""

from __future__ import annotations

import json
import socket
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from command import Done, call, luthier, paper_model
from luthier.data.privacy import ner, scanners
from luthier.data.privacy.profiles import open_detector, with_scanner
from luthier.data.privacy.pseudonyms import KEY_VARIABLE, PASSPHRASE_VARIABLE, Pseudonyms, write_mapping
from luthier.data.privacy.spans import redact
from tiny import write_recipe

installed = pytest.mark.skipif(bool(ner.missing_package()), reason="needs the extra 'privacy'")

PLANTED = (
    "zora.quixnar@plontik.example.org", "+44 20 7946 0123", "4111 1111 1111 1111", "GB82 WEST 1234 5698 7654 32",
    "853-37-1694", "203.0.113.77", "Zora Quixnar", "12 Drabzel Street", "https://www.linkedin.com/in/zora-quixnar",
)  # fmt: skip
SENTENCE = (
    "my name is Zora Quixnar, I'm at 12 Drabzel Street, write to {0} or {1}, card {2}, account {3}, SSN {4}, from {5}, "
    "see {8}"
).format(*PLANTED)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paper_model(tmp_path_factory.mktemp("paper") / "model")


@pytest.fixture
def place(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose data holds every planted value in rows that are used, doubled, too long, unlabelled and broken."""
    write_recipe(tmp_path, model)
    file = tmp_path / "messages.csv"
    kinds = ("late", "broken", "refund")
    rows = [f'c9{n},"{SENTENCE} ({n})",{kinds[n % 3]}' for n in range(24)]
    rows += [f'c9{n},"{SENTENCE} (7)",{kinds[n % 3]}' for n in range(3)]  # the same text with other labels
    rows += [f'c99,"{SENTENCE * 9}",late', f'c99,"{SENTENCE}",', f'c99,"{SENTENCE}",late,{PLANTED[0]}']
    file.write_text(file.read_text(encoding="utf-8") + "\n".join(rows) + "\n", encoding="utf-8")
    tree = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    tree["data"] |= {"max_bad_rows": 0.2, "dedupe": {}, "labels": {"review": True}}
    tree["train"]["max_length"] = 512
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    monkeypatch.setenv(KEY_VARIABLE, "0123456789abcdef")
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    return tmp_path


@pytest.mark.parametrize("action", ["report", "redact", "pseudonymise", "drop"])
def test_no_planted_value_is_anywhere(place: Path, action: str) -> None:
    tree = yaml.safe_load((place / "tiny.yaml").read_text())
    tree["data"]["privacy"] = {"action": action, "profile": "fast"}
    if action == "pseudonymise":
        pytest.importorskip("cryptography")
        tree["data"]["privacy"]["keep_mapping"] = "runs/mapping.json"
    (place / "tiny.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    done = luthier("prepare", "tiny.yaml", "--json", cwd=place).succeeds()
    assert done.document["findings"]["email"] >= 24
    files = [path for path in (place / "runs").rglob("*") if path.is_file()]
    assert {"report.json", "report.html", "quarantine.jsonl"} <= {path.name for path in files}
    for path in files:
        if action == "report" and path.suffix == ".arrow":
            continue  # what is learned stays as it is, as was asked for
        content = path.read_bytes()
        assert [value for value in PLANTED if value.encode() in content] == [], path.name
    assert not [value for value in PLANTED if value in done.out + done.err]
    assert b"correct horse" not in b"".join(path.read_bytes() for path in files)


# --- the mapping ---


def opened(*words: str, cwd: Path) -> Done:
    return call("data", "mapping", *words, cwd=cwd)


def test_the_mapping_is_opened_by_its_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography")
    made = Pseudonyms(b"k" * 32)
    stands = made.of("email", PLANTED[0])
    made.of("name", "Zora\nQuixnar")
    write_mapping(tmp_path / "map.json", made.mapping, passphrase="correct horse")
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    said = opened("map.json", cwd=tmp_path).fails(2, "map.json is encrypted", f"export {PASSPHRASE_VARIABLE}=...")
    assert not said.out
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "wrong horse")
    said = opened("map.json", cwd=tmp_path).fails(2, "map.json cannot be opened", "the passphrase is not its own")
    assert "horse" not in said.out + said.err
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    lines = opened("map.json", cwd=tmp_path).succeeds().out.splitlines()
    assert lines[0] == f"email\t{stands}\t{PLANTED[0]}"
    assert lines[1].endswith("Zora\\nQuixnar"), "one line each"
    one = opened("map.json", "--surrogate", stands, "--json", cwd=tmp_path).succeeds().document
    assert one == [{"kind": "email", "surrogate": stands, "value": PLANTED[0]}]
    said = opened("map.json", "--surrogate", PLANTED[0], cwd=tmp_path).fails(
        2, "no surrogate that is spelled like that"
    )
    assert PLANTED[0] not in said.err
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"], "nothing is written"


@pytest.mark.parametrize("damage", ["half", "token", "salt", "rows", "bytes", "list"])
def test_a_damaged_mapping_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    pytest.importorskip("cryptography")
    from cryptography.fernet import Fernet

    path = tmp_path / "map.json"
    write_mapping(path, {("email", PLANTED[0]): "x@example.org"}, passphrase="correct horse")
    whole: dict[str, Any] = json.loads(path.read_text())
    if damage == "half":
        path.write_text(path.read_text()[:99])
    elif damage == "bytes":
        path.write_bytes(b"\xff\xfe" + path.read_bytes())
    elif damage == "list":
        path.write_text("[1]")
    else:
        whole["token"] = whole["token"][:-9] if damage == "token" else whole["token"]
        whole["kdf"]["salt"] = "AAAA" if damage == "salt" else whole["kdf"]["salt"]
        if damage == "rows":
            monkeypatch.setattr(Fernet, "decrypt", lambda self, token: b"[[1, 2]]")
        path.write_text(json.dumps(whole))
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "correct horse")
    what = "the file was changed" if damage in ("token", "salt") else "is not a mapping of pseudonyms"
    opened("map.json", cwd=tmp_path).fails(2, "map.json", what)


# --- secrets ---

KEYS = {
    "artifactory": " AKC" + "a1B2c3D4e5F6 ", "azure_storage_key": "AccountKey=" + "a1B2" * 22,
    "basic_auth": "https://ana:hunter2pass@example.org/x", "cloudant": "cloudant_password = " + "a1" * 32,
    "discord": "M" + "a1b2c3d4" * 3 + "." + "a1b2c3" + "." + "a1b2c3d4e" * 3, "mailchimp": "a1" * 16 + "-us12",
    "npm": "//registry.npmjs.org/:_authToken=npm_" + "a1B2" * 9, "pypi_token": "pypi-AgEIcHlwaS5vcmc" + "a1B2" * 20,
    "sendgrid": "SG." + "a" * 22 + "." + "b" * 43, "square_oauth": "sq0csp-" + "a1B2c" * 8 + "abc",
    "telegram_token": "110201543:" + "AAHdqTcvCH1vGWJxfSeofSAs0K5PAL" + "Dsaw1", "twilio": "AC" + "a1" * 16,
}  # fmt: skip


@installed
def test_the_scanner_opens_no_socket_and_verifies_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    for name, key in KEYS.items():
        text = f"use {key} here"
        assert f"secret.{name}" in {span.kind for span in scanners.detect_secrets(text)}, name
        assert redact(text, with_scanner(text)).count("[SECRET]") == 1, name


@installed
def test_no_plugin_guesses_by_entropy_or_by_keyword() -> None:
    names = {type(plugin).__name__ for _, plugin in scanners._plugins()}
    assert not any("Entropy" in name or "Keyword" in name for name in names)
    core = import_module("detect_secrets.core.plugins.util").get_mapping_from_secret_type_to_class()
    ours = {"AWSKeyDetector", "GitHubTokenDetector", "GitLabTokenDetector", "IPPublicDetector", "JwtTokenDetector",
            "OpenAIDetector", "PrivateKeyDetector", "SlackDetector", "StripeDetector"}  # fmt: skip
    guessing = {"Base64HighEntropyString", "HexHighEntropyString", "KeywordDetector"}
    assert {one.__name__ for one in core.values()} == names | ours | guessing, "every other format is looked for"


@installed
def test_lines_of_code_and_prose_hold_no_secrets() -> None:
    root = Path(__file__).parents[2]
    files = [*(root / "src" / "luthier").rglob("*.py"), *(root / "docs").glob("*.md"), root / "README.md"]
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    example = "https://ana:password@host.org"
    flagged = [line for line in lines if any(one.is_secret for one in with_scanner(line)) and example not in line]
    assert len(lines) > 10_000
    assert len(flagged) <= len(lines) // 5_000, flagged


@installed
@pytest.mark.parametrize("profile", ["balanced"])
def test_a_missing_scanner_stops_everything(monkeypatch: pytest.MonkeyPatch, profile: Any) -> None:
    from luthier.errors import MissingExtra

    real = ner.find_spec
    monkeypatch.setattr(ner, "find_spec", lambda module: None if module == "detect_secrets" else real(module))
    with pytest.raises(MissingExtra, match="needs the package 'detect-secrets'"):
        open_detector(profile)
