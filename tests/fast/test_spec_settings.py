"""No silent setting: every leaf key of the recipe changes the run's identity and what comes out where it is used.

Each key stands in `EFFECTS` with another value and with the consumer that must notice it. A key that is added to the
recipe and not here fails; so does one that nothing obeys.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import classify_kit
import govern_records
import huggingface_hub
import merge_kit
import numpy
import pytest
import samples
import test_evals_evaluate
import test_pipeline_sinks
import test_train_loop
import test_train_preference
import test_train_reward
import torch
from data_kit import encoder_folder, shape, tokenizer_folder
from echo_engine import asker, contract
from openai_fake import serving
from pydantic import BaseModel
from torch.distributed.elastic.rendezvous import registry

from luthier.compress.merge.lowrank import LowRank
from luthier.compress.merge.vectors import merge_dense, merge_low_rank
from luthier.compress.prune.choose import choose
from luthier.compress.prune.rows import drawn, packed
from luthier.data.documents import pieces
from luthier.data.items import Item
from luthier.data.masks import Supervision, mask
from luthier.data.prepare import prepare
from luthier.data.privacy.pseudonyms import read_mapping
from luthier.data.profile import profile
from luthier.data.shards import Example, Shard
from luthier.data.template import TEXT_TEMPLATE
from luthier.data_report import DataReport
from luthier.errors import DataError, MissingExtra, RunError
from luthier.eval_records import Memorisation, MemorisedSecrets
from luthier.evals.evaluate import evaluate
from luthier.govern.memorised import memorisation_lines
from luthier.launch.child import stage_environment, start_stage
from luthier.launch.torchrun import rendezvous, worker_spec
from luthier.models import compiled
from luthier.models.adapters import attach
from luthier.models.neftune import Neftune
from luthier.models.quantised import quantise_base
from luthier.models.source import locate
from luthier.pipeline.context import set_up_device
from luthier.pipeline.drive import begin
from luthier.pipeline.glossary import glossary_of
from luthier.pipeline.heads import calibrates
from luthier.pipeline.merging import mix_of
from luthier.pipeline.progress import Progress
from luthier.pipeline.propose import propose
from luthier.pipeline.sinks import Feeds, refuse_missing_sinks
from luthier.pipeline.start import copy_recipe
from luthier.pipeline.taught import open_teacher
from luthier.pipeline.teacher import find_teacher
from luthier.pipeline.training import make_ready, with_adapter
from luthier.pipeline.trunk import lay_trunk
from luthier.plan.make import make_plan
from luthier.plan.search import search_note
from luthier.records import Message, RequestContract, Scale
from luthier.search_records import SearchRecord
from luthier.spec.filler import Machine
from luthier.spec.load import LoadedRecipe, sections_in
from luthier.spec.merge import Parent
from luthier.spec.methods.grpo import Grpo
from luthier.spec.objective import MostMemorised
from luthier.spec.plugins import METHODS
from luthier.spec.recipe import Evaluate, Recipe, Train
from luthier.spec.resolve import ResolvedRecipe, resolve
from luthier.spec.rewards.exact import Exact
from luthier.spec.tasks import task_loaded
from luthier.store.events import EventLog
from luthier.store.files import sha256_file
from luthier.train import checkpoint, loop, shard
from luthier.train.dist import Ranks
from luthier.train.methods import load_method
from luthier.train.methods.distill import Taught
from luthier.train.methods.sft import Sft
from luthier.train.optim import make_optimizer
from luthier.train.own import with_own_answers
from luthier.train.reference import Referring
from luthier.train.validation import Judged, Validation
from rows_kit import inputs_of
from tiny import llama, write_model

BASE: dict[str, Any] = {
    "name": "r",
    "objective": {"targets": {"intent.accuracy": ">= 0.5"}, "non_regression": {"general.perplexity": "<= 1.05x"}},
    "model": {"name": "owner/m"},
    "method": {"type": "sft"},
    "data": {
        "train": [
            {"path": "data.csv", "name": "intent", "input": "{message}", "label": "intent", "task": "classification"}
        ],
        "split": {"test": 0.25, "validation": 0.2, "group_by": "customer"},
        "privacy": {"action": "report", "secrets": "redact"},
        "max_bad_rows": 0.02,
    },
}

TEXTS: dict[str, Any] = {
    **BASE,
    "objective": {},
    "data": {
        **BASE["data"],
        "train": [{"path": "data.csv", "name": "intent", "input": "{message}", "task": "domain"}],
    },
    "method": {"type": "pretrain", "replay": {"path": "general.csv", "share": 0.3}},
}
"""The same rows as documents, for keys that nothing else has."""


def with_(key: str, value: object, tree: Any = BASE) -> Any:
    """A copy of the tree with one key set; what is missing on the way is made."""
    head, _, rest = key.partition(".")
    if isinstance(tree, list):
        return [with_(rest, value, item) if str(index) == head else item for index, item in enumerate(tree)]
    return {**tree, head: with_(rest, value, tree.get(head) or {}) if rest else value}


OF_SEVERAL = {"multi_task", "data.train.0.weight"}
"""Keys that only several tasks have: test_spec_tasks.py, test_train_tasks.py."""


def leaf_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Key of every value in the recipe's model; the one data entry is `data.train.0`."""
    keys = []
    for name, field in section.model_fields.items():
        inner = sections_in(field.annotation)
        if prefix + name in OF_SEVERAL:
            continue
        if not inner or prefix == "data.train.0.":  # what an entry says for itself goes to the place that all have
            keys.append(prefix + name)
            continue
        for part in inner:
            keys += leaf_keys(
                part, f"{prefix}{name}.{'0.' if field.annotation is not part and name == 'train' else ''}"
            )
    return list(dict.fromkeys(keys))  # sections of which `type` chooses one have that key in common


