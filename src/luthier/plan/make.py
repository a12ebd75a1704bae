"""Put the plan together, and say it in lines of text."""

from __future__ import annotations

import math

from luthier.plan import cost, memory
from luthier.plan.parameters import adapter_parameters, counted_parameters, lowest_adapted
from luthier.plan.power import DISCORDANCE, needed_for, smallest_difference
from luthier.plan.rank import Estimate, rank, within
from luthier.plan.words import count, duration, millions, points, size
from luthier.plan.words import memory as gib
from luthier.plan.workload import Workload, workload
from luthier.records import Candidate, DataProfile, Detectable, ModelShape, Plan, Prediction, is_closed
from luthier.spec.plugins import METHODS, METRICS
from luthier.spec.resolve import ResolvedRecipe
from luthier.spec.trunk import TOKENS_PER_CHAR

TIGHT = 0.8
"""Share of a budget above which the plan calls it tight."""

FEW_TEST_ROWS = 5
"""Test rows of a label below which its F1 is mostly chance."""


def make_plan(
    resolved: ResolvedRecipe,
    profile: DataProfile,
    shape: ModelShape,
    *,
    matmul_gflops: float,
    tokens_per_char: float = TOKENS_PER_CHAR,
) -> Plan:
    """Predict memory, time and what the data can prove, and rank the techniques.

    Args:
        resolved: the recipe with nothing left open.
        profile: of the training file.
        shape: of the base model.
        matmul_gflops: rate of a float32 product on this machine, see `matmul_rate`.
        tokens_per_char: of the tokenizer on text like this.

    Raises:
        RecipeError: a column or adapter module that the recipe names does not exist.
        DataError: a split file of the user's own is missing.
    """
    work = workload(resolved, profile, tokens_per_char=tokens_per_char)
    tuning, prediction = _predict(resolved, shape, work, gflops=matmul_gflops)
    budget = resolved.recipe.objective.budget
    candidates = rank(
        tuning, shape, work, budget=budget, gflops=matmul_gflops, threads=resolved.recipe.train.threads or 1
    )
    fits = within(budget, seconds=prediction.total_seconds, peak_memory_gib=prediction.peak_memory_gib)
    detectable = _detectable(resolved, work)
    return Plan(
        recipe_sha256=resolved.sha256,
        data_sha256=profile.sha256,
        model_sha256=shape.sha256,
        candidates=candidates,
        chosen=tuning.technique,
        prediction=prediction,
        fits=fits,
        budget={key: value for key, value in budget.model_dump().items() if value is not None},
        detectable=detectable,
        notes=(
            *_technique_notes(candidates, tuning.technique),
            *_budget_notes(resolved, prediction),
            *_trunk_notes(resolved, shape, work),
            *_launch_notes(resolved),
            *_data_notes(resolved, work, detectable),
            *_device_notes(resolved),
            *_model_notes(shape, bf16=resolved.recipe.train.bf16),
        ),
    )


def _predict(
    resolved: ResolvedRecipe, shape: ModelShape, work: Workload, *, gflops: float
) -> tuple[Estimate, Prediction]:
    recipe = resolved.recipe
    adapter, train = recipe.adapter, recipe.train
    assert adapter.r is not None
    assert adapter.target_modules is not None
    assert train.validations is not None
    modules, numbers = adapter.target_modules, adapter.layers_to_transform
    parameters = adapter_parameters(shape, r=adapter.r, target_modules=modules, numbers=numbers)
    scored = max(cost.scored_nodes(work), memory.GENERAL_POSITIONS)
    peak = max(
        _training_gib(resolved, shape, work, recomputed=bool(train.gradient_checkpointing)),
        memory.evaluation_gib(
            shape, adapter=parameters, tokens=work.prompt_tokens, scored=scored, threads=train.threads or 1
        ),
        memory.export_gib(shape),
    )
    on_one_machine = cost.training_seconds(
        shape,
        work,
        adapter=parameters,
        validations=train.validations,
        gflops=gflops,
        backward_factor=METHODS.get(recipe.method.type).backward_factor,
        course=cost.Course(
            first=lowest_adapted(shape, modules, numbers),
            cache_trunk=bool(train.cache_trunk),
            recomputed=bool(train.gradient_checkpointing),
        ),
    )
    train_seconds = on_one_machine / recipe.launch.nnodes
    evaluate_seconds = cost.evaluation_seconds(shape, work, gflops=gflops)
    prediction = Prediction(
        train_seconds=train_seconds,
        evaluate_seconds=evaluate_seconds,
        total_seconds=train_seconds
        + evaluate_seconds
        + cost.export_seconds(shape, work, forms=len(recipe.export or ()), gflops=gflops)
        + cost.other_seconds(shape, work)
        + cost.meaning_seconds(recipe.data, work),
        peak_memory_gib=peak,
        trained_tokens=work.trained_tokens,
        matmul_gflops=gflops,
    )
    technique = f"{adapter.type} {recipe.method.type}"
    return Estimate(technique, parameters, train_seconds, prediction.total_seconds, peak), prediction


