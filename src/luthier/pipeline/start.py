"""From a recipe or a run folder to a run: look at data and base, resolve, plan, write it down. No torch here."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from luthier import __version__
from luthier.data import encoder
from luthier.data.bad_rows import refuse_bad_rows
from luthier.data.copies import Copy
from luthier.data.features import check_features, input_columns
from luthier.data.fetch import fetch
from luthier.data.guard import (
    refuse_missing_passphrase,
    refuse_secrets_in_expressions,
    refuse_secrets_in_wording,
)
from luthier.data.inputs import missing_column
from luthier.data.labels import similar_names
from luthier.data.privacy.ner import missing_package
from luthier.data.read import Row, rows
from luthier.data.replay import replay_of
from luthier.data.source import fingerprint
from luthier.errors import DataError, MissingExtra, RecipeError, RunError
from luthier.launch.offline import is_here
from luthier.models.quantised import refuse_missing_library
from luthier.models.shape import read_shape
from luthier.models.source import locate
from luthier.pipeline.choose import Choice, choose, techniques
from luthier.pipeline.exporting import refuse_unready_exports
from luthier.pipeline.glossary import refuse_odd_glossary
from luthier.pipeline.known import earlier
from luthier.pipeline.named import Named, Opened
from luthier.pipeline.parents import open_parents
from luthier.pipeline.rates import kept_probe
from luthier.pipeline.sinks import refuse_missing_sinks
from luthier.pipeline.teacher import find_teacher, refuse_other_vocabulary_if_seen, refuse_short_teacher
from luthier.pipeline.vocabulary import refuse_unfit_tokenizer_if_seen
from luthier.plan.cost import matmul_rate
from luthier.plan.join import head_parameters, joined_plan
from luthier.plan.make import make_plan, memory_asks_for_checkpointing
from luthier.plan.own_adapters import own_adapters_notes
from luthier.plan.search import search_note
from luthier.plan_records import Plan
from luthier.recipes import copy as copy_shipped
from luthier.recipes import find, names
from luthier.records import DataProfile, Feature, ModelShape, Teacher
from luthier.rewards import load_rewards
from luthier.spec.filler import GIVEN, Machine
from luthier.spec.load import LoadedRecipe, load_recipe
from luthier.spec.merge import Parent
from luthier.spec.plugins import METHODS
from luthier.spec.resolve import ResolvedRecipe, resolve
from luthier.spec.tasks import joined, refuse_strange_targets, task_loaded
from luthier.spec.template import fields
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A recipe that has been looked at as far as is possible without torch."""

    loaded: LoadedRecipe
    resolved: ResolvedRecipe
    profiles: tuple[DataProfile, ...]
    """Of the training file of each task."""
    shape: ModelShape
    gflops: float
    """Rate of a product on this machine, just measured."""
    choices: tuple[Choice, ...]
    """What else was weighed for each task."""

    def plan(self) -> Plan:
        """Memory, time, power and ranking."""
        plans = {
            name: plan_of(part, profile, self.shape, choice, gflops=self.gflops)
            for name, part, profile, choice in zip(
                self.resolved.names, self.resolved.parts, self.profiles, self.choices, strict=True
            )
        }
        heads = head_parameters(self.resolved, self.profiles, self.shape)
        made = joined_plan(plans, self.resolved, heads=heads)
        notes = own_adapters_notes(self.resolved, self.shape, made) + search_note(self.loaded.recipe, made)
        return made.model_copy(update={"notes": (*made.notes, *notes)})


def plan_of(
    resolved: ResolvedRecipe, profile: DataProfile, shape: ModelShape, choice: Choice, *, gflops: float
) -> Plan:
    """The plan of one task, with what is known of this machine and this data."""
    made = make_plan(
        resolved,
        profile,
        shape,
        matmul_gflops=gflops,
        others=choice.others,
        known=choice.known,
        probed=kept_probe(resolved),
    )
    notes = (*made.notes, *choice.left_out)
    return made.model_copy(update={"notes": notes, "weighed_sha256": choice.weighed_sha256})


