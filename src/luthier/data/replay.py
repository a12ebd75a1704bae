"""General texts among those of a domain, so that the model does not forget them (`method.replay`).

Texts are drawn by a lot that depends on the seed and the text alone, and taken whole until their learned tokens are the
stated share of all; one that would exceed it is passed over. They are the same in every epoch. They are cleaned and
looked through as the domain's are; what validation or test holds, equal or nearly, is never taken.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Sequence

from luthier.data.contract import prepare_text
from luthier.data.documents import learned_tokens, read_documents
from luthier.data.guard import count_kinds, guard, pseudonym_key, stop_at_secrets
from luthier.data.inputs import fill
from luthier.data.items import Item, digest_of
from luthier.data.likeness import Comparison, compared_text, leak_comparison
from luthier.data.near import NearPairs
from luthier.data.privacy.pseudonyms import Pseudonyms
from luthier.data.read import Row
from luthier.data.source import open_source
from luthier.data.split import lot
from luthier.data.step import Flow
from luthier.data_report import Replayed
from luthier.errors import DataError
from luthier.spec.methods.pretrain import Pretrain, Replay
from luthier.spec.recipe import Recipe

REPLAY = "replay"
"""`made_by` of a general text."""


def replay_of(recipe: Recipe) -> Replay | None:
    """What the recipe says about general texts; None where it asks for none."""
    return recipe.method.replay if isinstance(recipe.method, Pretrain) else None


def replayed(flow: Flow, rules: Replay) -> tuple[list[Item], Replayed]:
    """The general texts for the training split, and what is to be told of them.

    Raises:
        DataError: the file cannot be used, or no text of it can be taken.
        SecretFound: a text that was drawn holds a secret, and data.privacy.secrets says 'stop'.
    """
    dropped = Counter[str]()
    read = list(_texts(flow, rules, dropped))
    learned = sum(learned_tokens([item for item in flow.items if item.split == "train"], flow.renderer))
    budget = rules.share / (1 - rules.share) * learned
    held, taken_digests = {item.digest for item in flow.items}, set[bytes]()
    near = _near(read, flow)
    drawn = sorted(read, key=lambda item: lot(rules.seed, item.digest.hex()))
    taken, tokens, found = list[Item](), 0, Counter[str]()
    for item, length in zip(drawn, learned_tokens(drawn, flow.renderer), strict=True):
        if item.digest in held:
            dropped["stands_in_the_data"] += 1
        elif item.digest in taken_digests:
            dropped["repeated"] += 1
        elif id(item) in near:
            dropped["nearly_in_the_data"] += 1
        elif 0 < length <= budget - tokens:
            taken_digests.add(item.digest)
            reason, kinds = guarded(item, flow)
            if not reason and digest_of(item.key) in held:  # as it stands there, what was found in it redacted
                reason = "stands_in_the_data"
            if reason:
                dropped[reason] += 1
                continue
            found.update(kinds)
            taken.append(item)
            tokens += length
    if not taken:
        raise DataError(
            f"method.replay: of {len(read)} texts in {rules.path} none can be taken: {rules.share:g} of the learned "
            f"tokens are {budget:.0f}, and the shortest text is longer, or all stand in the data",
            way_out="give shorter texts, raise method.replay.share, or leave method.replay out",
        )
    tokens = sum(learned_tokens(taken, flow.renderer))  # what was redacted is counted as it stands now
    return taken, Replayed(
        file=rules.path,
        available=len(read),
        rows=len(taken),
        tokens=tokens,
        asked=rules.share,
        share=tokens / (tokens + learned),
        seed=rules.seed,
        dropped=dict(sorted(dropped.items())),
        findings=dict(sorted(found.items())),
    )


def _texts(flow: Flow, rules: Replay, dropped: Counter[str]) -> Iterator[Item]:
    path = flow.resolved.file(rules.path)
    for row in read_documents(open_source(path)):
        if not isinstance(row, Row):
            dropped[row.reason] += 1
            continue
        text = prepare_text(
            fill(rules.input, row.values),
            transforms=flow.contract.transforms,
            redact_personal=False,
            redact_secrets=False,
        )
        if text:
            name = f"{rules.path}/{row.file}" if row.file else rules.path
            item = Item(name, row.line, None, {}, text=text, made_by=REPLAY)
            item.digest = digest_of(item.key)
            item.group = f"{REPLAY}={item.digest.hex()}"
            yield item


def _near(read: Sequence[Item], flow: Flow) -> set[int]:
    """Identities of the texts that nearly say what a text of validation or test says."""
    comparison = leak_comparison(flow.resolved, flow.contract)
    held = [item for item in flow.items if item.split != "train"]
    if comparison is None or not held or not read:
        return set()
    plain = Comparison("", comparison.threshold, with_answers=False)
    texts = [compared_text(item, comparison.template) for item in held] + [plain.text(item) for item in read]
    pairs = NearPairs(texts, comparison.threshold, left=len(held), crew=flow.crew)
    return {id(read[place - len(held)]) for place in pairs.later.tolist()}


def guarded(item: Item, flow: Flow) -> tuple[str, dict[str, int]]:
    """Why a text may not be taken, or '', and what was found in it, which is treated as in the rows of the data."""
    rules = flow.resolved.recipe.data.privacy
    assert rules is not None  # resolved
    key = pseudonym_key(rules)
    verdicts, findings, _ = guard(
        [item],
        rules,
        flow.contract,
        key=secrets.token_bytes(32),
        detector=flow.ledger.detector,
        pseudonyms=Pseudonyms(key) if key else None,
    )
    stop_at_secrets(findings, rules)
    return verdicts[0][0] if verdicts[0] else "", count_kinds(findings)
