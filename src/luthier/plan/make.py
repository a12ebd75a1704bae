"""Put the plan together, and say it in lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.plan import memory
from luthier.plan.cost import probed_rates, usual_rates
from luthier.plan.expect import measured_alike
from luthier.plan.measured import Known, Probed
from luthier.plan.parameters import counted_parameters
from luthier.plan.power import DISCORDANCE, is_planned, needed_for, smallest_difference
from luthier.plan.predict import predict, training_gib
from luthier.plan.pruning import pruning_notes, trained_shape
from luthier.plan.rank import Ground, price_of, rank, within
from luthier.plan.words import duration, millions, price, size
from luthier.plan.words import memory as gib
from luthier.plan.workload import Workload, workload
from luthier.plan_records import Candidate, Detectable, Plan, Prediction
from luthier.records import DataProfile, ModelShape, is_closed
from luthier.spec.plugins import METRICS
from luthier.spec.recipe import Recipe
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.suits import is_counted, labels_of
from luthier.spec.trunk import TOKENS_PER_CHAR

USUAL_METRICS = ("micro_f1", "macro_f1", "chrf", "exact_match", "mae")
"""Of a task with labels and of one without; the verdict of a run speaks of them too."""

TIGHT = 0.8
"""Share of a budget above which the plan calls it tight."""

LIMITED = "train.max_tokens stops training"
"""How the note on that limit begins."""

FEW_TEST_ROWS = 5
"""Test rows of a label below which its F1 is mostly chance."""


def make_plan(
    resolved: ResolvedRecipe,
    profile: DataProfile,
    shape: ModelShape,
    *,
    matmul_gflops: float,
    tokens_per_char: float = TOKENS_PER_CHAR,
    others: Sequence[ResolvedRecipe] = (),
    known: Sequence[Known] = (),
    probed: Probed | None = None,
) -> Plan:
    """Predict memory, time and what the data can prove, and rank the techniques.

    Args:
        resolved: the recipe with nothing left open.
        profile: of the training file.
        shape: of the base model.
        matmul_gflops: rate of a float32 product on this machine, see `matmul_rate`.
        tokens_per_char: of the tokenizer on text like this.
        others: the same recipe with other techniques, to be weighed beside its own.
        known: what earlier runs measured on the same data.
        probed: what was tried on this machine with this base.

    Raises:
        RecipeError: a column or adapter module that the recipe names does not exist.
        DataError: a split file of the user's own is missing.
    """
    tunings = [
        predict(
            one,
            shape,
            workload(one, profile, tokens_per_char=tokens_per_char),
            gflops=matmul_gflops,
            probed=probed,
        )
        for one in (resolved, *others)
    ]
    tuning, recipe = tunings[0], resolved.recipe
    work, prediction, budget = tuning.work, tuning.prediction, recipe.objective.budget
    labels = labels_of(recipe.entry.task, recipe.entry.label, profile, rename=recipe.data.labels.rename)
    task = recipe.entry.task or ""
    alike = measured_alike(task, num_labels=len(labels), train_rows=work.train_rows, shape=shape)
    if recipe.prune is not None:  # of what was trained on the whole base they say nothing here
        trained = [tuned.technique for tuned in tunings]
        alike = tuple(one for one in alike if one.technique not in trained)
    ground = Ground(
        shape=shape,
        work=work,
        task=task,
        budget=budget,
        rates=usual_rates(matmul_gflops) if probed is None else probed_rates(probed),
        threads=recipe.train.threads or 1,
        metric=metric_of(resolved),
        labels=labels if is_counted(recipe.entry.label, profile) else {},
        known=(*known, *alike),
    )
    candidates = rank(tunings, ground)
    detectable = _detectable(resolved, work)
    return Plan(
        recipe_sha256=resolved.sha256,
        data_sha256=profile.sha256,
        model_sha256=shape.sha256,
        candidates=candidates,
        chosen=tuning.technique,
        prediction=prediction,
        fits=within(budget, seconds=prediction.total_seconds, peak_memory_gib=prediction.peak_memory_gib),
        budget={key: value for key, value in budget.model_dump(exclude={"currency"}).items() if value is not None},
        currency=budget.currency or "",
        detectable=detectable,
        notes=(
            *_technique_notes(candidates, tuning.technique),
            *budget_notes(resolved, prediction),
            *_trunk_notes(resolved, trained_shape(resolved, shape), work),
            *_launch_notes(resolved),
            *_data_notes(resolved, work, detectable),
            *_device_notes(resolved),
            *pruning_notes(resolved, shape),
            *_model_notes(shape, recipe),
        ),
    )


def metric_of(resolved: ResolvedRecipe) -> str:
    """What quality is said in: the metric of the first target, else the task's usual one."""
    targets = [limit.metric for limit in resolved.limits if not limit.relative]
    usual = [name for name in USUAL_METRICS if resolved.recipe.entry.task in METRICS.get(name).tasks]
    return next(iter((*targets, *usual, *METRICS.names())))


