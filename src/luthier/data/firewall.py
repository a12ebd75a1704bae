"""Between what is learned and what is asked: equal texts, texts that are nearly equal, shared groups, benchmarks.

Rows of validation that training has seen are set aside. Rows of test stay and are marked: every system answers them,
but they do not count, and the score that they would have given is reported beside the one that counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.data.chat import parse_chat
from luthier.data.dedupe import text_key, without_wording
from luthier.data.features import Features
from luthier.data.guard import pseudonym_key, treated
from luthier.data.inputs import as_text, fill
from luthier.data.items import Item, Ledger, Verdict
from luthier.data.likeness import Comparison, Likeness, Seen
from luthier.data.near import Match, NearPairs
from luthier.data.privacy.pseudonyms import Pseudonyms
from luthier.data.read import Row, read_source
from luthier.data.source import open_source
from luthier.data_report import BenchmarkOverlap, Leakage
from luthier.errors import DataError
from luthier.records import Contamination, RequestContract, SplitName, is_closed
from luthier.spec.recipe import Privacy
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.template import fields

if TYPE_CHECKING:
    from luthier.data.by_meaning import Meanings

MOST_JOINED = 0.1
"""Share of the rows that a group may have after near-duplicates were joined; a larger one would decide the split."""

SHORTEST_CELL = 20
"""Characters of a benchmark's cell, where its columns are not ours; a shorter one, a label say, proves nothing."""

_WORDS: dict[Contamination, str] = {
    "exact": "a row that is learned from has the same text",
    "near": "a row that is learned from has nearly the same text",
    "group": "a row that is learned from has the same group",
    "meaning": "a row that is learned from means the same",
}
_REASONS: dict[Contamination, str] = {
    "exact": "leaked_text", "near": "leaked_near", "group": "leaked_group", "meaning": "leaked_meaning",
}  # fmt: skip


@dataclass(frozen=True)
class Firewall:
    """What keeps learned rows and those that are evaluated apart: when splits are drawn, and in a check after it."""

    contract: RequestContract
    items: Sequence[Item]
    likeness: Likeness | None
    """There where texts are compared by likeness."""
    comparison: Comparison | None
    """None where only equal texts and groups are looked for."""

    def joined_groups(self, items: Sequence[Item]) -> tuple[list[str], int]:
        """A group for each item to be drawn by: groups that near-duplicates link are one.

        Links chain, because a row on each side of the split is enough for a leak. Where a chain grows above
        `MOST_JOINED` of the rows its groups stay as they were, and the check after the draw marks what leaks.

        Returns:
            The groups, and the number of rows whose groups were left apart.
        """
        groups = [item.group for item in items]
        if self.comparison is None:
            return groups, 0
        assert self.likeness is not None
        pairs = self.likeness.pairs(self.items, self.comparison)
        parent = {group: group for group in groups}

        def root(group: str) -> str:
            while parent[group] != group:
                parent[group] = group = parent[parent[group]]
            return group

        ours = {id(item) for item in items}
        for earlier, later in zip(pairs.earlier.tolist(), pairs.later.tolist(), strict=True):
            pair = self.items[earlier], self.items[later]
            if all(id(item) in ours for item in pair):
                one, other = sorted(root(item.group) for item in pair)
                parent[other] = one  # the name does not depend on the order of the rows
        sizes = Counter(root(group) for group in groups)
        before = Counter(groups)
        most = max(2, MOST_JOINED * len(items))
        apart = {name for name, size in sizes.items() if size > most and size > before[name]}
        drawn = [group if root(group) in apart else root(group) for group in groups]
        return drawn, sum(sizes[name] for name in apart)

    def check(
        self, items: Sequence[Item], ledger: Ledger, meanings: Meanings | None = None
    ) -> tuple[list[Item], tuple[Leakage, ...]]:
        """Set aside validation rows that training has seen, mark test rows; for test, validation counts as training.

        The weights are chosen by the validation rows, so these are seen too.
        """
        learned = [item for item in items if item.split == "train"]
        keys, groups = {item.digest for item in learned}, {item.group for item in learned}
        verdicts: dict[int, Verdict] = {}
        leaks = []
        splits: tuple[SplitName, ...] = ("validation", "test")
        for split in splits:
            rows = [item for item in items if item.split == split]
            near = self._near(learned, rows)
            found: Counter[Contamination] = Counter()
            kinds: dict[int, Contamination] = {}
            for item in rows:
                kind: Contamination = "exact" if item.digest in keys else ""
                kind = kind or ("near" if id(item) in near.rows else "")
                kinds[id(item)] = kind or ("group" if item.group in groups else "")
            if meanings is not None:
                clean = [item for item in rows if not kinds[id(item)]]
                kinds |= dict.fromkeys(meanings.seen(clean, learned), "meaning")
            for item in rows:
                kind = kinds[id(item)]
                if not kind:
                    continue
                found[kind] += 1
                if split == "test":
                    item.contaminated = kind
                else:
                    verdicts[id(item)] = (_REASONS[kind], _WORDS[kind])
            leaks.append(
                Leakage(
                    split=split, exact=found["exact"], near=found["near"], group=found["group"],
                    meaning=found["meaning"], crowded=near.crowded,
                )
            )  # fmt: skip
            keys |= {item.digest for item in rows}
            groups |= {item.group for item in rows}
            learned += [item for item in rows if id(item) not in verdicts]
        return ledger.sift("leakage", items, [verdicts.get(id(item)) for item in items]), tuple(leaks)

    def _near(self, learned: Sequence[Item], rows: Sequence[Item]) -> Seen:
        """Rows that nearly say what a learned one says; in a closed set, under another label it gives nothing away."""
        if self.comparison is None:
            return Seen(set(), 0)
        assert self.likeness is not None
        same_answer = is_closed(self.contract.task)
        return self.likeness.seen(learned, rows, self.comparison, same_answer=same_answer)


