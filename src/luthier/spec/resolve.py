"""Fill in what a recipe leaves open, each value with its reason. Nothing is taken from the clock or free memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from luthier.errors import RecipeError
from luthier.records import DataProfile, ModelShape, Record, Teacher, is_closed, is_read_off, is_text
from luthier.spec.asking import refuse_unfit_writer
from luthier.spec.export_rules import refuse_unfit_exports
from luthier.spec.fill_baselines import fill_baselines
from luthier.spec.fill_merge import fill_merge, say_unused
from luthier.spec.fill_prune import fill_prune
from luthier.spec.fill_texts import fill_texts, refuse_foreign_glossary
from luthier.spec.fill_training import fill_launch, fill_layers, fill_method, fill_train
from luthier.spec.filler import Filler, Machine
from luthier.spec.launch import Launch
from luthier.spec.limits import Limit
from luthier.spec.load import LoadedRecipe, key_of, limits_of
from luthier.spec.merge import KEPT_SETTINGS, Parent
from luthier.spec.new_tokens import fill_new_tokens
from luthier.spec.plugins import ADAPTERS
from luthier.spec.recipe import BUNDLED_EMBEDDINGS, CleanStep, Embeddings, Privacy, Recipe
from luthier.spec.steps import refuse_unfitting, usual_steps
from luthier.spec.template import field, fields
from luthier.spec.unfitting import (
    refuse_balance_without_labels,
    refuse_foreign_metric,
    refuse_order_without_labels,
    refuse_preferences_of_pruned,
    refuse_rewards_without_answers,
    refuse_too_long_completions,
    refuse_unmeasured,
)

CLASSIFY_SYSTEM = "Answer with the {name} of the message."
_SYSTEMS = {
    "classification": CLASSIFY_SYSTEM,
    "sentiment": CLASSIFY_SYSTEM,
    "multi_label": "Answer with all {name} of the message, or none.",
    "regression": "Answer with the {name} of the message, a number.",
}

CLEAN_CLOSED: tuple[CleanStep, ...] = (
    "unescape_html", "repair_mojibake", "strip_control", "normalise_unicode", "collapse_whitespace",
)  # fmt: skip
CLEAN_OPEN: tuple[CleanStep, ...] = ("repair_mojibake", "strip_control", "normalise_unicode", "strip_ends")


REVIEWED = 200_000
"""Rows times labels up to which labels are reviewed unasked; the time grows with both."""


class ResolvedRecipe(Record):
    """A recipe with nothing left open. Its hash names the run."""

    recipe: Recipe
    reasons: dict[str, str] = Field(description="Key -> why it has its value.")
    notes: tuple[str, ...]
    folder: str = Field(description="What the recipe's paths are relative to.")
    data_sha256: dict[str, str] = Field(description="Key of the recipe -> hash of the file it names.")
    model_sha256: str
    luthier_version: str
    fetched: dict[str, str] = Field(default_factory=dict, description="URL as in the recipe -> its local copy.")
    versions: dict[str, str] = Field(
        default_factory=dict, description="URL as in the recipe -> what its place calls the content: a commit, a tag."
    )

    teacher: Teacher | None = Field(None, description="Whom the model learns from, if it is taught.")
    parents: tuple[Parent, ...] = Field((), description="The runs that are merged.")
    tasks: tuple[ResolvedRecipe, ...] = Field((), description="Of several tasks the recipe of each; else empty.")

    @property
    def parts(self) -> tuple[ResolvedRecipe, ...]:
        """The recipe of each task; of one task that is this one."""
        return self.tasks or (self,)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tasks, in the order of `data.train`."""
        return tuple(entry.name or "" for entry in self.recipe.data.train)

    @property
    def sha256(self) -> str:
        """Hash over the resolved values and the contents of the inputs; where the files are and how
        processes are started does not count.
        """
        apart = {"reasons", "notes", "folder", "fetched", "versions", "tasks", "teacher", "parents"}
        content = self.model_dump(mode="json", exclude=apart)
        if self.teacher is not None:
            content["teacher"] = self.teacher.sha256
        content["tasks"] = [task.sha256 for task in self.tasks]
        content["parents"] = [parent.identity() for parent in self.parents]
        content["recipe"].pop("output_dir")
        content["recipe"].pop("launch")
        content["recipe"].pop("search")
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def limits(self) -> tuple[Limit, ...]:
        """All lines of the objective; what is limited for every task stands there once."""
        return tuple(dict.fromkeys(limit for part in self.parts for limit in limits_of(part.recipe)))

    def file(self, relative: str) -> Path:
        """Absolute path of a file named in the recipe, or of the local copy of what is behind a URL."""
        return Path(self.fetched[relative]) if relative in self.fetched else Path(self.folder) / relative


