"""What a technique will take: every candidate is a resolved recipe of its own, and all are predicted in one way."""

from __future__ import annotations

from dataclasses import dataclass, replace

from luthier.plan import cost, memory
from luthier.plan.measured import Probed
from luthier.plan.merging import asking_seconds, merging_gib, merging_seconds, technique
from luthier.plan.parameters import dense_weights, lowest_learning, trainable_parameters
from luthier.plan.pruning import pruned_asking_seconds, pruning_gib, pruning_seconds, trained_shape
from luthier.plan.teaching import opening_gib, teacher_flops, teacher_gib, writing_seconds
from luthier.plan.workload import Workload
from luthier.plan_records import Prediction
from luthier.records import ModelShape
from luthier.spec.plugins import ADAPTERS, METHODS
from luthier.spec.resolve import ResolvedRecipe
from luthier.store.files import sha256_json

BESIDE_HEAD = " and a head"
"""What words for what is trained end with, where a head is trained too."""


@dataclass(frozen=True)
class Learner:
    """What is trained."""

    words: str
    parameters: int
    r: int
    """Rank of what stands beside each linear layer; 0 for none."""
    first: int
    """The lowest layer that learns."""
    whole_base: bool
    """Whether the base's own weights learn."""


@dataclass(frozen=True)
class Estimate:
    """A technique of training, and what it is predicted to take."""

    technique: str
    resolved: ResolvedRecipe
    work: Workload
    learner: Learner
    prediction: Prediction


def technique_of(resolved: ResolvedRecipe) -> str:
    """What the plan calls it: adapter and method, 'lora sft', or that runs are merged."""
    if resolved.recipe.merge is not None:
        return technique(resolved)
    return f"{resolved.recipe.adapter.type} {resolved.recipe.method.type}"


def key_of(resolved: ResolvedRecipe) -> str:
    """Hash of all that decides what training computes; the way it is started does not."""
    recipe = resolved.recipe
    sections = [part.model_dump(mode="json") for part in (recipe.data, recipe.method, recipe.adapter, recipe.train)]
    sections += [recipe.prune.model_dump(mode="json")] if recipe.prune is not None else []
    new = recipe.model.new_tokens
    grown = [new.model_dump(mode="json")] if new is not None else []
    return sha256_json([resolved.model_sha256, *recipe.model.held, *grown, resolved.data_sha256, sections])


def learner_of(resolved: ResolvedRecipe, shape: ModelShape, *, num_labels: int) -> Learner:
    """What is trained, from the tables and the section's settings; `shape` is of what that is, pruned where it is.

    Raises:
        RecipeError: a module that the recipe names does not exist.
    """
    adapter = resolved.recipe.adapter
    has_head = METHODS.get(resolved.recipe.method.type).has_head
    head, beside = (shape.hidden_size * max(1, num_labels), BESIDE_HEAD) if has_head else (0, "")
    of_base = ADAPTERS.get(adapter.type or "").trains_base
    every = getattr(adapter, "layers_to_transform", None) is None
    # Of all weights, the output head is then the only one that learns nothing, where it is not tied to the embeddings.
    if has_head and of_base and every and not shape.tied_embeddings:
        head -= shape.vocab_size * shape.hidden_size
    words = "an adapter" if not of_base else "all weights" if every else "some weights"
    return Learner(
        words + beside,
        trainable_parameters(shape, adapter) + head + _new_rows(resolved, shape),
        0 if of_base else int(getattr(adapter, "r", None) or 0),  # not every adapter has one
        lowest_learning(shape, adapter),
        whole_base=of_base,
    )


def _new_rows(resolved: ResolvedRecipe, shape: ModelShape) -> int:
    """Weights of the rows of new tokens, at both ends of the model; as many tokens as there may be."""
    new = resolved.recipe.model.new_tokens
    return 0 if new is None else new.most * shape.hidden_size * (1 if shape.tied_embeddings else 2)