def _training_gib(resolved: ResolvedRecipe, shape: ModelShape, work: Workload, *, recomputed: bool) -> float:
    adapter = resolved.recipe.adapter
    assert adapter.r is not None
    assert adapter.target_modules is not None
    modules, numbers = adapter.target_modules, adapter.layers_to_transform
    tokens = round(work.largest_micro_batch)
    return resolved.recipe.launch.nproc_per_node * memory.training_gib(  # each with all of it
        shape,
        adapter=adapter_parameters(shape, r=adapter.r, target_modules=modules, numbers=numbers),
        r=adapter.r,
        tokens=tokens,
        supervised=tokens * work.answer_tokens / (work.row_tokens - work.shared_tokens),
        first=lowest_adapted(shape, modules, numbers),
        bf16=resolved.recipe.train.bf16,
        recomputed=recomputed,
    )


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
    kept, computed_again = (_training_gib(resolved, shape, work, recomputed=again) for again in (False, True))
    return kept > ram >= computed_again


def _detectable(resolved: ResolvedRecipe, work: Workload) -> Detectable:
    """What the test split can show; of several targets the one that asks for the highest value."""
    level = resolved.recipe.evaluate.level or 0.95
    if work.is_text:
        return Detectable(
            num_test=work.test_rows,
            smallest_difference=float("nan"),
            assumption="what a difference of losses shows depends on how documents differ, which is not known before",
            target=next((limit.text for limit in resolved.limits if not limit.relative), ""),
            must_observe=None,
        )
    targets = [limit for limit in resolved.limits if not limit.relative]
    needed = {limit.text: needed_for(limit, work.test_rows, level=level) for limit in targets}
    binomial = [limit for limit in targets if METRICS.get(limit.metric).is_proportion]
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


def _budget_notes(resolved: ResolvedRecipe, prediction: Prediction) -> list[str]:
    budget, notes = resolved.recipe.objective.budget, []
    if budget.ram_gib is None and budget.hours is None:
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
            if METRICS.get(metric.rpartition(".")[2]).is_proportion
            else f"What must be seen for {detectable.target} cannot be said before training."
        )
    if recipe.train.max_tokens is not None and work.whole_epochs < (recipe.train.num_train_epochs or 0):
        notes.append(
            f"train.max_tokens stops training after {work.whole_epochs:.1f} of {recipe.train.num_train_epochs} epochs."
        )
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


def _model_notes(shape: ModelShape, *, bf16: bool) -> list[str]:
    notes = []
    if bf16:
        notes.append("train.bf16: time is predicted as for float32; what bfloat16 gains depends on the processor.")
    if shape.quantisation:
        notes.append(f"{shape.name} is stored as {shape.quantisation} and computed with in float32, dequantized.")
    if abs(counted_parameters(shape) / shape.num_parameters - 1) > 0.05:
        notes.append(
            f"{shape.architecture!r} is not built like Llama ({millions(counted_parameters(shape))} parameters counted"
            f", {millions(shape.num_parameters)} stored): memory and time are rough."
        )
    return notes


def _proof_lines(proof: Detectable) -> list[str]:
    if math.isnan(proof.smallest_difference):
        return [f"proof     {count(proof.num_test)} pieces of held-out documents; {proof.assumption}"]
    return [
        f"proof     {count(proof.num_test)} test rows show a difference of {points(proof.smallest_difference)} "
        "(80 % power, McNemar at 5 %)",
        f"          if {proof.assumption}",
    ]


def lines(plan: Plan) -> list[str]:
    """The plan for a terminal, at most 120 characters a line where words allow it."""
    prediction, budget, proof = plan.prediction, plan.budget, plan.detectable
    of_memory = f" of {gib(budget['ram_gib'])}" if "ram_gib" in budget else ""
    of_time = f" of {duration(budget['hours'] * 3600)}" if "hours" in budget else ""
    rest = prediction.total_seconds - prediction.train_seconds - prediction.evaluate_seconds
    verdict = "fits the budget" if plan.fits else "DOES NOT FIT the budget"
    text = [
        f"method    {plan.chosen}: {verdict if budget else 'no budget stated'}",
        f"memory    {gib(prediction.peak_memory_gib)}{of_memory} at the peak",
        f"time      {duration(prediction.total_seconds)}{of_time}: training {duration(prediction.train_seconds)}, "
        f"evaluation {duration(prediction.evaluate_seconds)}, the rest {duration(rest)}",
        "          (the rest: preparing, starting stages, exporting; "
        f"at {prediction.matmul_gflops:.0f} GFLOP/s, measured now)",
        f"tokens    {count(prediction.trained_tokens)} to train on",
        *_proof_lines(proof),
    ]
    if proof.target and proof.must_observe is not None:
        seen = f"about {proof.must_observe:.3f} or better must be seen for the bound to clear it"
        text += [
            f"target    {proof.target}: {seen}",
            f"          if it behaved like a share of {count(proof.num_test)} independent items",
        ]
    elif proof.target:
        text.append(f"target    {proof.target}")
    text.append("ranking")
    for place, candidate in enumerate(plan.candidates, start=1):
        trains = f"{millions(candidate.trainable_parameters)} parameters, " if candidate.trainable_parameters else ""
        fits = "" if candidate.fits else ", does not fit"
        text += [
            f"  {place}. {candidate.technique}  ({trains}{gib(candidate.peak_memory_gib)}, "
            f"{duration(candidate.train_seconds)}{fits})",
            f"     for      {candidate.speaks_for}",
            f"     against  {candidate.speaks_against}",
        ]
    return text + (["notes", *(f"  - {note}" for note in plan.notes)] if plan.notes else [])
