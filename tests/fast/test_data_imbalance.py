"""Weights and samplers: their sums and shares by algebra, and that they follow from the seed alone."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import samples
from data_kit import resolved
from hypothesis import given
from hypothesis import strategies as st
from test_data_cut import made

from luthier.data.imbalance import balance, drawn_epoch, label_weights, quotas, row_weights
from luthier.data.prepare import prepare
from luthier.data.shards import Example
from luthier.data_report import DataReport
from luthier.errors import DataError, RecipeError
from luthier.spec.fill_training import EFFECTIVE_BETA
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe, load_recipe
from luthier.spec.recipe import Recipe, Sampler, Train
from luthier.spec.resolve import resolve
from luthier.train.batches import steps_of
from rows_kit import inputs_of

COUNTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 400), min_size=1, max_size=8)
SAMPLERS: tuple[Sampler, ...] = ("balanced", "sqrt", 1.0, 3.5)
SAMPLER = st.sampled_from(SAMPLERS)


@given(COUNTS, st.sampled_from(["balanced", "effective"]), st.floats(0.01, 0.9999))
def test_weights_keep_the_size_of_the_loss_and_favour_the_rare(counts: dict[str, int], asked: str, beta: float) -> None:
    weights = label_weights(counts, asked, beta=beta)  # type: ignore[arg-type]
    assert math.isclose(sum(counts[label] * weights[label] for label in counts), sum(counts.values()))
    ordered = sorted(counts, key=counts.__getitem__)
    for rarer, commoner in itertools.pairwise(ordered):
        assert weights[rarer] >= weights[commoner] * (1 - 1e-9)


def test_weights_by_the_formulas() -> None:
    counts = {"a": 900, "b": 90, "c": 10}
    # scikit-learn's 'balanced': N / (K n_l)
    assert label_weights(counts, "balanced") == pytest.approx({"a": 1000 / 2700, "b": 1000 / 270, "c": 1000 / 30})
    # Cui et al., eq. 2: the ratio of two weights is the ratio of the effective numbers E_n = (1 - b^n) / (1 - b)
    found, beta = label_weights(counts, "effective", beta=0.99), 0.99
    effective = {label: (1 - beta**rows) / (1 - beta) for label, rows in counts.items()}
    assert found["c"] / found["a"] == pytest.approx(effective["a"] / effective["c"])
    assert label_weights(counts, "effective", beta=1e-9) == pytest.approx(dict.fromkeys(counts, 1.0))
    nearly = label_weights(counts, "effective", beta=1 - 1e-9)
    assert nearly == pytest.approx(label_weights(counts, "balanced"), rel=1e-4)
    given_ones = label_weights(counts, {"c": 5.0})
    assert given_ones["c"] / given_ones["a"] == pytest.approx(5)
    assert given_ones["a"] == given_ones["b"]


def test_the_number_of_effective_is_read() -> None:
    labels = ["a"] * 50 + ["b"] * 2
    sets = [Train(class_weight="effective", class_weight_beta=beta) for beta in (None, 0.999, 0.5)]
    made = [row_weights(labels, one) for one in sets]
    assert made[0] == made[1] != made[2]
    assert row_weights(labels, Train()) is None


def test_a_mapping_of_a_label_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match=r"the label 'reefund', which no training row has\n  -> labels .*: a, refund"):
        label_weights({"a": 1, "refund": 2}, {"reefund": 2.0})


@given(COUNTS, SAMPLER)
def test_quotas_fill_an_epoch_and_lie_between_what_is_there_and_even_shares(
    counts: dict[str, int], sampler: Sampler
) -> None:
    found, total = quotas(counts, sampler), sum(counts.values())
    assert sum(found.values()) == total
    assert min(found.values()) >= 1
    power = {"balanced": 0.0, "sqrt": 0.5}[sampler] if isinstance(sampler, str) else 1 / sampler
    whole = sum(rows**power for rows in counts.values())
    for label, rows in counts.items():
        assert abs(found[label] - total * rows**power / whole) < 1 + 1e-6
    if sampler == 1.0:
        assert found == dict(sorted(counts.items()))


LABELS = st.lists(st.sampled_from("aaaabbc"), min_size=1, max_size=60)


@given(LABELS, SAMPLER, st.integers(0, 3))
def test_no_row_comes_twice_before_all_of_its_label_have_come(labels: list[str], sampler: Sampler, seed: int) -> None:
    times: Counter[int] = Counter()
    for epoch in range(4):
        drawn = drawn_epoch(labels, sampler, seed=seed, epoch=epoch).tolist()
        assert len(drawn) == len(labels)
        assert drawn == drawn_epoch(labels, sampler, seed=seed, epoch=epoch).tolist()
        expected = quotas(Counter(labels), sampler)
        assert Counter(labels[row] for row in drawn) == expected
        times.update(drawn)
        for label in set(labels):
            own = [times[row] for row, name in enumerate(labels) if name == label]
            assert max(own) - min(own) <= 1


def test_a_sampler_draws_as_many_rows_an_epoch_so_that_the_plan_holds() -> None:
    labels = ["a"] * 36 + ["b"] * 4
    rows = [Example(n, "", "", label, 1, [1, 2, 3], [False, True, True]) for n, label in enumerate(labels)]
    plans = [
        steps_of(inputs_of(rows), Train(batch_size=8, num_train_epochs=3, seed=5, sampler=sampler))
        for sampler in ("shuffle", "balanced", "balanced")
    ]
    assert [len(step.rows) for step in plans[0]] == [len(step.rows) for step in plans[1]]
    assert [step.epoch for step in plans[0]] == [step.epoch for step in plans[1]]
    assert plans[1] == plans[2]
    first = [row for step in plans[1][:5] for row in step.rows]
    assert Counter(labels[row] for row in first) == {"a": 20, "b": 20}
    assert first != [row for step in plans[1][5:10] for row in step.rows]


def test_the_report_says_what_each_label_counts() -> None:
    counts = {"a": 30, "b": 10}
    assert balance(counts, Train()) == ()
    weighted = balance(counts, Train(class_weight="balanced"))
    assert [(one.label, one.rows, one.rows_an_epoch) for one in weighted] == [("a", 30, 30), ("b", 10, 10)]
    assert [one.effective_share for one in weighted] == pytest.approx([0.5, 0.5])
    assert [one.weight for one in weighted] == pytest.approx([2 / 3, 2])
    drawn = balance(counts, Train(sampler="balanced"))
    assert [(one.weight, one.rows_an_epoch, one.effective_share) for one in drawn] == [(1, 20, 0.5), (1, 20, 0.5)]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("{class_weight: even}", "is 'balanced', 'effective', or a number above 0 for each label, found 'even'"),
        ("{class_weight: {a: 0}}", "is 'balanced', 'effective', or a number above 0 for each label"),
        ("{class_weight: {}}", "is 'balanced', 'effective', or a number above 0 for each label"),
        ("{sampler: 0.5}", "is 'shuffle', 'balanced', 'sqrt' or a temperature of at least 1, found 0.5"),
        ("{sampler: even}", "is 'shuffle', 'balanced', 'sqrt' or a temperature of at least 1, found 'even'"),
        ("{sampler: sqrt, class_weight: balanced}", "class_weight and sampler make up for the same thing; keep one"),
        ("{class_weight_beta: 0.9}", "class_weight_beta belongs to class_weight: effective"),
    ],
)
def test_values_that_mean_nothing_are_refused(tmp_path: Path, train: str, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"name: r\nmodel: {{name: m}}\ndata: {{train: [{{path: d.csv}}]}}\ntrain: {train}\n")
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}:4: train")


@pytest.mark.parametrize("train", [{"class_weight": "balanced"}, {"sampler": "sqrt"}])
def test_free_text_has_no_labels_to_go_by(train: dict[str, str]) -> None:
    tree = {
        "name": "r", "model": {"name": "m"}, "train": train,
        "data": {"train": [{"path": "d.csv", "task": "generation", "input": "{message}", "label": "intent"}]},
    }  # fmt: skip
    loaded = LoadedRecipe(Recipe.model_validate(tree), Path("r.yaml"), "", ())
    with pytest.raises(RecipeError, match=rf"train\.{next(iter(train))} goes by label, and generation has none\n  ->"):
        resolve(
            loaded, samples.profile(), samples.shape(), machine=Machine(threads=1), data_sha256={}, luthier_version="0"
        )


def test_prepare_reports_it_and_refuses_labels_that_are_not_there(tmp_path: Path) -> None:
    rows = [{"message": f"text {n} is here", "intent": "rare" if n % 5 == 0 else "usual"} for n in range(60)]
    made(tmp_path, rows)

    def again(**train: object) -> DataReport:
        recipe = resolved(tmp_path)
        settings = recipe.recipe.train.model_copy(update=train)
        recipe = recipe.model_copy(update={"recipe": recipe.recipe.model_copy(update={"train": settings})})
        return prepare(recipe, tokenizer_folder=tmp_path / "tokenizer", out=tmp_path / "out")

    assert again().balance == ()
    usual, rare = again(class_weight="balanced").balance
    assert (usual.label, rare.label) == ("usual", "rare")
    assert usual.rows == again().splits["train"].labels["usual"]
    assert usual.effective_share == pytest.approx(rare.effective_share) == pytest.approx(0.5)
    with pytest.raises(DataError, match=r"train\.class_weight names the label 'odd'"):
        again(class_weight={"odd": 2.0})
    assert not (tmp_path / "out" / "report.json").exists()


def test_the_open_number_of_effective_is_filled_in() -> None:
    tree = {
        "name": "r", "model": {"name": "m"}, "train": {"class_weight": "effective"},
        "data": {"train": [{"path": "d.csv", "task": "classification", "input": "{message}", "label": "intent"}]},
    }  # fmt: skip
    loaded = LoadedRecipe(Recipe.model_validate(tree), Path("r.yaml"), "", ())
    made_of = resolve(
        loaded, samples.profile(), samples.shape(), machine=Machine(threads=1), data_sha256={}, luthier_version="0"
    )
    assert made_of.recipe.train.class_weight_beta == EFFECTIVE_BETA
    assert made_of.reasons["train.class_weight_beta"].startswith("evens out")