def resolve(
    loaded: LoadedRecipe,
    profile: DataProfile,
    shape: ModelShape,
    *,
    machine: Machine,
    data_sha256: dict[str, str],
    luthier_version: str,
    parents: Sequence[Parent] = (),
) -> ResolvedRecipe:
    """Fill in every open field of the recipe.

    Args:
        loaded: the recipe as given.
        profile: of the training file.
        shape: of the base model.
        machine: threads of this machine.
        data_sha256: key of the recipe (e.g. 'data.train.0.path') -> hash of the file.
        luthier_version: part of the identity of a run.
        parents: the runs of `merge.runs`, in their order.

    Raises:
        RecipeError: a needed value is neither given nor to be found in the data.
    """
    try:
        return _resolved(loaded, profile, shape, machine, data_sha256, luthier_version, parents)
    except RecipeError as error:
        if not error.key:
            raise
        raise RecipeError(f"{loaded.where(error.key)}: {error.what}", way_out=error.way_out, key=error.key) from error


def _resolved(
    loaded: LoadedRecipe,
    profile: DataProfile,
    shape: ModelShape,
    machine: Machine,
    data_sha256: dict[str, str],
    luthier_version: str,
    parents: Sequence[Parent],
) -> ResolvedRecipe:
    filler = Filler(loaded.recipe)
    filler.tree["search"] = None  # a run is one of its trials, or none of them
    fill_new_tokens(filler)
    _fill_data(filler, loaded, profile)
    _fill_privacy(filler, machine)
    _fill_likeness(filler)
    _fill_augment(filler)
    _fill_embeddings(filler)
    fill_merge(filler, parents)
    fill_method(filler, profile)
    trained = fill_prune(filler, shape)
    fill_train(filler, trained, machine)
    fill_layers(filler, profile, trained)
    fill_launch(filler)
    if filler.tree["merge"] is not None:
        say_unused(filler, KEPT_SETTINGS)
    fill_baselines(filler)
    refuse_foreign_glossary(filler)
    filler.fill("evaluate.resamples", 2000, "interval ends move by less than a tenth of their width")
    filler.fill("evaluate.level", 0.95, "the field's habit")
    _fill_export(filler)
    filler.fill("data.steps", list(usual_steps(_whole(filler.tree))), "the usual order; why is said below")
    resolved = ResolvedRecipe(
        recipe=_whole(filler.tree),
        reasons=filler.reasons,
        notes=loaded.notes,
        folder=str(loaded.folder.resolve()),
        data_sha256=data_sha256,
        model_sha256=shape.sha256,
        luthier_version=luthier_version,
        parents=tuple(parents),
    )
    refuse_unfit_writer(resolved.recipe)
    refuse_unfitting(resolved.recipe)
    refuse_balance_without_labels(resolved.recipe)
    refuse_order_without_labels(resolved.recipe)
    refuse_rewards_without_answers(resolved.recipe)
    refuse_too_long_completions(resolved.recipe)
    refuse_preferences_of_pruned(resolved.recipe)
    refuse_unfit_exports(resolved.recipe, shape)
    for limit in resolved.limits:  # a target on a metric that this task does not have is found here, not after training
        refuse_foreign_metric(limit, resolved.recipe)
        refuse_unmeasured(limit, resolved.recipe)
    return resolved


