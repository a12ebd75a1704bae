"""Plain transformers folder with the adapter added into the weights (float32 safetensors)."""

from luthier.spec.plugins import ExportFacts

FACTS = ExportFacts(name="merged", summary="float32 safetensors folder that plain transformers loads", logit_bound=1e-4)
