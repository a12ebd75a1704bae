"""Random secrets planted in the training split, for the test of how much is memorised.

A canary is a question with a made-up name and, as its answer, random digits. It is planted as rows of the task's own
form, some in one copy, some in more, some in none: those were never learned, and show what chance gives. Whoever
measures exposure (Carlini et al. 2019, "The Secret Sharer", arXiv:1802.08232) compares the likelihood of the true
digits with that of other digits of the same length; canaries.json has all that is needed for it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from luthier.data import noise
from luthier.data.contract import Renderer, prepare_text
from luthier.data.items import CANARY, Item, Ledger
from luthier.data.shards import Shard
from luthier.data_report import Canary, CanaryFile, PlantedCanaries
from luthier.errors import DataError
from luthier.records import Message
from luthier.spec.recipe import Canaries
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.template import render
from luthier.store.files import write_atomic

FILE = "canaries.json"
MOST = 0.1
"""Share of the training rows that canaries may be; more of them would change what is learned."""

_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def plant(
    items: Sequence[Item], renderer: Renderer, resolved: ResolvedRecipe, ledger: Ledger, *, out: Path
) -> list[Item]:
    """The rows, and behind them those of the canaries; also writes the file with the secrets.

    Canaries pass neither the privacy detectors nor the firewall: they are meant to be secrets, and stand in no file.

    Raises:
        DataError: there would be too many of them for the training rows.
    """
    rules = resolved.recipe.data.canaries
    assert rules is not None  # the step is not there else
    learned = sum(item.split == "train" for item in items)
    rows = rules.count * sum(rules.copies)
    if rows > MOST * learned:
        raise DataError(
            f"data.canaries: {rules.count} secrets for each of {len(rules.copies)} numbers of copies are {rows} rows, "
            f"more than {MOST:.0%} of the {learned} training rows",
            way_out=f"set data.canaries.count to {int(MOST * learned) // sum(rules.copies)} or less, or fewer copies"
            if MOST * learned >= sum(rules.copies)
            else "set data.canaries.copies to fewer, such as [0, 1, 4], or leave the section out",
        )
    canaries = make(rules, renderer)
    record = CanaryFile(digits=rules.digits, space=10**rules.digits, seed=rules.seed, canaries=canaries)
    write_atomic(out / FILE, json.dumps(record.model_dump(mode="json"), ensure_ascii=False, indent=2) + "\n")
    file = resolved.recipe.entry.path
    planted = [_item(canary, renderer, file) for canary in canaries for _ in range(canary.copies)]
    ledger.grown("canaries", len(items), len(planted))
    return [*items, *planted]


def make(rules: Canaries, renderer: Renderer) -> tuple[Canary, ...]:
    """Canaries of all numbers of copies; each name and each secret follows from the seed and its own number."""
    made: list[Canary] = []
    names: set[str] = set()
    for copies in rules.copies:
        for number in range(rules.count):
            chance = noise.dice(rules.seed, CANARY, str(copies), str(number))
            name = _name(chance)
            while name in names:
                name = _name(chance)
            names.add(name)
            secret = "".join(noise.pick("0123456789", chance) for _ in range(rules.digits))
            text = _asked(rules.prompt.replace("{name}", name), renderer)
            made.append(Canary(id=f"{copies}x{number}", copies=copies, text=text, secret=secret))
    return tuple(made)


def planted_in(folder: Path) -> CanaryFile | None:
    """What prepare planted in the shards of a folder; None where it planted nothing."""
    path = folder / FILE
    return CanaryFile.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def reported(train: Shard, resolved: ResolvedRecipe) -> PlantedCanaries | None:
    """How many were planted; None where none were asked for.

    Raises:
        DataError: some were set aside, so that the file of secrets would not say what was learned.
    """
    rules = resolved.recipe.data.canaries
    if rules is None:
        return None
    rows, asked = Counter(train.column("made_by"))[CANARY], rules.count * sum(rules.copies)
    if rows != asked:
        raise DataError(
            f"data.canaries: {asked - rows} of {asked} rows are longer than train.max_length, "
            f"{resolved.recipe.train.max_length} tokens",
            way_out="raise train.max_length, or set data.canaries.prompt to a shorter question",
        )
    return PlantedCanaries(copies=dict.fromkeys(rules.copies, rules.count), rows=rows)


def _name(chance: noise.Dice) -> str:
    """A word that no language has, so that nothing is known about it and no detector takes it for a person."""
    return "".join(noise.pick(_CONSONANTS, chance) + noise.pick(_VOWELS, chance) for _ in range(4))


def _asked(question: str, renderer: Renderer) -> str:
    """The question in the place of the input's first column, the others empty, cleaned as a request is."""
    template = renderer.contract.input
    places = iter([question])
    filled = render(template, lambda name: next(places, "")) if template else question
    return prepare_text(filled, transforms=renderer.contract.transforms, redact_personal=False, redact_secrets=False)


def _item(canary: Canary, renderer: Renderer, file: str) -> Item:
    group = hashlib.blake2b(f"{CANARY}={canary.id}".encode(), digest_size=8).hexdigest()
    item = Item(file, 0, None, {}, group=group, split="train", made_by=CANARY)
    if renderer.contract.input:
        item.text, item.answer = canary.text, canary.secret
    else:
        turns = (("user", canary.text), ("assistant", canary.secret))
        item.turns = tuple(Message.model_validate({"role": role, "content": content}) for role, content in turns)
    return item