def memory_asks_for_checkpointing(
    resolved: ResolvedRecipe, profile: DataProfile, shape: ModelShape, *, tokens_per_char: float = TOKENS_PER_CHAR
) -> bool:
    """Whether training exceeds objective.budget.ram_gib, and no longer does when activations are computed again.

    Raises:
        RecipeError, DataError: see `make_plan`.
    """
    ram = resolved.recipe.objective.budget.ram_gib
    if ram is None or resolved.recipe.train.device == "cuda":  # an accelerator's memory is another one
        return False
    work = workload(resolved, profile, tokens_per_char=tokens_per_char)
    kept, computed_again = (training_gib(resolved, shape, work, recomputed=again) for again in (False, True))
    return kept > ram >= computed_again


def _detectable(resolved: ResolvedRecipe, work: Workload) -> Detectable:
    """What the test split can show; of several targets the one that asks for the highest value."""
    level = resolved.recipe.evaluate.level or 0.95
    if work.is_text or resolved.recipe.entry.task == "regression":
        what = "pieces of held-out documents, and what a difference of losses"
        what = what if work.is_text else "what a difference of distances"
        return Detectable(
            num_test=work.test_rows,
            smallest_difference=float("nan"),
            assumption=f"{what} shows depends on how rows differ, which is not known before",
            target=next((limit.text for limit in resolved.limits if not limit.relative), ""),
            must_observe=None,
        )
    targets = [limit for limit in resolved.limits if not limit.relative]
    needed = {limit.text: needed_for(limit, work.test_rows, level=level) for limit in targets}
    binomial = [limit for limit in targets if is_planned(limit.metric)]
    hardest = max(binomial, key=lambda limit: limit.value, default=targets[0] if targets else None)
    return Detectable(
        num_test=work.test_rows,
        smallest_difference=smallest_difference(work.test_rows),
        assumption=f"exactly one of the two models is right on {100 * DISCORDANCE:.0f} % of the items, "
        "and items are independent",
        target=hardest.text if hardest else "",
        must_observe=needed[hardest.text] if hardest else None,
    )


def _technique_notes(candidates: tuple[Candidate, ...], chosen: str) -> list[str]:
    first = candidates[0]
    if first.technique == chosen:
        return []
    return [
        f"'{first.technique}' ranks first ({first.speaks_for}); '{chosen}' is run all the same, as the recipe asks."
    ]


def budget_notes(resolved: ResolvedRecipe, prediction: Prediction) -> list[str]:
    """What does not fit the budget, or hardly."""
    budget, notes = resolved.recipe.objective.budget, []
    if budget.ram_gib is None and budget.hours is None and budget.money is None:
        notes.append("No budget is stated (objective.budget), so everything fits.")
    if budget.ram_gib is not None and prediction.peak_memory_gib > TIGHT * budget.ram_gib:
        over = prediction.peak_memory_gib > budget.ram_gib
        notes.append(
            f"Memory {'does not fit' if over else 'is tight'}: {gib(prediction.peak_memory_gib)} of "
            f"{gib(budget.ram_gib)}; lower train.micro_batch_tokens, which does not change the result."
        )
    if budget.hours is not None and prediction.total_seconds > TIGHT * budget.hours * 3600:
        over = prediction.total_seconds > budget.hours * 3600
        notes.append(
            f"Time {'does not fit' if over else 'is tight'}: {duration(prediction.total_seconds)} of "
            f"{duration(budget.hours * 3600)}; lower train.max_tokens, or data.limit.test for the evaluation."
        )
    costs = price_of(budget, seconds=prediction.total_seconds)
    if budget.money is not None and costs is not None and costs > TIGHT * budget.money:
        notes.append(
            f"Money {'does not suffice' if costs > budget.money else 'is tight'}: {price(costs, budget.currency)} of "
            f"{price(budget.money, budget.currency)}; lower train.max_tokens, or take a cheaper machine."
        )
    return notes


