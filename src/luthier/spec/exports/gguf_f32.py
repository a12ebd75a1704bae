"""One GGUF file with float32 weights, tokenizer and chat template, held to parity in llama.cpp."""

from luthier.spec.plugins import ExportFacts

FACTS = ExportFacts(
    name="gguf_f32", summary="GGUF file with float32 weights, for llama.cpp", logit_bound=1e-4, in_llama_cpp=True
)
