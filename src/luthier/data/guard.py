"""Find personal data and secrets in the rows, and do about them what the recipe says."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier.data.contract import prepare_text
from luthier.data.items import Item, Verdict
from luthier.data.privacy.annotations import learn
from luthier.data.privacy.profiles import FAST, Detector, open_detector, teachers
from luthier.data.privacy.pseudonyms import Pseudonyms, mapping_passphrase, read_key
from luthier.data_report import Finding
from luthier.errors import DataError, SecretFound
from luthier.records import RequestContract, is_read_off
from luthier.spec.recipe import DataEntry, Privacy
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.template import field, fields, literals
from luthier.store.files import sha256_file
from luthier.store.home import home

_NAMED_PLACES = 5


def open_rules(resolved: ResolvedRecipe, tagger_file: Path) -> tuple[Detector, str]:
    """What looks for personal data as the recipe says, and the hash of the tagger that was trained for it, or ''.

    Raises:
        MissingExtra: a package of the profile is not installed.
        DataError: the annotated sample cannot be used.
        RecipeError: the mapping is to be kept, and there is no passphrase for it.
    """
    rules = resolved.recipe.data.privacy
    assert rules is not None  # resolved
    profile = rules.profile or "fast"
    refuse_missing_passphrase(rules)
    tagger_file.unlink(missing_ok=True)
    if rules.annotations is None:
        return open_detector(profile), ""
    tagger = learn(resolved.file(rules.annotations), teachers())
    tagger.save(tagger_file)
    return open_detector(profile, tagger=tagger), sha256_file(tagger_file)


def refuse_missing_passphrase(rules: Privacy | None) -> None:
    """What the mapping will be encrypted with is there before any row is looked at.

    Raises:
        RecipeError: the mapping is to be kept, and there is no passphrase for it.
    """
    if rules is not None and rules.keep_mapping is not None:
        mapping_passphrase()


def pseudonym_key(rules: Privacy) -> bytes:
    """What pseudonyms are drawn by under the action 'pseudonymise', else b''.

    Raises:
        UserError: the key cannot be used.
    """
    return read_key(home()) if rules.action == "pseudonymise" else b""


def guard(
    items: Sequence[Item],
    rules: Privacy,
    contract: RequestContract,
    *,
    key: bytes,
    detector: Detector = FAST,
    pseudonyms: Pseudonyms | None = None,
) -> tuple[list[Verdict | None], list[Finding], int]:
    """Look into every text that would be learned, set verdicts, and redact or replace in place.

    Args:
        items: cleaned rows.
        rules: what to do about personal data and about secrets.
        contract: how a request will be treated; the rows are treated alike.
        key: of the HMAC that stands for a value, so that equal values can be told without knowing them.
        detector: what looks.
        pseudonyms: what personal data is replaced by; of the action 'pseudonymise' only.

    Returns:
        A verdict for each row, all findings (their places are those in the cleaned text), and how many rows changed.
    """
    verdicts: list[Verdict | None] = []
    findings: list[Finding] = []
    changed = 0
    detector = detector.remembering()
    for item in items:
        found = _look(item, contract, key, detector)
        findings += found
        secrets = sorted({finding.kind for finding in found if finding.kind.startswith("secret.")})
        personal = sorted({finding.kind for finding in found} - set(secrets))
        if secrets and rules.secrets == "drop":
            verdicts.append(("secret", ", ".join(secrets)))
        elif personal and rules.action == "drop":
            verdicts.append(("personal_data", ", ".join(personal)))
        else:
            verdicts.append(None)
            if found and (secrets or rules.action in ("redact", "pseudonymise")):
                _treat(item, contract, detector, pseudonyms)
                changed += 1
    return verdicts, findings, changed


def guard_labels(items: Sequence[Item], rules: Privacy, *, column: str, key: bytes) -> list[Finding]:
    """Look at each label of a closed set once, in the first row that has it, by patterns.

    A model that knows sentences takes words such as 'Sales' for names; labels are few, and the user reads them all.

    Raises:
        SecretFound: a label holds a secret; what to do about texts does not count, a label cannot be redacted.
        DataError: a label holds personal data, and the rules do not let it stand.
    """
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.answer, item)
    findings = [finding for label, item in first.items() for finding in _found(item, column, label, key, FAST)]
    secrets = [finding for finding in findings if finding.kind.startswith("secret.")]
    if secrets:
        raise SecretFound(
            f"the column {column!r} has a label with a secret in {_places(secrets)}",
            way_out="revoke it, then take it out of the file: labels stand in every request and cannot be redacted",
        )
    if findings and rules.action != "report":
        raise DataError(
            f"the column {column!r} has a label with personal data in {_places(findings)}, and data.privacy.action is "
            f"{rules.action!r}, which is for texts",
            way_out="rename the label in the file, or set data.privacy.action to 'report'",
        )
    return findings


def refuse_secrets_in_wording(entry: DataEntry) -> None:
    """Look at what a recipe itself says in every request: the system text and the input template.

    Raises:
        SecretFound: there is a secret, whatever is to be done about those in the data.
    """
    for name, text in _wording(entry):
        kinds = sorted({span.kind.removeprefix("secret.") for span in FAST.find(text) if span.is_secret})
        if kinds:
            raise SecretFound(
                f"data.train[0].{name} holds a secret ({', '.join(kinds)})",
                way_out="revoke it and take it out of there",
            )


def personal_wording(entry: DataEntry, features: Mapping[str, str]) -> tuple[str, ...]:
    """Personal data in the recipe's own words, which stay as they are: 'system holds 1 email'."""
    found = []
    written = [(f"data.train[0].{name}", text) for name, text in _wording(entry)]
    for key, text in [*written, *((f"data.features.{name}", sql) for name, sql in features.items())]:
        counts = Counter(span.kind for span in FAST.find(text) if not span.is_secret)
        if counts:
            listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
            found.append(f"{key} holds {listed}")
    return tuple(found)