def _trunk_notes(resolved: ResolvedRecipe, shape: ModelShape, work: Workload) -> list[str]:
    layers = resolved.recipe.adapter.layers_to_transform
    if not resolved.recipe.train.cache_trunk or layers is None:
        return []
    num_bytes = round(work.distinct_tokens * shape.hidden_size * memory.FLOAT_BYTES)
    return [
        f"The layers below {layers[0]} are frozen and computed once; what they say takes about {size(num_bytes)} "
        "in the run folder until training has ended."
    ]


def _device_notes(resolved: ResolvedRecipe) -> list[str]:
    if resolved.recipe.train.device != "cuda":
        return []
    return ["train.device is cuda: memory and time are predicted for this machine's processors all the same."]


def _launch_notes(resolved: ResolvedRecipe) -> list[str]:
    """What several processes change, and what they do not."""
    launch, notes = resolved.recipe.launch, []
    if launch.nproc_per_node > 1:
        notes.append(
            f"{launch.nproc_per_node} processes share this machine's processors, so training takes no less time by "
            "them, and each needs its own memory; they pay where each has an accelerator."
        )
    if launch.nnodes > 1:
        notes.append(
            f"Time of training is divided by {launch.nnodes} machines as if all were like this one and no time went "
            "into exchange; memory is that of one machine."
        )
    return notes


def _data_notes(resolved: ResolvedRecipe, work: Workload, detectable: Detectable) -> list[str]:
    recipe, notes = resolved.recipe, []
    if detectable.target and detectable.must_observe is None:
        metric = detectable.target.split()[0]
        notes.append(
            f"{detectable.target} cannot be shown with {work.test_rows:,} test rows, even by a perfect score, if it "
            "behaves like a share of independent items: use more."
            if is_planned(metric.rpartition(".")[2]) and " >= " in detectable.target
            else f"What must be seen for {detectable.target} cannot be said before training."
        )
    if recipe.train.max_tokens is not None and work.whole_epochs < (recipe.train.num_train_epochs or 0):
        notes.append(f"{LIMITED} after {work.whole_epochs:.1f} of {recipe.train.num_train_epochs} epochs.")
    rarest = work.rarest_share * work.test_rows
    if is_closed(resolved.recipe.entry.task) and 0 < rarest < FEW_TEST_ROWS:
        notes.append(f"The rarest label has about {rarest:.0f} test rows: its F1, and so macro-F1, is uncertain.")
    if recipe.data.split.group_by:
        notes.append(
            f"Rows that share a {recipe.data.split.group_by} stay together and are not independent: "
            "intervals come out somewhat wider than planned."
        )
    if recipe.data.test or recipe.data.validation:
        notes.append("The rows of the split files are estimated from their size.")
    return notes


def _model_notes(shape: ModelShape, recipe: Recipe) -> list[str]:
    notes = []
    if recipe.model.load_in_4bit:
        held = memory.four_bits_gib(shape, double_quant=recipe.model.bnb_4bit_use_double_quant)
        notes.append(
            f"model.load_in_4bit: training holds the base in {held:.2f} GiB, not {memory.weights_gib(shape):.2f}; "
            "evaluation and export hold the original too, which the tuned model is compared with."
        )
    if (new := recipe.model.new_tokens) is not None:
        words = f"up to {new.most:,} words" if new.file is None else "some words"
        notes.append(
            f"model.new_tokens: {words} become tokens, so there are fewer tokens than are counted here; "
            "evaluation holds the base as it is beside the tuned model."
        )
    if recipe.train.bf16:
        notes.append("train.bf16: time is predicted as for float32; what bfloat16 gains depends on the processor.")
    if shape.quantisation:
        notes.append(f"{shape.name} is stored as {shape.quantisation} and computed with in float32, dequantized.")
    if abs(counted_parameters(shape) / shape.num_parameters - 1) > 0.05:
        notes.append(
            f"{shape.architecture!r} is not built like Llama ({millions(counted_parameters(shape))} parameters counted"
            f", {millions(shape.num_parameters)} stored): memory and time are rough."
        )
    return notes
