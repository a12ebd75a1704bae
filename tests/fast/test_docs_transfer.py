"""What docs/transfer-learning.md says is what there is."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import samples
import yaml

from luthier.models.tuners import load_tuner
from luthier.plan.memory import CHECKPOINT_COPIES, GIB, TRAINED_COPIES, WHOLE_COPIES
from luthier.plan.parameters import trainable_parameters
from luthier.spec.adapters.lora import Lora
from luthier.spec.load import load_recipe
from luthier.spec.plugins import ADAPTERS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "transfer-learning.md").read_text(encoding="utf-8")


def whole(text: str) -> str:
    """A recipe with what is shown."""
    return "name: r\ndata: d.csv\n" + ("" if "model:" in text else "model: m\n") + text


@pytest.mark.parametrize("text", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_the_recipes_shown_are_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(whole(text), encoding="utf-8")
    load_recipe(tmp_path / "r.yaml")


def test_every_setting_shown_is_taken(tmp_path: Path) -> None:
    shown = re.findall(r"`(adapter: \{[^`]+\})`", PAGE)
    shown += [f"{key.split('.')[0]}: {{{key.split('.')[1]}: {value}}}" for key, value in
              re.findall(r"`((?:train)\.\w+): ([^`]+)`", PAGE)]  # fmt: skip
    shown += [f"adapter: {{{key}: {value}}}" for key, value in
              re.findall(r"`(use_dora|use_rslora|init_lora_weights|bias): ([^`]+)`", PAGE)]  # fmt: skip
    assert len(shown) >= 6
    for text in shown:
        yaml.safe_load(text)
        (tmp_path / "r.yaml").write_text(whole(text), encoding="utf-8")
        load_recipe(tmp_path / "r.yaml")


def test_every_type_is_named_and_has_its_implementation() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == set(ADAPTERS.names())
    folder = ROOT / "src" / "luthier" / "models" / "tuners"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(ADAPTERS.names())
    assert all(callable(load_tuner(name).attach) for name in ADAPTERS.names())


def test_the_memory_that_is_told_is_what_the_plan_counts() -> None:
    copies = TRAINED_COPIES + CHECKPOINT_COPIES
    adapter = trainable_parameters(samples.shape(), Lora(r=16, target_modules="all-linear"))
    assert f"{copies * 4 * adapter / GIB:.1f} GiB. For all" in PAGE.replace("\n", " ")
    whole = copies - 1 + WHOLE_COPIES
    assert f"it is {whole * 4 * samples.shape().num_parameters / GIB:.1f} GiB beside the weights" in PAGE
    assert f"for 7 billion {round(whole * 4 * 7e9 / GIB, -1):.0f} GiB" in PAGE


def test_the_numbers_shown_are_those_that_were_measured() -> None:
    with (ROOT / "benchmarks" / "results" / "adapters.csv").open(encoding="utf-8", newline="") as file:
        measured = {row["case"]: row for row in csv.DictReader(file)}
    shown = re.findall(r"^\| ([\w ,]+?) \| ([\d,]+) \| ([\d.e-]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert {case for case, *_ in shown} == set(measured)
    for case, parameters, rate, loss, memory in shown:
        row = measured[case]
        assert int(parameters.replace(",", "")) == int(row["parameters"])
        assert float(rate) == float(row["learning_rate"])
        assert float(loss) == pytest.approx(float(row["loss_after"]), abs=0.005)
        assert float(memory) == pytest.approx(float(row["memory_gib"]), abs=0.005)
