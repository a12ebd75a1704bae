"""Which systems stand beside the tuned model in its evaluation."""

from __future__ import annotations

from luthier.errors import RecipeError
from luthier.records import is_closed, is_text
from luthier.spec.filler import Filler
from luthier.spec.recipe import Recipe

FEW_SHOT_EXAMPLES = 4
"""Examples in a few-shot prompt unless the recipe says how many: its prompt is then about five times as long."""


def examples_of(recipe: Recipe) -> int:
    """Examples that a few-shot prompt has, or would have, where the recipe does not ask for any."""
    return recipe.evaluate.few_shot_examples or FEW_SHOT_EXAMPLES


def shows_examples(task: str | None) -> bool:
    """Whether rows of a task are questions with one answer."""
    return task != "preference" and not is_text(task)


def fill_baselines(filler: Filler) -> None:
    """All baselines that fit the task and cost little; few-shot prompting only where it is asked for.

    Raises:
        RecipeError: the base is left out, examples are asked for where nothing shows them, or a task has none.
    """
    task, evaluate = filler.tree["data"]["train"][0]["task"], filler.tree["evaluate"]
    asked = evaluate["few_shot_examples"] is not None
    labels = is_closed(task) or task == "multi_label"
    baselines = ["majority", "tfidf_logreg", "base"] if labels else ["base"]
    baselines = ["mean", "tfidf_ridge", "base"] if task == "regression" else baselines
    baselines = ["length", *baselines] if task == "preference" else baselines
    baselines = [*baselines[:-1], "few_shot", "base"] if asked else baselines
    filler.fill("evaluate.baselines", baselines, "all baselines that fit the task and cost little, or are asked for")
    given = evaluate["baselines"]
    if "base" not in given:
        raise RecipeError(
            "evaluate.baselines leaves out 'base'",
            way_out="add it: every verdict compares with the original",
            key="evaluate.baselines",
        )
    if asked and "few_shot" not in given:
        raise RecipeError(
            f"evaluate.few_shot_examples is {evaluate['few_shot_examples']}, and no baseline shows examples",
            way_out="add few_shot to evaluate.baselines, or leave the number out",
            key="evaluate.few_shot_examples",
        )
    if "few_shot" in given and not shows_examples(task):
        raise RecipeError(
            f"evaluate.baselines: 'few_shot' shows questions with their answers, and task {task!r} has none",
            way_out="leave few_shot and evaluate.few_shot_examples out",
            key="evaluate.few_shot_examples" if asked else "evaluate.baselines",
        )
    if "few_shot" in given:
        filler.fill("evaluate.few_shot_examples", FEW_SHOT_EXAMPLES, "a prompt about five times as long")
