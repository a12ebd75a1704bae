"""Frozen layers are kept where the recipe has them kept; where they cannot be, that is said or refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import test_train_loop
import yaml
from test_spec_resolve import SHORTEST, resolved, with_

from luthier.errors import ModelError
from luthier.models.adapters import attach
from luthier.pipeline.progress import Progress
from luthier.pipeline.trunk import clear_trunk, lay_trunk
from luthier.spec.trunk import UNASKED_GIB
from luthier.store.events import EventLog
from luthier.train import shard
from luthier.train.trunk import Trunk
from tiny import llama


def laid(folder: Path, *, base: dict[str, Any] | None = None, **train: Any) -> tuple[Trunk | None, str, list[Any]]:
    """The trunk, what was said, and the events."""
    tree = with_("adapter.layers_to_transform", [1], with_("train", {"batch_size": 4, **train}, SHORTEST))
    recipe, said, log = resolved(tree, num_layers=2), io.StringIO(), folder / "events.jsonl"
    model = attach(llama(**(base or {})), recipe.recipe.adapter, base_name="b", seed=0)
    trunk = lay_trunk(
        model, test_train_loop.INPUTS, resolved=recipe, folder=folder / "trunk",
        progress=Progress(said), events=EventLog(log), stop_asked=lambda: False,
    )  # fmt: skip
    return trunk, said.getvalue(), list(EventLog.read(log)) if log.is_file() else []


def test_what_the_page_shows_is_taken() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    (shown,) = (yaml.safe_load(part.partition("```")[0]) for part in page.split("```yaml\n")[1:])
    made = resolved(SHORTEST | shown)
    assert made.recipe.adapter.layers_to_transform == (24, 25, 26, 27, 28, 29)
    assert made.recipe.train.cache_trunk
    assert "8 GiB" in page
    assert UNASKED_GIB == 8


def test_states_are_kept_said_and_cleared(tmp_path: Path) -> None:
    trunk, said, events = laid(tmp_path)
    assert trunk is not None
    assert trunk.first == 1
    assert "rows through the frozen layers: 18 of 18" in said
    assert "layers below 1: computed in" in said
    assert f"{trunk.num_bytes / 1000:.1f} kB kept; training starts above them" in said
    assert [(event["kind"], event["first"], event["num_bytes"], event["reused"]) for event in events] == [
        ("trunk", 1, trunk.num_bytes, False)
    ]
    again, said, events = laid(tmp_path)
    assert again is not None
    assert again.reused
    assert "layers below 1: taken from before" in said
    assert events[-1]["reused"]
    clear_trunk(tmp_path / "trunk")
    assert not (tmp_path / "trunk").exists()
    clear_trunk(tmp_path / "trunk")


@pytest.mark.parametrize("train", [{"cache_trunk": False}, {"num_train_epochs": 1}])
def test_nothing_is_kept_where_it_is_not_wanted_or_does_not_pay(tmp_path: Path, train: dict[str, Any]) -> None:
    assert laid(tmp_path, **train) == (None, "", [])
    assert not (tmp_path / "trunk").exists()


def test_a_family_that_cannot_do_it_is_trained_without_and_that_is_said(tmp_path: Path) -> None:
    trunk, said, events = laid(tmp_path, base={"attention_dropout": 0.1})
    assert trunk is None
    assert "the frozen layers of LlamaForCausalLM cannot be kept (it has dropout" in said
    assert "all layers are computed in every epoch" in said
    assert [event["kind"] for event in events] == ["trunk_not_kept"]
    assert "dropout" in events[0]["reason"]


def test_a_family_that_cannot_do_it_is_refused_where_the_recipe_asks(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the frozen layers of LlamaForCausalLM cannot be kept") as caught:
        laid(tmp_path, base={"attention_dropout": 0.1}, cache_trunk=True)
    assert caught.value.exit_code == 2
    assert "leave train.cache_trunk out" in caught.value.way_out


@pytest.mark.parametrize("asked", [None, True])
def test_layers_that_are_divided_between_ranks_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool | None
) -> None:
    monkeypatch.setattr(shard, "is_sharded", lambda model: True)
    if asked:
        with pytest.raises(ModelError, match=r"not kept where launch\.strategy 'fsdp' divides them"):
            laid(tmp_path, cache_trunk=True)
        return
    trunk, said, events = laid(tmp_path)
    assert trunk is None
    assert "'fsdp' divides them between ranks: all layers are computed in every epoch" in said
    assert [event["kind"] for event in events] == ["trunk_not_kept"]
