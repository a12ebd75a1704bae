"""How far from the trained model is each form of GGUF in llama.cpp? A row of results/gguf.csv a form.

The bundled 135M model with a LoRA whose B is drawn, merged. `kl` is D(trained || file) of the next token in nats, over
the whole vocabulary; `kl_of_weights` the same of the file's weights computed by transformers, which leaves out what
llama.cpp rounds while it computes. Run it as `python benchmarks/gguf_forms.py`; needs the extra gguf and 2 GB of disk.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rows import HERE, append, commit, processor

from luthier.data.contract import open_tokenizer
from luthier.engines.llama_cpp import LlamaCppEngine
from luthier.engines.next_token import distance, log_softmax
from luthier.engines.transformers import TransformersEngine
from luthier.models.adapters import attach, merge
from luthier.models.base import import_base, load_base
from luthier.models.gguf_tokenizer import read_tokenizer
from luthier.models.gguf_write import FloatType, write_gguf
from luthier.models.source import locate
from luthier.spec.adapters.lora import Lora

THREADS, NEW_TOKENS, END = 1, 16, 2
TEXTS = (
    "My violin came with a broken bridge, order 88213.",
    "",
    "Где мой заказ? 我的订单在哪里？",
    "def area(r):\n    return 3.14159 * r ** 2",
    "👩‍🚀🎻🇫🇷 thank you",
    "The parcel left the warehouse on Monday and has not been seen since. " * 12,
)


def tuned_model(base: Path) -> Any:
    """The base with an adapter that changes what it says, merged."""
    lora = Lora(type="lora", r=8, alpha=16, dropout=0, target_modules="all-linear")
    tuned = attach(load_base(base), lora, base_name="smollm2-135m-instruct", seed=0)
    noise = torch.Generator().manual_seed(0)
    for name, weight in tuned.named_parameters():
        if ".lora_B." in name:
            weight.data.normal_(std=0.02, generator=noise)
    return merge(tuned)


def measure(float_type: FloatType, file: Path, model: Any, prompts: list[list[int]]) -> dict[str, object]:
    """What is seen of one file; the worst of the prompts."""
    from transformers import AutoModelForCausalLM

    reference = TransformersEngine(model)
    engine = LlamaCppEngine(file, n_ctx=512, threads=THREADS)
    read: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    weights = TransformersEngine(read.eval())
    kls, own, errors, equal = [], [], [], 0
    for ids in prompts:
        expected, found = log_softmax(reference.logits(ids)[-1]), engine.next_logprobs(ids)
        kls.append(distance(expected, found, measure="kl"))
        own.append(distance(expected, log_softmax(weights.logits(ids)[-1]), measure="kl"))
        errors.append(distance(expected, found, measure="log_probabilities"))
        texts = [one.generate(ids, max_new_tokens=NEW_TOKENS, stop_ids=(END,)) for one in (reference, engine)]
        equal += texts[0] == texts[1]
    engine.close()
    return {
        "float_type": float_type, "mib": f"{file.stat().st_size / 2**20:.1f}", "prompts": len(prompts),
        "kl": f"{max(kls):.1e}", "median_kl": f"{np.median(kls):.1e}", "kl_of_weights": f"{max(own):.1e}",
        "log_probability_error": f"{max(errors):.1e}", "greedy_equal": equal,
    }  # fmt: skip


def main() -> None:
    """Write, ask and tell of each form."""
    torch.set_num_threads(THREADS)
    source = locate("smollm2-135m-instruct", folder=HERE, revision=None, offline=True, say=print)
    base = import_base(source)
    model, tokenizer = tuned_model(base), open_tokenizer(base / "tokenizer.json")
    turns = "<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    prompts = [tokenizer.encode(turns.replace("{}", text), add_special_tokens=False).ids for text in TEXTS]
    head, dirty = commit()
    conditions = {
        "commit": head, "dirty": dirty, "torch": torch.__version__, "transformers": version("transformers"),
        "gguf": version("gguf"), "xllamacpp": version("xllamacpp"), "processor": processor(), "threads": THREADS,
    }  # fmt: skip
    words = read_tokenizer(base, vocab_size=model.config.vocab_size)
    for float_type in get_args(FloatType):
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "model.gguf"
            write_gguf(file, model, tokenizer=words, chat_template="", float_type=float_type)
            row = measure(float_type, file, model, prompts)
        print(row)
        append(HERE / "results" / "gguf.csv", {**row, **conditions})


if __name__ == "__main__":
    main()
