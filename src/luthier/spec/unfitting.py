"""What a resolved recipe asks for and its task, method or data cannot give; each is said before anything is read."""

from __future__ import annotations

from luthier.errors import RecipeError
from luthier.records import is_closed
from luthier.spec.limits import Limit
from luthier.spec.plugins import METHODS, METRICS
from luthier.spec.recipe import Recipe


def refuse_balance_without_labels(recipe: Recipe) -> None:
    """Weights and samplers go by label."""
    given = {"class_weight": recipe.train.class_weight is not None, "sampler": recipe.train.sampler != "shuffle"}
    for key, is_given in given.items():
        if is_given and not is_closed(recipe.entry.task):
            raise RecipeError(
                f"train.{key} goes by label, and {recipe.entry.task} has none",
                way_out=f"leave train.{key} out, or set data.train[0].task",
            )


def refuse_order_without_labels(recipe: Recipe) -> None:
    """Degrees are labels; and nothing is learned by an order that nobody gave."""
    order = recipe.data.labels.order
    if order and not is_closed(recipe.entry.task):
        raise RecipeError(
            f"data.labels.order puts labels in order, and {recipe.entry.task} has none",
            way_out="leave data.labels.order out, or give it in the data entry of the task that it is of",
            key="data.labels.order",
        )
    if getattr(recipe.method, "ordered", False) and not order:
        raise RecipeError(
            "method.ordered learns by the order of the labels, and data.labels.order gives none",
            way_out="set data.labels.order: [LOWEST, ..., HIGHEST], or leave method.ordered out",
            key="method.ordered",
        )


def refuse_rewards_without_answers(recipe: Recipe) -> None:
    """Rewards verify what is written freely."""
    task, rewards = recipe.entry.task or "", recipe.entry.rewards
    if rewards and task not in METRICS.get("reward").tasks:
        raise RecipeError(
            f"data.train[0].rewards verify free answers, and {task} has none",
            way_out=f"leave them out; tasks with free answers: {', '.join(METRICS.get('reward').tasks)}",
            key="data.train.0.rewards",
        )


def refuse_too_long_completions(recipe: Recipe) -> None:
    """What is written while it learns is what is written when it is asked, which is half of a row at most."""
    asked, most = recipe.method.answer_tokens, (recipe.train.max_length or 0) // 2
    if asked is not None and asked > most:
        raise RecipeError(
            f"method.max_completion_length {asked} is more than half of train.max_length ({most}), and no longer "
            "answer is written when the model is asked",
            way_out=f"set train.max_length to {2 * asked}, or write shorter answers",
            key="method.max_completion_length",
        )


def refuse_unmeasured(limit: Limit, recipe: Recipe) -> None:
    """What a head does not do, and what is known only of a version that may abstain, or of labels in an order."""
    written, abstaining = ("exact_match", "perplexity"), ("coverage", "answered_accuracy")
    why, way_out = "", ""
    if limit.metric in written and METHODS.get(recipe.method.type).scores_answers:
        why, way_out = "a reward model writes nothing", "ask for preference_accuracy, or set method: dpo"
    elif limit.metric in written and METHODS.get(recipe.method.type).has_head:
        why, way_out = (
            "a classification head writes nothing",
            "ask for macro_f1, accuracy or log_loss, or set method: sft",
        )
    elif limit.metric == "binary_log_loss" and not METHODS.get(recipe.method.type).has_head:
        why, way_out = "labels that are written have no probabilities", "ask for micro_f1, or set method: multi_label"
    elif limit.metric in abstaining and getattr(recipe.method, "abstain_below", None) is None:
        why, way_out = (
            "this version always gives a label",
            "set method: {type: classify, abstain_below: 0.7}, or ask for accuracy",
        )
    elif limit.metric == "term_accuracy" and recipe.evaluate.glossary is None:
        why, way_out = "no glossary is given", "name a file of terms as evaluate.glossary"
    elif limit.metric == "reward" and not recipe.entry.rewards:
        why, way_out = "nothing verifies the answers", "set data.train[0].rewards, e.g. [{type: exact}]"
    elif limit.metric in ("mae", "quadratic_kappa") and is_closed(recipe.entry.task) and not recipe.data.labels.order:
        why, way_out = "the labels have no order", "set data.labels.order: [LOWEST, ..., HIGHEST]"
    if why and limit.subject != "general":
        raise RecipeError(
            f"objective: {limit.key!r} is not measured, {why}",
            way_out=way_out,
            key=f"objective.{'non_regression' if limit.relative else 'targets'}.{limit.key}",
        )


def refuse_foreign_metric(limit: Limit, recipe: Recipe) -> None:
    """What is measured of other tasks."""
    task = recipe.entry.task
    if limit.subject != "general" and task not in METRICS.get(limit.metric).tasks:
        fitting = [name for name, facts in METRICS.entries().items() if task in facts.tasks]
        raise RecipeError(
            f"objective: {limit.key!r} is not measured for {task}",
            way_out=f"measured: {', '.join(fitting)}",
            key=f"objective.{'non_regression' if limit.relative else 'targets'}.{limit.key}",
        )


def refuse_preferences_of_pruned(recipe: Recipe) -> None:
    """Methods that compare answers start from a model that writes them, which a model just pruned hardly does."""
    facts = METHODS.get(recipe.method.type)
    if recipe.prune is not None and (facts.reward or facts.by_rewards):
        healing = [
            name for name, one in METHODS.entries().items() if not (one.reward or one.by_rewards or one.has_head)
        ]
        raise RecipeError(
            f"prune: method {recipe.method.type} compares answers, and a model that was just pruned has to be healed "
            "before it writes any",
            way_out=f"heal it first by one of {', '.join(healing)}, and name the folder of that run's export merged as "
            "model.name here",
            key="prune",
        )
