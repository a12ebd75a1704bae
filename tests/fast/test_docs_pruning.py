"""What docs/pruning.md says is what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import samples

from luthier.compress.prune import width
from luthier.spec.load import load_recipe
from luthier.spec.plugins import METHODS
from luthier.spec.prune import (
    FAMILIES,
    FEWER_TOKENS,
    ROUND,
    USUAL_TOKENS,
    LayerMeasure,
    UnitMeasure,
    kept_channels,
    kept_groups,
    pruned_shape,
)

PAGE = (Path(__file__).parents[2] / "docs" / "pruning.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())


def test_the_recipe_shown_is_read_and_fits_its_base(tmp_path: Path) -> None:
    shown = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    (tmp_path / "r.yaml").write_text(shown[1], encoding="utf-8")
    prune = load_recipe(tmp_path / "r.yaml").recipe.prune
    assert prune is not None
    assert (kept_groups(prune, samples.shape()), kept_channels(prune, samples.shape())) == (2, 1152)
    assert pruned_shape(samples.shape(), prune).num_layers == 24
    assert "# of 30" in shown[1]


@pytest.mark.parametrize(("measures", "key"), [(LayerMeasure, "`layers.by`"), (UnitMeasure, "`mlp.by`, `heads.by`")])
def test_every_measure_is_told(measures: object, key: str) -> None:
    table = PAGE.partition(f"| {key} |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == get_args(measures)


def test_numbers_families_and_methods_are_those_of_the_code() -> None:
    assert f"({USUAL_TOKENS} where it is left out; {FEWER_TOKENS} with `by: loss`)" in WORDS
    assert f"multiples of {ROUND} where" in WORDS
    assert f"families other than {', '.join(list(FAMILIES)[:-1])} and {list(FAMILIES)[-1]}" in WORDS
    comparing = re.search(r"methods that compare answers \((.*?)\)", WORDS)
    assert comparing is not None
    named = set(re.findall(r"`(\w+)`", comparing[1]))
    assert named == {name for name, one in METHODS.entries().items() if one.reward or one.by_rewards}
    assert width.__doc__ is not None
    for paper in ("Muralidharan", "Molchanov", "Sun et al."):
        assert paper in width.__doc__
        assert paper in PAGE
