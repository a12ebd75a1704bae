"""Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685, eq. 3), trained and stored in PEFT's format."""

from luthier.spec.plugins import AdapterFacts

FACTS = AdapterFacts(
    name="lora", summary="low-rank matrices beside every linear layer, the base frozen", considered=True
)
