"""Offspring of training rows, made after rows were split, checked and limited.

Chance comes from a hash of seed, technique and the row's own content, so neither the order of the rows nor the number
of processes counts. Each offspring is cleaned like a request and must pass the privacy detectors and the leakage
firewall like a row of a file; it keeps all that its parent has but the text.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from luthier.data import noise
from luthier.data.contract import Renderer, prepare_text
from luthier.data.firewall import keep_off_benchmarks
from luthier.data.items import CANARY, Item, Ledger, Verdict
from luthier.data.likeness import compared_text
from luthier.data.near import NearPairs
from luthier.data.paraphrase import PARAPHRASE, Paraphraser, asked_text
from luthier.data.shards import Shard
from luthier.data.split import lot
from luthier.data.swaps import read_swaps
from luthier.data_report import Augmentation, EndpointUse, Technique, TextChange
from luthier.records import is_closed, is_read_off
from luthier.spec.recipe import Augment
from luthier.spec.resolve import ResolvedRecipe

SHOWN = 3
"""Pairs of a technique that the report shows."""
_SHOWN_CHARS = 400
_WORD = re.compile(r"\w+")

Make = Callable[[Item, noise.Dice], noise.Pair | None]
"""A row -> its new text and answer, or None where there is nothing to change."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """An offspring that is not checked yet."""

    parent: Item
    technique: str
    text: str
    answer: str


@dataclass(frozen=True)
class Grown:
    """All rows, those that were added last, and what the report needs to know of it."""

    items: list[Item]
    originals: int = 0
    asked: Mapping[str, int] = field(default_factory=dict)
    goal: int | None = None
    examples: Mapping[str, tuple[TextChange, ...]] = field(default_factory=dict)
    endpoint: EndpointUse | None = None


def augment(items: Sequence[Item], renderer: Renderer, resolved: ResolvedRecipe, ledger: Ledger) -> Grown:
    """Make the offspring that the recipe asks for; rows of validation and test are only looked at to keep off them.

    Raises:
        DataError: rows with personal data would be sent to a model elsewhere, or that model does not answer.
        RecipeError: the key for the endpoint is missing.
    """
    rules = resolved.recipe.data.augment
    if rules is None:
        return Grown(list(items))
    learned = [item for item in items if item.split == "train"]
    closed = is_closed(renderer.contract.task)
    weights = {name: share for name in ("typos", "case", "punctuation", "swap") if (share := getattr(rules, name))}
    if rules.paraphrase is not None:
        weights[PARAPHRASE] = rules.paraphrase.share
    makers = _makers(rules, renderer, resolved)
    goal = _goal(learned, rules.balance) if rules.balance is not None else None
    draw = _Draw(rules, weights, makers)
    if goal is None:
        draw.by_share(learned, closed=closed)
    else:
        draw.by_label(learned, goal)
    drafts, endpoint = draw.drafts, None
    if rules.paraphrase is not None:
        labels = {item.answer for item in learned} if closed else set()
        paraphraser = Paraphraser(rules.paraphrase, renderer, labels)
        for item, said in paraphraser.say(draw.to_say):
            if isinstance(said, str):
                drafts.append(_Draft(item, PARAPHRASE, said, _answer(item)))
            else:
                ledger.unmade[PARAPHRASE, said[0]] += 1
        endpoint = paraphraser.use
    place = {id(item): number for number, item in enumerate(learned)}
    order = {name: number for number, name in enumerate(weights)}
    drafts.sort(key=lambda draft: (order[draft.technique], place[id(draft.parent)]))
    pairs = _accepted(drafts, items, renderer, resolved, ledger)
    ledger.grown("augmentation", len(items), len(pairs))
    return Grown(
        items=[*items, *(made for made, _ in pairs)],
        originals=len(learned),
        asked={name: draw.asked[name] for name in weights},
        goal=goal,
        examples={name: _examples([pair for pair in pairs if pair[0].made_by == name], renderer) for name in weights},
        endpoint=endpoint,
    )


def set_orphans_aside(items: Sequence[Item], ledger: Ledger) -> list[Item]:
    """Offspring whose parent was set aside, as too long say, go too: what is learned can be traced to a learned row."""
    if not any(item.parent for item in items):
        return list(items)
    there = {_place(item) for item in items if not item.parent}
    lost: Verdict = ("parent_set_aside", "the row that it was made from is not used")
    verdicts = [lost if item.parent and item.parent not in there else None for item in items]
    return ledger.sift("offspring of rows set aside", items, verdicts)


def reported(grown: Grown, train: Shard, ledger: Ledger, *, closed: bool) -> Augmentation | None:
    """What became of all that was asked for; None where nothing was.

    Args:
        grown: what was made.
        train: what is left of it.
        ledger: what was set aside on the way, and why.
        closed: whether answers are labels.
    """
    if not grown.asked:
        return None
    made_by, answers = train.column("made_by"), train.column("answer")
    labels: dict[str, Counter[str]] = {}
    for technique, answer in zip(made_by, answers, strict=True):
        labels.setdefault(technique, Counter())[answer] += 1
    techniques = []
    for name, asked in grown.asked.items():
        dropped = {reason: count for (of, reason), count in sorted(ledger.unmade.items()) if of == name}
        own = labels.get(name, Counter())
        techniques.append(
            Technique(
                technique=name,
                asked=asked,
                made=own.total() + sum(dropped.values()),
                dropped=dropped,
                rows=own.total(),
                labels=dict(sorted(own.items())) if closed else {},
                examples=grown.examples[name],
            )
        )
    short: dict[str, int] = {}
    if grown.goal is not None:
        rows = Counter(answer for of, answer in zip(made_by, answers, strict=True) if of != CANARY)
        short = {label: grown.goal - count for label, count in sorted(rows.items()) if count < grown.goal}
    return Augmentation(
        originals=grown.originals, techniques=tuple(techniques), goal=grown.goal, short=short, endpoint=grown.endpoint
    )


# --- which rows get offspring ----------------------------------------------------------------------------------------


def _goal(learned: Sequence[Item], balance: float) -> int:
    return math.floor(balance * max(Counter(item.answer for item in learned).values()))


class _Draw:
    """Draws rows and techniques, and makes what can be made here."""

    def __init__(self, rules: Augment, weights: Mapping[str, float], makers: Mapping[str, Make]) -> None:
        self.asked: Counter[str] = Counter()
        self.drafts: list[_Draft] = []
        self.to_say: list[tuple[Item, int]] = []
        """Rows for a model to paraphrase, in the order of asking, and the number of the offspring."""
        self._rules = rules
        self._weights = weights
        self._makers = makers
        self._seen: set[noise.Pair] = set()

    def by_share(self, learned: Sequence[Item], *, closed: bool) -> None:
        """Each technique takes rows in the order of their lots until it has made its share.

        A model is asked about the rarest labels first, which counts where the budget does not reach for all.
        """
        names = [row_name(item) for item in learned]
        rows = Counter(item.answer for item in learned) if closed else Counter[str]()
        offspring: Counter[int] = Counter()
        for technique, share in self._weights.items():
            left = self.asked[technique] = round(share * len(learned))
            lots = [lot(self._rules.seed, f"{technique}:{name}") for name in names]
            for place in sorted(range(len(learned)), key=lots.__getitem__):
                if not left:
                    break
                may = offspring[place] < self._rules.max_per_row
                if may and self._make(technique, learned[place], names[place], 0):
                    offspring[place] += 1
                    left -= 1
        self.to_say.sort(key=lambda one: rows[one[0].answer])

    def by_label(self, learned: Sequence[Item], goal: int) -> None:
        """The rarest label first, until each has `goal` rows or its rows have had all their offspring."""
        by_label: dict[str, list[tuple[str, Item]]] = {}
        for item in learned:
            by_label.setdefault(item.answer, []).append((row_name(item), item))
        for label in sorted(by_label, key=lambda one: (len(by_label[one]), one)):
            rows = sorted(by_label[label], key=lambda one: lot(self._rules.seed, f"balance:{one[0]}"))
            left = goal - len(rows)
            for number in range(self._rules.max_per_row):
                for name, item in rows:
                    if left > 0:
                        left -= self._make_any(item, name, number)

    def _make_any(self, item: Item, name: str, number: int) -> bool:
        """A technique by its weight; where it can do nothing with this row, the next in the drawn order.

        Of exponential times with these rates the first belongs to each technique with a chance like its weight.
        """
        chance = noise.dice(self._rules.seed, "technique", name, str(number))
        times = {technique: -math.log(1 - chance.random()) / weight for technique, weight in self._weights.items()}
        for technique in sorted(times, key=times.__getitem__):
            if self._make(technique, item, name, number):
                self.asked[technique] += 1
                return True
        return False

    def _make(self, technique: str, item: Item, name: str, number: int) -> bool:
        """One offspring; not where there is nothing to change, or another row gave the same."""
        if technique == PARAPHRASE:
            if asked_text(item):
                self.to_say.append((item, number))
            return bool(asked_text(item))
        made = self._makers[technique](item, noise.dice(self._rules.seed, technique, name, str(number)))
        if made is None or made in self._seen:
            return False
        self._seen.add(made)
        self.drafts.append(_Draft(item, technique, *made))
        return True


def row_name(item: Item) -> str:
    """What a row's chance hangs on: what it says, wherever it stands."""
    words = "\0".join([item.text, item.answer, *(f"{turn.role}:{turn.content}" for turn in item.turns)])
    return hashlib.blake2b(words.encode(errors="surrogatepass"), digest_size=16).hexdigest()


