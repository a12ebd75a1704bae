"""Fill what a recipe leaves open about learning: method, adapter, training, layers, processes."""

from __future__ import annotations

from luthier.errors import RecipeError
from luthier.records import DataProfile, ModelShape, is_text
from luthier.spec.adapter_section import OUTPUT_HEADS
from luthier.spec.filler import GIVEN, Filler, Machine, leaves
from luthier.spec.plugins import ADAPTERS, METHODS, AdapterFacts
from luthier.spec.suits import labels_of, suited
from luthier.spec.trunk import worth_caching

EFFECTIVE_BETA = 0.999
"""Of Cui et al. (2019): about how many rows of a label count as different ones, 1 / (1 - beta)."""


def fill_method(filler: Filler, profile: DataProfile) -> None:
    """How the model learns, and what is trained beside it.

    'auto' is what suits the task by rows and labels; whether it fits the budget, and what is known of it, is the
    plan's to say, after which the recipe is resolved with what it takes.
    """
    entry = filler.tree["data"]["train"][0]
    method, task = filler.tree["method"], entry["task"]
    if method["type"] == "auto":
        split, limit = filler.tree["data"]["split"], filler.tree["data"]["limit"]["train"]
        rows = profile.num_rows * (1.0 - split["test"] - split["validation"])
        labels = labels_of(task, entry["label"], profile, rename=filler.tree["data"]["labels"]["rename"])
        first = suited(task, num_labels=len(labels), train_rows=min(rows, limit or rows))[0]
        filler.tree["method"] = method = first.facts.section.model_validate({"type": first.facts.name}).model_dump(
            mode="json"
        )
        defaults = {key: "open on purpose" if value is None else "the default" for key, value in leaves(method)}
        filler.reasons |= {f"method.{key}": why for key, why in {**defaults, "type": first.why}.items()}
    facts = METHODS.get(method["type"])
    if task not in facts.tasks:
        raise RecipeError(
            f"method {facts.name!r} does not do {task!r}",
            way_out=f"its tasks: {', '.join(facts.tasks)}",
            key="method.type",
        )
    if method.get("on_policy") and is_text(task):
        raise RecipeError(
            "method.on_policy lets the model write answers, and documents have none",
            way_out="leave it out",
            key="method.on_policy",
        )
    if facts.by_rewards:
        _refuse_beside_rewards(filler)
    if facts.has_head:
        _refuse_beside_a_head(filler)
    fill_adapter(filler)


def _refuse_beside_rewards(filler: Filler) -> None:
    """What has to be there for it, and what it cannot be measured from.

    Raises:
        RecipeError: it is not.
    """
    method, adapter = filler.tree["method"]["type"], filler.tree["adapter"]
    if not filler.tree["data"]["train"][0]["rewards"]:
        raise RecipeError(
            f"method {method} learns from what verifies answers, and nothing does",
            way_out="set data.train[0].rewards, e.g. [{type: number}]; docs/rewards.md",
            key="method.type",
        )
    data = filler.tree["data"]
    unread = {
        "data.train.0.roles_to_train": data["train"][0]["roles_to_train"] != ["assistant"],
        "data.train.0.mask_history": data["train"][0]["mask_history"],
        "data.canaries": data["canaries"] is not None,
    }
    for key, said in unread.items():
        if said:
            raise RecipeError(
                f"{key.replace('.0.', '[0].')} is about what is learned of the rows, and method {method} learns from "
                "answers of its own",
                way_out="leave it out, or take method sft",
                key=key,
            )
    begun = str(adapter.get("init_lora_weights") or "").startswith(("pissa", "olora"))
    if filler.tree["method"]["beta"] and (
        ADAPTERS.get(adapter["type"]).trains_base or begun or adapter.get("bias") not in (None, "none")
    ):
        raise RecipeError(
            "method.beta holds the model to its base, which this adapter does not leave as it is",
            way_out="set method.beta: 0, or take adapter: {type: lora}",
            key="method.beta",
        )


def fill_adapter(filler: Filler) -> None:
    """What is usual of its type."""
    section = filler.tree["adapter"]
    facts = ADAPTERS.get(section["type"])
    if filler.reasons["adapter.type"] != GIVEN and filler.tree["merge"] is None:
        filler.reasons["adapter.type"] = "near the quality of full tuning at a fraction of the memory"
    for key, value, reason in facts.usual:
        if section[key] is None:
            value, reason = value(section) if callable(value) else (value, reason)
            filler.fill(f"adapter.{key}", value, reason)
    if "modules_to_save" in section and section["modules_to_save"] is None and filler.tree["merge"] is None:
        filler.reasons["adapter.modules_to_save"] = "open on purpose: nothing learns but the adapter"