def recipe_path(name: str) -> Path:
    """A path as it is, or the shipped recipe of that name.

    Raises:
        RecipeError: neither a file nor a shipped name.
    """
    if is_recipe_folder(name):
        return Path(name) / "recipe.yaml"
    if Path(name).is_file() or name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    try:
        return find(name)
    except KeyError:
        raise RecipeError(
            f"{name!r} is neither a file nor a shipped recipe", way_out=f"shipped: {', '.join(names())}"
        ) from None


def is_recipe_folder(name: str) -> bool:
    """Whether it is a folder as `luthier recipes cp` makes it; a run folder holds a resolved recipe as well."""
    run = RunFolder(Path(name))
    return run.recipe.is_file() and not run.resolved.is_file()


def copy_recipe(name: str, destination: Path) -> Path:
    """Copy a shipped recipe with its data.

    Raises:
        RecipeError: there is none of that name, or the destination exists.
    """
    try:
        return copy_shipped(name, destination)
    except KeyError:
        raise RecipeError(f"no shipped recipe is called {name!r}", way_out=f"shipped: {', '.join(names())}") from None
    except FileExistsError:
        raise RecipeError(f"{destination} exists already", way_out="give a name that is free") from None


def look(recipe: str, *, overrides: Sequence[str], offline: bool, say: Say, out: Path | None = None) -> Prepared:
    """Load, profile the data, read the base's shape, resolve; where the method is open, with what the plan takes.

    Args:
        recipe: a file, or the name of a shipped one.
        overrides: 'KEY=VALUE'.
        offline: whether no socket may leave this machine.
        say: told what people should know.
        out: folder of earlier runs; the recipe's own where it is None.

    Raises:
        RecipeError, DataError, ModelError: see the rooms.
    """
    loaded = load_recipe(recipe_path(recipe), overrides=overrides)
    for note in loaded.notes:
        say(note)
    refuse_strange_targets(loaded)
    return look_at(loaded, offline=offline, say=say, out=out)


def look_at(
    loaded: LoadedRecipe, *, offline: bool, say: Say, out: Path | None = None, of_several: bool = False
) -> Prepared:
    """The same for a recipe that is loaded; `of_several` where it is compared with one that has more tasks."""
    model = loaded.recipe.model

    @functools.cache
    def shape() -> ModelShape:  # asked for once the data has been looked at, which may cost a download less
        return read_shape(locate(model.name, folder=loaded.folder, revision=model.revision, offline=offline, say=say))

    @functools.cache
    def parents() -> tuple[Parent, ...]:
        return open_parents(loaded, shape(), out=runs)

    runs = out or Path(loaded.recipe.output_dir)
    tasks = [task_loaded(loaded, place) for place in range(len(loaded.recipe.data.train))]
    gflops, alone = matmul_rate(), len(tasks) == 1 and not of_several
    looked = [
        _look_at(
            task,
            shape,
            parents,
            functools.partial(find_teacher, task, out=runs, offline=offline, say=say),
            offline=offline,
        )
        for task in tasks
    ]
    weighed = [_weighed(one, shape(), gflops=gflops, out=runs, alone=alone) for one in looked]
    for task, one, choice in zip(tasks, looked, weighed, strict=True):
        _refuse_unfit(task, choice.resolved, one.profile, one.machine, say=say)
        refuse_unready_exports(choice.resolved, shape())
        refuse_short_teacher(choice.resolved)
        refuse_other_vocabulary_if_seen(shape(), choice.resolved.teacher)
        refuse_unfit_tokenizer_if_seen(choice.resolved, shape())
    parts = [choice.resolved for choice in weighed]
    resolved = parts[0] if len(parts) == 1 else joined(loaded, parts)
    profiles = tuple(one.profile for one in looked)
    return Prepared(loaded, resolved, profiles, shape(), gflops, tuple(weighed))


@dataclass(frozen=True)
class _Looked:
    """One task, and how its recipe is resolved."""

    loaded: LoadedRecipe
    profile: DataProfile
    machine: Machine
    again: Callable[[LoadedRecipe], ResolvedRecipe]


