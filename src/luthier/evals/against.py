"""Two runs on the same test rows, paired item by item, from what each has stored; no model is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from luthier.data.shards import Example
from luthier.errors import RunError
from luthier.eval_records import RunComparison
from luthier.evals.compare import differences, points_of
from luthier.evals.intervals import Bootstrap
from luthier.evals.observed import Observed
from luthier.evals.score import with_rewards
from luthier.evals.stored import Stored, read_system

_SHOWN = 3


def compare_runs(one: Stored, other: Stored, *, resamples: int, level: float, seed: int) -> RunComparison:
    """The tuned model of `one` minus that of `other`, on the test rows that training has seen in neither.

    Args:
        one: whose groups are resampled.
        other: a run over the same test rows.
        resamples: of the bootstrap.
        level: of the two-sided intervals.
        seed: of the resamples.

    Raises:
        RunError: the runs were not asked the same rows, the message says in what they differ; or what one of them
            stored is missing or damaged.
    """
    shared = shared_rows([one, other])
    said, told = shared.said
    bootstrap = Bootstrap(shared.groups, resamples=resamples, level=level, rng=np.random.default_rng(seed))
    return RunComparison(
        run=one.name,
        against=other.name,
        num_items=bootstrap.num_items,
        num_groups=bootstrap.num_groups,
        not_counted=shared.not_counted,
        differences=differences({"tuned": said, other.name: told}, bootstrap),
        against_points=points_of(told),
        left_out=shared.left_out,
    )


@dataclass(frozen=True)
class SharedRows:
    """What several runs said to the test rows that training has seen in none of them."""

    places: tuple[int, ...]
    """Of these rows among all test rows."""
    said: tuple[Observed, ...]
    """By the tuned model of each run."""
    groups: tuple[str, ...]
    """Of each row, as the first run has them."""
    not_counted: int
    left_out: tuple[str, ...]
    """Metrics that the runs cannot be compared by, with the reason."""


def shared_rows(stores: Sequence[Stored]) -> SharedRows:
    """Put together what runs over the same test rows have stored.

    Raises:
        RunError: see `compare_runs`.
    """
    first, *others = stores
    for other in others:
        _refuse_other_items(first, other)
    clean = [
        place
        for place, rows in enumerate(zip(*(one.test for one in stores), strict=True))
        if not any(row.contaminated for row in rows)
    ]
    if not clean:
        named = " and ".join(one.name for one in stores)
        raise RunError(
            f"{named}: there is no test row that training has seen in {'neither' if len(stores) == 2 else 'none'}",
            way_out="give other rows as data.test and run both again",
        )
    said, left_out = [read_system(one, "tuned").only(clean) for one in stores], []
    if any(not np.array_equal(said[0].terms[:, 1:], seen.terms[:, 1:]) for seen in said):
        left_out = ["term_accuracy: the runs were asked for other terms"]
        said = [replace(seen, terms=np.empty((0, 2))) for seen in said]
    if any(not np.array_equal(said[0].answer_tokens, seen.answer_tokens) for seen in said):
        left_out.append("perplexity: the runs count other tokens, bits a byte do not")
        said = [replace(seen, answer_tokens=np.empty(0)) for seen in said]
    if any(seen.leads.size for seen in said):
        left_out.append("preference_margin: each method has its own unit")
        said = [replace(seen, leads=np.empty(0)) for seen in said]
    if any(one.contract.rewards != first.contract.rewards for one in stores):
        left_out.append("reward: the runs verify answers in other ways")
    else:
        said = [with_rewards(seen, first.contract) for seen in said]
    groups = tuple(first.test[place].group for place in clean)
    return SharedRows(tuple(clean), tuple(said), groups, len(first.test) - len(clean), tuple(left_out))


def _refuse_other_items(one: Stored, other: Stored) -> None:
    """Items are the same where the same text is asked, the same answer is expected, and the same answers are possible.

    How the question is worded around the text (system prompt, template) may differ: that is what is compared.
    """
    way_out = "run both recipes on the same file with the same data.split, data.clean and data.privacy"
    pair = f"{one.name} and {other.name} cannot be compared"
    if one.contract.task != other.contract.task:
        raise RunError(f"{pair}: one is {one.contract.task}, the other {other.contract.task}", way_out=way_out)
    if set(one.contract.labels) != set(other.contract.labels):
        odd = sorted(set(one.contract.labels) ^ set(other.contract.labels))
        shown = ", ".join(map(repr, odd[:_SHOWN]))
        raise RunError(f"{pair}: {len(odd)} labels are known to one of them only: {shown}", way_out=way_out)
    if one.contract.tags != other.contract.tags:
        raise RunError(f"{pair}: they have learned other labels", way_out=way_out)
    if (orders := {one.contract.label_order, other.contract.label_order} - {()}) and len(orders) > 1:
        raise RunError(f"{pair}: their labels stand in another order", way_out="give both the same data.labels.order")
    mine, its = _items(one.test), _items(other.test)
    if mine == its:
        return
    only = [Counter(rows) - Counter(others) for rows, others in ((mine, its), (its, mine))]
    said = [
        f"{missing.total()} test rows stand in {stored.name} only (line {', '.join(_lines(missing))})"
        for missing, stored in zip(only, (one, other), strict=True)
        if missing
    ]
    raise RunError(f"{pair}: {'; '.join(said) or 'their test rows stand in another order'}", way_out=way_out)


def _items(test: Sequence[Example]) -> list[tuple[int, str, str, str]]:
    return [(row.line, row.text, row.answer, row.rejected) for row in test]


def _lines(rows: Counter[tuple[int, str, str, str]]) -> list[str]:
    lines = sorted(line for line, *_ in rows)
    return [*map(str, lines[:_SHOWN]), *(["..."] if len(lines) > _SHOWN else [])]
