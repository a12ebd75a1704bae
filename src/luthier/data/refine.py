"""What is done to each row by itself, and so on many parts of the rows at once: interpret, guard, filter, name."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.data.contract import open_frozen
from luthier.data.filters import filtered
from luthier.data.guard import guard
from luthier.data.interpret import interpret
from luthier.data.items import Item, Ledger, Tally, name_item
from luthier.data.likeness import Comparison, sign_all
from luthier.data.near import Signatures
from luthier.data.privacy.profiles import Detector
from luthier.data.privacy.pseudonyms import Pseudonyms
from luthier.data_report import Finding
from luthier.records import PrivacyProfile, RequestContract
from luthier.spec.recipe import Data, Split


def part_rows(profile: PrivacyProfile) -> int:
    """Rows of a part; fewer where a model looks at each, which takes a hundredth of a second."""
    return 4096 if profile == "fast" else 256


@functools.lru_cache(maxsize=1)
def _detector(contract_json: str, folder: Path) -> Detector:
    return open_frozen(RequestContract.model_validate_json(contract_json), folder)


@dataclass(frozen=True)
class Refined:
    """What became of a part."""

    items: list[Item]
    tally: Tally
    findings: list[Finding]
    labels: frozenset[str]
    """As they stand in the file, where some are to be renamed."""
    mapping: Mapping[tuple[str, str], str]
    """Pseudonyms that were given, where they are to be kept."""
    signatures: Mapping[Comparison, Signatures]


@dataclass(frozen=True)
class Name:
    """Gives the items of a part what they are told apart by, once nothing changes their texts any more."""

    split: Split
    comparisons: tuple[Comparison, ...]
    """For which signatures are made."""

    def __call__(self, part: Sequence[Item]) -> tuple[Sequence[Item], Mapping[Comparison, Signatures]]:
        """Set groups and digests, keep of the cells what the split asks for, and sign."""
        asked = [column for column in (self.split.by_time, self.split.column) if column]
        nothing: dict[str, object] = {}
        for item in part:
            name_item(item, self.split.group_by or "")
            item.values = {column: item.values.get(column) for column in asked} if asked else nothing
        return part, sign_all(part, self.comparisons)


@dataclass(frozen=True)
class Refine:
    """Refines one part, wherever that is; nothing that it does depends on other parts."""

    data: Data
    contract: RequestContract
    folder: Path
    """Where the tagger of the contract lies, if it has one."""
    label: str
    chat_column: str
    """Column of the conversations; '' where the contract has an input template."""
    hmac_key: bytes
    pseudonym_key: bytes
    """b'' unless the action is 'pseudonymise'."""
    name: Name | None
    """None where texts may still be cut; then it is for later."""

    def __call__(self, part: Sequence[Item]) -> Refined:
        """Set texts, answers and groups of the items of a part, and set aside those that cannot be used."""
        rules = self.data.privacy
        assert rules is not None  # resolved
        detector = _detector(self.contract.to_json(), self.folder)
        ledger = Ledger(detector)
        rename = self.data.labels.rename
        items, labels = interpret(
            part, self.contract, label=self.label, chat_column=self.chat_column, rename=rename, ledger=ledger
        )
        pseudonyms = Pseudonyms(self.pseudonym_key) if self.pseudonym_key else None
        verdicts, findings, changed = guard(
            items, rules, self.contract, key=self.hmac_key, detector=detector, pseudonyms=pseudonyms
        )
        items = ledger.sift("privacy", items, verdicts, changed=changed)
        if self.data.filter is not None:
            items = ledger.sift("filter", items, filtered(items, self.data.filter))
        keeps = pseudonyms is not None and rules.keep_mapping is not None
        mapping = pseudonyms.mapping if keeps and pseudonyms else {}
        signatures = self.name(items)[1] if self.name is not None else {}
        return Refined(items, ledger.tally(), findings, labels, mapping, signatures)