def _refuse_beside_a_head(filler: Filler) -> None:
    """What a head cannot learn, and what would be made up for twice."""
    method, train = filler.tree["method"], filler.tree["train"]
    writes, reads = "sft", "a classification head reads no label"
    if METHODS.get(method["type"]).scores_answers:
        writes, reads = "dpo", "a head that scores answers reads nothing"
    if filler.tree["data"]["canaries"] is not None:
        raise RecipeError(
            "data.canaries are secrets that are written, and a classification head writes nothing",
            way_out="leave data.canaries out, or set method: sft",
            key="data.canaries",
        )
    unread = [name for name in filler.tree["adapter"].get("modules_to_save") or () if name.endswith(OUTPUT_HEADS)]
    if unread:
        raise RecipeError(
            f"adapter.modules_to_save: {unread[0]!r} writes words, and {reads} off it; "
            "the model that a head is saved for has none",
            way_out="leave it out (the head learns whole as it is; embeddings are embed_tokens), or set method: "
            f"{writes}",
            key="adapter.modules_to_save",
        )
    other = "class_weight" if train["class_weight"] is not None else "sampler" if train["sampler"] != "shuffle" else ""
    if method.get("logit_adjustment") and other:
        raise RecipeError(
            f"method.logit_adjustment and train.{other} make up for the same thing",
            way_out="keep one of them",
            key="method.logit_adjustment",
        )


def fill_train(filler: Filler, shape: ModelShape, machine: Machine) -> None:
    """The settings of the loop.

    Raises:
        RecipeError: train.max_length is more than the base was trained for.
    """
    method = METHODS.get(filler.tree["method"]["type"])
    adapter = ADAPTERS.get(filler.tree["adapter"]["type"])
    billions = shape.num_parameters / 1e9
    rate = next(rate for most, rate in method.learning_rates if billions <= most) * adapter.rate_factor
    of = method.name if adapter.rate_factor == 1 else f"{method.name} with adapter {adapter.name}"
    filler.fill(
        "train.learning_rate",
        float(f"{rate:.3g}"),
        f"default of {of} for a base of {billions:.2g} billion parameters",
    )
    filler.fill("train.num_train_epochs", 3, "a common middle")
    if filler.tree["train"]["max_tokens"] is None:
        filler.reasons["train.max_tokens"] = "open on purpose: the epochs decide"
    length = filler.fill("train.max_length", min(1024, shape.max_positions), "1024 or what the model was trained for")
    if length > shape.max_positions:
        raise RecipeError(
            f"train.max_length {length} is more than the {shape.max_positions} positions of {shape.name}",
            way_out=f"set it to {shape.max_positions} or less",
            key="train.max_length",
        )
    texts = is_text(filler.tree["data"]["train"][0]["task"])
    filler.fill("train.batch_size", 4 if texts else 16, "rows are long" if texts else "a common middle")
    _fill_device(filler, machine, adapter)
    ram = filler.tree["objective"]["budget"]["ram_gib"]
    roomy = ram is not None and ram >= 12
    if filler.tree["train"]["device"] == "cuda":
        filler.fill("train.micro_batch_tokens", max(length, 4096), "an accelerator wants large products")
    filler.fill(
        "train.micro_batch_tokens",
        max(length, 2048 if roomy else 1024),
        "fits the memory budget" if roomy else "small, no memory budget of 12 GiB or more is stated",
    )
    filler.fill("train.gradient_checkpointing", False, "what the backward pass needs is kept, not computed twice")
    filler.fill("train.lr_scheduler_type", "linear", "decays to zero, robust for short runs")
    filler.fill("train.warmup_ratio", 0.06, "a few steps for AdamW's second moment")
    filler.fill("train.weight_decay", 0.0, "adapters start at zero" if not adapter.trains_base else "a short run")
    filler.fill("train.max_grad_norm", 1.0, "a common middle")
    filler.fill("train.validations", 4, "one in each quarter of training")
    filler.fill("train.patience", 2, "two validations without a better metric")
    filler.fill("train.save_steps", 20, "little is lost when a run is killed")
    filler.fill("train.save_total_limit", 2, "the newest, and the one before it; the best weights are in each")
    if filler.tree["train"]["class_weight"] is None:
        filler.reasons["train.class_weight"] = "open on purpose: every row counts alike"
    elif filler.tree["train"]["class_weight"] == "effective":
        filler.fill("train.class_weight_beta", EFFECTIVE_BETA, "evens out labels of up to about a thousand rows")
    open_keys = {
        "layer_lr_decay": "every layer learns at the same rate",
        "embedding_learning_rate": "as the rest, where they learn",
        "loraplus_lr_ratio": "A and B learn at the same rate",
        "neftune_noise_alpha": "no noise, so that rows share what they begin with",
    }
    for key, why in open_keys.items():
        if filler.tree["train"][key] is None:
            filler.reasons[f"train.{key}"] = f"open on purpose: {why}"
    filler.fill("train.threads", machine.threads, "processors that this process may use")


