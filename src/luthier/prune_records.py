"""Records of pruning: what was measured of each part of the base, what went, and how much smaller it is."""

from __future__ import annotations

from pydantic import Field

from luthier.records import Record


class PrunedLayers(Record):
    """Whole layers that went."""

    by: str
    contiguous: bool
    scores: tuple[float | None, ...] = Field(
        description="Of each layer of the base; where contiguous, of the block that begins with it. What is lower goes."
    )
    removed: tuple[int, ...] = Field(description="In the order in which they were chosen.")


class UnitsOfLayer(Record):
    """Channels or heads of one layer; each score stands in scores.safetensors."""

    layer: int = Field(description="Number in the base.")
    share: float = Field(description="Of the sum of all scores of the layer, what those had that went.")


class PrunedUnits(Record):
    """Channels or key-value heads that went, as many in every layer."""

    by: str
    before: int = Field(description="Of a layer.")
    after: int
    layers: tuple[UnitsOfLayer, ...]


class PruneResult(Record):
    """What became of the base before it was trained."""

    layers: PrunedLayers | None
    mlp: PrunedUnits | None
    heads: PrunedUnits | None = Field(description="Key-value heads, each with the queries that read it.")
    rows: int = Field(description="Training rows that were read; 0 where weights alone were looked at.")
    tokens: int
    loss_before: float | None = Field(description="Mean loss a token on these rows, in nats; None without rows.")
    loss_after: float | None
    num_layers_before: int
    num_layers_after: int
    parameters_before: int
    parameters_after: int
    bytes_before: int = Field(description="Of all parameters in float32, as they are computed with.")
    bytes_after: int
    seconds: float
    peak_memory_gib: float
    weights_sha256: str
    scores_sha256: str
    model_sha256: str
    data_sha256: str = Field(description="Hash over shards and contracts.")

    @property
    def words(self) -> str:
        """What went, what it was measured by, and how much smaller the base is, in sentences."""
        parts = []
        if self.layers is not None:
            which = ", ".join(map(str, sorted(self.layers.removed)))
            together = ", one above the other" if self.layers.contiguous else ""
            parts.append(
                f"{len(self.layers.removed)} of {self.num_layers_before} layers went by {self.layers.by}{together} "
                f"({which})"
            )
        for units, what in ((self.mlp, "feed-forward channels"), (self.heads, "key-value heads with their queries")):
            if units is not None:
                share = max(one.share for one in units.layers)
                parts.append(
                    f"{units.before - units.after:,} of {units.before:,} {what} of every layer went by {units.by}, at "
                    f"most {share:.1%} of it in a layer"
                )
        size = (
            f"{self.parameters_after:,} of {self.parameters_before:,} parameters stayed, "
            f"{self.bytes_after / 2**20:,.1f} of {self.bytes_before / 2**20:,.1f} MiB in float32."
        )
        rows = (
            f" On the {self.rows:,} training rows ({self.tokens:,} tokens) that said so, the loss a token was "
            f"{self.loss_before:.3f} nats before and {self.loss_after:.3f} after, not yet healed."
            if self.loss_before is not None and self.loss_after is not None
            else ""
        )
        return f"{'; '.join(parts)}. {size}{rows}"
