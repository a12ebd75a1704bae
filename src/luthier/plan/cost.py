"""Time of each stage: floating-point operations over the rate of a matrix product measured on this machine.

Symbols: N weights of the linear layers, P adapter parameters, L layers, a = heads x head_dim, h hidden size,
V vocabulary, C tokens that a token attends to, M tokens of a micro-batch. A multiplication and an addition are 2.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from luthier.plan.measured import Probed
from luthier.plan.parameters import linear_parameters
from luthier.plan.workload import Workload
from luthier.records import ModelShape, PrivacyProfile
from luthier.spec.recipe import Data
from luthier.spec.resolve import ResolvedRecipe

TRAIN_EFFICIENCY = 0.45
"""Share of the measured rate that a training step reaches; norms, rotations and small products take the rest.

This and the next: medians of eight pairs of a measured rate and SmolLM2-135M at work, see benchmarks/LOG.md.
"""

SCORE_EFFICIENCY = 0.38
"""The same for a forward pass over one prompt and its labels: narrower products than in a full micro-batch."""

DISTINCT_NODES = 0.8
"""Distinct places in the tree of label tokens over their number: labels that begin alike share their start."""

GREEDY_EFFICIENCY = 0.035
"""The same for one token after another: every weight is read from memory for a single token."""

ATTENTION_FACTOR = 3.5
"""Forward and backward of attention over its forward; backward is 2.5 forwards (Dao 2023, arXiv 2307.08691, 3.1.2)."""

GENERAL_TOKENS = 2700
"""Length of the general text that base and tuned model are compared on, for forgetting."""

STAGE_SECONDS = 12.0
"""Starting a stage in a process of its own: importing torch and transformers, reading the weights."""

MODEL_STAGES = 3
"""Stages that start so: train, evaluate, export."""

PREPARE_SECONDS_PER_ROW: dict[PrivacyProfile, float] = {"fast": 0.00025, "balanced": 0.011, "maximum": 0.012}
"""Reading, cleaning, searching for personal data, rendering and tokenizing one row on one processor, by what searches:
results/prepare_scale.csv and privacy_quality.csv of benchmarks/. Longer rows take longer."""

SECRETS_RANKED = 100
"""Answers that are scored for each planted secret, itself included; see luthier.evals.memorisation."""

EMBED_SECONDS_PER_ROW = 1 / 161
"""Embedding a short message with all-minilm-l6-v2 on one thread; longer texts and larger models take longer.