# --- how they are made -----------------------------------------------------------------------------------------------


def _makers(rules: Augment, renderer: Renderer, resolved: ResolvedRecipe) -> dict[str, Make]:
    """Technique -> what makes an offspring of a row. What an answer repeats is left as it is, or exchanged in both."""
    contract = renderer.contract
    closed, swaps = is_read_off(contract.task), read_swaps(resolved)

    def kept(item: Item, text: str, *, spelling: bool) -> noise.Kept:
        """In capitals a word is still the one that the answer repeats, but not where the answer is a copy."""
        answer = _answer(item)
        repeats = not closed and (spelling or contract.task == "extraction")
        words = frozenset(_WORD.findall(answer)) if repeats else frozenset[str]()
        return noise.keep(text, template=contract.input, words=words, phrase=answer if closed else "")

    def with_answer(made: str | None, item: Item) -> noise.Pair | None:
        return None if made is None else (made, _answer(item))

    def typos(item: Item, chance: noise.Dice) -> noise.Pair | None:
        text = asked_text(item)
        return with_answer(noise.typos(text, kept(item, text, spelling=True), chance, rate=rules.typo_rate), item)

    def case(item: Item, chance: noise.Dice) -> noise.Pair | None:
        text = asked_text(item)
        return with_answer(noise.case(text, kept(item, text, spelling=False), chance), item)

    def punctuation(item: Item, chance: noise.Dice) -> noise.Pair | None:
        text = asked_text(item)
        return with_answer(noise.punctuation(text, kept(item, text, spelling=False), chance), item)

    def swap(item: Item, chance: noise.Dice) -> noise.Pair | None:
        assert swaps is not None  # the recipe is refused otherwise
        text, answer = asked_text(item), _answer(item)
        stays = noise.keep(text, template=contract.input, phrase=answer if closed else "")
        free = "" if closed else answer
        made = swaps.swap(text, stays, chance, answer=free, both=contract.task == "translation")
        return (made[0], answer) if made and closed else made

    return {"typos": typos, "case": case, "punctuation": punctuation, "swap": swap}


