"""What a recipe leaves open is filled in with a reason; what it says wins; the hash is that of what will be done."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import samples

from luthier.errors import RecipeError
from luthier.pipeline.explain import explained
from luthier.records import DataProfile
from luthier.spec.fill_baselines import FEW_SHOT_EXAMPLES
from luthier.spec.filler import Machine, leaves
from luthier.spec.load import LoadedRecipe, load_recipe
from luthier.spec.plugins import ADAPTERS
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe, entry_name, relaunched, resolve
from luthier.spec.tasks import OWN_KEYS, OWN_PLACES

SHORTEST: dict[str, Any] = {"name": "r", "model": {"name": "m"}, "data": {"train": [{"path": "support.csv"}]}}
OF_SEVERAL = {"multi_task", *(f"data.train.0.{key}" for key in (*OWN_KEYS, *OWN_PLACES))}
OPEN_ON_PURPOSE = {
    "search",
    "data.labels.separator",
    "data.train.0.rewards",
    "data.augment",  # nothing follows from these where they are not given
    "data.canaries",
    "data.teacher",
    "data.filter",
    "evaluate.few_shot_examples",
    "evaluate.glossary",
    "merge",
    "prune",
    "data.privacy.annotations",
    "data.privacy.keep_mapping",
    "data.dedupe.meaning",
    "data.leakage.meaning",
    "data.embeddings",
    "model.revision",
    "model.new_tokens",
    "train.max_tokens",
    "method.abstain_below",
    "adapter.layers_to_transform",
    "adapter.modules_to_save",
    "train.layer_lr_decay",
    "train.embedding_learning_rate",
    "train.loraplus_lr_ratio",
    "train.neftune_noise_alpha",
    "data.train.0.sheet",
    "data.train.0.query",
    "data.limit.train",
    "data.limit.validation",
    "data.limit.test",
    "data.test",
    "data.validation",
    "data.split.by_time",
    "data.split.column",
    "objective.memorisation",
    "objective.budget.hours",
    "objective.budget.ram_gib",
    "objective.budget.price_per_hour",
    "objective.budget.currency",
    "objective.budget.money",
    "train.class_weight",
    "train.class_weight_beta",
    "launch.rdzv_endpoint",
    "multi_task",
    "data.train.0.method",
    *(f"data.train.0.{key}" for key in (*OWN_KEYS, "glossary")),
}


def resolved(
    tree: dict[str, Any],
    *,
    profile: DataProfile | None = None,
    folder: str = ".",
    threads: int = 2,
    missing_for_privacy: str = "presidio-analyzer",
    **shape: Any,
) -> ResolvedRecipe:
    loaded = LoadedRecipe(Recipe.model_validate(tree), Path(folder) / "r.yaml", "", ("a note",))
    return resolve(
        loaded,
        profile or samples.profile(),
        samples.shape(**shape),
        machine=Machine(threads=threads, missing_for_privacy=missing_for_privacy),
        data_sha256={"data.train.0.path": samples.sha("d")},
        luthier_version="0.1.0",
    )


def with_(key: str, value: object, tree: dict[str, Any] | None = None) -> dict[str, Any]:
    """A copy of the tree with one key set."""
    head, _, rest = key.partition(".")
    base = tree if tree is not None else SHORTEST
    if isinstance(base, list):
        return [with_(rest, value, item) if str(index) == head else item for index, item in enumerate(base)]  # type: ignore
    return {**base, head: with_(rest, value, base.get(head) or {}) if rest else value}


def test_nothing_is_left_open_and_every_value_has_its_reason() -> None:
    made = resolved(SHORTEST)
    values = dict(leaves(made.recipe.model_dump(mode="json")))
    assert {key for key, value in values.items() if value is None} == OPEN_ON_PURPOSE
    assert set(made.reasons) == set(values)
    assert all(made.reasons.values())
    given = {key for key, reason in made.reasons.items() if reason == "given in the recipe"}
    assert given == {"name", "model.name", "data.train.0.path"}
    for_several = {key for key in values if values[key] is None and key in OF_SEVERAL}
    assert len(explained(made)) == len(values) - len(for_several) + 1 + len(made.recipe.data.steps or ())
    assert made.notes == ("a note",)


def test_few_shot_prompting_is_evaluated_where_it_is_asked_for() -> None:
    assert "few_shot" not in (resolved(SHORTEST).recipe.evaluate.baselines or ())
    by_number = resolved(with_("evaluate", {"few_shot_examples": 2})).recipe.evaluate
    assert by_number.baselines == ("majority", "tfidf_logreg", "few_shot", "base")
    assert by_number.few_shot_examples == 2
    by_name = resolved(with_("evaluate", {"baselines": ["few_shot", "base"]})).recipe.evaluate
    assert by_name.few_shot_examples == FEW_SHOT_EXAMPLES
    texts = {"name": "x", "model": {"name": "m"}, "data": {"train": [{"path": "a.csv", "task": "domain"}]}}
    for section, key in (
        ({"few_shot_examples": 2}, "evaluate.few_shot_examples"),
        ({"baselines": ["few_shot", "base"]}, "evaluate.baselines"),
    ):
        with pytest.raises(RecipeError, match="'few_shot' shows questions with their answers, and task 'domain'") as no:
            resolved({**texts, "evaluate": section})
        assert no.value.key == key


def test_a_resolved_recipe_resolves_to_itself() -> None:
    made = resolved(SHORTEST)
    again = resolved(made.recipe.model_dump(mode="json"))
    assert again.recipe == made.recipe
    assert again.sha256 == made.sha256


GIVEN = {
    "data.train.0.task": "sentiment",
    "data.train.0.name": "x",
    "data.train.0.input": "{ticket_id}",
    "data.train.0.system": "",
    "data.train.0.label": "channel",
    "data.train.0.format": "jsonl",
    "data.train.0.license": "MIT",
    "data.split.test": 0.4,
    "data.split.validation": 0.2,
    "data.split.group_by": "",
    "data.split.stratify": False,
    "data.dedupe.near": 0.9,
    "data.leakage.near": False,
    "adapter.r": 3,
    "adapter.alpha": 5.0,
    "adapter.dropout": 0.5,
    "adapter.target_modules": ["q_proj"],
    "train.learning_rate": 0.5,
    "train.num_train_epochs": 7,
    "train.max_length": 77,
    "train.batch_size": 3,
    "train.micro_batch_tokens": 99,
    "train.lr_scheduler_type": "cosine",
    "train.warmup_ratio": 0.0,
    "train.weight_decay": 0.5,
    "train.max_grad_norm": 9.0,
    "train.validations": 9,
    "train.patience": 9,
    "train.save_steps": 9,
    "train.threads": 9,
    "evaluate.baselines": ["base"],
    "evaluate.few_shot_examples": 3,
    "evaluate.resamples": 300,
    "evaluate.level": 0.9,
    "export": [],
}


@pytest.mark.parametrize("key", GIVEN)
def test_what_is_given_wins(key: str) -> None:
    made = resolved(with_(key, GIVEN[key]))
    assert dict(leaves(made.recipe.model_dump(mode="json")))[key] == GIVEN[key]
    assert made.reasons[key] == "given in the recipe"
    assert dict(leaves(resolved(SHORTEST).recipe.model_dump(mode="json")))[key] != GIVEN[key]


@pytest.mark.parametrize(
    ("entry", "split", "message"),
    [
        (
            {"input": "{message} ({ intent })"},
            {},
            r"data\.train\[0\]\.input: .* names the column 'intent', which is the",
        ),
        ({"label": "message"}, {}, r"'\{message\}' names the column 'message'"),
        ({}, {"group_by": "intent"}, r"data\.split\.group_by: 'intent' is the label too"),
    ],
)
def test_the_answer_is_neither_asked_nor_a_group(entry: dict[str, str], split: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as error:
        resolved({**SHORTEST, "data": {"train": [{"path": "support.csv", **entry}], "split": split}})
    assert error.value.way_out


def test_a_group_that_was_detected_gives_way_to_the_label() -> None:
    detected = samples.profile().group_by
    assert detected
    made = resolved({**SHORTEST, "data": {"train": [{"path": "support.csv", "label": detected}]}})
    assert made.recipe.data.split.group_by == ""


def test_zero_and_empty_are_given_values_too() -> None:
    for key, value in (
        ("train.warmup_ratio", 0.0),
        ("data.train.0.system", ""),
        ("export", []),
        ("data.split.group_by", ""),
    ):
        assert dict(leaves(resolved(with_(key, value)).recipe.model_dump(mode="json")))[key] == value


def upper(*layers: int, **more: Any) -> dict[str, Any]:
    """A recipe whose adapter is on these layers only."""
    tree = with_("adapter.layers_to_transform", list(layers))
    for key, value in more.items():
        tree = with_(key.replace("__", "."), value, tree)
    return tree


def test_layers_are_put_in_order_and_must_be_those_of_the_base() -> None:
    assert resolved(upper(29, 28)).recipe.adapter.layers_to_transform == (28, 29)
    assert resolved(upper(29, 28)).sha256 == resolved(upper(28, 29)).sha256
    with pytest.raises(RecipeError, match=r"smollm2-135m-instruct has no layer 30, only 0 to 29") as error:
        resolved(upper(3, 30))
    assert error.value.key == "adapter.layers_to_transform"
    assert "name layers of that range" in error.value.way_out
    assert resolved(upper(30), num_layers=31).recipe.train.cache_trunk


@pytest.mark.parametrize(
    ("tree", "caches", "reason"),
    [
        (SHORTEST, False, "layer 0 learns, so there is nothing frozen below"),
        (upper(0, 29), False, "layer 0 learns"),
        (upper(28, 29), True, "the layers below 28 are frozen: computed once instead of 3 times"),
        (upper(28, 29, train__num_train_epochs=1), False, "each row is seen once"),
        (upper(28, 29, train__max_tokens=1000), False, "each row is seen once"),
        (upper(28, 29, train__cache_trunk=False), False, "given in the recipe"),
        (upper(28, 29, train__cache_trunk=True, train__num_train_epochs=1), True, "given in the recipe"),
    ],
)
def test_the_frozen_layers_are_kept_where_it_pays(tree: dict[str, Any], caches: bool, reason: str) -> None:
    made = resolved(tree)
    assert made.recipe.train.cache_trunk is caches
    assert reason in made.reasons["train.cache_trunk"]


def test_states_that_would_fill_the_disk_are_kept_only_where_it_is_asked() -> None:
    wide = {"hidden_size": 200_000}
    made = resolved(upper(29), **wide)
    assert not made.recipe.train.cache_trunk
    assert re.search(r"about \d\d+ GiB of states, more than the 8 GiB that are kept unasked", str(made.reasons))
    assert resolved(upper(29, train__cache_trunk=True), **wide).recipe.train.cache_trunk
    assert resolved(upper(29, data__limit__train=9), **wide).recipe.train.cache_trunk


def adapter(**section: Any) -> ResolvedRecipe:
    return resolved(with_("adapter", section))


def test_each_type_of_adapter_is_filled_in_with_what_is_usual_of_it() -> None:
    for name in ADAPTERS.names():
        made = adapter(type=name)
        assert made.reasons["adapter.type"] == "given in the recipe"
        open_keys = {key for key, value in made.recipe.adapter.model_dump().items() if value is None}
        assert open_keys <= {"layers_to_transform", "modules_to_save"}
        assert resolved(made.recipe.model_dump(mode="json")).recipe == made.recipe
    assert "near the quality of full tuning" in resolved(SHORTEST).reasons["adapter.type"]
    assert adapter(r=9).recipe.adapter.alpha == 18
    assert adapter(r=9, use_rslora=True).recipe.adapter.alpha == 6  # the scale alpha / sqrt(r) is 2 too
    assert adapter(r=9, init_lora_weights="pissa").recipe.adapter.alpha == 9
    assert adapter(type="ia3", target_modules=["k_proj"]).recipe.adapter.feedforward_modules == ()
    assert adapter(type="ia3", target_modules="all-linear").recipe.adapter.feedforward_modules == ("down_proj",)


def test_the_learning_rate_follows_from_what_learns() -> None:
    lora, full, ia3 = (adapter(type=name).recipe.train.learning_rate for name in ("lora", "full", "ia3"))
    assert full == pytest.approx(lora / 10)
    assert ia3 == pytest.approx(lora * 5)
    assert "classify with adapter full" in adapter(type="full").reasons["train.learning_rate"]


def test_whole_weights_are_exported_as_they_are() -> None:
    assert adapter(type="full").recipe.export == ("merged",)
    with pytest.raises(RecipeError, match="there is no adapter to export") as error:
        resolved({**with_("adapter.type", "full"), "export": ["adapter"]})
    assert error.value.key == "export"
    assert "export: [merged]" in error.value.way_out


def test_noise_and_modules_that_learn_whole_switch_the_cache_off() -> None:
    for changed in ({"train": {"neftune_noise_alpha": 5}}, {"adapter": {"modules_to_save": ["norm"]}}):
        tree = upper(29)
        for section, values in changed.items():
            tree = {**tree, section: {**tree.get(section, {}), **values}}
        made = resolved(tree)
        assert made.recipe.train.cache_trunk is False
        assert re.search("noise on the embeddings|learn whole", made.reasons["train.cache_trunk"])


def test_what_follows_from_what() -> None:
    assert resolved(with_("adapter.r", 5)).recipe.adapter.alpha == 10
    assert resolved(SHORTEST, max_positions=300).recipe.train.max_length == 300
    assert resolved(SHORTEST, threads=7).recipe.train.threads == 7
    assert resolved(with_("objective.budget.ram_gib", 16)).recipe.train.micro_batch_tokens == 2048
    assert resolved(with_("objective.budget.ram_gib", 8)).recipe.train.micro_batch_tokens == 1024
    assert resolved(with_("train.max_length", 3000)).recipe.train.micro_batch_tokens == 3000
    large, small = (resolved(SHORTEST, num_parameters=count).recipe.train.learning_rate for count in (7 * 10**9, 10**8))
    assert large is not None
    assert small is not None
    assert large < small
    chat = resolved(
        SHORTEST, profile=samples.profile(shape="messages", task="generation", input="", label="", labels={})
    )
    assert (chat.recipe.entry.input, chat.recipe.entry.label, chat.recipe.entry.name) == ("", "", "generation")
    assert chat.recipe.evaluate.baselines == ("base",)
    assert chat.recipe.data.split.stratify is False
    assert resolved(SHORTEST).recipe.entry.system == "Answer with the intent of the message."


def test_private_rules_are_the_careful_ones_where_nothing_is_said() -> None:
    privacy = resolved(SHORTEST).recipe.data.privacy
    assert privacy is not None
    assert (privacy.action, privacy.secrets) == ("report", "stop")
    assert "absent" in resolved(SHORTEST).reasons["data.privacy.secrets"]
    assert resolved(with_("data.privacy", {})).recipe.data.privacy == privacy


@pytest.mark.parametrize(
    ("missing", "profile", "reason"),
    [
        (
            "presidio-analyzer",
            "fast",
            "presidio-analyzer is not installed: names and addresses in free text are not looked for",
        ),
        ("", "balanced", "the extra 'privacy' is installed"),
    ],
)
def test_the_profile_follows_what_is_installed_and_says_so(missing: str, profile: str, reason: str) -> None:
    for tree in (SHORTEST, with_("data.privacy", {"action": "redact"})):
        made = resolved(tree, missing_for_privacy=missing)
        assert made.recipe.data.privacy is not None
        assert made.recipe.data.privacy.profile == profile
        assert made.reasons["data.privacy.profile"] == reason
    given = resolved(with_("data.privacy", {"profile": "balanced"}), missing_for_privacy=missing)
    assert given.recipe.data.privacy is not None
    assert given.recipe.data.privacy.profile == "balanced", "what is explicit stays, and fails where it cannot be had"


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("Intent", "intent"),
        ("intent class", "intent_class"),
        ("1st", "task"),
        ("", "task"),
        ("étiquette", "tiquette"),
        ("类别", "task"),
        ("__x__", "x"),
    ],
)
def test_names_of_entries(column: str, name: str) -> None:
    assert entry_name(column, "task") == name
    resolved(with_("data.train.0.label", column or None))


UNTOLD: dict[str, Any] = {"shape": "unknown", "task": None, "input": "", "label": "", "labels": {}}


@pytest.mark.parametrize(
    ("tree", "profile", "what", "way_out"),
    [
        (
            SHORTEST,
            UNTOLD,
            r"support.csv: cannot tell what the columns are for: ticket_id \(id\), received \(date\)",
            r"set data.train\[0\].task, .input \(e.g. '\{text\}'\) and .label",
        ),
        (with_("data.train.0.task", "classification"), UNTOLD, "cannot tell what the columns are for", ""),
        (SHORTEST, {"input": ""}, "support.csv: no column looks like an input", r"set data.train\[0\].input"),
        (SHORTEST, {"label": ""}, "support.csv: no column looks like an answer", r"set data.train\[0\].label"),
        (
            with_("data.train.0.label", "x"),
            {"shape": "messages", "task": "generation"},
            r"data.train\[0\].label 'x' is not used with chat rows",
            "leave it out",
        ),
        (
            with_("train.max_length", 9000),
            {},
            "train.max_length 9000 is more than the 8192 positions of smollm2",
            "set it to 8192",
        ),
        (with_("evaluate.baselines", ["majority"]), {}, "evaluate.baselines leaves out 'base'", "add it"),
        (
            with_("evaluate", {"baselines": ["base"], "few_shot_examples": 3}),
            {},
            "evaluate.few_shot_examples is 3, and no baseline shows examples",
            "add few_shot to evaluate.baselines",
        ),
        (
            with_("data.split.test", 0.87),
            {},
            "data.split: split.test \\+ split.validation leave less than a tenth",
            "set",
        ),
        (
            with_("objective.targets", {"kind.accuracy": ">= 0.8"}),
            {},
            r"'kind.accuracy' names no data entry \(there is 'intent'\)",
            "write 'intent.accuracy', or set",
        ),
        (
            with_("objective.targets", {"intent.accuracy": ">= 0.8"}, with_("data.train.0.task", "generation")),
            {},
            "'intent.accuracy' is not measured for generation",
            "measured: exact_match, perplexity",
        ),
    ],
    ids=[
        "untold",
        "half told",
        "no input",
        "no answer",
        "chat label",
        "too long",
        "no base",
        "no examples",
        "no rows left",
        "other name",
        "other metric",
    ],
)
def test_what_cannot_be_resolved(tree: dict[str, Any], profile: dict[str, Any], what: str, way_out: str) -> None:
    with pytest.raises(RecipeError, match=what) as caught:
        resolved(tree, profile=samples.profile(**profile))
    assert re.match(way_out, caught.value.way_out)


LINES = """\
name: r
model: m
objective:
  targets:
    intent.macro_f1: '>= 0.8'
    other.accuracy: '>= 0.8'
