"""One GGUF file with weights in 8 bits, tokenizer and chat template, held to parity in llama.cpp."""

from luthier.spec.plugins import ExportFacts

FACTS = ExportFacts(
    name="gguf_q8_0",
    summary="GGUF file with weights in 8 bits (q8_0), for llama.cpp",
    kl_bound=5e-2,
    block=32,
    in_llama_cpp=True,
)