# --- consumers: each turns the recipe into what is seen of it ---------------------------------------------------------


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("settings")
    tokenizer_folder(place / "tokenizer")
    encoder_folder(place / "encoder")
    encoder_folder(place / "encoder2", seed=1)
    for name, first in (("data.csv", 0), ("other.csv", 200), ("extra.csv", 400)):
        with (place / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["customer", "message", "note", "intent", "mood", "day", "part"])
            for number in range(first, first + 72):
                text = f"message number {number} about " + ("a long story " * 30 if number % 24 == 5 else "an order")
                text += " mail me at ana@example.org" if number % 12 == 3 else ""
                text += " key AKIA" + "IOSFODNN7EXAMPLE" if number % 24 == 7 else ""
                label = ("buy", "sell", "ask")[min(number % 8, 2)]
                more = [f"2026-01-{number % 28 + 1:02}", ("train", "test", "dev", "train")[number // 3 % 4]]
                writer.writerow([f"c{number // 3}", text, f"note {number}", label, ("glad", "sad")[number % 2], *more])
            writer.writerow(["a row that cannot be read"])
    for name, word in (("general.csv", "river"), ("general2.csv", "castle")):
        with (place / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "heading"])
            for number in range(40):
                writer.writerow([f"the {word} runs by {number} houses and {number * 7} trees", f"part {number}"])
    (place / "terms.txt").write_text("hhh kkk\n")
    sample = [
        {"text": f"badge AB-{n} here", "spans": [{"start": 6, "end": 10, "type": "BADGE"}]} for n in range(10, 40)
    ]
    (place / "annotated.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sample))
    return place


def resolved(tree: dict[str, Any], folder: Path, **facts: Any) -> ResolvedRecipe:
    recipe = Recipe.model_validate(tree)
    loaded = task_loaded(LoadedRecipe(recipe, folder / "r.yaml", "", ()), 0)
    return resolve(
        loaded, profile(folder / recipe.entry.path), shape().model_copy(update={"num_layers": 2, **facts}),
        machine=Machine(threads=1), data_sha256={}, luthier_version="0", parents=parents_of(recipe),
    )  # fmt: skip


def parents_of(recipe: Recipe) -> tuple[Parent, ...]:
    """The runs that a recipe merges, as they would be found."""
    return tuple(merge_kit.parent(name) for name in (recipe.merge.runs if recipe.merge else ()))


def through_merge(tree: dict[str, Any], folder: Path) -> object:
    """What comes out of two runs, or three, and in which form."""
    settings = resolved(with_("merge", {"runs": ["a", "b"], **(tree.get("merge") or {})}, tree), folder).recipe.merge
    assert settings is not None
    rngs = [torch.Generator().manual_seed(ord(run[0])) for run in settings.runs]
    vectors = [{"w": LowRank(torch.randn(4, 9, generator=rng), torch.randn(7, 4, generator=rng))} for rng in rngs]
    mix = mix_of(settings, len(vectors))
    if settings.into == "weights":
        return "weights", str(merge_dense(vectors, mix, lambda done, total: None).vector["w"])
    merged = merge_low_rank(vectors, mix, rank=settings.rank or 0, tick=lambda done, total: None)
    change = merged.vector["w"]
    assert isinstance(change, LowRank)
    return settings.rank, str(change.dense()), merged.kept


PRUNED: dict[str, Any] = {"layers": {"remove": 2}, "mlp": {"keep": 0.5}, "heads": {"keep": 0.5}, "tokens": 40}


def through_pruning(tree: dict[str, Any], folder: Path) -> object:
    """What of a tiny model stays, and by what scores."""
    section = {key: {**one, **(tree.get("prune") or {}).get(key, {})} for key, one in PRUNED.items() if key != "tokens"}
    section["tokens"] = (tree.get("prune") or {}).get("tokens", PRUNED["tokens"])
    facts = {"num_layers": 4, "hidden_size": 32, "num_heads": 8, "num_kv_heads": 4, "intermediate_size": 96}
    settings = resolved(with_("prune", section, {**tree, "export": ["merged"]}), folder, **facts).recipe.prune
    assert settings is not None
    assert settings.tokens is not None
    model = llama(num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, intermediate_size=96)
    rng = numpy.random.default_rng(0)
    rows = [Example(n, "", "", "", 1, rng.integers(3, 300, 16).tolist(), [False] + [True] * 15) for n in range(12)]
    batches = packed(drawn(rows, settings.tokens, seed=0), whole=False)
    chosen = choose(model, batches, settings, shape().model_copy(update=facts), lambda what, done, total: None)
    return str(chosen.kept), chosen.layers, chosen.mlp, chosen.heads


def through_prepare(tree: dict[str, Any], folder: Path) -> object:
    """Report and contract, or the error."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    try:
        made = prepare(resolved({**tree, "objective": {}}, folder), tokenizer_folder=folder / "tokenizer", out=out)
    except DataError as error:
        return type(error).__name__
    return made, (out / "contract.json").read_text()


def typed(tree: dict[str, Any]) -> dict[str, Any]:
    """The recipe with an expression that tells the type of a column."""
    return dict(with_("data.features", {"kind": "typeof(day)"}, with_("data.train.0.input", "{kind} {message}", tree)))


def through_types(tree: dict[str, Any], folder: Path) -> object:
    through_prepare(typed(tree), folder)
    return {row.text.split()[0] for row in Shard(folder / "out" / "train.arrow")}


def through_learning(tree: dict[str, Any], folder: Path) -> object:
    """The tagger that requests will be looked at with."""
    _, contract = cast(tuple[object, str], through_prepare(tree, folder))
    return [json.loads(contract)["privacy_tagger_sha256"]]


def through_masks(tree: dict[str, Any], folder: Path) -> object:
    """What is learned of a conversation with two answers."""
    turns = [Message(role=("user", "assistant")[n % 2], content="a") for n in range(4)]
    made = asker(0.0).renderer
    return mask(made, turns, Supervision.of(resolved(tree, folder).recipe.entry)).supervised


def through_mapping(tree: dict[str, Any], folder: Path) -> object:
    """How many pseudonyms the file holds that the recipe names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_MAPPING_PASSPHRASE", "correct horse")
        patch.setenv("LUTHIER_PRIVACY_KEY", "0123456789abcdef")
        through_prepare(tree, folder)
    kept = tree["data"]["privacy"].get("keep_mapping")
    return len(read_mapping(folder / kept, passphrase="correct horse")) if kept else 0


def through_augment(tree: dict[str, Any], folder: Path) -> object:
    """What is made where some of everything is asked for."""
    usual = {"typos": 0.6, "case": 0.6, "punctuation": 0.1, "swap": 0.3, "swaps": [["order", "parcel"]]}
    return through_prepare(with_("data.augment", usual | (tree["data"].get("augment") or {}), tree), folder)


def through_canaries(tree: dict[str, Any], folder: Path) -> object:
    usual = {"count": 1, "copies": [0, 1]}
    return through_prepare(with_("data.canaries", usual | (tree["data"].get("canaries") or {}), tree), folder)


def through_paraphrase(tree: dict[str, Any], folder: Path) -> object:
    """What a model elsewhere is asked, where, with which key, and what comes out of it."""
    usual = {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "share": 0.3, "send_personal_data": True}
    given = usual | ((tree["data"].get("augment") or {}).get("paraphrase") or {})
    with serving(lambda system, user: f"in other words, {user}") as fake, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_HOME", tempfile.mkdtemp(dir=folder))
        patch.setenv("SECRET_KEY", "k")
        given["endpoint"] = fake.url.removesuffix("/v1") + urlsplit(given["endpoint"]).path
        seen = through_prepare(with_("data.augment", {"paraphrase": given}, tree), folder)
        if isinstance(seen, str):
            return seen
        made = cast(tuple[DataReport, str], seen)[0].augmentation
        assert made is not None
        return fake.asked, fake.paths, fake.keys, made.techniques


def answering(tree: dict[str, Any]) -> dict[str, Any]:
    """The recipe over the same file, with free answers."""
    answers = {**tree["data"]["train"][0], "task": "generation", "label": "note"}
    return dict(with_("data.train", [answers], {**tree, "objective": {}, "method": {"type": "sft"}}))


def through_writer(tree: dict[str, Any], folder: Path) -> object:
    """What a teacher elsewhere is asked, where, with which key, and what is learned of what it says."""
    usual = {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "path": "general.csv", "send_personal_data": True}
    given = usual | (tree["data"].get("teacher") or {})
    tree = answering(tree)
    for name in ("general.csv", "general2.csv"):
        rows = [{"message": f"{name} {number} ana@example.org"} for number in range(4)]
        (folder / f"of_{name}").write_text("message\n" + "".join(f"{row['message']}\n" for row in rows))
    given["path"] = f"of_{given['path']}"
    with serving(lambda system, user: f"said of {user[:12]}") as fake, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_HOME", tempfile.mkdtemp(dir=folder))
        patch.setenv("SECRET_KEY", "k")
        given["endpoint"] = fake.url.removesuffix("/v1") + urlsplit(given["endpoint"]).path
        seen = through_prepare(with_("data.teacher", given, tree), folder)
        if isinstance(seen, str):
            return seen
        made = cast(tuple[DataReport, str], seen)[0].teacher
        assert made is not None
        return fake.asked, fake.paths, fake.keys, made.rows, made.rewritten


def through_meaning(tree: dict[str, Any], folder: Path) -> object:
    """What becomes of rows compared by meaning; a likeness of nearly 1 is asked for where the tree asks for none."""
    data = tree["data"]
    made = {
        **data,
        "dedupe": {"near": False, "meaning": 0.9999, **(data.get("dedupe") or {})},
        "leakage": {"near": False, "meaning": 0.9999, **data.get("leakage", {})},
        "embeddings": {"model": "encoder", **(data.get("embeddings") or {})},
    }
    found = through_prepare({**tree, "data": made}, folder)
    if isinstance(found, str):
        return found
    report = cast(tuple[DataReport, str], found)[0]
    assert report.meaning is not None
    return report.dropped.get("duplicate_meaning", 0), report.leakage, report.meaning.model_sha256


def through_attach(tree: dict[str, Any], folder: Path) -> object:
    model = attach(llama(), resolved(tree, folder).recipe.adapter, base_name="b", seed=0)
    layers = [(name, part) for name, part in model.named_modules() if hasattr(part, "lora_dropout")]
    return (
        [(name, part.scaling, str(part.lora_dropout)) for name, part in layers],
        {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if parameter.requires_grad},
        float(sum(parameter.abs().sum() for parameter in model.parameters()).detach()),
        str(getattr(model, "peft_config", None)),
    )


def through_model(tree: dict[str, Any], folder: Path) -> object:
    """What is given to the loop."""
    model = with_adapter(llama(), resolved(tree, folder).recipe, base_name="b")
    return (
        model.get_base_model().is_activation_checkpointing,
        [(name, one.dtype) for name, one in model.named_parameters()],
        [part.alpha for part in model.modules() if isinstance(part, Neftune)],
    )


def through_rates(tree: dict[str, Any], folder: Path) -> object:
    """How fast each parameter learns over the rest."""
    recipe = resolved(tree, folder).recipe
    model = with_adapter(llama(), recipe, base_name="b")
    learning = {name: one for name, one in model.named_parameters() if one.requires_grad}
    return [
        (group["rate_factor"], len(group["params"])) for group in make_optimizer(learning, recipe.train).param_groups
    ]


def through_device(tree: dict[str, Any], folder: Path) -> object:
    """Where a stage computes; this machine may have one place only."""
    try:
        return set_up_device(resolved(tree, folder).recipe.train)
    except RunError as error:
        return ["refused", str(error)]


class Counting:
    """The method, and how often it was asked for a loss."""

    def __init__(self) -> None:
        self.calls = 0
        self.count, self.computed = Sft().count, Sft().computed

    def loss_sum(self, model: Any, examples: Any, weights: Any = None) -> torch.Tensor:
        self.calls += 1
        return Sft().loss_sum(model, examples, weights)


def through_train(tree: dict[str, Any], folder: Path) -> object:
    """Weights, losses, when was validated, what checkpoints were made, threads: a worsening metric, eighteen rows."""
    usual = test_train_loop.SETTINGS.model_dump()
    settings = Train.model_validate({**usual, "validations": 5, "patience": 9, **tree.get("train", {})})
    scores, method, steps = iter(range(1000, 0, -1)), Counting(), list[str]()
    out = Path(tempfile.mkdtemp(dir=folder))
    rows = [replace(one, answer="rare" if n % 6 == 0 else "usual") for n, one in enumerate(test_train_loop.EXAMPLES)]
    inputs = inputs_of(rows, method)
    validation = Validation(
        lambda model: {"m": float(next(scores))}, (Judged("task", "m", higher_is_better=True, tiebreak="m"),)
    )

    def watch(event: Any, *, total_steps: int) -> None:
        steps.append(f"{event.kind} {event.step} {event.loss:.4f}")

    written, write = list[str](), checkpoint.write

    def told(folder: Path, *given: Any, **more: Any) -> None:
        write(folder, *given, **more)
        written.append(str(sorted(path.name for path in folder.glob("*"))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", told)  # beside training, so not at a certain step of it
        result = loop.train(
            test_train_loop.fresh(), inputs, settings=settings, method_name="sft",
            validation=validation, out=out, watch=watch, stop_asked=lambda: False,
        )  # fmt: skip
    return result.weights_sha256, steps, written, method.calls, result.threads, stage_environment(
        threads=settings.threads or 1, offline=True)["OMP_NUM_THREADS"]  # fmt: skip


def loss_of_pairs(method: dict[str, Any], folder: Path) -> float:
    """Of two pairs, on which the tuned model says something else than the base."""
    pairs = [test_train_preference.pair(number) for number in range(2)]
    ready = load_method(METHODS.get(method["type"]).section.model_validate(method), None)  # type: ignore[arg-type]
    if isinstance(ready, Referring):
        ready = ready.beside(test_train_preference.open_at(folder / "reference", pairs))
    return float(ready.loss_sum(test_train_preference.tuned(), pairs).detach())


def through_dpo(tree: dict[str, Any], folder: Path) -> object:
    return [loss_of_pairs({"type": "dpo", **tree.get("method", {})}, folder)]


def through_kto(tree: dict[str, Any], folder: Path) -> object:
    return [loss_of_pairs({"type": "kto", **tree.get("method", {})}, folder)]


def through_simpo(tree: dict[str, Any], folder: Path) -> object:
    return [loss_of_pairs({"type": "simpo", **tree.get("method", {})}, folder)]


def through_scores(tree: dict[str, Any], folder: Path) -> object:
    """The loss of two pairs by a head that has learned something."""
    settings = {"type": "reward", **{key: value for key, value in tree["method"].items() if key.startswith("center")}}
    method = load_method(METHODS.get("reward").section.model_validate(settings), test_train_reward.contract())
    pairs = [test_train_preference.pair(number) for number in range(2)]
    return [float(method.loss_sum(test_train_reward.moved(), pairs).detach())]


def through_teacher(tree: dict[str, Any], folder: Path) -> object:
    """What rows are learned with from one of two models that stand in the folder."""
    for number, name in enumerate(("teacher", "teacher2")):
        if not (folder / name).exists():
            write_model(folder / name, seed=number + 5)
    method = {"type": "distill", "teacher": "teacher", **(tree["method"] if "teacher" in tree["method"] else {})}
    loaded = LoadedRecipe(Recipe.model_validate({**tree, "method": method}), folder / "r.yaml", "", ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_HOME", str(folder / "home"))
        teacher = find_teacher(loaded, out=folder, offline=True, say=print)
        assert teacher is not None
        model = test_train_preference.tuned()
        ready = cast(Taught, load_method(loaded.recipe.method, classify_kit.contract())).under(
            open_teacher(teacher, model, bf16=False)
        )
    rows = with_own_answers(model, inputs_of(test_train_loop.EXAMPLES[:3], ready), range(3), seed=0, step=0)
    return [float(ready.loss_sum(model, rows.all()).detach())]


def paired(tree: dict[str, Any]) -> dict[str, Any]:
    """The recipe over the same file, taken as one of preferences."""
    entry = {"path": "data.csv", "name": "intent", "task": "preference", "input": "{message}", "label": "note"}
    data = {**tree["data"], "train": [entry | {"rejected": "mood"}]}
    return {**tree, "objective": {}, "method": {"type": "dpo"}, "data": data}


def through_rejected(tree: dict[str, Any], folder: Path) -> object:
    """What is learned not to be said."""
    through_prepare(tree if "rejected" in tree["data"]["train"][0] else paired(tree), folder)
    return sorted({row.rejected for row in Shard(folder / "out" / "train.arrow")})


def through_trunk(tree: dict[str, Any], folder: Path) -> object:
    """Whether what the frozen layer of a tiny model says is kept, where the upper one alone learns."""
    tree = with_("adapter.layers_to_transform", [1], tree)
    given, out = resolved(with_("train.batch_size", 4, tree), folder), Path(tempfile.mkdtemp(dir=folder))
    model = attach(llama(), given.recipe.adapter, base_name="b", seed=0)
    trunk = lay_trunk(
        model, test_train_loop.INPUTS, resolved=given, folder=out / "trunk", progress=Progress(),
        events=EventLog(out / "events.jsonl"), stop_asked=lambda: False,
    )  # fmt: skip
    return trunk is None, (out / "trunk").exists()


def through_sinks(tree: dict[str, Any], folder: Path) -> object:
    """The sinks that are there after an event, or the packages that the recipe cannot do without."""
    recipe, out = resolved(tree, folder).recipe, Path(tempfile.mkdtemp(dir=folder))
    try:
        refuse_missing_sinks(recipe)
    except MissingExtra as error:
        return [error.what]
    with Feeds.open(recipe, run=folder, folder=out, offline=True, warn=print) as feeds:
        feeds.send(test_pipeline_sinks.event(1))
    return {path.name: len(list(path.glob("events.*"))) for path in out.iterdir()}


def through_launch(tree: dict[str, Any], folder: Path) -> object:
    """What is started for the stage, and what its agent starts and meets."""
    launch = resolved(tree, folder).recipe.launch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", lambda command, **more: command[4])
        started = start_stage("train", folder, lock_fd=None, threads=2, offline=True, launch=launch)
        patch.setattr(registry, "get_rendezvous_handler", lambda meeting: None)
        meeting = rendezvous(launch)
        spec = worker_spec("train", folder, launch, meeting)
    return started, spec.local_world_size, spec.max_restarts, meeting.min_nodes, meeting.endpoint


def through_ready(tree: dict[str, Any], folder: Path) -> object:
    """Which models are divided between two ranks, and which are compiled."""
    told: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard, "shard", lambda model, ranks: told.append((model, ranks)))
        patch.setattr(compiled, "compile_layers", told.append)
        make_ready("model", resolved(tree, folder).recipe, Ranks(0, 2))
    return told


def through_evaluate(tree: dict[str, Any], folder: Path) -> object:
    settings = Evaluate.model_validate(
        {"baselines": ["base"], "resamples": 300, "level": 0.95, **tree.get("evaluate", {})}
    )
    report = evaluate(
        test_evals_evaluate.material(test=test_evals_evaluate.rows(20, seed=3)), base=asker(0.0), tuned=asker(1.0),
        settings=settings, seed=0, out=folder, progress=test_evals_evaluate.silent, clock=lambda: 0.0,
    )  # fmt: skip
    return report.systems, report.interval_method


def through_few_shot(tree: dict[str, Any], folder: Path) -> object:
    """Whether and how many examples are shown."""
    made = contract(max_length=400)
    settings = resolved(tree, folder).recipe.evaluate
    report = evaluate(
        test_evals_evaluate.material(made, test=test_evals_evaluate.rows(8, seed=3)), base=asker(0.3, made),
        tuned=asker(1.0, made), settings=settings, seed=0, out=folder, progress=test_evals_evaluate.silent,
        clock=lambda: 0.0,
    )  # fmt: skip
    return [(one.system, one.mean_examples) for one in report.systems]


def through_replay(tree: dict[str, Any], folder: Path) -> object:
    """What is told of the general texts, and which they are."""
    replay = {**TEXTS["method"]["replay"], **tree.get("method", {}).get("replay", {})}
    made = through_prepare({**TEXTS, "method": {"type": "pretrain", "replay": replay}}, folder)
    report = cast(tuple[DataReport, str], made)[0]
    return report.replay, [row.text for row in Shard(folder / "out" / "train.arrow") if row.made_by]


def through_terms(tree: dict[str, Any], folder: Path) -> object:
    """Which terms are looked for."""
    made = contract(task="domain", labels=(), chat_template=TEXT_TEMPLATE)
    examples = [piece for number in range(8) for piece in pieces(
        Item("d", number, None, {}, group=f"g{number}", text=f"ggg hhh kkk {number}"), asker(0.0, made).renderer
    )]  # fmt: skip
    own = with_("data.train.0.glossary", tree["data"]["train"][0].get("glossary"), TEXTS)
    given = resolved({**own, "evaluate": tree.get("evaluate", {})}, folder)
    report = evaluate(
        test_evals_evaluate.material(made, train=examples, test=examples, glossary=glossary_of(given)),
        base=asker(0.0, made), tuned=asker(1.0, made), settings=test_evals_evaluate.SETTINGS.model_copy(
            update={"baselines": ("base",)}
        ), seed=0, out=folder, progress=test_evals_evaluate.silent, clock=lambda: 0.0,
    )  # fmt: skip
    return report.terms


def through_gate(tree: dict[str, Any], folder: Path) -> object:
    objective = tree["objective"]
    made = govern_records.resolved(
        targets=objective["targets"], non_regression=objective["non_regression"], export=tree.get("export", ("merged",))
    )
    return govern_records.decision(resolved=made).lines


def through_memorised(tree: dict[str, Any], folder: Path) -> object:
    given = tree["objective"].get("memorisation") or {}
    asked = MostMemorised.model_validate({"extracted": 0.7, "singled_out": 0.7} | given)
    exact = govern_records.interval(0.4, 0.2, 0.6)
    found = MemorisedSecrets(copies=1, extracted=exact, singled_out=exact, exposure=1.0)
    return [line.passed for line in memorisation_lines(asked, Memorisation(references=99, secrets=(found,)))]


def through_plan(tree: dict[str, Any], folder: Path) -> object:
    made = make_plan(resolved(tree, folder), profile(folder / "data.csv"), shape(), matmul_gflops=1e-3)
    return made.fits, made.currency, made.notes, [candidate.money for candidate in made.candidates]


def through_source(tree: dict[str, Any], folder: Path) -> object:
    """What is found in a hub cache that holds two models, one of them in two revisions."""
    model = Recipe.model_validate(tree).model
    for name, revision in (("m", "main"), ("m", "abc"), ("other", "main")):
        place = folder / "hub" / f"models--owner--{name}"
        (place / "snapshots" / (revision[0] * 40)).mkdir(parents=True, exist_ok=True)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(revision[0] * 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
        return locate(model.name, folder=folder, revision=model.revision, offline=True, say=print).path


def through_quantising(tree: dict[str, Any], folder: Path) -> object:
    """The weights that the base is trained with."""
    model = Recipe.model_validate(tree).model
    base = folder / "model"
    if not base.is_dir():
        write_model(base)
    source = locate(str(base), folder=folder, revision=None, offline=True, say=print)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_HOME", str(folder / "home"))
        made = quantise_base(source, base, model) if model.load_in_4bit else base
        return {"weights": sha256_file(made / "model.safetensors")}


def through_grpo(tree: dict[str, Any], folder: Path) -> object:
    """What a tiny model writes to a row, what it gains, and the loss; of a tree without rewards those of exact ones."""
    recipe = Recipe.model_validate(tree)
    given = recipe.method.model_dump() if recipe.method.type == "grpo" else {}
    rewards = tuple(one.model_dump() for one in recipe.entry.rewards or (Exact(),))
    asked = samples.contract(
        task="generation", labels=(), stop_ids=(2,), end_of_turn_ids=(2,), max_new_tokens=5, max_length=64,
        rewards=rewards,
    )  # fmt: skip
    method = cast(Any, load_method(Grpo.model_validate(given), asked))
    method = method.reading(lambda ids: "7" if sum(ids) % 2 else "it is 7")
    model = test_train_loop.fresh()
    row = replace(test_train_loop.EXAMPLES[0], answer="7")
    with torch.no_grad():
        made = method.rewritten(model, row, numpy.random.default_rng(0))
        loss = float(method.loss_sum(model, [made]))
    return made.answers, made.advantages, round(loss, 5)


SEARCHED: dict[str, Any] = {
    "hours": 1.0,
    "candidates": ["lora sft", "lora classify"],
    "settings": {"train.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}},
    "trials": 4,
}


def through_search(tree: dict[str, Any], folder: Path) -> object:
    """Two trials, and what the plan says of all; where the tree has no search, of one that it could have."""
    recipe = Recipe.model_validate({**tree, "search": tree.get("search") or SEARCHED})
    assert recipe.search is not None
    made = SearchRecord(
        recipe="r", technique="lora sft", key="k", hours=recipe.search.hours, shares=recipe.search.shares
    )
    for _ in range(2):
        trial = propose(recipe.search, made)
        assert trial is not None
        made = made.model_copy(update={"trials": (*made.trials, trial)})
    plan = make_plan(resolved(BASE, folder), profile(folder / "data.csv"), shape(), matmul_gflops=100.0)
    return {"plan": search_note(recipe, plan), "trials": made.trials}


def through_begin(tree: dict[str, Any], folder: Path) -> object:
    """The run folder of the shipped recipe, on the tiny model that stands in `folder`."""
    overrides = [f"{key}={tree[key]}" for key in ("name", "output_dir") if key in tree]
    overrides += [f"model.name={folder / 'model'}", "train.max_length=64"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        session, _, _ = begin(str(shipped(folder)), overrides=overrides, out=None, offline=True, say=lambda line: None)
    return session.run.path.parent


@lru_cache(maxsize=1)
def shipped(folder: Path) -> Path:
    return copy_recipe("support-intents", folder / "shipped")


def through_tables(tree: dict[str, Any], folder: Path) -> object:
    """What runs; a name that is in no table is refused by `load` (test_spec_load.py)."""
    given = resolved(tree, folder).recipe
    made = type(load_method(given.method, classify_kit.contract()))
    return METHODS.get(given.method.type), made


def through_head(tree: dict[str, Any], folder: Path) -> object:
    """What a head learns from some rows, whether it is calibrated, and when it says nothing."""
    tree = with_("method.type", "classify", tree)
    given, out = resolved(tree, folder), Path(tempfile.mkdtemp(dir=folder))
    loss = load_method(given.recipe.method, classify_kit.contract()).loss_sum(
        classify_kit.moved(), classify_kit.EXAMPLES
    )
    prepare(given, tokenizer_folder=folder / "tokenizer", out=out)
    made = RequestContract.read(out / "contract.json")
    return float(loss.detach()), calibrates(given.recipe, made), made.abstain_below


def through_several(tree: dict[str, Any], folder: Path) -> object:
    """What a head for several labels learns from some rows, and what it says of them."""
    tree = with_("data.train.0.task", "multi_label", with_("method.type", "multi_label", tree))
    given, out = resolved(tree, folder), Path(tempfile.mkdtemp(dir=folder))
    asked = classify_kit.contract().model_copy(
        update={"labels": (), "tags": classify_kit.LABELS, "separator": ",", "threshold": 0.5}
    )
    loss = load_method(given.recipe.method, asked).loss_sum(classify_kit.moved(), classify_kit.EXAMPLES)
    prepare(given, tokenizer_folder=folder / "tokenizer", out=out)
    made = RequestContract.read(out / "contract.json")
    return float(loss.detach()), calibrates(given.recipe, made), made.threshold, made.tags


def through_number(tree: dict[str, Any], folder: Path) -> object:
    """What a head for a number learns from some rows."""
    tree = with_("data.train.0.task", "regression", with_("method.type", "regression", {**tree, "objective": {}}))
    method = resolved(tree, folder).recipe.method
    rows = [dataclasses.replace(one, answer=str(place % 7)) for place, one in enumerate(classify_kit.EXAMPLES)]
    asked = classify_kit.contract().model_copy(update={"labels": (), "scale": Scale(mean=2.0, spread=1.0)})
    return float(load_method(method, asked).loss_sum(classify_kit.moved(), rows).detach())


PREPARE, TRAIN, GATE, PLAN = through_prepare, through_train, through_gate, through_plan
Consumer = Callable[[dict[str, Any], Path], object]
EFFECTS: dict[str, tuple[object, Consumer]] = {
    "name": ("other", through_begin),
    "objective.targets": ({"intent.macro_f1": ">= 0.9"}, GATE),
    "objective.non_regression": ({"general.perplexity": "<= 1.01x"}, GATE),
    "objective.memorisation.extracted": (0.3, through_memorised),
    "objective.memorisation.singled_out": (0.3, through_memorised),
    "objective.budget.hours": (0.001, PLAN),
    "objective.budget.ram_gib": (0.1, PLAN),
    "objective.budget.price_per_hour": (2.0, PLAN),
    "objective.budget.currency": ("EUR", PLAN),
    "objective.budget.money": (0.01, PLAN),
    "model.name": ("owner/other", through_source),
    "model.revision": ("abc", through_source),
    "model.load_in_4bit": (True, through_quantising),
    "model.bnb_4bit_quant_type": ("fp4", through_quantising),
    "model.bnb_4bit_use_double_quant": (True, through_quantising),
    "model.new_tokens.count": (2, PREPARE),
    "model.new_tokens.min_count": (3, PREPARE),
    "model.new_tokens.min_documents": (3, PREPARE),
    "model.new_tokens.terms": (["violin"], PREPARE),
    "data.train.0.path": ("other.csv", PREPARE),
    "data.train.0.name": ("other", PREPARE),
    "data.train.0.task": ("sentiment", PREPARE),
    "data.train.0.format": ("jsonl", PREPARE),
    "data.train.0.sheet": ("Sheet1", PREPARE),
    "data.train.0.query": ("SELECT 1", PREPARE),
    "data.train.0.input": ("{note}", PREPARE),
    "data.train.0.label": ("mood", PREPARE),
    "data.train.0.rejected": ("part", through_rejected),
    "data.train.0.rewards": ([{"type": "number"}], through_grpo),
    "data.train.0.system": ("Say what it is.", PREPARE),
    "data.train.0.license": ("MIT", PREPARE),
    "data.train.0.synthetic": (True, PREPARE),
    "data.train.0.roles_to_train": (["user", "assistant"], PREPARE),
    "data.train.0.mask_history": (True, through_masks),
    "data.validation": ("extra.csv", PREPARE),
    "data.test": ("extra.csv", PREPARE),
    "data.split.test": (0.4, PREPARE),
    "data.split.validation": (0.3, PREPARE),
    "data.split.group_by": ("", PREPARE),
    "data.split.stratify": (False, PREPARE),
    "data.split.by_time": ("day", PREPARE),
    "data.split.column": ("part", PREPARE),
    "data.split.stable": (True, PREPARE),
    "data.split.seed": (1, PREPARE),
    "data.limit.train": (9, PREPARE),
    "data.limit.validation": (3, PREPARE),
    "data.limit.test": (3, PREPARE),
    "data.steps": (["clean", "privacy", "duplicates", "conflicts", "split", "labels", "leakage"], PREPARE),
    "data.privacy.action": ("redact", PREPARE),
    "data.privacy.secrets": ("stop", PREPARE),
    "data.too_long": ("cut_middle", PREPARE),
    "data.bad_rows": ("fail", PREPARE),
    "data.max_bad_rows": (0.01, PREPARE),
    "data.clean": (["strip_ends"], PREPARE),
    "data.filter.min_chars": (32, PREPARE),
    "data.filter.max_chars": (100, PREPARE),
    "data.filter.languages": (["fr"], PREPARE),
    "data.filter.max_repetition": (0.5, PREPARE),
    "data.labels.rename": ({"ask": "question"}, PREPARE),
    "data.labels.separator": ("e", through_several),
    "data.labels.order": (["sell", "ask", "buy"], PREPARE),
    "data.labels.min_rows": (1000, PREPARE),
    "data.labels.review": (False, PREPARE),
    "data.dedupe.near": (0.6, PREPARE),
    "data.leakage.near": (0.75, PREPARE),
    "data.leakage.benchmarks": (["extra.csv"], PREPARE),
    "data.dedupe.meaning": (0.99, through_meaning),
    "data.leakage.meaning": (0.995, through_meaning),
    "data.embeddings.model": ("encoder2", through_meaning),
    "data.embeddings.max_rows": (5, through_meaning),
    "data.privacy.profile": ("balanced", PREPARE),
    "data.privacy.annotations": ("annotated.jsonl", through_learning),
    "data.privacy.keep_mapping": ("mapping.json", through_mapping),
    "data.augment.typos": (0.9, through_augment),
    "data.augment.typo_rate": (0.3, through_augment),
    "data.augment.case": (0.3, through_augment),
    "data.augment.punctuation": (0.3, through_augment),
    "data.augment.swap": (0.1, through_augment),
    "data.augment.swaps": ([["order", "basket"]], through_augment),
    "data.augment.balance": (1.0, through_augment),
    "data.augment.max_per_row": (1, through_augment),
    "data.augment.seed": (1, through_augment),
    "data.augment.paraphrase.endpoint": ("http://127.0.0.1:1/v2", through_paraphrase),
    "data.augment.paraphrase.model": ("other", through_paraphrase),
    "data.augment.paraphrase.share": (0.5, through_paraphrase),
    "data.augment.paraphrase.via": ("French", through_paraphrase),
    "data.augment.paraphrase.key_env": ("SECRET_KEY", through_paraphrase),
    "data.augment.paraphrase.max_requests": (3, through_paraphrase),
    "data.augment.paraphrase.max_tokens": (60, through_paraphrase),
    "data.augment.paraphrase.temperature": (0.1, through_paraphrase),
    "data.augment.paraphrase.send_personal_data": (False, through_paraphrase),
    "data.teacher.endpoint": ("http://127.0.0.1:1/v2", through_writer),
    "data.teacher.model": ("other", through_writer),
    "data.teacher.key_env": ("SECRET_KEY", through_writer),
    "data.teacher.max_requests": (3, through_writer),
    "data.teacher.max_tokens": (60, through_writer),
    "data.teacher.temperature": (0.1, through_writer),
    "data.teacher.send_personal_data": (False, through_writer),
    "data.teacher.path": ("general2.csv", through_writer),
    "data.teacher.rewrite": (True, through_writer),
    "data.teacher.system": ("Be brief.", through_writer),
    "data.canaries.count": (2, through_canaries),
    "data.canaries.copies": ([0, 1, 2], through_canaries),
    "data.canaries.prompt": ("PIN of {name}?", through_canaries),
    "data.canaries.digits": (12, through_canaries),
    "data.canaries.seed": (1, through_canaries),
    "data.features": ({"size": "length(message) % 9"}, PREPARE),
    "data.columns": ({"day": "date"}, through_types),
    "method.type": ("classify", through_tables),
    "method.label_smoothing": (0.1, through_head),  # that of dpo: test_train_preference.py
    "method.focal_gamma": (2.0, through_head),
    "method.logit_adjustment": (1.0, through_head),
    "method.ordered": (True, through_head),
    "method.calibrate": (False, through_head),
    "method.positive_weight": (3.0, through_several),
    "method.threshold": (0.2, through_several),
    "method.huber_delta": (0.1, through_number),
    "method.abstain_below": (0.9, through_head),
    "method.num_generations": (3, through_grpo),
    "method.max_completion_length": (2, through_grpo),
    "method.loss_type": ("grpo", through_grpo),
    "method.scale_rewards": ("none", through_grpo),
    "method.loss": ("ipo", through_dpo),
    "method.beta": (0.7, through_dpo),
    "method.desirable_weight": (2.0, through_kto),
    "method.undesirable_weight": (2.0, through_kto),
    "method.gamma": (0.2, through_simpo),
    "method.center_rewards_coefficient": (0.5, through_scores),
    "method.teacher": ("teacher2", through_teacher),
    "method.alpha": (0.9, through_teacher),
    "method.temperature": (3.0, through_teacher),
    "method.on_policy": (1.0, through_teacher),
    "method.divergence": ("reverse_kl", through_teacher),  # beta of jsd: test_train_distill.py
    "method.replay.path": ("general2.csv", through_replay),
    "method.replay.share": (0.1, through_replay),
    "method.replay.input": ("{heading}: {text}", through_replay),
    "method.replay.seed": (1, through_replay),
    "adapter.type": ("ia3", through_attach),
    "adapter.r": (3, through_attach),
    "adapter.alpha": (3.0, through_attach),
    "adapter.dropout": (0.5, through_attach),
    "adapter.target_modules": (["q_proj"], through_attach),
    "adapter.layers_to_transform": ([1], through_attach),
    "adapter.modules_to_save": (["norm"], through_attach),
    "adapter.use_rslora": (True, through_attach),
    "adapter.use_dora": (True, through_attach),
    "adapter.init_lora_weights": ("olora", through_attach),
    "adapter.bias": ("all", through_attach),
    "adapter.feedforward_modules": (["k_proj"], through_attach),  # test_models_tuners.py tells these from their types
    "adapter.d_initial": (0.5, through_attach),
    "adapter.oft_block_size": (4, through_attach),
    "train.layer_lr_decay": (0.5, through_rates),
    "train.embedding_learning_rate": (0.25, through_rates),
    "train.loraplus_lr_ratio": (4.0, through_rates),
    "train.neftune_noise_alpha": (5.0, through_model),
    "train.learning_rate": (0.02, TRAIN),
    "train.num_train_epochs": (1, TRAIN),
    "train.max_tokens": (90, TRAIN),
    "train.max_length": (120, PREPARE),
    "train.batch_size": (6, TRAIN),
    "train.micro_batch_tokens": (500, TRAIN),
    "train.lr_scheduler_type": ("cosine", TRAIN),
    "train.warmup_ratio": (0.5, TRAIN),
    "train.weight_decay": (0.5, TRAIN),
    "train.max_grad_norm": (0.01, TRAIN),
    "train.validations": (2, TRAIN),
    "train.patience": (1, TRAIN),
    "train.save_steps": (1, TRAIN),
    "train.save_total_limit": (1, TRAIN),
    "train.seed": (7, TRAIN),
    "train.threads": (3, TRAIN),
    "train.cache_trunk": (False, through_trunk),
    "train.class_weight": ("balanced", TRAIN),
    "train.class_weight_beta": (0.5, TRAIN),
    "train.sampler": ("balanced", TRAIN),
    "train.report_to": (["tensorboard"], through_sinks),
    "train.bf16": (True, through_model),
    "train.device": ("cuda", through_device),
    "train.torch_compile": (True, through_ready),
    "train.gradient_checkpointing": (True, through_model),
    "merge.runs": (["a", "c"], through_merge),
    "merge.method": ("ties", through_merge),
    "merge.weights": ([1.0, -0.5], through_merge),
    "merge.density": (0.7, through_merge),
    "merge.into": ("weights", through_merge),
    "merge.rank": (2, through_merge),
    "merge.seed": (1, through_merge),
    "prune.layers.remove": (1, through_pruning),
    "prune.layers.by": ("loss", through_pruning),
    "prune.layers.contiguous": (True, through_pruning),
    "prune.mlp.keep": (0.34, through_pruning),
    "prune.mlp.by": ("taylor", through_pruning),
    "prune.heads.keep": (0.25, through_pruning),
    "prune.heads.by": ("magnitude", through_pruning),
    "prune.tokens": (160, through_pruning),
    "search.hours": (1e-6, through_search),
    "search.candidates": (["full sft", "lora classify"], through_search),
    "search.settings": ({"train.learning_rate": {"choices": [1e-4, 1e-3]}}, through_search),
    "search.trials": (5, through_search),
    "search.reduction": (2, through_search),
    "search.rungs": (2, through_search),
    "search.seed": (1, through_search),
    "evaluate.baselines": (["majority", "base"], through_evaluate),
    "evaluate.few_shot_examples": (2, through_few_shot),
    "evaluate.resamples": (200, through_evaluate),
    "evaluate.level": (0.9, through_evaluate),
    "evaluate.glossary": ("terms.txt", through_terms),
    "launch.type": ("torchrun", through_launch),
    "launch.nproc_per_node": (2, through_launch),
    "launch.nnodes": (2, through_launch),
    "launch.rdzv_endpoint": ("127.0.0.1:29401", through_launch),
    "launch.max_restarts": (1, through_launch),
    "launch.strategy": ("fsdp", through_ready),
    "export": (
        ["merged", "adapter"],
        GATE,
    ),  # what is asked for and not there refuses; test_compress_export.py makes them
    "output_dir": ("elsewhere", through_begin),
}
ONLY_ONE_VALUE: set[str] = set()  # keys of tables with a single entry today
# The effect of these values is that the data is refused; test_data_formats.py has sheets and queries that are there.
REFUSED = {
    "data.train.0.format", "data.train.0.sheet", "data.train.0.query", "data.privacy.secrets", "data.bad_rows",
    "data.max_bad_rows", "data.filter.languages", "data.augment.paraphrase.send_personal_data",
    "data.embeddings.max_rows", "data.teacher.send_personal_data",
}  # fmt: skip
NOT_IN_THE_HASH = {"output_dir", *(key for key in EFFECTS if key.startswith(("launch.", "search."))), *ONLY_ONE_VALUE}
OF_TEXTS = {"evaluate.glossary", "data.train.0.glossary", *(key for key in EFFECTS if key.startswith("method.replay."))}
TAUGHT = ("method.teacher", "method.alpha", "method.temperature", "method.divergence", "method.on_policy")
NEEDS = {  # keys that are refused without another
    "objective.memorisation.extracted": ("data.canaries", {"count": 1}),
    "objective.memorisation.singled_out": ("data.canaries", {"count": 1}),
    "objective.budget.currency": ("objective.budget.price_per_hour", 1.0),
    "objective.budget.money": ("objective.budget.price_per_hour", 1.0),
    "data.privacy.annotations": ("data.privacy.profile", "maximum"),
    "data.privacy.keep_mapping": ("data.privacy.action", "pseudonymise"),
    "data.augment.swap": ("data.augment.swaps", [["order", "parcel"]]),
    **{
        key: ("data.augment.paraphrase", {"endpoint": "http://127.0.0.1:1/v1", "model": "m"})
        for key in EFFECTS
        if key.startswith("data.augment.paraphrase.")
    },
    **{
        key: ("data.teacher", {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "path": "general.csv"})
        for key in EFFECTS
        if key.startswith("data.teacher.")
    },
    "data.embeddings.model": ("data.leakage.meaning", 0.9999),
    "data.embeddings.max_rows": ("data.leakage.meaning", 0.9999),
    **{key: ("merge", {"runs": ["a", "b"]}) for key in EFFECTS if key.startswith("merge.")},
    "merge.density": ("merge", {"runs": ["a", "b"], "method": "ties"}),
    "merge.seed": ("merge", {"runs": ["a", "b"], "method": "dare_linear"}),  # tells seeds apart: test_spec_merge.py
    "train.cache_trunk": ("adapter.layers_to_transform", [1]),
    "train.embedding_learning_rate": ("adapter.type", "full"),
    "adapter.feedforward_modules": ("adapter", {"type": "ia3", "target_modules": "all-linear"}),
    "adapter.d_initial": ("adapter.type", "vera"),
    "adapter.oft_block_size": ("adapter.type", "oft"),
    **{key: ("method.type", "classify") for key in EFFECTS if key.startswith("method.") and key != "method.type"},
    "train.class_weight_beta": ("train.class_weight", "effective"),  # test_data_imbalance.py tells the two apart
    "data.features": ("data.train.0.input", "{size} {message}"),
    "method.loss": ("method.type", "dpo"),
    "method.beta": ("method.type", "dpo"),
    "method.gamma": ("method.type", "simpo"),
    "method.center_rewards_coefficient": ("method.type", "reward"),
    "method.desirable_weight": ("method.type", "kto"),
    "method.undesirable_weight": ("method.type", "kto"),
    **{key: ("method", {"type": "distill", "teacher": "teacher"}) for key in TAUGHT},
    "launch.nnodes": ("launch.rdzv_endpoint", "127.0.0.1:29400"),
    "launch.rdzv_endpoint": ("launch.nnodes", 2),
}
EFFECTS |= {
    "data.train.0.method": ({"type": "classify"}, through_tables),
    "data.train.0.validation": EFFECTS["data.validation"],
    "data.train.0.test": EFFECTS["data.test"],
    "data.train.0.split": ({"test": 0.4, "validation": 0.1, "group_by": "customer"}, PREPARE),
    "data.train.0.limit": ({"test": 3}, PREPARE),
    "data.train.0.labels": ({"rename": {"ask": "question"}}, PREPARE),
    "data.train.0.filter": ({"min_chars": 32}, PREPARE),
    "data.train.0.augment": ({"typos": 0.9}, through_augment),
    "data.train.0.features": ({"size": "length(message) % 9"}, PREPARE),
    "data.train.0.columns": ({"day": "date"}, through_types),
    "data.train.0.glossary": EFFECTS["evaluate.glossary"],
}
NEEDS["model.bnb_4bit_quant_type"] = NEEDS["model.bnb_4bit_use_double_quant"] = ("model.load_in_4bit", True)
NEEDS |= {f"model.new_tokens.{key}": ("model.new_tokens", {"count": 9}) for key in ("min_count", "min_documents")}
NEEDS |= {key: ("prune", PRUNED) for key in EFFECTS if key.startswith("prune.")}
NEEDS |= {key: ("search", SEARCHED) for key in EFFECTS if key.startswith("search.")}
NEEDS["train.torch_compile"] = ("train.device", "cuda")
NEEDS["data.train.0.features"] = ("data.train.0.input", "{size} {message}")
_USUAL: dict[Consumer, object] = {}


VERIFIED = {
    "data.train.0.rewards",
    *(f"method.{key}" for key in ("num_generations", "max_completion_length", "loss_type", "scale_rewards")),
}
"""Keys that are refused where nothing verifies answers."""
NEEDS |= dict.fromkeys(VERIFIED, ("method.type", "grpo"))


PAIRED = {
    "data.train.0.rejected",
    *(f"method.{key}" for key in ("loss", "beta", "gamma", "desirable_weight", "undesirable_weight")),
    "method.center_rewards_coefficient",
}
"""Keys that are refused for other tasks than preferences."""


ANSWERING = {"data.teacher.rewrite"}
"""Keys that are refused where answers are labels."""


READ_OFF = {
    "method.positive_weight": "multi_label",
    "method.threshold": "multi_label",
    "data.labels.separator": "multi_label",
    "method.huber_delta": "regression",
}
"""Keys that are refused for other tasks than these."""
NEEDS |= {key: ("method.type", task) for key, task in READ_OFF.items()}


def untold(key: str) -> dict[str, Any]:
    """The recipe that the key's other value is put into."""
    base = paired(BASE) if key in PAIRED else answering(BASE) if key in {*ANSWERING, *VERIFIED} else BASE
    base = dict(with_("data.train.0.task", READ_OFF[key], {**BASE, "objective": {}})) if key in READ_OFF else base
    base = dict(with_("data.train.0.rewards", [{"type": "exact"}], base)) if key in VERIFIED else base
    return dict(with_(*NEEDS[key], base)) if key in NEEDS else base


def told(key: str) -> dict[str, Any]:
    """The recipe with the key's other value, and what that value needs."""
    if key in OF_TEXTS:
        return dict(with_(key, EFFECTS[key][0], TEXTS))
    base = untold(key)
    base = typed(base) if key in ("data.columns", "data.train.0.columns") else base
    if key == "method.ordered":
        base = dict(with_("data.labels.order", ["sell", "ask", "buy"], base))
    tree = dict(with_(key, EFFECTS[key][0], base))
    if key == "data.split.column":  # the rows name their splits, so there are no shares
        tree["data"]["split"] = {"column": tree["data"]["split"]["column"]}
    return tree


def test_every_key_is_here_and_nothing_else() -> None:
    assert sorted(EFFECTS) == sorted(leaf_keys())


@pytest.mark.parametrize("key", EFFECTS)
def test_every_key_is_obeyed(key: str, folder: Path, tiny_model: Path) -> None:
    if not (folder / "model").exists():
        (folder / "model").symlink_to(tiny_model)
    consumer = EFFECTS[key][1]
    seen = consumer(told(key), folder)
    assert isinstance(seen, str) == (key in REFUSED)
    if consumer not in _USUAL:
        _USUAL[consumer] = consumer(BASE, folder)
        assert consumer(BASE, folder) == _USUAL[consumer], "what is seen must not change by itself"
    assert (seen == _USUAL[consumer]) == (key in ONLY_ONE_VALUE)


@pytest.mark.parametrize("key", EFFECTS)
def test_every_key_is_part_of_the_runs_identity(key: str) -> None:
    def hashed(tree: dict[str, Any]) -> str:
        loaded = LoadedRecipe(Recipe.model_validate(tree), Path("r.yaml"), "", ())
        return resolve(
            loaded, samples.profile(), samples.shape(), machine=Machine(threads=1),
            data_sha256={}, luthier_version="0", parents=parents_of(loaded.recipe),
        ).sha256  # fmt: skip

    tree = told(key)
    if key == "data.train.0.name":  # targets name the entry
        assert hashed({**tree, "objective": {}}) != hashed({**BASE, "objective": {}})
        return
    usual = TEXTS if key in OF_TEXTS else untold(key) if key in {*PAIRED, *TAUGHT, *ANSWERING, *VERIFIED} else BASE
    assert (hashed(tree) == hashed(usual)) == (key in NOT_IN_THE_HASH)
