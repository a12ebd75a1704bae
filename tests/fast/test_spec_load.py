"""A recipe that is wrong ends in one message with its file and line, the key, what was found, and the way out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import RecipeError
from luthier.recipes import find, names
from luthier.spec.aliases import ALIASES, NOT_BUILT
from luthier.spec.load import LoadedRecipe, load_recipe
from luthier.spec.recipe import Data, Recipe

HEAD = "name: r\nmodel: m\ndata: d.csv\n"  # the shortest recipe; what a test adds begins in line 4


def load(
    folder: Path, text: str | bytes, *overrides: str, environment: Mapping[str, str] | None = None
) -> LoadedRecipe:
    path = folder / "r.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_recipe(path, overrides=overrides, environment=environment or {})


def refusal(folder: Path, text: str | bytes, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *overrides)
    assert caught.value.way_out
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.what
    return caught.value


def test_short_forms_say_the_same_as_long_ones(tmp_path: Path) -> None:
    long = {
        "name": "r",
        "model": {"name": "m"},
        "data": {"train": [{"path": "d.csv"}]},
        "method": {"type": "sft"},
        "export": ["merged"],
        "train": {},
    }
    short = HEAD + "method: sft\nexport: merged\ntrain:\n"
    assert load(tmp_path, short).recipe == load(tmp_path, yaml.safe_dump(long)).recipe
    for data in ("{train: d.csv}", "{train: [d.csv]}", "{train: {path: d.csv}}"):
        assert load(tmp_path, f"name: r\nmodel: m\ndata: {data}\n").recipe.entry.path == "d.csv"


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_loads(name: str) -> None:
    assert load_recipe(find(name)).recipe.name == name


def test_the_presence_of_a_section_switches_it_on_even_when_it_is_empty(tmp_path: Path) -> None:
    assert load(tmp_path, HEAD).recipe.data.privacy is None
    text = "name: r\nmodel: m\ndata:\n  train: d.csv\n  privacy:\n"
    assert load(tmp_path, text).recipe.data.privacy is not None


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "r.yaml is empty"),
        (b"\xef\xbb\xbf \n\n", "r.yaml is empty"),
        (b"name: caf\xe9\n", "r.yaml: byte 9 is not UTF-8"),
        (b"# only words\n", "a recipe is a mapping of sections, found NoneType"),
        (b"- a\n- b\n", "a recipe is a mapping of sections, found list"),
        (b"just words\n", "a recipe is a mapping of sections, found str"),
        (b"name: [r\nmodel: m\n", "r.yaml:2: not YAML: "),
        (b"name: r\n\tmodel: m\n", "r.yaml:2: not YAML: found character '\\t' that cannot start any token"),
        (b"name: r\n---\nname: s\n", "r.yaml:2: not YAML: but found another document"),
        (b"name: \x00\n", "r.yaml: not YAML: "),
        (b"name: !!python/object/apply:os.getcwd []\n", "r.yaml:1: not YAML: could not determine a constructor"),
        (b"name: *none\n", "r.yaml:1: not YAML: found undefined alias"),
        (b"name: 2024-13-45\n", "r.yaml: a date, number or tagged value cannot be read: month must be in 1..12"),
        (b"name: !!int abc\n", "r.yaml: a date, number or tagged value cannot be read"),
        (b"name: !!int ''\n", "r.yaml: a date, number or tagged value cannot be read"),
        (b"name: !!bool abc\n", "r.yaml: a date, number or tagged value cannot be read"),
        (b"name: !!timestamp abc\n", "r.yaml: a date, number or tagged value cannot be read"),
        (b"name: 0x_\n", "r.yaml: a date, number or tagged value cannot be read"),
        (b"name: " + b"9" * 5000 + b"\n", "r.yaml: a date, number or tagged value cannot be read"),
        (b"name: r\nmodel: m\nname: s\n", "r.yaml:3: the key 'name' stands twice"),
        (b"name: r\ntrain:\n  seed: 1\n  seed: 1\n", "r.yaml:4: the key 'train.seed' stands twice"),
        (b"name: r\ndata:\n  train:\n  - {path: a, path: b}\n", "r.yaml:4: the key 'data.train.0.path' stands twice"),
        (b"a: " + b"[" * 1500 + b"]" * 1500, "r.yaml: nested too deeply to be a recipe"),
        (b"a: " + b"{b: " * 1500 + b"}" * 1500, "r.yaml: nested too deeply to be a recipe"),
        (b"a: &a [*a]\n", "r.yaml: more than 10000 values, YAML aliases written out"),
        (b"a: [" + b"0, " * 10_001 + b"]\n", "r.yaml: more than 10000 values"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:40],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, what: str) -> None:
    found = refusal(tmp_path, content).what
    assert what in found
    assert str(tmp_path / "r.yaml") in found


def test_places_without_a_recipe(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(RecipeError, match=r"recipe '.*' is not a file\n  -> give a YAML file, or a name from"):
            load_recipe(path)
    unreadable = Path("/proc/self/mem")
    if unreadable.is_file():
        with pytest.raises(RecipeError, match="/proc/self/mem cannot be read: Input/output error\n  -> check"):
            load_recipe(unreadable)


@pytest.mark.parametrize("place", ["file", "override"])
def test_a_billion_laughs_is_refused_at_once(tmp_path: Path, place: str) -> None:
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    began = time.monotonic()
    if place == "file":
        found = refusal(tmp_path, "\n".join([*laughs, "name: *a11"])).what
    else:
        found = refusal(tmp_path, HEAD, "name={" + ", ".join(laughs) + "}").what
    assert "more than 10000 values, YAML aliases written out" in found
    assert time.monotonic() - began < 2


def test_honest_aliases_and_merges_are_fine(tmp_path: Path) -> None:
    text = "name: r\nmodel: m\ndata: {train: &p d.csv, test: *p}\ntrain: &t {seed: 3}\n"
    assert load(tmp_path, text).recipe.data.test == "d.csv"
    merged = "name: r\nmodel: m\ndata:\n  train:\n  - &e {path: d.csv, label: x}\n  split: &s {seed: 3}\n"
    assert load(tmp_path, merged).recipe.data.split.seed == 3


@pytest.mark.parametrize(
    ("text", "what", "way_out"),
    [
        ("trian: {}", "r.yaml:4: unknown key 'trian'", "did you mean 'train'?"),
        (
            "train:\n  learing_rate: 1",
            "r.yaml:5: unknown key 'train.learing_rate'",
            "did you mean 'train.learning_rate'?",
        ),
        ("zzz: 1", "r.yaml:4: unknown key 'zzz'", "known here: name, objective, model, data"),
        ("1: 2", "r.yaml:4: unknown key '1'", "known here: name"),
        (
            "objective: {budget: {hour: 1}}",
            "r.yaml:4: unknown key 'objective.budget.hour'",
            "did you mean 'objective.budget.hours'?",
        ),
        (
            "train: 5",
            "r.yaml:4: train: Input should be a valid dictionary or instance of Train, found 5",
            "correct the value",
        ),
        ("train: {learning_rate: -1}", "r.yaml:4: train.learning_rate: Input should be greater than 0, found -1", ""),
        (
            "train: {learning_rate: fast}",
            "train.learning_rate: Input should be a valid number, unable to parse string as a number, found 'fast'",
            "",
        ),
        ("train: {learning_rate: .nan}", "train.learning_rate: Input should be", ""),
        ("train: {learning_rate: .inf}", "train.learning_rate: Input should be a finite number", ""),
        ("train: {learning_rate: yes}", "train.learning_rate: a truth value does not belong here", ""),
        ("train: {batch_size: on}", "train.batch_size: a truth value does not belong here", ""),
        (
            "train:\n  batch_size: 2.5",
            "r.yaml:5: train.batch_size: Input should be a valid integer, got a number with a "
            "fractional part, found 2.5",
            "",
        ),
        ("train: {batch_size: []}", "train.batch_size: Input should be a valid integer", ""),
        ("train: {max_length: 8}", "train.max_length: Input should be greater than 8, found 8", ""),
        ("train: {seed: -1}", "train.seed: Input should be greater than or equal to 0, found -1", ""),
        ("train: {seed: 2147483648}", "train.seed: Input should be less than 2147483648", ""),
        (
            "train: {lr_scheduler_type: step}",
            "train.lr_scheduler_type: Input should be 'constant', 'linear' or 'cosine'",
            "",
        ),
        ("train: {warmup_ratio: 1}", "train.warmup_ratio: Input should be less than 1, found 1", ""),
        ("adapter: {r: 0}", "adapter.r: Input should be greater than 0", ""),
        ("adapter: {dropout: 1}", "adapter.dropout: Input should be less than 1", ""),
        ("adapter: {target_modules: []}", "adapter.target_modules: no module is named", ""),
        ("adapter: {layers_to_transform: []}", "adapter.layers_to_transform: Tuple should have at least 1 item", ""),
        ("adapter: {layers_to_transform: [3, 1, 3]}", "adapter.layers_to_transform: layer 3 stands twice", ""),
        ("adapter: {layers_to_transform: [-1]}", "adapter.layers_to_transform.0: Input should be greater than", ""),
        ("adapter: {layers_to_transform: [yes]}", "adapter.layers_to_transform.0: Input should be a valid integer", ""),
        (
            "adapter: {layers_to_transform: [1], target_modules: '.*q_proj'}",
            "adapter: layers_to_transform goes with target_modules: all-linear or a list of names; a regular",
            "",
        ),
        ("train: {cache_trunk: true}", "train.cache_trunk keeps the output of the layers below those that learn", ""),
        (
            "train: {cache_trunk: true}\nadapter: {layers_to_transform: [0, 5]}",
            "and layer 0 learns; set adapter.layers_to_transform to the upper layers",
            "",
        ),
        (
            "adapter: {type: dora}",
            "r.yaml:4: unknown adapter 'dora'",
            "known in this version: full, ia3, loha, lokr, lora, oft, vera",
        ),
        ("adapter: dora", "r.yaml:4: unknown adapter 'dora'", "known in this version: full, ia3, loha, lokr, lora"),
        (
            "adapter: {rank: 8}",
            "r.yaml:4: unknown key 'adapter.rank'",
            "known here: type, layers_to_transform, target_",
        ),
        (
            "adapter:\n  type: full\n  r: 8",
            "r.yaml:6: unknown key 'adapter.r'",
            "known here: type, layers_to_transform",
        ),
        ("adapter: {type: ia3, alpha: 8}", "unknown key 'adapter.alpha'", "known here: type, layers_to_transform, t"),
        ("adapter: {type: vera, r: 0}", "r.yaml:4: adapter.r: Input should be greater than 0, found 0", ""),
        ("adapter: {type: loha, target_modules: []}", "adapter.target_modules: no module is named", ""),
        ("adapter: {init_lora_weights: loftq}", "adapter.init_lora_weights: is true, 'pissa', 'pissa_niter_16'", ""),
        ("adapter: {init_lora_weights: no}", "adapter.init_lora_weights: is true, 'pissa', 'pissa_niter_16'", ""),
        ("adapter: {use_dora: 3}", "adapter.use_dora: Input should be a valid boolean", ""),
        ("adapter: {bias: some}", "adapter.bias: Input should be 'none', 'lora_only' or 'all', found 'some'", ""),
        ("adapter: {modules_to_save: []}", "adapter.modules_to_save: Tuple should have at least 1 item", ""),
        (
            "adapter: {type: ia3, target_modules: [k_proj], feedforward_modules: [down_proj]}",
            "adapter: feedforward_modules: 'down_proj' is not among target_modules; name it there too",
            "",
        ),
        (
            "adapter: {type: ia3, target_modules: '.*k_proj'}",
            "adapter: target_modules of ia3 are 'all-linear' or a list of names, not an expression",
            "",
        ),
        ("train: {layer_lr_decay: 1}", "train.layer_lr_decay: Input should be less than 1, found 1", ""),
        ("train: {loraplus_lr_ratio: 1}", "train.loraplus_lr_ratio: Input should be greater than 1, found 1", ""),
        ("train: {neftune_noise_alpha: 0}", "train.neftune_noise_alpha: Input should be greater than 0", ""),
        (
            "train: {loraplus_lr_ratio: 4}\nadapter: {type: ia3}",
            "train.loraplus_lr_ratio is for the matrices of LoRA, and adapter.type is ia3",
            "",
        ),
        ("train: {embedding_learning_rate: 1.0e-4}", "train.embedding_learning_rate is for embeddings that learn", ""),
        (
            "train: {embedding_learning_rate: 1.0e-4}\nadapter: {type: full, layers_to_transform: [1]}",
            "train.embedding_learning_rate is for embeddings that learn; take adapter: {type: full} for all layers",
            "",
        ),
        (
            "train: {neftune_noise_alpha: 5}\nmethod: {type: dpo}",
            "method.type dpo measures how far the model has gone from its base, and train.neftune_noise_alpha would be",
            "",
        ),
        ("launch: {strategy: fsdp}\nmethod: {type: kto}", "method.type kto asks the base before training", ""),
        (
            "train: {neftune_noise_alpha: 5}\nmethod: {type: grpo, beta: 0.1}",
            "method.beta measures how far the model has gone from its base",
            "",
        ),
        ("train: {bf16: true}\nadapter: full", "with adapter.type full no weight is frozen", ""),
        ("train: {bf16: true}\nadapter: oft", "with adapter.type oft turned inputs would be rounded", ""),
        (
            "train: {cache_trunk: true, neftune_noise_alpha: 5}\nadapter: {layers_to_transform: [5]}",
            "with train.neftune_noise_alpha they say something else each time; leave one of them out",
            "",
        ),
        (
            "train: {cache_trunk: true}\nadapter: {layers_to_transform: [5], modules_to_save: [norm]}",
            "and adapter.modules_to_save may learn in them; leave one of them out",
            "",
        ),
        (
            "method: ppo",
            "r.yaml:4: unknown method 'ppo'",
            "known in this version: classify, distill, dpo, grpo, kto, multi_label, orpo, pretrain, regression, "
            "reward, sft",
        ),
        ("export: [onnx]", "r.yaml:4: unknown export 'onnx'", "known in this version: adapter, gguf, "),
        ("export:\n- merged\n- merged", "r.yaml:4: export: a name stands twice in ['merged', 'merged']", "keep one"),
        (
            "evaluate: {baselines: [bert]}",
            "evaluate.baselines.0: Input should be 'majority', 'tfidf_logreg', 'mean', 'tfidf_ridge', 'length', ",
            "",
        ),
        ("evaluate: {resamples: 10}", "evaluate.resamples: Input should be greater than or equal to 200", ""),
        ("evaluate: {level: 95}", "evaluate.level: Input should be less than 1, found 95", ""),
        ("objective: {targets: {x: 0.8}}", "objective.targets.x: Input should be a valid string, found 0.8", ""),
        (
            "objective:\n  targets:\n    kind.accuracy: '> 0.8'",
            "r.yaml:6: objective.targets.kind.accuracy: '> 0.8' is not",
            "",
        ),
        ("objective: {budget: {hours: 0}}", "objective.budget.hours: Input should be greater than 0, found 0", ""),
        ("output_dir: 3", "r.yaml:4: output_dir: Input should be a valid string, found 3", ""),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else None,
)
def test_wrong_keys_and_values(tmp_path: Path, text: str, what: str, way_out: str) -> None:
    error = refusal(tmp_path, f"{HEAD}{text}\n")
    assert what in error.what
    assert way_out in error.way_out
    assert "r.yaml:" in error.what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("model: m\ndata: d.csv", "r.yaml: the key 'name' is missing"),
        ("name: r\nmodel: {}\ndata: d.csv", "r.yaml:2: the key 'model.name' is missing"),
        ("name: r\nmodel: m\ndata:\n  train: [{label: x}]", "r.yaml:4: the key 'data.train.0.path' is missing"),
        ("name: r\nmodel: m\ndata: {train: []}", "data.train: Tuple should have at least 1 item"),
        (
            "name: r\nmodel: m\ndata: {train: [a, b]}",
            "r.yaml:3: data: train[0].name is missing: several tasks are told apart by their names",
        ),
        (
            "name: r\nmodel: m\ndata: {train: d, split: {test: 0.5, validation: 0.4}}",
            "data.split: split.test + split.validation leave less than a tenth for training",
        ),
        (
            "name: r\nmodel: m\ndata: {train: d, dedupe: {meaning: 0.4}}",
            "r.yaml:3: data.dedupe.meaning: Input should be greater than or equal to 0.5, found 0.4",
        ),
        (
            "name: r\nmodel: m\ndata: {train: d, leakage: {meaning: 1}}",
            "data.leakage.meaning: Input should be less than 1, found 1",
        ),
        (
            "name: r\nmodel: m\ndata: {train: d, leakage: {meaning: on}}",
            "data.leakage.meaning: a truth value does not belong here",
        ),
        (
            "name: r\nmodel: m\ndata: {train: d, embeddings: {model: folder}}",
            "r.yaml:3: data: embeddings serve dedupe.meaning and leakage.meaning; set one, e.g. 0.95, or leave it out",
        ),
        (
            "name: r\nmodel: m\ndata: {train: d, split: {test: 0}}",
            "data.split.test: Input should be greater than 0, found 0",
        ),
        (
            "name: r\nmodel: m\ndata: {train: d, split: {stratify: 7}}",
            "data.split.stratify: Input should be a valid boolean",
        ),
        ("name: r\nmodel: m\ndata: {train: d, limit: {test: 0}}", "data.limit.test: Input should be greater than 0"),
        (
            "name: r\nmodel: m\ndata: {train: d, privacy: {action: hide}}",
            "data.privacy.action: Input should be 'report', 'redact', 'pseudonymise' or 'drop', found 'hide'",
        ),
        (
            "name: r\nmodel: m\ndata: {train: d, privacy: {annotations: a.jsonl}}",
            "data.privacy: annotations are learned by profile: maximum only; set it, or leave annotations out",
        ),
        (
            "name: r\nmodel: m\ndata: {train: d, privacy: {profile: maximum}}",
            "data.privacy: profile: maximum learns from annotations; name the file, or take profile: balanced",
        ),
        (
            "name: r\nmodel: m\ndata: {train: d, privacy: {keep_mapping: m.json}}",
            "data.privacy: keep_mapping keeps pseudonyms, which only action: pseudonymise makes",
        ),
        (
            "name: r\nmodel: m\ndata: {train: {path: d, task: poetry}}",
            "data.train.0.task: Input should be 'classification', ",
        ),
        (
            "name: r\nmodel: m\ndata: {train: {path: d, name: 'my task'}}",
            "data.train.0.name: String should match pattern",
        ),
        ("name: ../x\nmodel: m\ndata: d.csv", "r.yaml:1: name: String should match pattern"),
        ("name: r\nmodel: ''\ndata: d.csv", "model.name: String should have at least 1 character"),
        ("name: r\nmodel: [m]\ndata: d.csv", "r.yaml:2: model: Input should be a valid dictionary"),
        (
            "name: r\nmodel: m\ndata: d.csv\ncompress: {}",
            "r.yaml:4: 'compress' (quantisation; what prunes is the section prune)",
        ),
        ("name: r\nmodel: m\ndata: d.csv\nsearch: {}", "r.yaml:4: the key 'search.hours' is missing"),
    ],
    ids=lambda value: value[:0] or None,
)
def test_wrong_recipes(tmp_path: Path, text: str, what: str) -> None:
    assert what in refusal(tmp_path, text + "\n").what


def test_what_is_built_is_not_refused() -> None:
    assert not {f"data.{name}" for name in Data.model_fields} & set(NOT_BUILT)


@pytest.mark.parametrize("key", NOT_BUILT)
def test_sections_that_are_not_built_are_refused_and_not_ignored(tmp_path: Path, key: str) -> None:
    section, _, leaf = key.partition(".")
    text = f"{HEAD}{key}: {{}}\n" if not leaf else f"name: r\nmodel: m\n{section}:\n  {leaf}: {{}}\n"
    error = refusal(tmp_path, text)
    assert f"r.yaml:4: {key!r} ({NOT_BUILT[key]}) is not built yet" in error.what
    assert error.way_out == "remove it"


VALUES: dict[str, Any] = {
    "model.load_in_4bit": True,
    "model.name": "m",
    "data.train": [{"path": "d.csv"}],
    "train.max_length": 64,
    "train.num_train_epochs": 2,
    "train.batch_size": 4,
    "train.learning_rate": 0.5,
    "train.lr_scheduler_type": "cosine",
    "train.warmup_ratio": 0.5,
    "train.weight_decay": 0.5,
    "train.seed": 7,
    "adapter.r": 3,
    "adapter.alpha": 5.0,
    "adapter.dropout": 0.25,
    "adapter.target_modules": ["q_proj"],
    "adapter.layers_to_transform": [1],
    "adapter.use_rslora": True,
    "adapter.use_dora": True,
    "adapter.init_lora_weights": "pissa",
    "adapter.modules_to_save": ["norm"],
    "train.neftune_noise_alpha": 5.0,
    "train.loraplus_lr_ratio": 16.0,
}


def put(tree: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    *parts, leaf = key.split(".")
    place = tree
    for part in parts:
        place = place.setdefault(part, {})
    place[leaf] = value
    return tree


def whole() -> dict[str, Any]:
    return put(put({"name": "r"}, "model.name", "m"), "data.train", [{"path": "d.csv"}])


def without(tree: dict[str, Any], canonical: str) -> dict[str, Any]:
    """The tree without what an alias is to say."""
    section, leaf = canonical.split(".")
    tree[section] = {key: value for key, value in tree.get(section, {}).items() if key != leaf}
    return tree


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_taken_and_noted_at_the_top_and_in_its_section(tmp_path: Path, alias: str) -> None:
    canonical = ALIASES[alias]
    section, leaf = canonical.split(".")
    expected = load(tmp_path, yaml.safe_dump(put(whole(), canonical, VALUES[canonical])))
    assert expected.notes == ()
    shown = [alias] if alias == leaf else [alias, f"{section}.{alias}"]
    for key in shown:
        tree = put(without(whole(), canonical), key, VALUES[canonical])
        loaded = load(tmp_path, yaml.safe_dump(tree))
        assert loaded.recipe == expected.recipe
        assert loaded.notes == (f"{key!r} is taken as {canonical!r}",)
        clash = put(tree, canonical, VALUES[canonical])
        error = refusal(tmp_path, yaml.safe_dump(clash, sort_keys=False))
        assert f"{key!r} and {canonical!r} say the same thing" in error.what
        assert "r.yaml:" in error.what
        assert error.way_out == f"keep {canonical!r}"
        by_option = load(
            tmp_path, yaml.safe_dump(put(whole(), canonical, VALUES[canonical])), f"{key}={VALUES[canonical]}"
        )
        assert (by_option.recipe, by_option.notes) == (expected.recipe, (f"{key!r} is taken as {canonical!r}",))


def test_two_aliases_of_one_key_clash_and_a_wrong_value_is_found_where_it_stands(tmp_path: Path) -> None:
    assert (
        "'num_epochs' and 'train.num_train_epochs' say the same"
        in refusal(tmp_path, HEAD + "epochs: 1\nnum_epochs: 1").what
    )
    assert "r.yaml:5: train.num_train_epochs: Input should be" in refusal(tmp_path, HEAD + "seed: 1\nepochs: 0").what
    text = "name: r\nmodel: m\ndatasets:\n- path: d.csv\n  labl: x\n"
    assert "r.yaml:5: unknown key 'data.train.0.labl'" in refusal(tmp_path, text).what
    assert (
        "r.yaml:5: 'train' must be a mapping to take 'epochs'" in refusal(tmp_path, HEAD + "train: 3\nepochs: 1").what
    )


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.seed=1", "train.seed", 1),
        ("train.learning_rate=2e-4", "train.learning_rate", 2e-4),
        (" train.seed = 1", "train.seed", 1),
        ("model=x", "model.name", "x"),
        ("model.revision=abc", "model.revision", "abc"),
        ("data.train.0.path=e=f.csv", "data.train.0.path", "e=f.csv"),
        ("data.train.0.label=x", "data.train.0.label", "x"),
        ("export=[merged]", "export", ["merged"]),
        ("export.0=merged", "export", ["merged"]),
        ("objective.budget={hours: 2}", "objective.budget.hours", 2.0),
        ("objective.targets={}", "objective.targets", {}),
        ("data.split.test=0.5", "data.split.test", 0.5),
        ("data.privacy=", "data.privacy.action", "report"),
        ("train.max_tokens=null", "train.max_tokens", None),
        ("name='12'", "name", "12"),
    ],
)
def test_overrides(tmp_path: Path, override: str, key: str, value: object) -> None:
    text = f"{HEAD}export: adapter\nobjective: {{budget: {{ram_gib: 4}}}}\ntrain: {{max_tokens: 9}}\n"
    recipe = load(tmp_path, text, override).recipe
    found: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    assert found == value
    assert recipe.entry.path == ("e=f.csv" if "path" in override else "d.csv")
    assert recipe.model.name == ("x" if override == "model=x" else "m")


def test_later_overrides_win(tmp_path: Path) -> None:
    assert load(tmp_path, HEAD, "train.seed=1", "seed=2", "train.seed=3").recipe.train.seed == 3


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("train.seed", "is not KEY=VALUE"),
        ("=1", "is not KEY=VALUE"),
        ("train..seed=1", "is not KEY=VALUE"),
        ("", "is not KEY"),
        ("train.seed=[", "not YAML: "),
        ("name=2024-13-45", "cannot be read: month must be in"),
        ("name.first=x", "there is nothing below 'name' to set"),
        ("data.train.5.path=x", "there is nothing below '5' to set"),
        ("export.7=merged", "'7' is not an item of that list"),
        ("export.x=merged", "'x' is not an item of that list"),
        ("train.sed=1", "unknown key 'train.sed'"),
        ("train.learning_rate=-1", "train.learning_rate: Input should be greater"),
        ("name=" + "[" * 1500, "nested too deeply"),
    ],
    ids=lambda value: value[:25],
)
def test_overrides_that_make_no_sense_are_named(tmp_path: Path, override: str, what: str) -> None:
    error = refusal(tmp_path, HEAD + "export: [adapter]\ntrain: {learning_rate: 1}\n", override)
    assert error.what.startswith(f"--set {override!r}")
    assert what in error.what


def test_the_environment_is_read_in_values_only_and_not_twice(tmp_path: Path) -> None:
    text = "name: r-${WHO}\nmodel: ${M}\ndata: ${DIR}/${FILE}.csv\noutput_dir: $${HOME}/x $HOME\nseed: '${SEED}'\n"
    environment = {"WHO": "me", "M": "${WHO}", "DIR": "a", "FILE": "b", "SEED": "12"}
    recipe = load(tmp_path, text, environment=environment).recipe
    assert (recipe.name, recipe.model.name, recipe.entry.path) == ("r-me", "${WHO}", "a/b.csv")
    assert (recipe.output_dir, recipe.train.seed) == ("${HOME}/x $HOME", 12)
    assert load(tmp_path, HEAD, "name=${WHO}", environment=environment).recipe.name == "me"
    error = refusal(tmp_path, HEAD + "train:\n  seed: ${NO_SUCH}\n")
    assert "r.yaml:5: train.seed: ${NO_SUCH} is not set in the environment" in error.what
    assert error.way_out == "export NO_SUCH=..., or write $${NO_SUCH} for the text itself"


def test_rates_may_be_written_as_in_yaml_1_2(tmp_path: Path) -> None:
    for text in ("2e-4", "2.0e-4", "2E-4", "0.0002", "'2e-4'"):
        assert load(tmp_path, f"{HEAD}train: {{learning_rate: {text}}}\n").recipe.train.learning_rate == 2e-4


KEYS = st.sampled_from(
    [*Recipe.model_fields, *ALIASES, "split", "limit", "privacy", "budget", "targets", "r", "path", "test", "0", "é"]
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates())
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@settings(max_examples=60, deadline=None)
@given(tree=st.dictionaries(KEYS, TREES, max_size=6), overrides=st.lists(st.text(max_size=20), max_size=1))
def test_whatever_a_recipe_holds_it_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any], overrides: Sequence[str]
) -> None:
    with contextlib.suppress(RecipeError):  # anything else is our own fault
        load(tmp_path_factory.getbasetemp(), yaml.safe_dump({**whole(), **tree}, allow_unicode=True), *overrides)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_whatever_stands_in_the_file_nothing_but_a_recipe_error_is_raised(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    refusal_or_recipe = tmp_path_factory.getbasetemp() / "any.yaml"
    refusal_or_recipe.write_bytes(content)
    with pytest.raises(RecipeError):
        load_recipe(refusal_or_recipe, environment={})


def test_set_reaches_targets_and_limits_whose_keys_have_a_dot(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\nmodel: m\ndata: {train: a.csv}\nobjective: {targets: {a.accuracy: '>= 0.5'}}\n", encoding="utf-8"
    )
    given = ["objective.targets.a.accuracy=>= 0.9", "objective.non_regression.general.perplexity=<= 1.2x"]
    objective = load_recipe(path, overrides=given).recipe.objective
    assert objective.targets == {"a.accuracy": ">= 0.9"}
    assert objective.non_regression == {"general.perplexity": "<= 1.2x"}


def test_pseudonymise_may_be_spelled_with_z(tmp_path: Path) -> None:
    recipe = load(tmp_path, "name: r\nmodel: m\ndata: {train: d, privacy: {action: pseudonymize}}\n").recipe
    assert recipe.data.privacy is not None
    assert recipe.data.privacy.action == "pseudonymise"


@pytest.mark.parametrize(
    ("launch", "key", "words"),
    [
        ("{nnodes: 2}", "launch", "nnodes above 1 needs rdzv_endpoint, e.g. 'first-machine:29400'"),
        ("{rdzv_endpoint: 'a:1'}", "launch", "rdzv_endpoint is where several machines meet; set nnodes"),
        ("{type: local, nproc_per_node: 2}", "launch", "type 'local' is one process; write 'torchrun'"),
        ("{nnodes: 2, rdzv_endpoint: http://a}", "launch.rdzv_endpoint", "pattern"),
        ("{strategy: zero}", "launch.strategy", "'ddp' or 'fsdp'"),
        ("{nnodes: 2, rdzv_endpoint: 'a:99999'}", "launch", "rdzv_endpoint ends with a port from 1 to 65535"),
        ("{nnodes: 2, rdzv_endpoint: 'a:0'}", "launch", "rdzv_endpoint ends with a port from 1 to 65535"),
        ("{nproc_per_node: 0}", "launch.nproc_per_node", "greater than 0"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(tmp_path: Path, launch: str, key: str, words: str) -> None:
    error = refusal(tmp_path, f"{HEAD}launch: {launch}\n")
    assert key in str(error)
    assert words in str(error)


def test_an_override_may_go_on_below_the_short_form_that_another_gave(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(HEAD, encoding="utf-8")
    method = load_recipe(
        tmp_path / "r.yaml", overrides=["method=classify", "method.abstain_below=0.9"], environment={}
    ).recipe.method
    assert method.model_dump(include={"type", "abstain_below"}) == {"type": "classify", "abstain_below": 0.9}


def test_labels_may_be_numbers_and_yaml_yes_is_told_from_a_label(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    start = "name: r\nmodel: m\n"
    data = "data: {train: [{path: d.csv, task: classification}], labels: {%s}}\n"
    path.write_text(start + data % "order: [1, 2, 3], rename: {4: 3}" + "train: {class_weight: {1: 2, 3: 3}}\n")
    recipe = load_recipe(path, environment={}).recipe
    assert (recipe.data.labels.order, recipe.data.labels.rename) == (("1", "2", "3"), {"4": "3"})
    assert recipe.train.class_weight == {"1": 2, "3": 3}
    for wrong in ("order: [no, maybe]", "rename: {yes: good}"):
        path.write_text(start + data % wrong)
        with pytest.raises(RecipeError, match="put it in quotes"):
            load_recipe(path, environment={})


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999/v1", "http://127.0.0.1:abc/v1", "http://[::1/v1", "http://h:0/v1"]
)
def test_an_endpoint_that_is_no_url_is_refused_with_its_line(tmp_path: Path, url: str) -> None:
    path = tmp_path / "r.yaml"
    teacher = f"teacher: {{endpoint: '{url}', model: m, path: more.csv}}"
    path.write_text(f"name: r\nmodel: m\ndata:\n  train: [{{path: d.csv}}]\n  {teacher}\n")
    with pytest.raises(RecipeError, match=r"r\.yaml:5: data\.teacher\.endpoint: is no URL"):
        load_recipe(path, environment={})
