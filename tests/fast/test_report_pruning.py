"""What people read of pruning: page, terminal, overview and card say what went, by what, and how much is left."""

from __future__ import annotations

from typing import Any

import pytest
import samples

from luthier.prune_records import PrunedLayers, PrunedUnits, PruneResult, UnitsOfLayer
from luthier.report.html import render
from luthier.report.pruning import layers_chart, units_chart
from luthier.report.summary import summary
from luthier.report.tasks import tasks_card, tasks_summary


def result(**changes: Any) -> PruneResult:
    values: dict[str, Any] = {
        "layers": PrunedLayers(by="loss", contiguous=False, scores=(0.4, -0.1, 0.2, 0.3), removed=(1, 2)),
        "mlp": PrunedUnits(
            by="taylor", before=1536, after=1152,
            layers=(UnitsOfLayer(layer=0, share=0.1), UnitsOfLayer(layer=3, share=0.2)),
        ),
        "heads": None,
        "rows": 120,
        "tokens": 16_400,
        "loss_before": 2.5,
        "loss_after": 3.25,
        "num_layers_before": 4,
        "num_layers_after": 2,
        "parameters_before": 2_000_000,
        "parameters_after": 1_000_000,
        "bytes_before": 8_000_000,
        "bytes_after": 4_000_000,
        "seconds": 12.0,
        "peak_memory_gib": 1.0,
        "weights_sha256": samples.sha("a"),
        "scores_sha256": samples.sha("c"),
        "model_sha256": samples.sha("b"),
        "data_sha256": samples.sha("d"),
    }  # fmt: skip
    return PruneResult.model_validate(values | changes)


def test_the_words_hold_every_number() -> None:
    assert result().words == (
        "2 of 4 layers went by loss (1, 2); 384 of 1,536 feed-forward channels of every layer went by taylor, at most "
        "20.0% of it in a layer. 1,000,000 of 2,000,000 parameters stayed, 3.8 of 7.6 MiB in float32. On the 120 "
        "training rows (16,400 tokens) that said so, the loss a token was 2.500 nats before and 3.250 after, not yet "
        "healed."
    )
    weights = result(layers=None, rows=0, tokens=0, loss_before=None, loss_after=None)
    assert "training rows" not in weights.words


@pytest.mark.parametrize("place", ["page", "terminal", "overview", "card"])
def test_everything_that_people_read_has_them(place: str) -> None:
    evidence = samples.evidence(pruned=result())
    text = {
        "page": lambda: render(evidence),
        "terminal": lambda: "\n".join(summary(evidence)),
        "overview": lambda: "\n".join(tasks_summary([evidence, evidence], evidence.gate)),
        "card": lambda: tasks_card(evidence.resolved, [evidence, evidence], evidence.gate),
    }[place]()
    assert result().words in text
    plain = samples.evidence()
    assert "pruned" not in "\n".join(summary(plain))
    assert "<h2>Pruning</h2>" not in render(plain)


def test_a_bar_a_layer_and_those_that_went_stand_out() -> None:
    chart = str(layers_chart(result()))
    assert chart.count("bar-bad") == 2
    assert chart.count("bar-other") == 2
    assert "loss of each layer; layers 1, 2 went" in chart
    blocks = PrunedLayers(by="angular", contiguous=True, scores=(0.3, 0.1, 0.2, None), removed=(1, 2))
    assert "of the block that begins with the layer" in str(layers_chart(result(layers=blocks)))
    assert str(layers_chart(None)) == str(layers_chart(result(layers=None))) == str(units_chart(None, "channels")) == ""
    units = str(units_chart(result().mlp, "channels"))
    assert "share of taylor that went with 384 of 1,536 channels, by layer" in units
    assert ">3</text>" in units, "layers have their numbers in the base"