def _answer(item: Item) -> str:
    return item.turns[-1].content if item.turns else item.answer


def _offspring(draft: _Draft, text: str) -> Item:
    parent = draft.parent
    marks = {"made_by": draft.technique, "parent": _place(parent)}
    if not parent.turns:
        return dataclasses.replace(parent, text=text, answer=draft.answer, **marks)  # type: ignore[arg-type]
    turns = list(parent.turns)
    last = max(place for place, turn in enumerate(turns[:-1]) if turn.role == "user")
    turns[last] = turns[last].model_copy(update={"content": text})
    turns[-1] = turns[-1].model_copy(update={"content": draft.answer})
    return dataclasses.replace(parent, turns=tuple(turns), **marks)  # type: ignore[arg-type]


def _place(item: Item) -> str:
    return f"{item.file}:{item.line}"


# --- which of them may stay ------------------------------------------------------------------------------------------


def _accepted(
    drafts: Sequence[_Draft], items: Sequence[Item], renderer: Renderer, resolved: ResolvedRecipe, ledger: Ledger
) -> list[tuple[Item, Item]]:
    """Offspring that may stay, each with its parent; the others are counted with the reason."""
    checks = _Checks(items, renderer)
    pairs = []
    for draft in drafts:
        made, reason = checks.made(draft)
        if reason:
            ledger.unmade[draft.technique, reason] += 1
        else:
            pairs.append((made, draft.parent))
    kept = _off_benchmarks(_off_kept_back(pairs, items, renderer, resolved, ledger), renderer, resolved, ledger)
    return kept