def _weighed(one: _Looked, shape: ModelShape, *, gflops: float, out: Path, alone: bool) -> Choice:
    """The recipe, resolved with the technique that it names or that the plan takes, beside what else there is.

    Of several tasks, which share an adapter and a budget, each has the method that it names or that suits its rows.
    """
    found = techniques(one.loaded, one.again, known=lambda resolved: earlier(out, resolved), alone=alone)
    if one.loaded.recipe.method.type != "auto" or not found.others or not alone:
        return found
    return choose(found, plan_of(found.resolved, one.profile, shape, found, gflops=gflops))


def _look_at(
    loaded: LoadedRecipe,
    shape_of: Callable[[], ModelShape],
    parents_of: Callable[[], tuple[Parent, ...]],
    teacher_of: Callable[[], Teacher | None],
    *,
    offline: bool,
) -> _Looked:
    """One task of the recipe."""
    entry = loaded.recipe.entry
    _refuse_endpoint_elsewhere(loaded, offline=offline)
    fetched = _fetch(loaded, offline=offline)
    hashes = _data_hashes(loaded, fetched)
    path = fetched[entry.path].path if entry.path in fetched else loaded.folder / entry.path
    called = entry.path if entry.path in fetched else str(path)
    facts = Opened(Named(called, entry.format, entry.sheet, entry.query), path).profile()
    refuse_bad_rows(called, facts.faults, facts.num_rows, loaded.recipe.data)
    _refuse_missing_columns(loaded, facts)
    teacher, shape, parents = teacher_of(), shape_of(), parents_of()
    machine = Machine(threads=usable_threads(), accelerator=usable_accelerator(), missing_for_privacy=missing_package())
    copies = {
        "fetched": {named: str(one.path) for named, one in fetched.items()},
        "versions": {named: one.version for named, one in fetched.items() if one.version},
    }

    def again(loaded: LoadedRecipe) -> ResolvedRecipe:
        made = resolve(
            loaded, facts, shape, machine=machine, data_sha256=hashes, luthier_version=__version__, parents=parents
        )
        taught = {"teacher": teacher} if METHODS.get(made.recipe.method.type).is_taught else {}
        return _with_checkpointing(_with_embeddings(made.model_copy(update={**copies, **taught})), facts, shape)

    return _Looked(loaded, facts, machine, again)


def _refuse_unfit(
    loaded: LoadedRecipe, resolved: ResolvedRecipe, facts: DataProfile, machine: Machine, *, say: Say
) -> None:
    """What a resolved recipe asks for and cannot have stops before anything is written."""
    computed = check_features(resolved.recipe, [column.name for column in facts.columns])
    _refuse_missing_columns_of_splits(resolved, computed)
    refuse_odd_glossary(resolved)
    refuse_missing_library(resolved.recipe.model)
    load_rewards(resolved.recipe.entry.rewards or ())
    refuse_secrets_in_wording(resolved.recipe.entry)
    refuse_secrets_in_expressions(resolved.recipe.data.features)
    _refuse_missing_detectors(resolved, machine)
    refuse_missing_passphrase(resolved.recipe.data.privacy)
    refuse_missing_sinks(resolved.recipe)
    _say_near_labels(facts, loaded.recipe.data.labels.rename, say)


def _refuse_endpoint_elsewhere(loaded: LoadedRecipe, *, offline: bool) -> None:
    """Offline, only a model on this machine may be asked for anything; said before anything is read."""
    data = loaded.recipe.data
    asked = {
        "data.augment.paraphrase": data.augment.paraphrase if data.augment is not None else None,
        "data.teacher": data.teacher,
    }
    for key, rules in asked.items():
        if offline and rules is not None and not is_here(urlsplit(rules.endpoint).hostname or ""):
            raise RecipeError(
                f"{key}.endpoint: offline, and {rules.endpoint} is not on this machine",
                way_out=f"drop --offline, serve a model here (http://127.0.0.1:...), or leave {key} out",
            )