This and the next: benchmarks/results/meaning.csv. More threads are not counted on.
"""

COMPARE_SECONDS_PER_SQUARE = 3.37 / 20_000**2
"""Comparing the embeddings of rows with each other, over the square of their number."""

LINEAR_SECONDS_PER_ROW = 0.015
"""Fitting TF-IDF + logistic regression, a training row; grows with the labels too, which is left out."""

WRITE_BYTES_PER_SECOND = 2.5e8
"""Writing, hashing and reading back an export."""

CONVERT_SECONDS = 25.0
"""Reading a GGUF file, mostly its vocabulary; only the first run on a machine does it."""

PARITY_PROMPTS = 8
"""Golden prompts that trained model and artifact are both asked: all their logits, then greedy text."""


PARITY_TOKENS = 16.0
"""Of greedy text that are compared; where rows are documents, nothing else is written."""


def matmul_rate(*, seconds: float = 0.3, size: int = 1024, clock: Callable[[], float] = time.perf_counter) -> float:
    """Rate in GFLOP/s of the median float32 product of two [size, size] matrices seen within `seconds`.

    The fastest would be the rate of a processor that nothing else uses, and nothing heats.
    """
    left = np.ones((size, size), dtype=np.float32)
    right = np.ones((size, size), dtype=np.float32)
    product = left @ right  # the first one starts the threads
    taken = []
    end = clock() + seconds
    while True:
        start = clock()
        np.matmul(left, right, out=product)
        now = clock()
        taken.append(max(now - start, 1e-9))
        if now >= end:
            return 2 * size**3 / statistics.median(taken) / 1e9


@dataclass(frozen=True)
class Rates:
    """Counted GFLOP/s that the parts of a run reach on this machine."""

    train: float
    score: float
    greedy: float
    start_seconds: float = STAGE_SECONDS
    """Starting a stage."""


def usual_rates(gflops: float) -> Rates:
    """Of a machine that makes a large product at `gflops`."""
    return Rates(gflops * TRAIN_EFFICIENCY, gflops * SCORE_EFFICIENCY, gflops * GREEDY_EFFICIENCY)


def probed_rates(probed: Probed) -> Rates:
    """Of a machine that was tried out."""
    return Rates(probed.train_gflops, probed.score_gflops, probed.greedy_gflops, probed.start_seconds)


def attention_flops(shape: ModelShape, *, tokens: float, context: float) -> float:
    """Forward of attention: 4 C a a token and layer (scores, then the weighted sum)."""
    return 4.0 * tokens * context * shape.num_layers * shape.num_heads * shape.head_dim


def forward_flops(shape: ModelShape, *, tokens: float, context: float, with_logits: float) -> float:
    """Forward pass: 2 N a token, attention, and the output head 2 h V at `with_logits` positions only."""
    products = 2.0 * linear_parameters(shape) * tokens + 2.0 * shape.hidden_size * shape.vocab_size * with_logits
    return products + attention_flops(shape, tokens=tokens, context=context)


@dataclass(frozen=True)
class Course:
    """How training goes through the layers."""

    first: int = 0
    """The lowest layer that learns."""
    cache_trunk: bool = False
    """Whether what the layers below say is kept from the first pass."""
    recomputed: bool = False
    """Whether activations are computed again going backward."""


THROUGH_ALL = Course()


def training_flops(
    shape: ModelShape,
    *,
    adapter: int,
    tokens: float,
    supervised: float,
    context: float,
    backward_factor: float,
    course: Course = THROUGH_ALL,
    trunk_tokens: float | None = None,
) -> float:
    """Forward and backward of training on `tokens`, of which `supervised` carry a loss.

    backward_factor (2 N tokens + 2 h V supervised) + 6 P tokens + 3.5 (attention of each token to `context` others)

    The adapter is trained, so it costs 6 P (forward 2, gradient of the input 2, gradient of the weight 2). N and the
    attention count the layers from the lowest with an adapter on; those below go forward only, over `trunk_tokens`
    where what they say is kept, else over all. Where activations are computed again going backward, the layers that
    learn go forward twice: 2 N + 2 P and attention once more.
    """
    upper = 1.0 - course.first / shape.num_layers
    attention = upper * attention_flops(shape, tokens=tokens, context=context)
    layers = upper * forward_flops(shape, tokens=tokens, context=0, with_logits=0)
    head = forward_flops(shape, tokens=0, context=0, with_logits=supervised)
    below = tokens if trunk_tokens is None else trunk_tokens
    trunk = (1.0 - upper) * forward_flops(shape, tokens=below, context=context, with_logits=0)
    again = layers + 2.0 * adapter * tokens + attention if course.recomputed else 0.0
    trained = backward_factor * (layers + head) + 6.0 * adapter * tokens + ATTENTION_FACTOR * attention
    return trained + again + trunk


def answer_seconds(shape: ModelShape, work: Workload, rates: Rates) -> float:
    """One item asked once, in words: the prompt, then the tree of labels after it, or free text where there are none.

    A label's last token is scored but never read. Of a pair both answers are scored after their prompt.
    """
    if work.is_paired:
        tokens = work.row_tokens
        flops = forward_flops(shape, tokens=tokens, context=tokens, with_logits=work.answer_tokens)
        return flops / (rates.score * 1e9)
    if work.is_text:  # read once, every token of it scored
        read = forward_flops(shape, tokens=work.row_tokens, context=work.row_tokens, with_logits=work.row_tokens)
        return read / (rates.score * 1e9)
    if not work.num_labels:
        return prompt_seconds(shape, work, rates) + greedy_seconds(shape, work, rates)
    nodes = scored_nodes(work)
    tokens = work.prompt_tokens + nodes
    flops = forward_flops(shape, tokens=tokens, context=tokens, with_logits=nodes + 1)
    return flops / (rates.score * 1e9)


def tuned_seconds(shape: ModelShape, work: Workload, rates: Rates) -> float:
    """One item that what was tuned is asked: a head needs the prompt alone; of a pair each answer behind its prompt."""
    if work.head and work.is_paired:
        tokens, longest = 2 * work.prompt_tokens + work.answer_tokens, work.prompt_tokens + work.answer_tokens / 2
        return forward_flops(shape, tokens=tokens, context=longest, with_logits=0) / (rates.score * 1e9)
    return prompt_seconds(shape, work, rates) if work.head else answer_seconds(shape, work, rates)


def prompt_seconds(shape: ModelShape, work: Workload, rates: Rates) -> float:
    """One prompt read once."""
    flops = forward_flops(shape, tokens=work.prompt_tokens, context=work.prompt_tokens, with_logits=1)
    return flops / (rates.score * 1e9)


def scored_nodes(work: Workload) -> float:
    """Positions beside the prompt that scoring all labels of an item computes."""
    return DISTINCT_NODES * work.num_labels * max(0.0, work.answer_tokens - 1)


def greedy_seconds(shape: ModelShape, work: Workload, rates: Rates) -> float:
    """One answer of free text, token after token, after a prompt that was computed."""
    tokens = PARITY_TOKENS if work.is_text else work.answer_tokens
    flops = forward_flops(shape, tokens=tokens, context=work.row_tokens, with_logits=tokens)
    return flops / (rates.greedy * 1e9)


def training_seconds(
    shape: ModelShape,
    work: Workload,
    rates: Rates,
    *,
    adapter: int,
    backward_factor: float,
    validations: int,
    course: Course,
) -> float:
    """Time of training; validations, the one pass through a cached trunk and the reference of pairs included."""
    flops = training_flops(
        shape,
        adapter=adapter,
        tokens=work.computed_tokens,
        supervised=work.supervised_tokens,
        context=work.row_tokens,
        backward_factor=backward_factor,
        course=course,
        trunk_tokens=work.distinct_tokens if course.cache_trunk else None,
    )
    validating = validations * work.validation_rows * tuned_seconds(shape, work, rates)
    validating += work.reference_rows * answer_seconds(shape, work, rates) if work.reference_rows else 0.0
    return flops / (rates.train * 1e9) + validating


def evaluation_seconds(shape: ModelShape, work: Workload, rates: Rates, *, tuned: ModelShape) -> float:
    """Time to ask base and tuned model every test item, fit the baseline, read the general text; and few-shot."""
    asking = work.test_rows * (answer_seconds(shape, work, rates) + tuned_seconds(tuned, work, rates))
    asking += work.test_rows * answer_seconds(shape, work.few_shot, rates) if work.asks_few_shot else 0.0
    general = sum(
        forward_flops(one, tokens=GENERAL_TOKENS, context=200, with_logits=GENERAL_TOKENS) for one in (shape, tuned)
    )
    return asking + linear_seconds(work) + general / (rates.score * 1e9)


def memorised_seconds(shape: ModelShape, data: Data, work: Workload, rates: Rates) -> float:
    """Time of asking for planted secrets, each ranked among others; 0 where none are planted."""
    if data.canaries is None:
        return 0.0
    written = SECRETS_RANKED * (data.canaries.digits + 1.0)
    one = forward_flops(shape, tokens=work.prompt_tokens + written, context=work.prompt_tokens, with_logits=written)
    return data.canaries.count * len(data.canaries.copies) * one / (rates.score * 1e9)


def linear_seconds(work: Workload) -> float:
    """Time to fit TF-IDF + a linear model; 0 where answers are neither labels nor numbers that a head reads off."""
    return LINEAR_SECONDS_PER_ROW * work.train_rows if work.num_labels or (work.head and not work.is_paired) else 0.0


def other_seconds(resolved: ResolvedRecipe, shape: ModelShape, work: Workload, rates: Rates) -> float:
    """Time of everything else in a run: preparing the data on all processors, converting the base, starting stages."""
    rules = resolved.recipe.data.privacy
    each = PREPARE_SECONDS_PER_ROW[(rules.profile if rules is not None else None) or "fast"]
    convert = CONVERT_SECONDS if shape.quantisation else 0.0
    prepare = each * work.read_rows / (resolved.recipe.train.threads or 1)
    return MODEL_STAGES * rates.start_seconds + convert + prepare


def meaning_seconds(data: Data, work: Workload) -> float:
    """Time of embedding all rows and comparing them by meaning; 0 where the recipe does not ask for it.

    Repetitions are looked for among all rows, leaks within a label; so no label is taken for larger than another.
    """
    if not data.by_meaning:
        return 0.0
    pairs = work.read_rows**2 * COMPARE_SECONDS_PER_SQUARE
    dedupe = pairs if data.dedupe is not None and data.dedupe.meaning is not None else 0.0
    leaks = pairs / max(1, work.num_labels) if data.leakage.meaning is not None else 0.0
    return work.read_rows * EMBED_SECONDS_PER_ROW + dedupe + leaks


def export_seconds(shape: ModelShape, work: Workload, rates: Rates, *, forms: int) -> float:
    """Time to write, read back and compare `forms` artifacts with what was trained."""
    prompt = forward_flops(
        shape, tokens=work.prompt_tokens, context=work.prompt_tokens, with_logits=work.prompt_tokens
    ) / (rates.score * 1e9)
    asked = 2 * PARITY_PROMPTS * (prompt + greedy_seconds(shape, work, rates))
    return forms * (asked + shape.num_parameters * 4 / WRITE_BYTES_PER_SECOND)
