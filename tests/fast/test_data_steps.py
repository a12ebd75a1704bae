"""Refining steps in any order that can be: nothing personal gets through, no row is lost, and the usual order stays."""

from __future__ import annotations

import hashlib
import itertools
import json
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_kit import resolved, shape, tokenizer_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_data_prepare import balanced, shards, tickets, write

from luthier.data import refine, steps, tokenise
from luthier.data.crew import Alone, Crew
from luthier.data.encoder import Floats
from luthier.data.prepare import prepare
from luthier.data.profile import profile
from luthier.data.refine import Pass, _handed_over, staged
from luthier.data.shards import Shard
from luthier.data.step import RowStep, Step, WholeStep
from luthier.data_report import DataReport
from luthier.errors import DataError, RecipeError, SecretFound
from luthier.launch.crew import ProcessCrew
from luthier.pipeline.explain import explained
from luthier.recipes import find as find_recipe
from luthier.spec.filler import Machine
from luthier.spec.load import load_recipe
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe, resolve
from luthier.spec.steps import RULES, STEPS, refuse_impossible, usual_steps

USUAL = ["clean", "privacy", "conflicts", "duplicates", "split", "labels", "leakage"]
"""Of a plain recipe of a classification."""

ADDRESS = "zora.quixnar@plontik.example.org"
PHONE = "+44 20 7946 0123"
HIDDEN = ADDRESS.replace("@", "&#64;")
"""Found only once it is cleaned."""
KEY = "AKIA" + "IOSFODNN7EXAMPLE"


class Words:
    """Two texts are as alike as their words."""

    name, sha256 = "words", "7" * 64

    def embed(self, texts: Sequence[str]) -> tuple[Floats, NDArray[np.bool_]]:
        counts = np.full((len(texts), 512), 1e-3, dtype=np.float64)
        for row, text in enumerate(texts):
            for word in text.split():
                counts[row, int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest()) % 512] += 1
        units = counts / np.linalg.norm(counts, axis=1, keepdims=True)
        return units.astype(np.float32), np.ones(len(texts), dtype=np.bool_)


def run(
    folder: Path, rows: list[dict[str, Any]], *, crew: Crew | None = None, out: str = "out", **recipe: Any
) -> DataReport:
    write(folder / "data.csv", rows)
    return prepare(
        resolved(folder, **recipe), tokenizer_folder=tokenizer_folder(folder / "tokenizer"), out=folder / out,
        crew=crew, embedder=Words(),
    )  # fmt: skip


def named(report: DataReport) -> list[str]:
    return [step.step for step in report.steps]


# --- names ---


def test_every_step_has_an_implementation_and_the_other_way_round() -> None:
    built = {
        module.name: import_module(f"{steps.__name__}.{module.name}").STEP
        for module in pkgutil.iter_modules(steps.__path__)
    }
    assert set(built) == set(STEPS)
    assert all(issubclass(step, Step) for step in built.values())
    assert {name for name, step in built.items() if issubclass(step, RowStep)} == {
        "features", "rename", "clean", "privacy", "filter",
    }  # fmt: skip


def recipe_file(folder: Path, data: str) -> Path:
    tickets_file = write(folder / "data.csv", tickets())
    path = folder / "r.yaml"
    path.write_text(
        f"name: r\nmodel: m\ndata:\n  train: {tickets_file.name}\n  privacy: {{profile: fast}}\n{data}",
        encoding="utf-8",
    )
    return path


