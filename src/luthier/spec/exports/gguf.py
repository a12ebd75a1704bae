"""One GGUF file with float16 weights, tokenizer and chat template, held to parity in llama.cpp."""

from luthier.spec.plugins import ExportFacts

FACTS = ExportFacts(
    name="gguf", summary="GGUF file with float16 weights, for llama.cpp", kl_bound=1e-3, in_llama_cpp=True
)
