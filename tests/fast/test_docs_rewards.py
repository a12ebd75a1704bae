"""What docs/rewards.md says is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from luthier.rewards.function import GROUP
from luthier.spec.load import load_recipe
from luthier.spec.methods.grpo import Grpo
from luthier.spec.plugins import METHODS, METRICS, REWARDS

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_the_recipe_shown_is_read_with_the_method_that_is_shown(tmp_path: Path) -> None:
    whole, method = SHOWN
    (tmp_path / "r.yaml").write_text(whole + method, encoding="utf-8")
    recipe = load_recipe(tmp_path / "r.yaml").recipe
    assert recipe.method.type == "grpo"
    assert recipe.entry.rewards is not None
    assert set(yaml.safe_load(method)["method"]) <= set(Grpo.model_fields)


def test_every_type_of_reward_is_named_with_its_settings() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*) \|$", PAGE, re.MULTILINE))
    assert set(REWARDS.names()) <= set(rows)
    for name, facts in REWARDS.entries().items():
        own = set(facts.section.model_fields) - {"type", "weight"}
        assert own <= set(re.findall(r"`(\w+)`", rows[name])), name


@pytest.mark.parametrize("key", ["num_generations", "beta", "loss_type", "scale_rewards", "max_completion_length"])
def test_every_setting_of_the_method_is_named(key: str) -> None:
    assert key in PAGE
    assert set(Grpo.model_fields) - {"type"} == {
        "num_generations", "beta", "loss_type", "scale_rewards", "max_completion_length"
    }  # fmt: skip


def test_tasks_and_entry_points_are_those_of_the_code() -> None:
    assert (
        set(METHODS.get("grpo").tasks)
        == set(METRICS.get("reward").tasks)
        == {"generation", "extraction", "translation"}
    )
    assert f'"{GROUP}"' in PAGE
    assert Grpo().loss_type == "dapo"
    assert Grpo().beta == 0