def keep_off_benchmarks(
    items: Sequence[Item],
    contract: RequestContract,
    resolved: ResolvedRecipe,
    ledger: Ledger,
    meanings: Meanings | None = None,
) -> tuple[list[Item], tuple[BenchmarkOverlap, ...]]:
    """Set aside rows of train that stand, or nearly stand, in a named benchmark file.

    Raises:
        DataError: a file cannot be used, or holds no text.
    """
    rules = resolved.recipe.data.leakage
    verdicts: dict[int, Verdict] = {}
    overlaps = []
    learned = [item for item in items if item.split == "train"]
    for file in rules.benchmarks:
        lines, shown = _benchmark_texts(file, contract, resolved, ledger)
        texts = [without_wording(text_key(text), contract.input) for text in shown]
        line_of = dict(zip(reversed(texts), reversed(lines), strict=True))
        keys = [_question(item, contract.input) for item in learned]
        beside, crowded = dict[int, list[Match]](), 0
        if rules.threshold is not None:
            pairs = NearPairs([*texts, *keys], rules.threshold, left=len(texts))
            beside, crowded = pairs.before(), pairs.crowded
        counts: Counter[str] = Counter()
        others: list[Item] = []
        for place, item in enumerate(learned, start=len(texts)):
            exact = line_of.get(keys[place - len(texts)])
            near = beside.get(place, [])[:1] if exact is None else []
            if exact is None and not near:
                others.append(item)
                continue
            line = exact if exact is not None else lines[near[0].index]
            counts["exact" if exact is not None else "near"] += 1
            likeness = "" if exact is not None else f", likeness {near[0].jaccard:.2f}"
            verdicts.setdefault(id(item), ("benchmark", f"stands in {file}:{line}{likeness}"))
        alike = meanings.in_benchmark(others, texts, lines, file, shown) if meanings is not None else {}
        for item_id, like in alike.items():
            detail = f"stands in {file}:{lines[like.index]} by meaning, likeness {like.cosine:.2f}"
            verdicts.setdefault(item_id, ("benchmark", detail))
        overlaps.append(
            BenchmarkOverlap(
                file=file, rows=len(set(lines)), exact=counts["exact"], near=counts["near"], meaning=len(alike),
                crowded=crowded,
            )
        )  # fmt: skip
    if not rules.benchmarks:
        return list(items), ()
    return ledger.sift("benchmarks", items, [verdicts.get(id(item)) for item in items]), tuple(overlaps)


def _question(item: Item, template: str) -> str:
    """What of a row is compared with a benchmark: the user's turns, without what stands around them."""
    if item.turns:
        return text_key("\n".join(turn.content for turn in item.turns[:-1] if turn.role == "user"))
    return without_wording(item.key, template)


def _benchmark_texts(
    file: str, contract: RequestContract, resolved: ResolvedRecipe, ledger: Ledger
) -> tuple[list[int], list[str]]:
    """Lines and texts of a benchmark, treated as our rows were, so that the same texts are the same still.

    Our input where it has our columns; of conversations the user's turns; else each longer cell for itself.
    """
    path = resolved.file(file)
    columns = fields(contract.input) if contract.input else ()
    features = Features.of(contract)
    rules = resolved.recipe.data.privacy or Privacy()
    pseudonyms = Pseudonyms(key) if (key := pseudonym_key(rules)) else None
    read = read_source(open_source(path))
    lines, texts = [], []
    for row in features.each(read, whole_only=True) if features else read:
        if not isinstance(row, Row):
            continue
        if columns and all(name in row.values for name in columns):
            cells = [fill(contract.input, row.values)]
        else:
            cells = [_asked(cell) for cell in row.values.values()]
            cells = [cell for cell in cells if len(cell) >= SHORTEST_CELL]
        for cell in cells:
            text = treated(cell, contract, ledger.detector, pseudonyms)
            if without_wording(text_key(text), contract.input).strip():
                lines.append(row.line)
                texts.append(text)
    if not texts:
        raise DataError(
            f"data.leakage.benchmarks: {path} has no cell of {SHORTEST_CELL} characters or more to compare with",
            way_out="name a file that holds the benchmark's texts",
        )
    return lines, texts


def _asked(cell: object) -> str:
    """A cell as text; of a conversation what the user says before the last answer."""
    turns = parse_chat(cell)
    if isinstance(turns, str):
        return as_text(cell)
    return "\n".join(turn.content for turn in turns[:-1] if turn.role == "user")