def refuse_secrets_in_expressions(features: Mapping[str, str]) -> None:
    """Look at what the recipe's expressions may write into a request.

    Raises:
        SecretFound: there is a secret.
    """
    for name, sql in features.items():
        kinds = sorted({span.kind.removeprefix("secret.") for span in FAST.find(sql) if span.is_secret})
        if kinds:
            raise SecretFound(
                f"data.features.{name} holds a secret ({', '.join(kinds)})",
                way_out="revoke it and take it out of there",
            )


def _wording(entry: DataEntry) -> list[tuple[str, str]]:
    return [("system", entry.system or ""), ("input", literals(entry.input) if entry.input else "")]


def count_kinds(findings: Sequence[Finding]) -> dict[str, int]:
    """Kind -> findings, most frequent first."""
    counts = Counter(finding.kind for finding in findings)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _look(item: Item, contract: RequestContract, key: bytes, detector: Detector) -> list[Finding]:
    return [finding for column, text in _texts(item, contract) for finding in _found(item, column, text, key, detector)]


def _found(item: Item, column: str, text: str, key: bytes, detector: Detector) -> list[Finding]:
    return [
        Finding(
            file=item.file,
            line=item.line,
            column=column,
            start=span.start,
            end=span.end,
            kind=span.kind,
            value_hmac=hmac.new(key, text[span.start : span.end].encode(), hashlib.sha256).hexdigest()[:16],
            detector=span.detector,
        )
        for span in detector.find(text)
    ]


def _texts(item: Item, contract: RequestContract) -> list[tuple[str, str]]:
    """What is learned or asked of a row, by place; labels of a closed set are looked at by themselves."""
    other = [("rejected", item.rejected)] if item.rejected else []
    if item.turns:
        return [*((f"messages[{index}]", turn.content) for index, turn in enumerate(item.turns)), *other]
    names = fields(contract.input)
    texts = [(names[0] if contract.input == field(names[0]) else "input", item.text)]
    return texts if is_read_off(contract.task) else [*texts, ("answer", item.answer), *other]


def treated(text: str, contract: RequestContract, detector: Detector, pseudonyms: Pseudonyms | None) -> str:
    """A text redacted, or with pseudonyms, so that the request path leaves the result as it is."""
    assert (pseudonyms is not None) == (contract.privacy_action == "pseudonymise"), "the action and its key go together"
    return prepare_text(
        pseudonyms.replace(text, detector.find(text)) if pseudonyms else text,
        transforms=contract.transforms,
        redact_personal=contract.privacy_action == "redact",
        redact_secrets=True,
        detector=detector,
    )


def _treat(item: Item, contract: RequestContract, detector: Detector, pseudonyms: Pseudonyms | None) -> None:
    def treat(text: str) -> str:
        return treated(text, contract, detector, pseudonyms)

    if item.rejected:
        item.rejected = treat(item.rejected)
    if item.turns:
        item.turns = tuple(turn.model_copy(update={"content": treat(turn.content)}) for turn in item.turns)
        return
    item.text = treat(item.text)
    if not is_read_off(contract.task):
        item.answer = treat(item.answer)


def stop_at_secrets(findings: Sequence[Finding], rules: Privacy) -> None:
    """Stop where rows hold a secret and the rules say 'stop'.

    Raises:
        SecretFound: so it is.
    """
    secrets = [finding for finding in findings if finding.kind.startswith("secret.")]
    if not secrets or rules.secrets != "stop":
        return
    raise SecretFound(
        f"{len(secrets)} secret{'s' if len(secrets) > 1 else ''} in the data: {_places(secrets)}",
        way_out="revoke it, then take it out of the file, or set data.privacy.secrets to 'redact' or 'drop'",
    )


def _places(findings: Sequence[Finding]) -> str:
    """Where the first of them are, and of what kind; never what they are."""
    places = [f"{one.file}:{one.line} ({one.kind.removeprefix('secret.')})" for one in findings[:_NAMED_PLACES]]
    more = f" and {len(findings) - _NAMED_PLACES} more" if len(findings) > _NAMED_PLACES else ""
    return ", ".join(places) + more
