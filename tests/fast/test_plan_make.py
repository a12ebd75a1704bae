from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import samples
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import DataError, RecipeError
from luthier.plan import cost, memory
from luthier.plan.lines import lines
from luthier.plan.make import make_plan, memory_asks_for_checkpointing
from luthier.plan.rank import FEW_SHOT, MAJORITY, TFIDF, ZERO_SHOT
from luthier.plan.words import duration
from luthier.plan.workload import workload
from luthier.plan_records import Candidate, Plan
from luthier.records import DataProfile, ModelShape
from luthier.spec.resolve import ResolvedRecipe


def plan_of(*, profile: dict[str, Any] | None = None, shape: dict[str, Any] | None = None, **sections: Any) -> Plan:
    resolved = samples.resolved(**sections)
    return make_plan(resolved, samples.profile(**(profile or {})), samples.shape(**(shape or {})), matmul_gflops=150.0)


def trained(tokens: int, r: int) -> float:
    return memory.training_gib(samples.shape(), adapter=4_884_480 * r // 16, r=r, tokens=tokens, supervised=tokens / 10)


@given(tokens=st.integers(16, 8192), r=st.integers(1, 128))
def test_memory_grows_with_tokens_and_rank(tokens: int, r: int) -> None:
    assert trained(tokens + 16, r) > trained(tokens, r)
    assert trained(tokens, r + 1) > trained(tokens, r)


def test_saved_floats_of_smollm2_by_hand() -> None:
    assert memory.saved_floats_per_token(samples.shape(), r=16) == 4 * 576 + 2 * 576 + 2 * 192 + 4 * 1536 + 7 * 16
    assert memory.weights_gib(samples.shape()) == pytest.approx(134_515_008 * 4 / 2**30)


def test_halved_weights_of_smollm2_by_hand() -> None:
    layers, head = 106_168_320, 49_152 * 576  # the head shares the embedding's weight, so its half is a copy
    assert memory.halved_gib(samples.shape()) == pytest.approx((134_515_008 * 4 - layers * 2 + head * 2) / 2**30)
    untied = samples.shape(tied_embeddings=False, num_parameters=134_515_008 + head)
    assert memory.halved_gib(untied) == pytest.approx((134_515_008 * 4 + head * 4 - (layers + head) * 2) / 2**30)


def test_bf16_needs_less_memory_and_says_that_its_time_is_not_known() -> None:
    plain, half = plan_of(), plan_of(train={"bf16": True})
    assert half.prediction.peak_memory_gib < plain.prediction.peak_memory_gib
    assert [note for note in half.notes if note not in plain.notes] == [
        "train.bf16: time is predicted as for float32; what bfloat16 gains depends on the processor."
    ]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks transformers by the old name
@pytest.mark.parametrize("first", [0, 2])
def test_saved_floats_bound_what_autograd_keeps(first: int) -> None:
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    h, i, layers, tokens, r = 64, 192, 3, 160, 4
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=h,
        intermediate_size=i,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        use_cache=False,
    )
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    upper = list(range(first, layers))
    lora = peft.LoraConfig(r=r, target_modules=modules, layers_to_transform=upper)
    model = peft.get_peft_model(LlamaForCausalLM(config), lora)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    blocks = torch.ones(1, 1, tokens, tokens).tril()  # a mask of our own, as packing uses
    mask = torch.zeros_like(blocks).masked_fill(blocks == 0, float("-inf"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.base_model.model.model(torch.arange(tokens)[None] % 32, attention_mask=mask).last_hidden_state
    shape = samples.shape(
        hidden_size=h, intermediate_size=i, num_layers=layers, num_heads=4, num_kv_heads=2, head_dim=16
    )
    counted = 4 * (len(upper) * tokens * memory.saved_floats_per_token(shape, r=r) + tokens**2)
    assert hidden.requires_grad
    assert sum(kept.values()) == pytest.approx(counted, rel=0.1)


@given(share=st.floats(0.05, 0.9))
@settings(max_examples=8, deadline=None)
def test_time_is_in_proportion_to_the_rate(share: float) -> None:
    slow, fast = (
        make_plan(samples.resolved(), samples.profile(), samples.shape(), matmul_gflops=rate)
        for rate in (100.0 * share, 100.0)
    )
    assert slow.prediction.train_seconds == pytest.approx(fast.prediction.train_seconds / share)


def test_frozen_layers_go_forward_only_and_once_where_they_are_kept() -> None:
    """By hand: 10 of 30 layers learn, a whole pass of a frozen token is a third of its forward and backward."""
    every = {"adapter": 0, "supervised": 0, "context": 0, "backward_factor": 2}
    whole = cost.training_flops(samples.shape(), tokens=900, **every)
    frozen = cost.training_flops(samples.shape(), tokens=900, course=cost.Course(first=20), **every)
    kept = cost.training_flops(samples.shape(), tokens=900, course=cost.Course(first=20), trunk_tokens=300, **every)
    token = 2 * 106_168_320
    assert whole == pytest.approx(900 * 2 * token)
    assert frozen == pytest.approx(900 * token * (2 * 10 + 20) / 30)
    assert kept == pytest.approx(900 * token * 2 * 10 / 30 + 300 * token * 20 / 30)


def test_fewer_layers_take_less_of_everything_and_the_plan_says_what_is_kept() -> None:
    epochs = {"max_tokens": None, "num_train_epochs": 4}
    every = plan_of(train=epochs)
    upper, kept = (
        plan_of(train=epochs | {"cache_trunk": caches}, adapter={"layers_to_transform": [20, 25]})
        for caches in (False, True)
    )
    trained = [plan.candidates[0].trainable_parameters for plan in (every, upper, kept)]
    assert trained == [4_884_480, 2 * 4_884_480 // 30, 2 * 4_884_480 // 30]
    assert every.prediction.train_seconds > upper.prediction.train_seconds > kept.prediction.train_seconds
    assert every.prediction.peak_memory_gib >= upper.prediction.peak_memory_gib == kept.prediction.peak_memory_gib
    several = {"tokens": 2000, "supervised": 10.0, "adapter": 0, "r": 16}
    assert memory.training_gib(samples.shape(), **several) > memory.training_gib(samples.shape(), first=20, **several)
    (note,) = [note for note in kept.notes if "frozen" in note]
    assert re.fullmatch(
        r"The layers below 20 are frozen and computed once; what they say takes about [\d.]+ MB in the run "
        r"folder until training has ended\.",
        note,
    )
    assert not any("frozen" in note for plan in (every, upper) for note in plan.notes)


def test_one_pass_over_the_rows_is_a_share_of_the_tokens_computed() -> None:
    recipe = samples.resolved(train={"num_train_epochs": 4})
    work = workload(recipe, samples.profile(), tokens_per_char=0.25)
    assert work.distinct_tokens == pytest.approx(work.computed_tokens / 4)
    short = samples.resolved(train={"num_train_epochs": 4, "max_tokens": 1000})
    work = workload(short, samples.profile(), tokens_per_char=0.25)
    assert work.whole_epochs < 1
    assert work.distinct_tokens == work.computed_tokens


def test_training_costs_about_four_flops_a_weight_and_token() -> None:
    flops = cost.training_flops(samples.shape(), adapter=0, tokens=1000, supervised=0, context=0, backward_factor=2)
    assert flops == 1000 * 2 * 2 * 106_168_320


def test_memory_counts_the_questions_that_the_engine_asks_at_once() -> None:
    from luthier.engines.transformers import AT_ONCE

    assert memory.QUESTIONS_AT_ONCE == AT_ONCE
    one, two, many = (
        memory.evaluation_gib(samples.shape(), adapter=0, tokens=100, scored=50, threads=threads)
        for threads in (1, 2, 64)
    )
    assert many - one == pytest.approx((AT_ONCE - 1) * (two - one))


def test_rate_is_that_of_the_clock() -> None:
    ticks = iter(range(100))  # each product takes one second of this clock
    assert cost.matmul_rate(seconds=5, size=64, clock=lambda: float(next(ticks))) == pytest.approx(2 * 64**3 / 1e9)


def test_workload_follows_the_recipe() -> None:
    work = workload(samples.resolved(), samples.profile(), tokens_per_char=0.25)
    assert work.test_rows == round(samples.ROWS * 0.25)
    assert work.train_rows + work.validation_rows + work.test_rows == samples.ROWS
    assert work.num_labels == 12
    assert work.prompt_tokens == pytest.approx(13 + 0.25 * (len("Answer with the intent of the message.") + 128))
    assert work.answer_tokens == pytest.approx(1 + 0.25 * 13)
    assert work.trained_tokens == 60_000
    limit = {"train": 100, "test": 40, "validation": 7}
    cut = samples.resolved(data={"train": [{"path": "support.csv"}], "limit": limit}, train={})
    work = workload(cut, samples.profile(), tokens_per_char=0.25)
    assert (work.train_rows, work.validation_rows, work.test_rows, work.whole_epochs) == (100, 7, 40, 3.0)


def test_with_dropout_the_plan_counts_every_row_by_itself() -> None:
    """As training computes it; so it takes longer."""
    quiet, noisy = (
        workload(
            samples.resolved(adapter={"type": "lora", "dropout": dropout}), samples.profile(), tokens_per_char=0.25
        )
        for dropout in (0.0, 0.1)
    )
    assert quiet.shared_tokens > 0
    assert quiet.computed_tokens < quiet.trained_tokens
    assert noisy.shared_tokens == 0
    assert noisy.computed_tokens == pytest.approx(noisy.trained_tokens)
    assert noisy.trained_tokens == quiet.trained_tokens
    seconds = [plan_of(adapter={"type": "lora", "dropout": dropout}).prediction.train_seconds for dropout in (0.0, 0.1)]
    assert seconds[1] > seconds[0]


def test_the_time_of_comparing_by_meaning_is_counted() -> None:
    def total(**data: Any) -> float:
        entry = {"train": [{"path": "support.csv"}], "limit": {"train": 100}}
        return plan_of(data={**entry, **data}).prediction.total_seconds

    embedding, squares = samples.ROWS / 161, samples.ROWS**2 * 3.37 / 20_000**2
    assert total(leakage={"meaning": 0.9}) - total() == pytest.approx(embedding + squares / 12)  # within 12 labels
    assert total(dedupe={"meaning": 0.9}) - total(dedupe={}) == pytest.approx(embedding + squares)
    both = total(dedupe={"meaning": 0.9}, leakage={"meaning": 0.9})
    assert both - total(dedupe={}) == pytest.approx(embedding + squares + squares / 12)


def test_a_split_file_is_estimated_from_its_size(tmp_path: Path) -> None:
    resolved = samples.resolved(data={"train": [{"path": "support.csv"}], "test": "test.csv"})
    resolved = resolved.model_copy(update={"folder": str(tmp_path)})
    with pytest.raises(DataError, match=r"test\.csv: the split file is missing") as error:
        workload(resolved, samples.profile(), tokens_per_char=0.25)
    assert "data.test" in error.value.way_out
    (tmp_path / "test.csv").write_bytes(b"x" * 21_494)  # a tenth of the training file
    work = workload(resolved, samples.profile(), tokens_per_char=0.25)
    assert work.test_rows == round(samples.ROWS / 10)
    assert work.train_rows + work.validation_rows == samples.ROWS


@pytest.mark.parametrize(
    ("entry", "found", "way_out"),
    [
        ({"input": "{body}"}, "names the column 'body'", "it has: ticket_id"),
        ({"label": "topic", "name": "intent"}, "data.train[0].label names the column 'topic'", "it has: ticket_id"),
        ({"input": "{message"}, "the brace at 0 stands alone", "write '{column}'"),
    ],
)
def test_unknown_columns_are_refused(entry: dict[str, str], found: str, way_out: str) -> None:
    with pytest.raises(RecipeError) as error:
        plan_of(data={"train": [{"path": "support.csv", **entry}]})
    assert found in error.value.what
    assert way_out in error.value.way_out


def test_budget_decides_what_fits() -> None:
    assert plan_of().fits
    small = plan_of(objective={"budget": {"ram_gib": 1.0}})
    assert not small.fits
    assert any("Memory does not fit" in note and "micro_batch_tokens" in note for note in small.notes)
    assert [c.technique for c in small.candidates] == [c.technique for c in plan_of().candidates], "fit is no rank"
    assert {c.technique: c.fits for c in small.candidates} == {
        "lora sft": False,
        TFIDF: True,
        ZERO_SHOT: False,
        FEW_SHOT: False,
        MAJORITY: True,
    }
    short = plan_of(objective={"budget": {"hours": 0.01}})
    assert any("Time does not fit" in note and "max_tokens" in note for note in short.notes)
    assert not plan_of(objective={}).budget
    assert any("No budget is stated" in note for note in plan_of(objective={}).notes)


def test_ranking_follows_rows_a_label() -> None:
    def first(rows: int) -> Plan:
        labels = dict.fromkeys(samples.LABELS, rows // 12)
        return plan_of(profile={"num_rows": rows, "labels": labels})

    assert first(18).candidates[0].technique == ZERO_SHOT
    assert first(1200).candidates[0].technique == "lora sft"
    many = first(60_000)
    assert many.candidates[0].technique == TFIDF
    assert many.chosen == "lora sft"
    assert "ranks first" in many.notes[0]
    assert first(60).candidates[0].speaks_for.endswith("over one that counts words")


def test_few_shot_prompting_is_weighed_by_its_longer_prompt() -> None:
    def candidate(**sections: Any) -> Candidate:
        return next(one for one in plan_of(**sections).candidates if one.technique == FEW_SHOT)

    usual, plan = candidate(), plan_of()
    zero = next(one for one in plan.candidates if one.technique == ZERO_SHOT)
    assert usual.trainable_parameters == 0
    assert usual.train_seconds == 0
    assert usual.total_seconds > zero.total_seconds
    assert usual.peak_memory_gib >= zero.peak_memory_gib
    assert usual.expected is None
    assert "only evaluated where evaluate.few_shot_examples asks for it" in usual.speaks_against
    four, eight = (candidate(evaluate={"few_shot_examples": count}) for count in (4, 8))
    assert four.total_seconds == usual.total_seconds < eight.total_seconds
    assert "only evaluated" not in four.speaks_against
    times = float(re.search(r"takes ([\d.]+) times as long", eight.speaks_against)[1])  # type: ignore[index]
    assert times > 1
    asked = plan_of(evaluate={"few_shot_examples": 8})
    assert asked.prediction.evaluate_seconds > plan.prediction.evaluate_seconds
    assert asked.prediction.total_seconds > plan.prediction.total_seconds
    most = [candidate(train={"max_length": 96}, evaluate={"few_shot_examples": count}) for count in (32, 64)]
    assert most[0].total_seconds == most[1].total_seconds, "no more than fits is counted"


def test_an_open_task_has_no_linear_baseline() -> None:
    data = {"train": [{"path": "a.csv", "task": "translation", "input": "{message}", "label": "channel"}]}
    plan = plan_of(data=data, objective={"targets": {"channel.perplexity": "<= 3.0"}})
    assert [candidate.technique for candidate in plan.candidates] == ["lora sft", ZERO_SHOT, FEW_SHOT]
    assert plan.detectable.target == "channel.perplexity <= 3"
    assert plan.detectable.must_observe is None
    assert any("cannot be said before training" in note for note in plan.notes)
    assert plan_of(data=data, objective={}, profile={"num_rows": 12}).candidates[0].technique == ZERO_SHOT


def test_a_base_in_four_bits_trains_in_less_memory_and_is_evaluated_beside_the_original() -> None:
    plain, held, double = (
        plan_of(model={"name": "m", **said})
        for said in ({}, {"load_in_4bit": True}, {"load_in_4bit": True, "bnb_4bit_use_double_quant": True})
    )
    assert double.prediction.train_memory_gib < held.prediction.train_memory_gib < plain.prediction.train_memory_gib
    (note,) = [note for note in held.notes if note.startswith("model.load_in_4bit")]
    assert "evaluation and export hold the original too" in note


def test_answers_that_are_written_while_it_learns_are_counted_with_their_writing() -> None:
    entry = {"path": "d.csv", "name": "a", "input": "{message}", "label": "intent", "task": "generation"}

    def plan(**method: Any) -> Plan:
        return plan_of(
            objective={}, data={"train": [{**entry, "rewards": [{"type": "exact"}]}]},
            method={"max_completion_length": 32, **method} if method["type"] == "grpo" else method,
        )  # fmt: skip

    sft, four, eight = (plan(**one) for one in (
        {"type": "sft"}, {"type": "grpo", "num_generations": 4}, {"type": "grpo", "num_generations": 8}
    ))  # fmt: skip
    held = plan(type="grpo", num_generations=4, beta=0.1)  # each answer is read by the base too
    assert held.prediction.train_seconds > 1.1 * four.prediction.train_seconds
    times = [made.prediction.train_seconds for made in (sft, four, eight)]
    assert times[0] < times[1] < times[2] < 2.2 * times[1]
    assert [made.chosen for made in (sft, four)] == ["lora sft", "lora grpo"]
    assert "lora grpo" not in [one.technique for one in sft.candidates]  # nobody but a recipe asks for it
    (own,) = [one for one in eight.candidates if one.technique == "lora grpo"]
    assert "writes more of what is verified" in own.speaks_for
    assert "no answer that is worth anything" in own.speaks_against


def test_the_plan_says_what_the_test_split_can_prove() -> None:
    proof = plan_of(objective={"targets": {"intent.accuracy": ">= 0.7", "intent.macro_f1": ">= 0.8"}}).detectable
    assert proof.target == "intent.macro_f1 >= 0.8"
    assert proof.must_observe == pytest.approx(0.8 + 1.96 * (0.16 / proof.num_test) ** 0.5, abs=1 / proof.num_test)
    hopeless = plan_of(objective={"targets": {"intent.accuracy": ">= 0.99"}})
    assert hopeless.detectable.must_observe is None
    assert any("cannot be shown with 298 test rows" in note for note in hopeless.notes)
    data = {"train": [{"path": "support.csv", "label": "intent", "name": "intent", "task": "multi_label"}]}
    lower = plan_of(
        objective={"targets": {"intent.hamming_loss": "<= 0.001"}}, method={"type": "multi_label"}, data=data
    )
    notes = [note for note in lower.notes if "intent.hamming_loss <= 0.001" in note]
    assert notes == ["What must be seen for intent.hamming_loss <= 0.001 cannot be said before training."]


def test_a_model_of_another_build_is_noted() -> None:
    assert any("not built like Llama" in note for note in plan_of(shape={"num_parameters": 200_000_000}).notes)
    assert any("dequantized" in note for note in plan_of().notes)
    assert not any("dequantized" in note for note in plan_of(shape={"quantisation": ""}).notes)


def test_lines_say_what_counts() -> None:
    text = "\n".join(lines(plan_of()))
    for part in (
        "fits the budget",
        "of 6.0 GiB",
        "of 30 min",
        "60,000 to train on",
        "298 test rows",
        "intent.macro_f1 >= 0.75",
        "1. lora sft",
        "2. do not fine-tune: TF-IDF",
        "3. do not fine-tune: zero-shot",
        "4. do not fine-tune: few-shot",
        "5. do not fine-tune: majority class",
        "estimated from the rate of a product, 150 GFLOP/s now",
    ):
        assert part in text
    assert "DOES NOT FIT" in "\n".join(lines(plan_of(objective={"budget": {"ram_gib": 0.5}})))


def test_the_parts_of_the_time_add_up() -> None:
    plan = plan_of()
    prediction = plan.prediction
    rest = prediction.total_seconds - prediction.train_seconds - prediction.evaluate_seconds
    assert rest > 0
    line = next(line for line in lines(plan) if line.startswith("time"))
    assert line.endswith(f", the rest {duration(rest)}")


def test_what_must_be_seen_is_said_with_its_assumption() -> None:
    text = "\n".join(lines(plan_of(objective={"targets": {"intent.macro_f1": ">= 0.8"}})))
    assert "about 0." in text
    assert "if it behaved like a share of 298 independent items" in text
    assert max(len(line) for line in text.partition("ranking")[0].splitlines()) <= 120


def test_planning_is_quick_and_without_torch() -> None:
    code = """if True:
        import sys, time
        sys.path.insert(0, 'tests/fast')
        import samples
        resolved, profile, shape = samples.resolved(), samples.profile(), samples.shape()
        from luthier.plan.cost import matmul_rate
        from luthier.plan.make import make_plan
        matmul_rate(seconds=0.01)
        start = time.process_time()
        make_plan(resolved, profile, shape, matmul_gflops=100.0)
        assert time.process_time() - start < 1.0
        heavy = {'torch', 'transformers', 'peft', 'scipy.stats', 'sklearn'} & set(sys.modules)
        assert not heavy, heavy
    """
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_computing_activations_again_keeps_a_layer_and_the_inputs_of_all() -> None:
    shape = samples.shape()
    kept = memory.activations_gib(shape, r=16, tokens=1000, supervised=0)
    again = memory.activations_gib(shape, r=16, tokens=1000, supervised=0, recomputed=True)
    fewer = 29 * memory.saved_floats_per_token(shape, r=16) - 30 * shape.hidden_size
    assert (kept - again) * 2**30 == pytest.approx(1.1 * 4 * 1000 * fewer)
    plain = cost.training_flops(shape, adapter=7, tokens=1000, supervised=0, context=0, backward_factor=2)
    more = cost.training_flops(
        shape, adapter=7, tokens=1000, supervised=0, context=0, backward_factor=2, course=cost.Course(recomputed=True)
    )
    assert more - plain == pytest.approx(2 * (106_168_320 + 7) * 1000)


@pytest.mark.parametrize(("ram", "asked"), [(None, False), (64.0, False), (0.1, False), ("between", True)])
def test_memory_asks_for_it_only_where_it_helps(ram: float | str | None, asked: bool) -> None:
    def of(ram: float | None, **train: Any) -> tuple[ResolvedRecipe, DataProfile, ModelShape]:
        budget = {} if ram is None else {"ram_gib": ram}
        sections = {"objective": {"budget": budget}, "train": {"batch_size": 64, "micro_batch_tokens": 8192, **train}}
        return samples.resolved(**sections), samples.profile(), samples.shape()

    if isinstance(ram, str):
        kept, again = (
            make_plan(*of(None, gradient_checkpointing=on), matmul_gflops=150.0).prediction for on in (False, True)
        )
        assert again.peak_memory_gib < kept.peak_memory_gib
        assert again.train_seconds > 1.2 * kept.train_seconds
        ram = (kept.peak_memory_gib + again.peak_memory_gib) / 2
    assert memory_asks_for_checkpointing(*of(ram)) is asked


def test_processes_add_up_in_memory_and_only_machines_divide_the_time() -> None:
    alone, two = plan_of(), plan_of(launch={"type": "torchrun", "nproc_per_node": 2})
    assert two.prediction.train_seconds == alone.prediction.train_seconds
    assert 1.5 * alone.prediction.peak_memory_gib < two.prediction.peak_memory_gib
    assert any("2 processes share this machine's processors" in note for note in two.notes)
    machines = plan_of(launch={"type": "torchrun", "nnodes": 4, "rdzv_endpoint": "first:29400"})
    assert machines.prediction.train_seconds == pytest.approx(alone.prediction.train_seconds / 4)
    assert machines.prediction.peak_memory_gib == alone.prediction.peak_memory_gib
    assert any("divided by 4 machines as if" in note for note in machines.notes)
    assert not any("processes share" in note or "machines as if" in note for note in alone.notes)


def test_what_an_accelerator_takes_is_not_predicted_and_that_is_said() -> None:
    budget = {"objective": {"budget": {"ram_gib": 0.9}}}
    note = "train.device is cuda: memory and time are predicted for this machine's processors all the same."
    assert note in plan_of(train={"device": "cuda"}).notes
    assert note not in plan_of(train={"device": "cpu"}).notes
    tight = samples.resolved(**budget, train={"device": "cuda", "batch_size": 64, "micro_batch_tokens": 8192})
    assert not memory_asks_for_checkpointing(tight, samples.profile(), samples.shape())


def test_memory_is_planned_for_the_longest_row_and_prompt_not_for_the_mean_ones() -> None:
    def plan(longest: int, **train: Any) -> Plan:
        columns = [
            one.model_copy(update={"longest_chars": longest}) if one.name == "message" else one
            for one in samples.profile().columns
        ]
        return plan_of(profile={"columns": tuple(columns)}, train={"max_length": 2048, "batch_size": 4, **train})

    usual, long = plan(200), plan(9000)
    assert long.prediction.train_memory_gib > 1.5 * usual.prediction.train_memory_gib
    assert long.prediction.train_seconds == pytest.approx(usual.prediction.train_seconds, rel=0.01)
    one_row = plan(9000, micro_batch_tokens=64)  # one row is computed at once, however small the micro-batch
    assert one_row.prediction.train_memory_gib > 1.5 * plan(200, micro_batch_tokens=64).prediction.train_memory_gib
    cut = plan(9000, max_length=256)
    assert cut.prediction.train_memory_gib < usual.prediction.train_memory_gib * 1.5, "longer rows are not learned"


def test_labels_are_counted_as_the_recipe_calls_them() -> None:
    halves = {label: "one" if place % 2 else "two" for place, label in enumerate(sorted(samples.LABELS))}
    plan = plan_of(
        objective={"targets": {"intent.accuracy": ">= 0.6"}},
        data={"train": [{"path": "support.csv"}], "labels": {"rename": halves}},
    )
    rows = [sum(samples.LABELS[label] for label, name in halves.items() if name == half) for half in ("one", "two")]
    (majority,) = [one for one in plan.candidates if one.technique == MAJORITY]
    assert majority.expected is not None
    assert majority.expected.point == pytest.approx(max(rows) / sum(rows))
    other = plan_of(
        objective={"targets": {"channel.accuracy": ">= 0.6"}},
        data={"train": [{"path": "support.csv", "input": "{message}", "label": "channel", "task": "classification"}]},
    )
    (majority,) = [one for one in other.candidates if one.technique == MAJORITY]
    assert majority.expected is None, "rows of this column's labels were not counted"
    with pytest.raises(DataError, match="all rows have the label 'same'"):
        plan_of(profile={"labels": {"same": 1200}})
