"""PEFT adapter folder: adapter_config.json and adapter_model.safetensors."""

from luthier.spec.plugins import ExportFacts

FACTS = ExportFacts(name="adapter", summary="PEFT adapter, to be used with the base model", logit_bound=1e-4)
