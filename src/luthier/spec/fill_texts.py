"""Fill what a recipe leaves open about documents, and refuse what only rows with an answer have."""

from __future__ import annotations

from luthier.errors import RecipeError
from luthier.records import DataProfile
from luthier.spec.filler import Filler

ENTRY = "data.train.0"

WITH_TERMS = ("domain", "translation", "generation")
"""Tasks of which the terms of a glossary are judged."""


def fill_texts(filler: Filler, profile: DataProfile) -> None:
    """The entry of a task of documents: a text, no answer, no wording of ours around it.

    Raises:
        RecipeError: a key is given that documents have no use for, or no column looks like a text.
    """
    data = filler.tree["data"]
    entry = data["train"][0]
    _refuse(bool(entry["label"]), f"{ENTRY}.label", "documents have no answer", "leave it out, or set another task")
    _refuse(bool(entry["system"]), f"{ENTRY}.system", "documents are learned as they stand", "leave it out")
    turns = entry["roles_to_train"] != ["assistant"]
    _refuse(turns, f"{ENTRY}.roles_to_train", "documents have no turns, all of them is learned", "leave it out")
    _refuse(entry["mask_history"], f"{ENTRY}.mask_history", "documents have no turns", "leave it out")
    _refuse(data["augment"] is not None, "data.augment", "offspring are made of rows with an answer", "leave it out")
    _refuse(data["canaries"] is not None, "data.canaries", "a canary is a question with an answer", "leave it out")
    cut = data["too_long"] != "drop"
    _refuse(cut, "data.too_long", "long documents are divided, nothing of them is cut", "leave it out")
    filler.fill(f"{ENTRY}.task", "domain", f"columns look like {profile.shape}")
    if entry["input"] is None and (profile.is_chat or not profile.input):
        columns = ", ".join(f"{column.name} ({column.kind})" for column in profile.columns)
        raise RecipeError(
            f"{profile.path}: cannot tell which column is the text: {columns}",
            way_out=f"set {ENTRY}.input, e.g. '{{text}}'",
            key=f"{ENTRY}.input",
        )
    filler.fill(f"{ENTRY}.input", profile.input, "detected column")
    filler.fill(f"{ENTRY}.label", "", "documents have no answer")


def refuse_foreign_glossary(filler: Filler) -> None:
    """Terms are looked for in documents, and in answers that are texts.

    Raises:
        RecipeError: a glossary is given for another task.
    """
    task = filler.tree["data"]["train"][0]["task"]
    if filler.tree["evaluate"]["glossary"] is not None and task not in WITH_TERMS:
        raise RecipeError(
            f"evaluate.glossary is for tasks {', '.join(WITH_TERMS)}, this is {task}",
            way_out="leave it out, or write it as data.train[i].glossary of the task that it is of",
            key="evaluate.glossary",
        )


def _refuse(given: bool, key: str, why: str, way_out: str) -> None:
    if given:
        raise RecipeError(f"{key} does not go with task 'domain': {why}", way_out=way_out, key=key)