def settled(path: Path) -> ResolvedRecipe:
    loaded = load_recipe(path)
    return resolve(
        loaded, profile(path.parent / loaded.recipe.entry.path), shape(), machine=Machine(threads=1), data_sha256={},
        luthier_version="0",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "line", "what", "way_out"),
    [
        ("[clean, pirvacy]", 6, "data.steps: unknown step 'pirvacy'", "did you mean 'privacy'? known: features, "),
        ("\n  - clean\n  - xyz", 8, "data.steps: unknown step 'xyz'", "known: features, rename, clean, privacy, "),
        ("[clean, privacy, clean]", 6, "data.steps: the step 'clean' stands twice", "keep one of them"),
        ("\n  - privacy\n  - clean", 7, "data.steps: 'privacy' cannot come before 'clean': cleaning uncovers personal",
         "put 'clean' before 'privacy'"),
        ("[]", 6, "data.steps: ", "correct the value"),
        ("[clean, privacy, duplicates, split, labels, leakage, limit]", 6,
         "the step 'limit' has nothing to do: data.limit is not set", "leave 'limit' out, or set data.limit"),
        ("[clean, privacy, near_duplicates, split, labels, leakage]", 6,
         "the step 'near_duplicates' has nothing to do: data.dedupe.near is off", "or set data.dedupe.near"),
        ("[clean, privacy, split, labels]", 6, "data.steps leaves out 'leakage', which every recipe needs",
         "add it; the usual order is [clean, privacy, conflicts, duplicates, split, labels, leakage]"),
        ("[clean, privacy, split, labels, leakage]\n  filter: {min_chars: 3}", 6,
         "data.steps leaves out 'filter', which data.filter asks for", "privacy, filter, conflicts"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_with_its_line_and_a_way_out(
    tmp_path: Path, written: str, line: int, what: str, way_out: str
) -> None:
    path = recipe_file(tmp_path, f"  steps: {written}\n")
    with pytest.raises(RecipeError) as told:
        settled(path)
    assert told.value.what.startswith(f"{path}:{line}: {what}")
    assert way_out in told.value.way_out


def test_the_order_in_the_docs_can_be(tmp_path: Path) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    block = next(part for part in docs.split("```yaml\n")[1:] if "steps:" in part.partition("```")[0])
    written = block.partition("```")[0].removeprefix("data:\n").replace("pseudonymise", "pseudonymise, profile: fast")
    path = recipe_file(tmp_path, "")
    path.write_text(path.read_text().replace("  privacy: {profile: fast}\n", written))
    steps = settled(path).recipe.data.steps
    assert steps is not None
    assert steps.index("near_duplicates") < steps.index("privacy")


def test_labels_are_of_no_use_to_free_answers(tmp_path: Path) -> None:
    path = recipe_file(tmp_path, "  steps: [clean, privacy, split, labels, leakage]\n")
    path.write_text(path.read_text().replace("train: data.csv", "train: {path: data.csv, task: generation}"))
    with pytest.raises(RecipeError, match="'labels' has nothing to do: generation has no closed set of labels"):
        settled(path)


@pytest.mark.parametrize(("earlier", "later", "why"), RULES)
def test_every_rule_is_held(earlier: str, later: str, why: str) -> None:
    refuse_impossible([earlier, later])
    with pytest.raises(RecipeError, match=f"'{later}' cannot come before '{earlier}': ") as told:
        refuse_impossible([later, earlier])
    assert why in told.value.what
    assert told.value.key == "data.steps.0"


def test_the_usual_order_obeys_the_rules_and_is_shown_with_reasons(tmp_path: Path) -> None:
    refuse_impossible(list(STEPS))
    told = "\n".join(explained(settled(recipe_file(tmp_path, ""))))
    assert f"data.steps = {', '.join(USUAL)}" in told
    assert (
        "  2. privacy: look for personal data and secrets, and do what data.privacy says (after clean: cleaning "
        in told
    )
    assert "  5. split: give each row its split (after clean, privacy: rows are drawn, and compared" in told


# --- the usual order ---

SHIPPED = "830f243edd3918df5c74f6cb282b1581d687e78fa0b7abf2da87cd204d7d62cb"
"""Of the rows that the shipped recipe gave before its steps could be ordered."""


def test_the_shards_of_the_shipped_recipe_stay_as_they_were(tmp_path: Path) -> None:
    asked = settled(find_recipe("support-intents"))
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    given = asked.recipe.data.model_copy(update={"steps": None})
    absent = asked.model_copy(update={"recipe": asked.recipe.model_copy(update={"data": given})})
    for name, one in (("named", asked), ("absent", absent)):
        prepare(one, tokenizer_folder=tokenizer, out=tmp_path / name)
    content = hashlib.sha256()
    for split in ("train", "validation", "test"):
        assert (tmp_path / "named" / f"{split}.arrow").read_bytes() == (
            tmp_path / "absent" / f"{split}.arrow"
        ).read_bytes()
        for row in Shard(tmp_path / "named" / f"{split}.arrow"):
            content.update(repr((split, row.line, row.text, row.answer, row.contaminated)).encode())
    assert content.hexdigest() == SHIPPED


def test_steps_that_are_left_out_do_nothing(tmp_path: Path) -> None:
    rows = tickets(60)
    rows[20] = dict(rows[2])
    rows[30] = {**rows[3], "intent": "other"}
    usual = run(tmp_path, rows)
    assert (usual.dropped["duplicate"], usual.dropped["conflicting_labels"]) == (1, 2)
    bare = run(tmp_path, rows, steps=["clean", "privacy", "split", "labels", "leakage"])
    assert not {"duplicate", "conflicting_labels"} & set(bare.dropped)
    assert not {"duplicates", "conflicts"} & set(named(bare))
    assert balanced(bare)


# --- what an order changes ---

APART = [
    {
        "message": f"please write to {name}.quixnar@plontik.example.org about the parcel",
        "intent": "order",
        "customer": name,
    }
    for name in ("ana", "bob")
]


@pytest.mark.parametrize("steps", [("duplicates", "privacy"), ("privacy", "duplicates")], ids=" before ".join)
def test_duplicates_before_redaction_are_others_than_after_it(tmp_path: Path, steps: tuple[str, str]) -> None:
    order = ["clean", *steps, "conflicts", "split", "labels", "leakage"]
    report = run(tmp_path, tickets(60) + APART, steps=order, privacy={"action": "redact", "secrets": "stop"})
    assert report.dropped.get("duplicate", 0) == (steps[1] == "duplicates")
    assert named(report)[:4] == ["read", "clean", *steps]
    alike = [(split, row) for split, rows in shards(tmp_path).items() for row in rows if "[EMAIL]" in row.text]
    assert len({(row.text, row.group, split) for split, row in alike}) == 1, (
        "named anew: equal texts are drawn together"
    )
    assert len(alike) == 1 + (steps[0] == "duplicates")


def test_likeness_is_that_of_the_texts_as_they_are(tmp_path: Path) -> None:
    """Two texts that only differ in what is redacted are no near-duplicates before, and leak afterwards."""
    long = " ".join(["please", "write", "to"])
    rows = tickets(60) + [
        {"message": f"{long} {name * 9}@plontik.example.org", "intent": "order", "customer": f"Z{place}"}
        for place, name in enumerate(("ana", "bob", "eve"))
    ]
    order = ["clean", "near_duplicates", "privacy", "split", "labels", "leakage"]
    rules: dict[str, Any] = {
        "privacy": {"action": "redact", "secrets": "stop"}, "dedupe": {"near": 0.8}, "leakage": {"near": 0.8},
        "split": {"group_by": "customer"},
    }  # fmt: skip
    report = run(tmp_path, rows, steps=order, **rules)
    assert not [fate for fate in report.fates if fate.line > 61 and fate.reason == "near_duplicate"]
    homes = {split for split, found in shards(tmp_path).items() for row in found if "[EMAIL]" in row.text}
    assert len(homes) == 1, "drawn as one"
    again = run(tmp_path, rows, steps=["clean", "privacy", "near_duplicates", "split", "labels", "leakage"], **rules)
    assert [(fate.line, fate.reason) for fate in again.fates if fate.line > 61] == [
        (line, "near_duplicate") for line in range(63, 65)
    ]


def test_groups_by_column_outlive_a_second_naming(tmp_path: Path) -> None:
    rows, split = tickets(60), {"group_by": "customer"}
    usual = run(tmp_path, rows, split=split)
    groups = {row.line: row.group for found in shards(tmp_path).values() for row in found}
    order = ["duplicates", "clean", "conflicts", "privacy", "split", "labels", "leakage"]
    other = run(tmp_path, rows, split=split, steps=order)
    assert {row.line: row.group for found in shards(tmp_path).values() for row in found} == groups
    assert other.splits == usual.splits


def test_before_cleaning_a_repetition_is_shown_as_cleaning_leaves_it(tmp_path: Path) -> None:
    rows = tickets(60) + [{"message": f"is {HIDDEN} yours", "intent": "order", "customer": "x"}] * 3
    order = ["duplicates", "near_duplicates", "duplicates_by_meaning", "clean", "privacy", "split", "labels", "leakage"]
    rows = [{**row, "message": f"{row['message']} m{n}"} for n, row in enumerate(rows[:60])] + [
        {**row, "message": f"{row['message']} m{100 + n % 2} {'!' * n}"} for n, row in enumerate(rows[60:] * 2)
    ]
    rows.append(dict(rows[-1]))
    report = run(
        tmp_path, rows, steps=order, dedupe={"near": 0.6, "meaning": 0.9}, embeddings={"model": "none"},
        privacy={"action": "redact", "secrets": "stop"},
    )  # fmt: skip
    told = report.to_json()
    assert report.dropped["duplicate"] == 1
    assert report.dropped["near_duplicate"] >= 1
    assert sum("[EMAIL]" in one.text for one in report.duplicates) >= 2
    assert ADDRESS not in told
    assert HIDDEN not in told


def test_labels_are_looked_at_as_they_will_be_learned(tmp_path: Path) -> None:
    rows = tickets(60)
    rows[0]["intent"] = ADDRESS
    rules: dict[str, Any] = {"privacy": {"action": "redact", "secrets": "stop"}}
    rename = {"labels": {"rename": {ADDRESS: "order"}, "review": False}}
    for order in (None, ["clean", "rename", "privacy", "split", "labels", "leakage"]):
        report = run(tmp_path, rows, steps=order, **rules, **rename)
        assert next(step for step in report.steps if step.step == "rename").rows_changed == 1
    with pytest.raises(DataError, match="has a label with personal data"):
        run(tmp_path, rows, **rules)
    with pytest.raises(DataError, match="no row has the label 'gone'"):
        run(tmp_path, rows, labels={"rename": {"gone": "order"}, "review": False},
            steps=["clean", "rename", "privacy", "split", "labels", "leakage"])  # fmt: skip


def test_a_secret_stops_every_order(tmp_path: Path) -> None:
    rows = tickets(60)
    rows[5]["message"] += f" key {KEY}"
    with pytest.raises(SecretFound, match=r"1 secret in the data: data\.csv:7 "):
        run(tmp_path, rows, steps=["duplicates", "clean", "conflicts", "privacy", "split", "labels", "leakage"])


# --- passes ---


class Watched(Alone):
    def __init__(self) -> None:
        self.passes: list[Pass] = []

    def each(self, work: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        if isinstance(work, Pass):
            self.passes.append(work)
        return super().each(work, parts)


@pytest.mark.parametrize(
    ("order", "passes"),
    [
        (None, [("Fill", "Clean", "Privacy", "Filter")]),
        (["filter", "clean", "privacy", "split", "labels", "leakage"], [("Fill", "Filter", "Clean", "Privacy")]),
        (["clean", "duplicates", "filter", "privacy", "split", "labels", "leakage"],
         [("Fill", "Clean"), ("Filter", "Privacy")]),
        (["clean", "privacy", "duplicates", "filter", "split", "labels", "leakage"],
         [("Fill", "Clean", "Privacy"), ("Filter",)]),
    ],
)  # fmt: skip
def test_steps_of_single_rows_in_a_row_are_one_pass(
    tmp_path: Path, order: list[str] | None, passes: list[tuple[str, ...]]
) -> None:
    crew = Watched()
    run(tmp_path, tickets(60), crew=crew, steps=order, filter={"min_chars": 3})
    assert [tuple(type(step).__name__ for step in one.steps) for one in crew.passes] == passes
    changed = [any(step.changes_texts for step in one.steps) for one in crew.passes]
    assert [one.name is not None for one in crew.passes] == changed, "named once for each change, and not again"
    assert [one.name.is_last for one in crew.passes if one.name] == [False] * (sum(changed) - 1) + [True]


def test_a_cut_is_followed_by_a_pass_that_names(tmp_path: Path) -> None:
    crew = Watched()
    run(tmp_path, tickets(60), crew=crew, too_long="cut_end", leakage={"near": 0.8})
    first, second = crew.passes
    assert first.name is None
    assert second.steps == ()
    assert second.name is not None
    assert len(second.name.comparisons) == 1


@pytest.mark.parametrize("size", [1, 3, 7, 8, 99])
def test_rows_are_handed_over_in_order_and_not_kept(size: int) -> None:
    rows: list[Any] = list(range(7))
    seen = []
    for part in _handed_over(rows, size):
        seen.append(part)
        assert len(rows) == 7 - sum(map(len, seen))
    assert seen == [list(range(7))[first : first + size] for first in range(0, 7, size)]


class _Row(RowStep):
    def sift(self, items: Any, ledger: Any) -> Any:
        return items, None


class _Whole(WholeStep):
    def sift(self, flow: Any) -> Any:
        return {}


def test_stages() -> None:
    a, b, c = _Row(), _Row(), _Row()
    one, two = _Whole(), _Whole()
    assert staged([a, b, one, two, c]) == [(a, b), one, two, (c,)]


# --- all orders ---

ALL: dict[str, Any] = {
    "labels": {"rename": {"return": "refund"}, "review": False},
    "privacy": {"action": "redact", "secrets": "redact"},
    "filter": {"min_chars": 8},
    "too_long": "cut_end",
    "dedupe": {"near": 0.8, "meaning": 0.9},
    "leakage": {"near": 0.8, "benchmarks": ["bench.jsonl"]},
    "embeddings": {"model": "none"},
    "limit": {"train": 60},
    "augment": {"typos": 0.1, "case": 0.0, "punctuation": 0.0, "swap": 0.0, "seed": 1},
    "canaries": {"count": 1, "copies": [0, 1]},
    "split": {"group_by": "customer"},
}
OPTIONAL = {name for name, facts in STEPS.items() if facts.may_be_left_out}


def messy() -> list[dict[str, str]]:
    """With all that a step may do something about, some of it where another step uncovers or hides it."""
    rows = [{**row, "message": f"{row['message']} m{n}"} for n, row in enumerate(tickets(96))]
    for n in (3, 17, 40, 64, 80):
        rows[n]["message"] += f" write to {ADDRESS}"
    for n in (5, 18, 41, 65):
        rows[n]["message"] += f" write to {HIDDEN} or {PHONE}"
    for n in (50, 51, 52):
        rows[n] = {**rows[3 if n < 52 else 5], "customer": rows[n]["customer"]}
    rows[60] = {**rows[5], "intent": "order", "customer": "Z"}
    rows[70] = {**rows[18], "message": rows[18]["message"] + "!", "customer": "Y"}
    rows[71]["message"] = ""
    rows[72]["message"] = "&nbsp; m1"
    rows[73]["message"] += f" {KEY}"
    rows[74]["message"] += " and so on" * 60 + f" {ADDRESS}"
    rows[75]["message"], rows[75]["intent"] = rows[74]["message"] + " again", rows[74]["intent"]
    return rows


@st.composite
def orders(draw: st.DrawFn) -> list[str]:
    """Any order that obeys the rules, with or without what may be left out."""
    left = [name for name in usual_steps(_everything()) if name not in OPTIONAL or draw(st.booleans())]
    found: list[str] = []
    while left:
        free = [name for name in left if not any(b == name and a in left for a, b, _ in RULES)]
        found.append(draw(st.sampled_from(free)))
        left.remove(found[-1])
    return found


def _everything() -> Recipe:
    return resolved(Path(), **ALL).recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orders")
    write(folder / "bench.jsonl", [{"text": row["message"]} for row in messy()[20:23]])
    return folder


many = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


@many
@given(order=orders(), action=st.sampled_from(["redact", "pseudonymise", "drop"]))
def test_in_any_order_nothing_found_stands_in_the_clear_and_every_row_is_accounted_for(
    place: Path, order: list[str], action: str
) -> None:
    refuse_impossible(order)
    rules = {**ALL, "privacy": {"action": action, "secrets": "redact"}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_PRIVACY_KEY", "k" * 32)
        report = run(place, messy(), steps=order, **rules, max_length=160)
    files = [path for path in (place / "out").rglob("*") if path.is_file()]
    assert {"report.json", "train.arrow", "findings.jsonl"} <= {path.name for path in files}
    for path in files:
        for value in (ADDRESS, HIDDEN, PHONE, KEY, "quixnar", "7946 0123"):
            assert value.encode() not in path.read_bytes(), (path.name, value)
    aside = sum(report.dropped.values())
    assert report.rows_in + report.rows_added == report.rows_out + aside
    assert len({fate.line for fate in report.fates}) == len(report.fates) == aside
    for one, two in itertools.pairwise(report.steps):
        assert one.rows_out == two.rows_in
    shown = {"near_duplicates": "near duplicates", "duplicates_by_meaning": "duplicates by meaning",
             "augment": "augmentation"}  # fmt: skip
    assert [name for name in named(report) if name in {shown.get(name, name) for name in order}] == [
        shown.get(name, name) for name in order
    ]


@settings(many, max_examples=6)
@given(order=orders())
def test_in_any_order_the_size_of_the_parts_changes_nothing(place: Path, order: list[str]) -> None:
    seen = []
    for size in (1000, 9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("luthier.data.prepare.part_rows", lambda profile, size=size: size)
            for module in (tokenise, refine):
                patch.setattr(module, "ROWS_PER_BATCH", size)
            report = run(place, messy(), steps=order, **ALL, max_length=160)
        splits = {split: one.model_copy(update={"sha256": ""}) for split, one in report.splits.items()}
        rows = {split: [row.input_ids for row in found] for split, found in shards(place).items()}
        seen.append((report.model_copy(update={"splits": splits}), rows))
    assert seen[0] == seen[1]


def test_several_processes_give_the_same_in_an_unusual_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.data.prepare.part_rows", lambda profile: 9)
    monkeypatch.setattr(refine, "ROWS_PER_BATCH", 9)
    order: Sequence[str] = [
        "filter", "near_duplicates", "clean", "duplicates", "rename", "conflicts", "privacy", "duplicates_by_meaning",
        "cut", "split", "limit", "leakage", "benchmarks", "labels", "augment", "canaries",
    ]  # fmt: skip
    alone = run(place, messy(), steps=order, out="alone", **ALL, max_length=160)
    with ProcessCrew(2) as crew:
        assert run(place, messy(), steps=order, out="crew", crew=crew, **ALL, max_length=160) == alone
    for name in ("train.arrow", "validation.arrow", "test.arrow", "report.json"):
        assert (place / "crew" / name).read_bytes() == (place / "alone" / name).read_bytes()
    assert json.loads((place / "alone" / "report.json").read_text())["conflicts"] >= 1
