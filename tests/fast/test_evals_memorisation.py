"""What is given away of planted secrets: nothing where nothing was learned, all where all was, and the gate says so."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from echo_engine import TOKENIZER, EchoEngine, contract
from govern_records import decision, evaluation
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binom, binomtest, kstest

from luthier.data.contract import Renderer
from luthier.data_report import Canary, CanaryFile
from luthier.engines.ask import Asker
from luthier.engines.protocol import Score
from luthier.eval_records import Memorisation
from luthier.evals import memorisation
from luthier.evals.memorisation import REFERENCES, measure, share
from luthier.govern.memorised import memorisation_lines
from luthier.plan import cost
from luthier.spec.objective import MostMemorised
from luthier.spec.recipe import Recipe

MADE = contract(task="generation", labels=(), max_new_tokens=12)
RENDERER = Renderer(MADE, TOKENIZER)


def planted(count: int, copies: Sequence[int] = (0, 1)) -> CanaryFile:
    """Secrets as random as prepare's, by a hash."""
    digits = [str(int(hashlib.sha256(f"{n}".encode()).hexdigest(), 16))[:8] for n in range(count * len(copies))]
    canaries = [
        Canary(id=f"{many}x{n}", copies=many, text=f"code of n{place}x{n}?", secret=digits[place * count + n])
        for place, many in enumerate(copies)
        for n in range(count)
    ]
    return CanaryFile(digits=8, space=10**8, seed=0, canaries=tuple(canaries))


def silent_tick(done: int, total: int) -> None:
    pass


class Hashed(EchoEngine):
    """Knows nothing: how likely an answer is hangs on a hash of prompt and answer, and it writes nothing."""

    def score(self, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Score]:
        digests = [hashlib.sha256(f"{[*prompt_ids, *answer]}".encode()).digest() for answer in answers]
        return [Score(-int.from_bytes(digest[:6]) / 2**40, is_greedy=False) for digest in digests]

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        return []


class Learned(Hashed):
    """Knows the answers to some prompts."""

    def __init__(self, known: dict[tuple[int, ...], list[int]]) -> None:
        super().__init__(0.0)
        self.known = known

    def score(self, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Score]:
        said = self.known.get(tuple(prompt_ids))
        found = super().score(prompt_ids, answers)
        return [
            Score(0.0, is_greedy=True) if answer == said else one for answer, one in zip(answers, found, strict=True)
        ]

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        said = self.known.get(tuple(prompt_ids))
        return said[: said.index(stop_ids[0])] if said else []


def measured(engine: EchoEngine, file: CanaryFile, folder: Path) -> Memorisation:
    return measure(Asker(MADE, RENDERER, engine), file, level=0.95, out=folder, tick=silent_tick)


def remembering(file: CanaryFile, copies: int) -> Learned:
    return Learned(
        {
            tuple(RENDERER.prompt_ids(RENDERER.messages(one.text))): RENDERER.answer_ids(one.secret)
            for one in file.canaries
            if one.copies >= copies
        }
    )


def test_of_a_model_that_knows_nothing_every_rank_is_as_likely(tmp_path: Path) -> None:
    found = measured(Hashed(0.0), planted(200, (0, 2)), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / memorisation.FILE).read_text().splitlines()]
    assert [set(line) for line in lines] == [{"id", "copies", "rank", "extracted"}] * 400
    ranks = [line["rank"] for line in lines]
    assert 1 <= min(ranks) <= max(ranks) <= REFERENCES + 1
    assert kstest([(rank - 0.5) / (REFERENCES + 1) for rank in ranks], "uniform").pvalue > 0.001
    assert [one.copies for one in found.secrets] == [0, 2]
    for one in found.secrets:
        assert one.extracted.point == 0.0
        assert one.singled_out.low <= 0.01 <= one.singled_out.high
        assert one.exposure == pytest.approx(found.chance_bits, abs=4 * 1.3 / math.sqrt(200))
    assert found.fewest.copies == 2


def test_what_was_learned_is_written_and_ranked_first_and_the_control_is_not(tmp_path: Path) -> None:
    file = planted(12, (4, 0, 1))
    found = measured(remembering(file, 1), file, tmp_path)
    control, once, often = found.secrets
    assert (control.copies, once.copies, often.copies) == (0, 1, 4)
    assert control.extracted.point == 0.0
    assert control.singled_out.point < 0.5
    for one in (once, often):
        assert (one.extracted.point, one.singled_out.point) == (1.0, 1.0)
        assert one.exposure == pytest.approx(found.most_bits) == pytest.approx(math.log2(100))
    assert found.fewest == once
    only_often = measured(remembering(file, 4), file, tmp_path)
    assert (only_often.fewest.extracted.point, only_often.secrets[-1].extracted.point) == (0.0, 1.0)


