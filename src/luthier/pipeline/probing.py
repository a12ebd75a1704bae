"""`luthier plan --probe`: some steps of the training itself, so that this machine's rates need not be estimated."""

from __future__ import annotations

import time
from pathlib import Path

from luthier.data.shards import Shard
from luthier.errors import RecipeError
from luthier.launch.child import run_stage
from luthier.pipeline.context import Context, set_up_device
from luthier.pipeline.drive import Session, bring_up_to_date
from luthier.pipeline.order import BEFORE_TRAINING, up_to
from luthier.pipeline.rates import keep_probe, machine_of
from luthier.pipeline.start import Prepared, Say, open_run, write_down
from luthier.pipeline.taught import with_teachers
from luthier.plan import cost
from luthier.plan.measured import Probed, Tried
from luthier.plan.predict import key_of, steps_flops, technique_of
from luthier.plan.workload import Workload, workload
from luthier.plan_records import Plan
from luthier.spec.trunk import TOKENS_PER_CHAR
from luthier.store.files import write_atomic
from luthier.store.runs import RunFolder, lock

STEP_SECONDS = 20.0
"""Steps are timed for so long, and one more."""

ASKED = 8
"""Rows of the validation split that are asked at most."""


def probe(prepared: Prepared, *, out: Path | None, offline: bool, say: Say) -> Plan:
    """The plan, at rates measured now with the recipe's own base, rows and technique.

    The base is made ready, pruned where the recipe says so, and the data prepared in the run's folder, where `luthier
    run` finds them.

    Raises:
        RecipeError: the recipe trains nothing.
        StageFailed, OutOfMemory, Stopped: as the child ended.
    """
    resolved = prepared.resolved
    if resolved.recipe.merge is not None:
        raise RecipeError("--probe trains some steps, and a recipe with merge trains none", way_out="leave it out")
    run = open_run(prepared, out=out or Path(resolved.recipe.output_dir))
    session = Session(run, resolved, offline, say)
    with lock(run) as fd:
        write_down(run, prepared, None)
        for stage in up_to(BEFORE_TRAINING, resolved):
            bring_up_to_date(session, stage, fd)
        say("probe: training some steps, of which nothing is kept")
        use = run_stage(
            "probe",
            run.path,
            lock_fd=fd,
            threads=resolved.recipe.train.threads or 1,
            offline=offline,
            less_memory="lower train.micro_batch_tokens or train.max_length",
        )
        for place in range(len(prepared.profiles)):
            keep_probe(_probed(prepared, place, Tried.read(tried_file(run)), seconds=use.seconds))
        plan = prepared.plan()
        write_down(run, prepared, plan)
    return plan


def tried_file(run: RunFolder) -> Path:
    """What the child tells."""
    return run.path / "probe.json"


def _probed(prepared: Prepared, place: int, tried: Tried, *, seconds: float) -> Probed:
    """Rates from times, by the plan's own count of operations; of several tasks each has the rates of all together."""
    resolved, shape = prepared.resolved.parts[place], prepared.shape
    alone = len(prepared.profiles) == 1
    work = _works(prepared)[place]
    usual = cost.usual_rates(prepared.gflops)
    supervised = 0 if work.head else 1  # positions with logits of the vocabulary, of those supervised
    flops = steps_flops(
        resolved, shape, work, tokens=tried.step_computed, supervised=supervised * tried.step_supervised
    )
    train = flops / tried.step_seconds / 1e9
    factor = train / usual.train  # where nothing was asked, asking is taken to be off as much as training
    if any(tried.asked):
        pairs = zip(_works(prepared), tried.asked, strict=True)
        factor = sum(cost.tuned_seconds(shape, one, usual) * rows for one, rows in pairs) / tried.ask_seconds
    return Probed(
        key=key_of(resolved) if alone else "",
        machine=machine_of(resolved),
        model_sha256=resolved.model_sha256,
        technique=technique_of(resolved),
        train_gflops=train,
        score_gflops=usual.score * factor,
        greedy_gflops=usual.greedy * factor,
        start_seconds=max(0.0, seconds - tried.work_seconds),
        steps=tried.steps,
        asked=sum(tried.asked),
        computed_tokens=tried.all_computed,
        supervised_tokens=supervised * tried.all_supervised,
        peak_memory_gib=tried.peak_memory_gib,
    )


def _works(prepared: Prepared) -> list[Workload]:
    """Of each task."""
    pairs = zip(prepared.resolved.parts, prepared.profiles, strict=True)
    return [workload(part, profile, tokens_per_char=TOKENS_PER_CHAR) for part, profile in pairs]


def work(context: Context) -> None:
    """The child: the largest micro-batch, timed steps, some rows asked; written down for the parent."""
    from luthier.models.base import load_base
    from luthier.models.compiled import compile_layers
    from luthier.pipeline.heads import head_labels
    from luthier.pipeline.training import open_inputs, open_validation, with_adapter
    from luthier.train.memory import device_peak_gib, memory_errors
    from luthier.train.probe import pace
    from luthier.train.probe import probe as try_largest
    from luthier.train.reference import on_trial

    recipe = context.resolved.recipe
    device = set_up_device(recipe.train)
    heads = head_labels(context)
    model = with_adapter(load_base(context.base), recipe, base_name=context.shape.name, heads=heads).to(device)
    if recipe.train.torch_compile:
        compile_layers(model)
    inputs = on_trial(with_teachers(open_inputs(context), context, model))
    began = time.perf_counter()
    with memory_errors(recipe.train):
        try_largest(model, inputs, recipe.train, ram_gib=None)
        made = pace(model, inputs, recipe.train, seconds=STEP_SECONDS)
        peak = device_peak_gib()
        validation, start = open_validation(context, model, most=ASKED), time.perf_counter()
        if validation is not None:
            model.eval()
            validation.measure(model)
        ask_seconds = time.perf_counter() - start
    tried = Tried(
        steps=made.steps,
        step_seconds=made.seconds,
        step_computed=made.computed_tokens,
        step_supervised=made.supervised_tokens,
        all_computed=made.all_computed,
        all_supervised=made.all_supervised,
        peak_memory_gib=peak,
        asked=tuple(min(ASKED, len(Shard(task.run.data / "validation.arrow"))) for task in context.tasks),
        ask_seconds=ask_seconds,
        work_seconds=time.perf_counter() - began,
    )
    write_atomic(tried_file(context.run), tried.to_json())
