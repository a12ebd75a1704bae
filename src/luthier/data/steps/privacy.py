"""Personal data and secrets are looked for in every text that would be learned, and treated as `data.privacy` says."""

from __future__ import annotations

import secrets as random_key
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from luthier.data.guard import count_kinds, guard, guard_labels, pseudonym_key, stop_at_secrets
from luthier.data.items import Item, Ledger
from luthier.data.privacy.pseudonyms import Pseudonyms, mapping_passphrase, write_mapping
from luthier.data.step import Facts, Flow, RowStep
from luthier.data_report import Finding
from luthier.records import RequestContract, is_read_off
from luthier.spec.recipe import Privacy as Rules
from luthier.store.files import write_atomic

FINDINGS_FILE = "findings.jsonl"


class Found(NamedTuple):
    """In a part."""

    findings: list[Finding]
    mapping: Mapping[tuple[str, str], str]
    """Pseudonyms that were given, where they are to be kept."""


@dataclass(frozen=True)
class Privacy(RowStep):
    changes_texts = True
    looks = True
    rules: Rules
    contract: RequestContract
    hmac_key: bytes
    pseudonym_key: bytes
    """b'' unless the action is 'pseudonymise'."""

    @classmethod
    def of(cls, flow: Flow) -> Self:
        rules = flow.resolved.recipe.data.privacy
        assert rules is not None  # resolved
        return cls(rules, flow.contract, random_key.token_bytes(32), pseudonym_key(rules))

    def sift(self, items: list[Item], ledger: Ledger) -> tuple[list[Item], Found]:
        pseudonyms = Pseudonyms(self.pseudonym_key) if self.pseudonym_key else None
        verdicts, findings, changed = guard(
            items, self.rules, self.contract, key=self.hmac_key, detector=ledger.detector, pseudonyms=pseudonyms
        )
        keeps = pseudonyms is not None and self.rules.keep_mapping is not None
        mapping = pseudonyms.mapping if keeps and pseudonyms else {}
        return ledger.sift("privacy", items, verdicts, changed=changed), Found(findings, mapping)

    def gather(self, made: Sequence[Found], flow: Flow) -> Facts:
        """Write what was found where, never what; and the mapping, if it is to be kept.

        Raises:
            SecretFound: there is a secret, and the rules say 'stop'; or one stands in a label.
            DataError: a label holds personal data that may not stand.
        """
        findings = [finding for part in made for finding in part.findings]
        stop_at_secrets(findings, self.rules)
        if is_read_off(self.contract.task) and self.contract.task != "regression":  # a number names nobody
            column = flow.resolved.recipe.entry.label or ""
            found = guard_labels(flow.items, self.rules, column=column, key=self.hmac_key)
            findings = sorted([*found, *findings], key=lambda one: (one.file, one.line)) if found else findings
        if self.rules.keep_mapping is not None:
            mapping = {pair: surrogate for part in made for pair, surrogate in part.mapping.items()}
            write_mapping(flow.resolved.file(self.rules.keep_mapping), mapping, passphrase=mapping_passphrase())
        lines = "".join(f"{finding.model_dump_json()}\n" for finding in findings)
        write_atomic(flow.out / FINDINGS_FILE, lines)
        return {"findings": count_kinds(findings)}


STEP = Privacy