def _refuse_missing_detectors(resolved: ResolvedRecipe, machine: Machine) -> None:
    """A profile that is asked for and cannot be had stops before anything is written."""
    profile = resolved.recipe.data.privacy.profile if resolved.recipe.data.privacy else None
    if profile != "fast" and machine.missing_for_privacy:
        raise MissingExtra(machine.missing_for_privacy, extra="privacy", purpose=f"data.privacy.profile {profile!r}")


def _with_checkpointing(resolved: ResolvedRecipe, facts: DataProfile, shape: ModelShape) -> ResolvedRecipe:
    """Activations are computed twice only where the recipe says so or the memory budget asks for it."""
    key = "train.gradient_checkpointing"
    merges = resolved.recipe.merge is not None
    if merges or resolved.reasons[key] == GIVEN or not memory_asks_for_checkpointing(resolved, facts, shape):
        return resolved
    train = resolved.recipe.train.model_copy(update={"gradient_checkpointing": True})
    return resolved.model_copy(
        update={
            "recipe": resolved.recipe.model_copy(update={"train": train}),
            "reasons": {**resolved.reasons, key: "without it training would not fit objective.budget.ram_gib"},
        }
    )


def _with_embeddings(resolved: ResolvedRecipe) -> ResolvedRecipe:
    """With the hash of the model that compares by meaning; it must be there before anything is written."""
    embeddings = resolved.recipe.data.embeddings
    if embeddings is None or embeddings.model is None:
        return resolved
    found = encoder.identity(encoder.locate(embeddings.model, folder=Path(resolved.folder)))
    return resolved.model_copy(update={"data_sha256": {**resolved.data_sha256, "data.embeddings.model": found}})


def usable_threads() -> int:
    """Processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_accelerator(*, driver: Path = Path("/dev/nvidiactl")) -> Literal["cuda"] | None:
    """Seen without loading torch: its driver runs, and the installed torch is not the build for processors alone."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    return "cuda" if driver.exists() and not hidden and not version("torch").endswith("+cpu") else None


def _data_files(loaded: LoadedRecipe) -> dict[str, str]:
    """Key of the recipe -> file that it names."""
    data = loaded.recipe.data
    files = {"data.train.0.path": data.train[0].path, "data.validation": data.validation, "data.test": data.test}
    files |= {f"data.leakage.benchmarks.{place}": file for place, file in enumerate(data.leakage.benchmarks)}
    if data.privacy is not None:
        files["data.privacy.annotations"] = data.privacy.annotations
    if data.augment is not None and isinstance(data.augment.swaps, str):
        files["data.augment.swaps"] = data.augment.swaps
    if data.teacher is not None:
        files["data.teacher.path"] = data.teacher.path
    files["evaluate.glossary"] = loaded.recipe.evaluate.glossary
    if (new := loaded.recipe.model.new_tokens) is not None:
        files["model.new_tokens.terms"] = new.file
    if (replay := replay_of(loaded.recipe)) is not None:
        files["method.replay.path"] = replay.path
    return {key: file for key, file in files.items() if file is not None}


def _fetch(loaded: LoadedRecipe, *, offline: bool) -> dict[str, Copy]:
    """URL as the recipe has it -> its local copy."""
    entry, copies = loaded.recipe.entry, {}
    for named in set(_data_files(loaded).values()):
        copy = fetch(named, query=entry.query if named == entry.path else None, offline=offline)
        if copy is not None:
            copies[named] = copy
    return copies


def _data_hashes(loaded: LoadedRecipe, fetched: Mapping[str, Copy]) -> dict[str, str]:
    hashes = {}
    for key, file in _data_files(loaded).items():
        path = fetched[file].path if file in fetched else loaded.folder / file
        if not path.exists():
            raise DataError(
                f"{key}: {file!r}: it does not exist (looked in {loaded.folder})",
                way_out="correct the path in the recipe",
            )
        hashes[key] = fingerprint(path)
    return hashes


