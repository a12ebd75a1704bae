"""Several adapters over one base in memory: each says what it says alone, whoever was asked before or beside it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from test_models_tuners import IDS, base, moved, of, saved

from luthier.engines.transformers import TransformersEngine, base_and_each
from luthier.errors import ModelError
from luthier.models.adapters import attach
from luthier.models.base import load_base
from luthier.models.beside import load_beside, same_weights
from luthier.models.classifier import put_head
from luthier.models.tuned import load_tuned

LIST = IDS[0].tolist()
SIDE_BY_SIDE = ("lora", "pissa", "norms too", "embeddings too", "ia3", "lokr", "vera", "oft")
Kept = Callable[[str], Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    base().save_pretrained(folder / "base")
    return folder


@pytest.fixture(scope="module")
def kept(place: Path) -> Kept:
    """Folder of an adapter of this kind, made once."""

    @cache
    def make(name: str) -> Path:
        return saved(moved(attach(base(), of(name), base_name="tiny", seed=0)), place / name)

    return make


def pointers(model: Any) -> set[int]:
    return {tensor.data_ptr() for tensor in model.parameters()}


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_each_says_to_the_bit_what_it_says_alone_whatever_stands_beside_it(name: str, place: Path, kept: Kept) -> None:
    adapters = {"a": kept(name), "b": kept("lora" if name != "lora" else "dora")}
    untuned, tuned = base_and_each(place / "base", adapters)
    alone = {
        key: TransformersEngine(load_tuned(place / "base", folder)).logits(LIST) for key, folder in adapters.items()
    }
    for key in ("a", "b", "a"):
        assert (tuned[key].logits(LIST) == alone[key]).all(), key
    assert (alone["a"] != alone["b"]).any()
    assert (untuned.logits(LIST) == TransformersEngine(load_base(place / "base")).logits(LIST)).all()
    assert (tuned["b"].logits(LIST) == alone["b"]).all()


def test_the_base_is_in_memory_once(place: Path, kept: Kept) -> None:
    names = ("lora", "ia3", "dora")
    untuned, models = load_beside(place / "base", {name: kept(name) for name in names})
    held, all_of_it = pointers(untuned), [pointers(model) for model in models.values()]
    assert all(held <= own for own in all_of_it)
    assert all(one & other == held for one in all_of_it for other in all_of_it if one is not other)
    copy = same_weights(untuned)
    assert copy is not untuned
    assert pointers(copy) == held


def test_a_head_stands_beside_words(place: Path, kept: Kept) -> None:
    model = attach(base(), of("lora"), base_name="tiny", seed=0)
    put_head(model, 3)
    adapters = {"head": saved(moved(model), place / "head"), "words": kept("dora")}
    tuned = base_and_each(place / "base", adapters)[1]
    alone = TransformersEngine(load_tuned(place / "base", adapters["head"])).class_logits(LIST)
    assert (tuned["head"].class_logits(LIST, "intent") == alone).all()
    assert alone.any()
    with pytest.raises(ModelError, match="no classification head"):
        tuned["words"].class_logits(LIST, "mood")


def test_questions_to_several_at_once_are_answered_as_alone(place: Path, kept: Kept) -> None:
    adapters = {name: kept(name) for name in ("lora", "ia3", "vera")}
    untuned, tuned = base_and_each(place / "base", adapters)
    engines = {"base": untuned, **tuned}
    expected = {name: engine.logits(LIST) for name, engine in engines.items()}
    with ThreadPoolExecutor(4) as crowd:
        asked = [(name, crowd.submit(engines[name].logits, LIST)) for _ in range(6) for name in engines]
        for name, said in asked:
            assert (said.result() == expected[name]).all(), name


def test_an_adapter_that_does_not_fit_is_refused_by_name(place: Path, kept: Kept, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no PEFT adapter"):
        load_beside(place / "base", {"lora": kept("lora"), "none": tmp_path})