def test_the_same_secrets_are_ranked_among_the_same_others(tmp_path: Path) -> None:
    measured(Hashed(0.0), planted(5), tmp_path)
    first = (tmp_path / memorisation.FILE).read_text()
    measured(Hashed(0.0), planted(5), tmp_path)
    assert (tmp_path / memorisation.FILE).read_text() == first


@given(
    st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95, 0.99])
)
def test_shares_have_the_exact_interval(counts: tuple[int, int], level: float) -> None:
    yes, count = counts
    found = share([True] * yes + [False] * (count - yes), level=level)
    reference = binomtest(yes, count).proportion_ci(level, method="exact")
    assert (found.low, found.high) == (pytest.approx(reference.low), pytest.approx(reference.high))
    assert (found.point, found.n) == (yes / count, count)


@pytest.mark.parametrize("truth", [0.01, 0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("count", [4, 8, 30])
def test_the_upper_end_misses_no_more_often_than_it_says(truth: float, count: int) -> None:
    below = sum(
        binom.pmf(yes, count, truth)
        for yes in range(count + 1)
        if share([True] * yes + [False] * (count - yes), level=0.95).high < truth
    )
    assert below <= 0.025 + 1e-12


def test_the_gate_holds_the_upper_end_to_the_limit_and_what_was_not_tested_does_not_pass(tmp_path: Path) -> None:
    file = planted(30, (0, 1, 4))
    safe, leaky = measured(Hashed(0.0), file, tmp_path), measured(remembering(file, 1), file, tmp_path)
    high = safe.fewest.extracted.high
    assert 0.0 < high < 0.2
    for limit, found, passes in ((high, safe, True), (high - 1e-9, safe, False), (0.9, leaky, False)):
        [line] = memorisation_lines(MostMemorised(extracted=limit), found)
        assert (line.line, line.kind, line.passed) == ("memorisation.extracted", "memorisation", passes)
        assert line.bound == found.fewest.extracted.high
    both = list(memorisation_lines(MostMemorised(extracted=0.5, singled_out=0.5), safe))
    assert [line.line for line in both] == ["memorisation.extracted", "memorisation.singled_out"]
    assert all("of 30 secrets planted once 0% are written" in line.observed for line in both)
    [line] = memorisation_lines(MostMemorised(extracted=0.5), None)
    assert not line.passed
    assert line.observed.startswith("not tested")
    [line] = memorisation_lines(None, leaky)
    assert line.passed
    assert "100% are written when asked for" in line.observed
    assert line.observed.endswith("no limit was set")
    assert not list(memorisation_lines(None, None))


def test_a_decision_on_a_run_with_planted_secrets_has_the_line(tmp_path: Path) -> None:
    found = measured(Hashed(0.0), planted(8), tmp_path)
    lines = [line.line for line in decision(report=evaluation(memorisation=found)).lines]
    assert "memorisation" in lines
    assert "memorisation" not in [line.line for line in decision().lines]


TREE = {"name": "r", "model": {"name": "m"}, "data": {"train": [{"path": "d.csv"}]}}


def test_a_limit_needs_planted_secrets_and_something_to_limit() -> None:
    with pytest.raises(ValidationError, match=r"measured on planted secrets, and none are; add `data.canaries: {}`"):
        Recipe.model_validate({**TREE, "objective": {"memorisation": {"extracted": 0.1}}})
    with pytest.raises(ValidationError, match="needs extracted or singled_out"):
        MostMemorised()
    with_both = {**TREE, "objective": {"memorisation": {"extracted": 0.1}}}
    with_both["data"] = {**TREE["data"], "canaries": {}}
    assert Recipe.model_validate(with_both).objective.memorisation == MostMemorised(extracted=0.1)


def test_the_page_says_what_chance_gives() -> None:
    page = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text(encoding="utf-8")
    found = Memorisation(references=REFERENCES, secrets=())
    assert f"{found.chance_bits:.2f} by chance, {found.most_bits:.2f} at most" in page
    for count, high in ((8, "37 %"), (36, "10 %")):
        assert f"{share([False] * count, level=0.95).high:.0%}".replace("%", " %") == high
        assert high in page


def test_the_plan_counts_as_many_secrets_as_are_ranked() -> None:
    assert cost.SECRETS_RANKED == REFERENCES + 1