def _refuse_missing_columns(loaded: LoadedRecipe, facts: DataProfile) -> None:
    entry, split = loaded.recipe.entry, loaded.recipe.data.split
    columns = [*(column.name for column in facts.columns), *loaded.recipe.data.features]
    named = [("data.train.0.input", name) for name in (fields(entry.input) if entry.input else ())]
    keys = {
        "train.0.label": entry.label,
        "train.0.rejected": entry.rejected,
        "split.group_by": split.group_by,
        "split.by_time": split.by_time,
    }
    keys["split.column"] = split.column
    named += [(f"data.{key}", name) for key, name in keys.items() if name]
    for key, name in named:
        if name not in columns:
            raise missing_column(name, columns, key=f"{loaded.where(key)}: {key}")


def _refuse_missing_columns_of_splits(resolved: ResolvedRecipe, computed: Sequence[Feature]) -> None:
    """The user's own validation and test files are read as far as it takes to see every column that is needed."""
    entry, data = resolved.recipe.entry, resolved.recipe.data
    named = [("input", name) for name in input_columns(entry.input, computed)]
    named += [(key, name) for key, name in (("label", entry.label), ("rejected", entry.rejected)) if name]
    for file in (data.validation, data.test):
        if file is None:
            continue
        columns: dict[str, None] = {}
        for row in rows(resolved.file(file)):
            columns |= dict.fromkeys(row.values) if isinstance(row, Row) else {}
            if all(name in columns for _, name in named):
                break
        for key, name in named:
            if name not in columns:
                raise missing_column(name, columns, key=f"{resolved.file(file)}: data.train.0.{key}")


def _say_near_labels(facts: DataProfile, renamed: Collection[str], say: Say) -> None:
    """Labels that a reader takes for the same are learned as different ones."""
    for labels in similar_names(label for label in facts.labels if label not in renamed):
        say(f"labels that read alike: {', '.join(map(repr, labels))}; data.labels.rename makes them one")


def open_run(prepared: Prepared, *, out: Path) -> RunFolder:
    """The run folder of this resolved recipe: a new one, or the one that the same command made before."""
    return RunFolder.create(out, prepared.resolved.recipe.name, prepared.resolved.sha256[:12])


def write_down(run: RunFolder, prepared: Prepared, plan: Plan | None) -> None:
    """Write recipe, profile, shape, plan and, last, the resolved recipe; hold the run's lock.

    The plan is kept where it exists already: a prediction made after the fact would be none. So are the reasons of the
    first time, where the same recipe is begun again: what has been measured since gives others for the same choice.
    """
    write_atomic(run.recipe, prepared.loaded.text)
    write_atomic(run.shape, prepared.shape.to_json())
    if plan is not None and not run.plan.is_file():
        write_atomic(run.plan, plan.to_json())
    resolved = prepared.resolved
    folders = run.tasks(resolved.names)
    for folder, part, profile in zip(folders, resolved.parts, prepared.profiles, strict=True):
        folder.path.mkdir(parents=True, exist_ok=True)
        write_atomic(folder.profile, profile.to_json())
        if folder != run:
            write_atomic(folder.resolved, _with_first_reasons(folder, part).to_json())
    write_atomic(run.resolved, _with_first_reasons(run, resolved).to_json())
    for folder in folders if len(folders) > 1 else ():
        folder.link_shared(trains_alone=resolved.recipe.has_own_adapters)


def _with_first_reasons(run: RunFolder, resolved: ResolvedRecipe) -> ResolvedRecipe:
    """The recipe with the reasons that stand in the run folder, if it is the same recipe there."""
    if not run.resolved.is_file():
        return resolved
    try:
        before = ResolvedRecipe.read(run.resolved)
    except RunError:  # of another version; it is written anew
        return resolved
    if before.recipe != resolved.recipe or before.sha256 != resolved.sha256:
        return resolved
    tasks = tuple(
        now.model_copy(update={"reasons": then.reasons}) for now, then in zip(resolved.tasks, before.tasks, strict=True)
    )
    return resolved.model_copy(update={"reasons": before.reasons, "tasks": tasks})