class _Checks:
    """What each offspring is held against, by itself."""

    def __init__(self, items: Sequence[Item], renderer: Renderer) -> None:
        self._renderer = renderer
        self._closed = is_read_off(renderer.contract.task)
        learned = [item for item in items if item.split == "train"]
        self._texts = {(asked_text(item), _answer(item)) for item in learned}
        self._labels: dict[str, str] = {item.key: item.answer for item in learned} if self._closed else {}
        self._kept_back = {item.key for item in items if item.split != "train" and not item.contaminated}

    def made(self, draft: _Draft) -> tuple[Item, str]:
        """The offspring, and why it cannot stay, or ''."""
        contract = self._renderer.contract
        text = prepare_text(draft.text, transforms=contract.transforms, redact_personal=False, redact_secrets=False)
        item = _offspring(draft, text)
        pair = (text, draft.answer)
        if not text:
            return item, "empty"
        if pair in self._texts:
            return item, "duplicate"
        if self._labels.get(item.key, item.answer) != item.answer:
            return item, "other_label"
        if item.key in self._kept_back:
            return item, "kept_back"
        found = self._finds(*pair)
        if found and found - self._finds(asked_text(draft.parent), _answer(draft.parent)):
            return item, "personal_data"
        self._texts.add(pair)
        return item, ""

    def _finds(self, text: str, answer: str) -> Counter[str]:
        texts = [text] if self._closed else [text, answer]
        return Counter(span.kind for one in texts for span in self._renderer.find(one))


def _off_kept_back(
    pairs: Sequence[tuple[Item, Item]],
    items: Sequence[Item],
    renderer: Renderer,
    resolved: ResolvedRecipe,
    ledger: Ledger,
) -> list[tuple[Item, Item]]:
    """Without those that nearly say what a row of validation or test says that training has not seen."""
    threshold, contract = resolved.recipe.data.leakage.threshold, renderer.contract
    if threshold is None or not pairs:
        return list(pairs)
    held = [item for item in items if item.split != "train" and not item.contaminated]
    texts = [compared_text(item, contract.input) for item in [*held, *(made for made, _ in pairs)]]
    alike, closed = NearPairs(texts, threshold, left=len(held)).before(), is_read_off(contract.task)
    kept = []
    for place, pair in enumerate(pairs, start=len(held)):
        like = any(not closed or held[match.index].answer == pair[0].answer for match in alike.get(place, ()))
        if like:
            ledger.unmade[pair[0].made_by, "like_kept_back"] += 1
        else:
            kept.append(pair)
    return kept


def _off_benchmarks(
    pairs: list[tuple[Item, Item]], renderer: Renderer, resolved: ResolvedRecipe, ledger: Ledger
) -> list[tuple[Item, Item]]:
    if not resolved.recipe.data.leakage.benchmarks or not pairs:
        return pairs
    aside = Ledger(ledger.detector)
    stay = {
        id(made) for made in keep_off_benchmarks([made for made, _ in pairs], renderer.contract, resolved, aside)[0]
    }
    ledger.unmade.update(aside.unmade)
    return [pair for pair in pairs if id(pair[0]) in stay]


def _examples(pairs: Sequence[tuple[Item, Item]], renderer: Renderer) -> tuple[TextChange, ...]:
    """Pairs for people to look at; a text with a find, or whose parent has one, is not shown at all."""
    shown: list[TextChange] = []
    for made, parent in pairs:
        before, after = asked_text(parent), asked_text(made)
        if len(shown) == SHOWN:
            break
        if not renderer.find(before) and not renderer.find(after):
            cut = (before[:_SHOWN_CHARS], after[:_SHOWN_CHARS])
            shown.append(TextChange(file=parent.file, line=parent.line, before=cut[0], after=cut[1]))
    return tuple(shown)
