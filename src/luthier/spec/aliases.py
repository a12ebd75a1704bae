"""Names that people know from other tools, taken and logged."""

from __future__ import annotations

ALIASES: dict[str, str] = {
    "base_model": "model.name",
    "model_name_or_path": "model.name",
    "datasets": "data.train",
    "dataset": "data.train",
    "sequence_len": "train.max_length",
    "cutoff_len": "train.max_length",
    "max_seq_len": "train.max_length",
    "max_length": "train.max_length",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "num_train_epochs": "train.num_train_epochs",
    "per_device_train_batch_size": "train.batch_size",
    "micro_batch_size": "train.batch_size",
    "batch_size": "train.batch_size",
    "learning_rate": "train.learning_rate",
    "lr_scheduler_type": "train.lr_scheduler_type",
    "warmup_ratio": "train.warmup_ratio",
    "weight_decay": "train.weight_decay",
    "seed": "train.seed",
    "lora_r": "adapter.r",
    "lora_rank": "adapter.r",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_target_modules": "adapter.target_modules",
    "peft_layers_to_transform": "adapter.layers_to_transform",
    "peft_use_rslora": "adapter.use_rslora",
    "peft_use_dora": "adapter.use_dora",
    "peft_init_lora_weights": "adapter.init_lora_weights",
    "lora_modules_to_save": "adapter.modules_to_save",
    "load_in_4bit": "model.load_in_4bit",
    "neftune_noise_alpha": "train.neftune_noise_alpha",
    "loraplus_lr_ratio": "train.loraplus_lr_ratio",
}
"""Alias -> canonical key. An alias may stand at the top of a recipe or inside the section of its canonical key."""

NOT_BUILT: dict[str, str] = {
    "compress": "quantisation; what prunes is the section prune",
    "serve": "serving options (use the flags of `luthier serve`)",
    "track": "MLflow, TensorBoard and W&B sinks",
}
"""Sections of the design that this version refuses rather than ignores."""

_PROMPT = "data.train[0].roles_to_train: [user, assistant]; answers alone are learned without it"
_ANSWERS = "the default: answers alone are learned, of a conversation the last one only with mask_history: true"

ELSEWHERE: dict[str, str] = {
    "distill": "method: {type: distill, teacher: NAME@1}",
    "teacher_model": "method.teacher of type distill",
    "assistant_only_loss": _ANSWERS,
    "completion_only_loss": _ANSWERS,
    "train_on_inputs": _PROMPT,
    "train_on_prompt": _PROMPT,
    "train_on_responses_only": _ANSWERS,
    "roles_to_train": "data.train[0].roles_to_train",
    "mask_history": "data.train[0].mask_history",
    "class_weights": "train.class_weight",
    "bnb_4bit_compute_dtype": "train.bf16: true for products in bfloat16; they are in float32 otherwise",
    "load_in_8bit": "model.load_in_4bit: true; eight bits are not built",
    "truncation_mode": "data.too_long: cut_start, cut_middle or cut_end",
    "excess_length_strategy": "data.too_long",
}
"""Keys of other tools -> how their meaning is written here; they are refused, because a value means something else."""