data:
  train:
    - path: support.csv
      task: classification
      input: '{message}'
      label: intent
      name: intent
  split:
    group_by: intent
  labels:
    review: true
train:
  batch_size: 8
  max_length: 100000
evaluate: {baselines: [majority]}
"""


@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        (["data.split.group_by=customer", "train.max_length=512"], 21, "evaluate.baselines leaves out 'base'"),
        ([], 15, "data.split.group_by: 'intent' is the label too"),
        (["data.split.group_by=c", "evaluate.baselines=[base]"], 20, "train.max_length 100000 is more than"),
        (
            ["data.split={stable: true, stratify: true}"],
            "--set",
            "data.split.stratify does not go with data.split.stable",
        ),
        (["data.train.0.input='{intent}'"], "--set", "which is the answer"),
        (["data.train.0.task=generation", "data.train.0.name=other"], 16, "data.labels is for tasks"),
        (["data.split={}", "evaluate={}", "train={}"], 6, "'other.accuracy' names no data entry"),
    ],
)
def test_what_is_found_while_resolving_names_the_line(
    tmp_path: Path, changes: list[str], line: int | str, words: str
) -> None:
    (tmp_path / "r.yaml").write_text(LINES)
    loaded = load_recipe(tmp_path / "r.yaml", overrides=changes)
    with pytest.raises(RecipeError) as caught:
        resolve(
            loaded, samples.profile(), samples.shape(), machine=Machine(threads=1), data_sha256={}, luthier_version="0"
        )
    place = f"--set {changes[0]!r}: " if line == "--set" else f"{tmp_path / 'r.yaml'}:{line}: "
    assert caught.value.what.startswith(place)
    assert words in caught.value.what


def test_columns_that_say_nothing_are_fine_once_they_are_told() -> None:
    entry = {"path": "support.csv", "task": "classification", "input": "{message}", "label": "intent"}
    made = resolved({**SHORTEST, "data": {"train": [entry]}}, profile=samples.profile(**UNTOLD))
    assert made.recipe.entry.name == "intent"


def test_the_hash_does_not_know_the_place_but_everything_else() -> None:
    usual = resolved(SHORTEST)
    assert resolved(SHORTEST, folder="/elsewhere").sha256 == usual.sha256
    assert resolved(with_("output_dir", "other")).sha256 == usual.sha256
    assert resolved(SHORTEST, sha256=samples.sha("c")).sha256 != usual.sha256
    for change in ({"data_sha256": {"data.train.0.path": "other"}}, {"luthier_version": "0.1.1"}):
        assert usual.model_copy(update=change).sha256 != usual.sha256
    assert ResolvedRecipe.model_validate_json(usual.to_json()).sha256 == usual.sha256
    assert usual.file("support.csv") == Path(usual.folder) / "support.csv"


@pytest.mark.parametrize("key", ["data.dedupe.meaning", "data.leakage.meaning"])
def test_who_asks_for_meaning_gets_a_model(key: str) -> None:
    made = resolved(with_(key, 0.9))
    embeddings = made.recipe.data.embeddings
    assert embeddings is not None
    assert (embeddings.model, embeddings.max_rows) == ("all-minilm-l6-v2", 200_000)
    assert made.reasons["data.embeddings.model"] == "small, for English, and it comes with 'luthier[meaning]'"
    assert made.reasons["data.embeddings.max_rows"] == "the default"
    assert "data.embeddings" not in made.reasons
    given = resolved(with_("data.embeddings.model", "folder", with_(key, 0.9)))
    assert given.recipe.data.embeddings is not None
    assert given.recipe.data.embeddings.model == "folder"
    assert resolved(SHORTEST).recipe.data.embeddings is None


def test_how_a_run_is_started_follows_from_the_processes_and_is_no_part_of_what_it_is() -> None:
    alone = resolved(SHORTEST)
    assert alone.recipe.launch.type == "local"
    two = resolved(with_("launch", {"nproc_per_node": 2}))
    assert (two.recipe.launch.type, two.reasons["launch.type"]) == ("torchrun", "starts several processes")
    assert resolved(with_("launch", {"type": "torchrun"})).recipe.launch.type == "torchrun"
    assert two.sha256 == alone.sha256


def test_a_run_can_be_started_in_another_way() -> None:
    alone = resolved(SHORTEST)
    two = relaunched(alone, {"nproc_per_node": 2, "nnodes": None})
    assert (two.recipe.launch.nproc_per_node, two.recipe.launch.type) == (2, "torchrun")
    assert two.sha256 == alone.sha256
    assert relaunched(two, {"nproc_per_node": 1}) == alone
    assert relaunched(two, {"nnodes": None}) is two
    machines = relaunched(alone, {"nnodes": 2, "rdzv_endpoint": "a:29400"})
    assert relaunched(machines, {"nnodes": 1}) == alone
    with pytest.raises(RecipeError, match="launch: nnodes above 1 needs rdzv_endpoint"):
        relaunched(two, {"nnodes": 2})