def _fill_export(filler: Filler) -> None:
    """All forms that fit what is trained."""
    if filler.tree["prune"] is not None:
        filler.fill("export", ["merged"], "an adapter would need the pruned base beside it, which only this run has")
    elif not ADAPTERS.get(filler.tree["adapter"]["type"]).trains_base:
        filler.fill("export", ["adapter", "merged"], "both forms that transformers and PEFT load")
    elif "adapter" in filler.fill("export", ["merged"], "there is no adapter, the weights themselves learn"):
        raise RecipeError(
            "export: there is no adapter to export, adapter.type full trains the weights themselves",
            way_out="write export: [merged], which are these weights, or take another adapter.type",
            key="export",
        )


def _whole(tree: dict[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:  # what was given is fine by itself, but not with what was filled in
        first = error.errors()[0]
        key = key_of(first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        raise RecipeError(
            f"{key}: {problem}, the values that were filled in counted",
            way_out=f"set every value of {key.partition('.')[0]!r} that matters to you; "
            "`luthier check --explain` shows the usual ones",
            key=key,
        ) from error


def _fill_data(filler: Filler, loaded: LoadedRecipe, profile: DataProfile) -> None:
    entry = "data.train.0"
    filler.fill(f"{entry}.format", profile.format, f"detected in {profile.path}")
    filler.fill(f"{entry}.sheet", profile.sheet or None, "the first with rows" if profile.sheet else "no workbook")
    filler.fill(f"{entry}.query", profile.query or None, "the only table" if profile.query else "no database")
    given = filler.tree["data"]["train"][0]
    if is_text(given["task"] or profile.task):
        fill_texts(filler, profile)
    if profile.task is None and (given["task"] is None or given["input"] is None or given["label"] is None):
        columns = ", ".join(f"{column.name} ({column.kind})" for column in profile.columns)
        raise RecipeError(
            f"{profile.path}: cannot tell what the columns are for: {columns}",
            way_out="set data.train[0].task, .input (e.g. '{text}') and .label",
            key=entry,
        )
    task = filler.fill(f"{entry}.task", profile.task, f"columns look like {profile.shape}")
    if given["input"] is None and not profile.is_chat and not profile.input:
        raise RecipeError(
            f"{profile.path}: no column looks like an input",
            way_out="set data.train[0].input, e.g. '{text}'",
            key=entry,
        )
    chat = profile.is_chat and given["input"] is None
    paired = task == "preference"
    if chat and not paired and given["label"]:
        raise RecipeError(
            f"{profile.path}: data.train[0].label {given['label']!r} is not used with chat rows",
            way_out="leave it out, or set data.train[0].input as well",
            key=f"{entry}.label",
        )
    filler.fill(
        f"{entry}.input", "" if chat else profile.input, "chat rows bring their turns" if chat else "detected column"
    )
    if not chat and given["label"] is None and not profile.label:
        raise RecipeError(
            f"{profile.path}: no column looks like an answer", way_out="set data.train[0].label", key=entry
        )
    if chat and task in ("multi_label", "regression"):
        raise RecipeError(
            f"{profile.path}: task {task} has rows with a column of answers, and these are conversations",
            way_out="set data.train[0].input and .label",
            key=f"{entry}.task",
        )
    brings_answers = chat and not paired
    filler.fill(
        f"{entry}.label",
        "" if brings_answers else profile.label,
        "chat rows bring their answers" if brings_answers else "detected column",
    )
    _fill_rejected(filler, profile)
    if not chat:
        _refuse_answer_in_input(given["input"], given["label"])
    if paired:
        filler.fill(f"{entry}.name", task, "what the rows are")
    filler.fill(f"{entry}.name", entry_name(given["label"], task), "the answer's column")
    closed, read_off = is_closed(task), is_read_off(task)
    system = _SYSTEMS[task].format(name=given["name"].replace("_", " ")) if read_off else ""
    why = "short, so that few tokens are spent on it" if read_off else "none is needed"
    filler.fill(f"{entry}.system", system, why)
    stated = "stated by the data set itself" if profile.license else "not stated in the recipe"
    filler.fill(f"{entry}.license", profile.license or "unknown", stated)
    filler.fill(
        "data.clean",
        list(CLEAN_CLOSED if read_off else CLEAN_OPEN),
        "layout carries no meaning for a label" if read_off else "markup and indentation may be what the text is about",
    )
    _fill_labels(filler, profile, closed=closed)
    _fill_separator(filler, several=task == "multi_label")
    _fill_split(filler, loaded, profile)
    _fill_columns(filler, profile)


def _fill_rejected(filler: Filler, profile: DataProfile) -> None:
    """The other answer of a preference, and what does not go with two answers.

    Raises:
        RecipeError: it is missing, named for another task, or something else is asked for that pairs do not have.
    """
    key, given = "data.train.0", filler.tree["data"]["train"][0]
    if given["task"] != "preference":
        if given["rejected"]:
            raise RecipeError(
                f"data.train[0].rejected: {given['rejected']!r} is for preferences, and the task is {given['task']}",
                way_out="leave it out, or set data.train[0].task: preference",
                key=f"{key}.rejected",
            )
        filler.fill(f"{key}.rejected", "", "no preferences")
        return
    if given["rejected"] is None and not profile.rejected:
        raise RecipeError(
            f"{profile.path}: no column looks like the answer that was not preferred",
            way_out="set data.train[0].rejected to its column",
            key=key,
        )
    column = filler.fill(f"{key}.rejected", profile.rejected, "detected column")
    if column == given["label"] or (given["input"] and column in fields(given["input"])):
        raise RecipeError(
            f"data.train[0].rejected: the column {column!r} is the preferred answer or part of the input too",
            way_out="name the column of the answer that was not preferred",
            key=f"{key}.rejected",
        )
    data = filler.tree["data"]
    odd = {
        f"{key}.roles_to_train": list(given["roles_to_train"]) != ["assistant"],
        f"{key}.mask_history": given["mask_history"],
        "data.augment": data["augment"] is not None,
        "data.canaries": data["canaries"] is not None,
    }
    for name, is_asked in odd.items():
        if is_asked:
            raise RecipeError(
                f"{name} does not go with preferences, of which the last answers alone are compared",
                way_out=f"leave {name} out",
                key=name,
            )


def _fill_columns(filler: Filler, profile: DataProfile) -> None:
    """Types of the columns that may occur in an expression; what a request holds is held to them."""
    data = filler.tree["data"]
    said = " ".join(data["features"].values()).replace('"', "").casefold()
    for name in data["columns"]:
        if name.replace('"', "").casefold() not in said:
            raise RecipeError(
                f"data.columns.{name}: no expression of data.features names this column", way_out="leave it out"
            )
    for column in profile.columns if said else ():
        if column.name not in data["columns"] and column.name.replace('"', "").casefold() in said:
            filler.reasons.pop("data.columns", None)
            data["columns"][column.name] = column.type
            filler.reasons[f"data.columns.{column.name}"] = "the type of its cells in the file"


def _fill_privacy(filler: Filler, machine: Machine) -> None:
    if filler.tree["data"]["privacy"] is None:
        filler.tree["data"]["privacy"] = Privacy().model_dump()
        filler.reasons.pop("data.privacy")
        absent = "data.privacy is absent: personal data is reported, a secret stops the run"
        open_keys = {f"data.privacy.{key}": "open on purpose" for key in ("annotations", "keep_mapping")}
        filler.reasons |= {"data.privacy.action": absent, "data.privacy.secrets": absent, **open_keys}
    if missing := machine.missing_for_privacy:
        filler.fill(
            "data.privacy.profile",
            "fast",
            f"{missing} is not installed: names and addresses in free text are not looked for",
        )
    else:
        filler.fill("data.privacy.profile", "balanced", "the extra 'privacy' is installed")


def _fill_split(filler: Filler, loaded: LoadedRecipe, profile: DataProfile) -> None:
    given = filler.tree["data"]["train"][0]
    _refuse_unused_split_keys(loaded)
    filler.fill(
        "data.split.test",
        0.25,
        _unused("test", loaded) or "a quarter, so that intervals are narrow",
    )
    filler.fill(
        "data.split.validation",
        0.05,
        _unused("validation", loaded) or "enough to choose a checkpoint",
    )
    split = loaded.recipe.data.split
    group = profile.group_by if profile.group_by != given["label"] else ""
    if split.by_time or split.column:
        group, why = "", f"rows are split by {(split.by_time or split.column)!r}"
    else:
        why = f"{group!r} repeats: its rows stay together" if group else "no column looks like a group"
    filler.fill("data.split.group_by", group, why)
    if given["label"] and filler.tree["data"]["split"]["group_by"] == given["label"]:
        raise RecipeError(
            f"data.split.group_by: {given['label']!r} is the label too: every label would be in one split only",
            way_out="name another column, or leave it out",
            key="data.split.group_by",
        )
    drawn = not (split.by_time or split.column or split.stable)
    closed = is_closed(given["task"])
    reason = "labels keep their shares" if closed else "no labels"
    filler.fill("data.split.stratify", closed and drawn, reason if drawn else "rows are not drawn by label")


def _unused(split: str, loaded: LoadedRecipe) -> str:
    """Why a share draws nothing, or ''."""
    if getattr(loaded.recipe.data, split):
        return f"unused, data.{split} is a file"
    column = loaded.recipe.data.split.column
    return f"for the plan only: the column {column!r} names the splits" if column else ""


def _refuse_unused_split_keys(loaded: LoadedRecipe) -> None:
    """A key that the chosen way to split cannot obey is refused, not passed over."""
    data, split = loaded.recipe.data, loaded.recipe.data.split
    way = next((name for name in ("by_time", "column", "stable") if getattr(split, name)), None)
    clashes: dict[str, object] = {"data.split.stratify": split.stratify} if way else {}
    if way == "column":
        clashes |= {"data.split.test": split.test, "data.split.validation": split.validation}
        clashes |= {"data.test": data.test, "data.validation": data.validation}
    for key, value in clashes.items():
        if value:
            raise RecipeError(f"{key} does not go with data.split.{way}", way_out=f"leave {key} or {way} out", key=key)


def _fill_likeness(filler: Filler) -> None:
    if filler.tree["data"]["dedupe"] is None:
        filler.tree["data"]["dedupe"] = {"near": False, "meaning": None}
        filler.reasons.pop("data.dedupe")
        filler.reasons["data.dedupe.near"] = "data.dedupe is absent: a changed word may matter, only equal rows go"
        filler.reasons["data.dedupe.meaning"] = "open on purpose"
    filler.fill("data.dedupe.near", 0.8, "in a short message about one word differs")
    filler.fill("data.leakage.near", 0.8, "a test row that differs from a learned one by about a word is no test")


def _fill_augment(filler: Filler) -> None:
    """A little of each technique where none is named; else only what is named."""
    given = filler.tree["data"]["augment"]
    if given is None:
        return
    task = filler.tree["data"]["train"][0]["task"]
    if given["balance"] is not None and not is_closed(task):
        raise RecipeError(
            f"data.augment.balance is for tasks with a closed set of answers, this is {task}",
            way_out="leave it out: each technique then makes its share of rows",
        )
    usual = {"typos": 0.1, "case": 0.05, "punctuation": 0.05, "swap": 0.1 if given["swaps"] else 0.0}
    named = bool(given["paraphrase"]) or any(given[name] is not None for name in usual)
    for name, share in usual.items():
        asked = named and not (name == "swap" and given["swaps"])
        filler.fill(
            f"data.augment.{name}", 0.0 if asked else share, "others are named" if asked else "a little of each"
        )


def _fill_embeddings(filler: Filler) -> None:
    data = filler.tree["data"]
    if data["dedupe"]["meaning"] is None and data["leakage"]["meaning"] is None:
        return
    if data["embeddings"] is None:
        data["embeddings"] = Embeddings().model_dump()
        filler.reasons.pop("data.embeddings")
        filler.reasons["data.embeddings.max_rows"] = "the default"
    filler.fill("data.embeddings.model", BUNDLED_EMBEDDINGS, "small, for English, and it comes with 'luthier[meaning]'")


def _fill_labels(filler: Filler, profile: DataProfile, *, closed: bool) -> None:
    given = filler.tree["data"]["labels"]
    if not closed and (given["rename"] or given["review"]):
        raise RecipeError(
            "data.labels is for tasks with a closed set of answers",
            way_out="leave it out, or set data.train[0].task",
            key="data.labels",
        )
    few = profile.num_rows * max(1, len(profile.labels)) <= REVIEWED
    filler.fill("data.labels.min_rows", 5 if closed else 0, "fewer can hardly be learned" if closed else "no labels")
    many = f"rows times labels are more than {REVIEWED:,}" if closed else "no labels"
    filler.fill("data.labels.review", closed and few, "a matter of seconds" if closed and few else many)


def _fill_separator(filler: Filler, *, several: bool) -> None:
    """What stands between labels, where a row may have several.

    Raises:
        RecipeError: it is given for another task.
    """
    if several:
        filler.fill("data.labels.separator", ",", "usual")
        return
    if filler.tree["data"]["labels"]["separator"] is not None:
        raise RecipeError(
            "data.labels.separator divides the labels of a cell, and this task has one answer a row",
            way_out="leave it out, or set data.train[0].task: multi_label",
            key="data.labels.separator",
        )
    filler.reasons["data.labels.separator"] = "open on purpose: one answer a row"


def _refuse_answer_in_input(template: str, label: str) -> None:
    if label in fields(template):
        raise RecipeError(
            f"data.train[0].input: {template!r} names the column {label!r}, which is the answer (data.train[0].label)",
            way_out=f"take {field(label)!r} out of the input, or set data.train[0].label to another column",
            key="data.train.0.input",
        )


def entry_name(label: str, task: str) -> str:
    """A name for a data entry: its answer's column in plain letters, or the task."""
    name = "".join(char if char.isascii() and char.isalnum() else "_" for char in label.lower()).strip("_")
    return name if name and name[0].isalpha() else task


def reseeded(resolved: ResolvedRecipe, seed: int) -> ResolvedRecipe:
    """The same run with another `train.seed`; all else that was chosen stays as it is."""

    def changed(one: ResolvedRecipe) -> ResolvedRecipe:
        train = one.recipe.train.model_copy(update={"seed": seed})
        return one.model_copy(
            update={
                "recipe": one.recipe.model_copy(update={"train": train}),
                "reasons": {**one.reasons, "train.seed": "of `--seeds`"},
            }
        )

    return changed(resolved).model_copy(update={"tasks": tuple(changed(task) for task in resolved.tasks)})


def relaunched(resolved: ResolvedRecipe, launch: Mapping[str, object]) -> ResolvedRecipe:
    """The same run, started in another way.

    Raises:
        RecipeError: `launch` says something that cannot be.
    """
    changes = {key: value for key, value in launch.items() if value is not None}
    if not changes:
        return resolved
    said = {**resolved.recipe.launch.model_dump(exclude={"type"}), **changes}
    if changes.get("nnodes") == 1:
        said["rdzv_endpoint"] = changes.get("rdzv_endpoint")
    try:
        recipe = resolved.recipe.model_copy(update={"launch": Launch.model_validate(said)})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["launch", *map(str, first["loc"])])
        raise RecipeError(f"{key}: {first['msg'].removeprefix('Value error, ')}", key=key) from error
    filler = Filler(recipe)
    fill_launch(filler)
    return resolved.model_copy(update={"recipe": _whole(filler.tree)})