def predict(
    resolved: ResolvedRecipe,
    shape: ModelShape,
    work: Workload,
    *,
    gflops: float,
    probed: Probed | None = None,
) -> Estimate:
    """Time and memory of a run.

    Args:
        resolved: the candidate.
        shape: of the base.
        work: of the candidate.
        gflops: rate of a float32 product on this machine.
        probed: what was tried on this machine with this base; where it was this very training, its tokens are counted
            and its memory is known too.
    """
    recipe, train = resolved.recipe, resolved.recipe.train
    own = trained_shape(resolved, shape)
    learns = learner_of(resolved, own, num_labels=work.num_labels)
    same = probed is not None and probed.key == key_of(resolved)
    rates = cost.usual_rates(gflops) if probed is None else cost.probed_rates(probed)
    if probed is not None and same:
        work = replace(work, counted=(probed.computed_tokens, probed.supervised_tokens))
    on_one_machine = cost.training_seconds(
        own,
        work,
        rates,
        adapter=0 if learns.whole_base else learns.parameters,
        backward_factor=_passes(resolved, learns),
        validations=train.validations or 0,
        course=course_of(resolved, learns),
    )
    taught = teacher_flops(
        resolved, tokens=work.computed_tokens, supervised=work.supervised_tokens, context=work.row_tokens
    )
    train_seconds = (on_one_machine + taught / (rates.train * 1e9)) / recipe.launch.nnodes
    train_seconds += writing_seconds(resolved, own, work, rates)  # each process writes all of them
    evaluate_seconds = (
        cost.evaluation_seconds(shape, work, rates, tuned=own)
        + cost.memorised_seconds(own, recipe.data, work, rates)
        + asking_seconds(resolved, shape, work, rates)
        + pruned_asking_seconds(resolved, shape, work, rates)
    )
    rest = (
        pruning_seconds(resolved, shape, work, rates)
        + cost.export_seconds(own, work, rates, forms=len(recipe.export or ()))
        + cost.other_seconds(resolved, shape, work, rates)
        + cost.meaning_seconds(recipe.data, work)
    )
    train_gib = training_gib(resolved, shape, work, recomputed=bool(train.gradient_checkpointing))
    if probed is not None and same:
        copied = learns.parameters * memory.CHECKPOINT_COPIES * memory.FLOAT_BYTES / memory.GIB
        train_gib = recipe.launch.nproc_per_node * (probed.peak_memory_gib + copied)
    another = 0.0
    if recipe.merge is not None:
        train_seconds, train_gib = merging_seconds(resolved, shape, work, rates), merging_gib(resolved, shape)
        another = memory.weights_gib(shape) * (1 + any(parent.kind == "model" for parent in resolved.parents))
    evaluate_gib = another + memory.evaluation_gib(
        shape,
        # Weights that learned stand beside those of the base.
        adapter=own.num_parameters if learns.whole_base else learns.parameters,
        tokens=max(work.longest_prompt, work.few_shot.prompt_tokens if work.asks_few_shot else 0.0),
        scored=max(cost.scored_nodes(work), memory.GENERAL_POSITIONS),
        threads=train.threads or 1,
    )
    if recipe.model.load_in_4bit:  # the original is evaluated beside it
        evaluate_gib += _held_gib(resolved, shape)[0]
    if recipe.model.new_tokens is not None and not learns.whole_base:  # beside that with fewer rows
        evaluate_gib += memory.weights_gib(shape)
    if recipe.prune is not None:  # so it is beside what was pruned
        evaluate_gib += memory.weights_gib(own)
    prediction = Prediction(
        train_seconds=train_seconds,
        evaluate_seconds=evaluate_seconds,
        total_seconds=train_seconds + evaluate_seconds + rest,
        peak_memory_gib=max(train_gib, evaluate_gib, pruning_gib(resolved, shape), memory.export_gib(own)),
        trained_tokens=0 if recipe.merge is not None else work.trained_tokens,
        matmul_gflops=gflops,
        rates="product" if probed is None else "probe",
        train_memory_gib=train_gib,
    )
    return Estimate(technique_of(resolved), resolved, work, learns, prediction)


def course_of(resolved: ResolvedRecipe, learns: Learner) -> cost.Course:
    """How training goes through the layers."""
    train = resolved.recipe.train
    return cost.Course(learns.first, bool(train.cache_trunk), bool(train.gradient_checkpointing))


def steps_flops(resolved: ResolvedRecipe, shape: ModelShape, work: Workload, *, tokens: int, supervised: int) -> float:
    """Counted operations of training steps that computed so much, as `predict` counts them; a kept trunk is none."""
    shape = trained_shape(resolved, shape)
    learns = learner_of(resolved, shape, num_labels=work.num_labels)
    course = course_of(resolved, learns)
    return cost.training_flops(
        shape,
        adapter=0 if learns.whole_base else learns.parameters,
        tokens=tokens,
        supervised=supervised,
        context=work.row_tokens,
        backward_factor=_passes(resolved, learns),
        course=replace(course, cache_trunk=False),
    ) + teacher_flops(resolved, tokens=tokens, supervised=supervised, context=work.row_tokens)


def training_gib(resolved: ResolvedRecipe, shape: ModelShape, work: Workload, *, recomputed: bool) -> float:
    """Peak of training, all processes of this machine together, each with all of it."""
    shape = trained_shape(resolved, shape)
    learns = learner_of(resolved, shape, num_labels=work.num_labels)
    tokens = round(work.largest_micro_batch)
    supervised = 0.0 if work.head else tokens * work.learned_tokens / work.own_tokens
    extra = memory.whole_weights_gib(learns.parameters) if learns.whole_base else 0.0
    extra += dense_weights(shape, resolved.recipe.adapter) * memory.FLOAT_BYTES / memory.GIB
    held, opening = _held_gib(resolved, shape)
    each = memory.training_gib(
        shape,
        adapter=learns.parameters,
        r=learns.r,
        tokens=tokens,
        supervised=supervised,
        first=learns.first,
        held=held,
        opening=opening,
        recomputed=recomputed,
    )
    each += extra + teacher_gib(resolved, shape, supervised=supervised)
    return resolved.recipe.launch.nproc_per_node * max(each, opening_gib(resolved, shape))


def _passes(resolved: ResolvedRecipe, learns: Learner) -> float:
    """Of a step's tokens, forward and backward over forward: with the gradients of the base's weights, where these
    learn, and with a pass of the base, where a method that writes its answers measures from it.
    """
    facts = METHODS.get(resolved.recipe.method.type)
    return facts.backward_factor + float(learns.whole_base) + float(resolved.recipe.method.is_held)


def _held_gib(resolved: ResolvedRecipe, shape: ModelShape) -> tuple[float, float]:
    """What the base's weights take while it trains, and at most while they are read: float32 before it is halved."""
    model, whole = resolved.recipe.model, memory.weights_gib(shape)
    if model.load_in_4bit:
        held = memory.four_bits_gib(shape, double_quant=model.bnb_4bit_use_double_quant)
        return held, held
    return memory.halved_gib(shape) if resolved.recipe.train.bf16 else whole, whole