def _fill_device(filler: Filler, machine: Machine, adapter: AdapterFacts) -> None:
    """Where is computed, and what pays there.

    Raises:
        RecipeError: layers cannot be compiled there.
    """
    device = machine.accelerator or "cpu"
    filler.fill("train.device", device, "an accelerator is there" if machine.accelerator else "no accelerator is seen")
    there = filler.tree["train"]["device"] == "cuda"
    frozen = not adapter.trains_base and adapter.name != "oft"
    if there and frozen:
        filler.fill("train.bf16", True, "an accelerator multiplies bfloat16 many times as fast")
    filler.fill("train.bf16", False, "products in float32" if frozen else "no product is one with frozen weights alone")
    fsdp = filler.tree["launch"]["strategy"] == "fsdp"
    why = "takes as long as some hundred steps, which long runs win back" if there else "for accelerators"
    compiles = filler.fill("train.torch_compile", False, why)
    if compiles and (fsdp or not there):
        raise RecipeError(
            "train.torch_compile is for whole layers on an accelerator, and "
            + ("launch.strategy fsdp divides them" if fsdp else "train.device is cpu"),
            way_out="leave it out",
            key="train.torch_compile",
        )


def fill_layers(filler: Filler, profile: DataProfile, shape: ModelShape) -> None:
    """Which layers learn, and whether what the frozen ones below say is worth keeping."""
    tree = filler.tree
    layers = tree["adapter"]["layers_to_transform"]
    if layers is None:
        filler.reasons["adapter.layers_to_transform"] = "open on purpose: every layer learns"
    elif layers[-1] >= shape.num_layers:
        raise RecipeError(
            f"adapter.layers_to_transform: {shape.name} has no layer {layers[-1]}, only 0 to {shape.num_layers - 1}",
            way_out="name layers of that range, or leave it out: every layer learns then",
            key="adapter.layers_to_transform",
        )
    limit = tree["data"]["limit"]["train"]
    caches, reason = worth_caching(
        first=layers[0] if layers else 0,
        rows=min(profile.num_rows, limit or profile.num_rows),
        row_chars=profile.mean_input_chars + profile.mean_answer_chars,
        hidden_size=shape.hidden_size,
        num_epochs=tree["train"]["num_train_epochs"],
        max_length=tree["train"]["max_length"],
        max_tokens=tree["train"]["max_tokens"],
    )
    if tree["train"]["neftune_noise_alpha"] is not None:
        caches, reason = False, "noise on the embeddings makes what frozen layers say new each time"
    elif tree["method"].get("on_policy") or METHODS.get(tree["method"]["type"]).by_rewards:
        caches, reason = False, "answers that the model writes itself are others in every step"
        if tree["train"]["cache_trunk"]:
            raise RecipeError(
                "train.cache_trunk keeps what frozen layers say of the rows, and with this method the model writes "
                "answers of its own in every step",
                way_out="leave one of them out",
                key="train.cache_trunk",
            )
    elif METHODS.get(tree["method"]["type"]).reads_steps:
        caches, reason = False, "each step is read with strange answers before it is learned"
        if tree["train"]["cache_trunk"]:
            raise RecipeError(
                "train.cache_trunk keeps what frozen layers say of the rows, and this method reads other answers too",
                way_out="leave one of them out",
                key="train.cache_trunk",
            )
    elif tree["adapter"].get("modules_to_save"):
        caches, reason = False, "modules that learn whole may stand in the layers below"
    filler.fill("train.cache_trunk", caches, reason)


def fill_launch(filler: Filler) -> None:
    """Who starts the processes that train."""
    launch = filler.tree["launch"]
    if launch["nproc_per_node"] * launch["nnodes"] > 1:
        filler.fill("launch.type", "torchrun", "starts several processes")
    else:
        filler.fill("launch.type", "local", "one process needs no agent")
    if launch["rdzv_endpoint"] is None:
        filler.reasons["launch.rdzv_endpoint"] = "open on purpose: one machine meets itself"
