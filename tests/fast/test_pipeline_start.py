"""What is found before anything is written: secrets in the wording, labels that look alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import samples
from data_kit import encoder_folder

from command import call
from luthier.data import encoder
from luthier.errors import DataError, MissingExtra, ModelError, SecretFound
from luthier.pipeline import start
from luthier.pipeline.order import STAGES
from luthier.pipeline.start import look
from luthier.store.runs import RunFolder

RECIPE = """\
name: r
model: {{name: {model}}}
data: {{train: [{{path: data.csv, task: classification, input: '{{message}}', label: intent, system: '{system}'}}]}}
"""


def recipe(folder: Path, model: Path, *, system: str, labels: tuple[str, ...]) -> str:
    rows = "".join(f"where is parcel {number} of mine,{labels[number % len(labels)]}\n" for number in range(40))
    (folder / "data.csv").write_text("message,intent\n" + rows, encoding="utf-8")
    (folder / "r.yaml").write_text(RECIPE.format(model=model, system=system), encoding="utf-8")
    return str(folder / "r.yaml")


def test_a_secret_in_the_system_text_is_found_before_a_run_begins(tmp_path: Path, tiny_model: Path) -> None:
    secret = "AKIA" + "IOSFODNN7EXAMPLE"
    path = recipe(tmp_path, tiny_model, system=f"Use {secret}.", labels=("a", "b"))
    with pytest.raises(SecretFound, match=r"data\.train\[0\]\.system holds a secret \(aws_access_key\)") as error:
        look(path, overrides=(), offline=True, say=lambda _: None)
    assert secret not in str(error.value)


def test_labels_that_look_alike_are_said(tmp_path: Path, tiny_model: Path) -> None:
    said: list[str] = []
    path = recipe(tmp_path, tiny_model, system="x", labels=("Refund", "refund", "late", "re fund"))
    look(path, overrides=(), offline=True, say=said.append)
    assert [line for line in said if "read alike" in line] == [
        "labels that read alike: 'Refund', 're fund', 'refund'; data.labels.rename makes them one"
    ]


def test_a_profile_that_is_not_installed_is_refused_before_a_run_begins(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "missing_package", lambda: "presidio-analyzer")
    path = recipe(tmp_path, tiny_model, system="x", labels=("a", "b"))
    with pytest.raises(MissingExtra, match=r"data\.privacy\.profile 'balanced' needs the package 'presidio-analyzer'"):
        look(path, overrides=["data.privacy.profile=balanced"], offline=True, say=lambda _: None)


def test_a_passphrase_that_is_missing_is_said_before_a_run_begins(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LUTHIER_MAPPING_PASSPHRASE", raising=False)
    recipe(tmp_path, tiny_model, system="x", labels=("a", "b"))
    asked = ("--set", "data.privacy.action=pseudonymise", "--set", "data.privacy.keep_mapping=map.json")
    for verb in ("check", "prepare"):
        said = call(verb, "r.yaml", *asked, cwd=tmp_path)
        said.fails(2, "keep_mapping needs a passphrase", "export LUTHIER_MAPPING_PASSPHRASE=...")
    assert not (tmp_path / "runs").exists()
    call("check", "r.yaml", *asked, cwd=tmp_path, LUTHIER_MAPPING_PASSPHRASE="correct horse").succeeds()


def test_the_model_that_compares_by_meaning_is_looked_at_before_a_run_begins(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, tiny_model, system="x", labels=("a", "b"))

    def looked(*overrides: str) -> tuple[str | None, str, str]:
        """The model's hash, that of the run, and the key of prepare."""
        made = look(path, overrides=overrides, offline=True, say=lambda _: None).resolved
        key = STAGES["prepare"].key(RunFolder(tmp_path), made)
        return made.data_sha256.get("data.embeddings.model"), made.sha256, key

    monkeypatch.setattr(encoder, "find_spec", lambda module: None)
    with pytest.raises(MissingExtra, match=r"data\.embeddings\.model 'all-minilm-l6-v2' needs the package 'gt-all"):
        looked("data.leakage.meaning=0.9")
    asked = ("data.leakage.meaning=0.9", "data.embeddings.model=m")
    with pytest.raises(ModelError, match=r"data\.embeddings\.model: .*m: there is no such folder"):
        looked(*asked)
    encoder_folder(tmp_path / "m")
    first = looked(*asked)
    assert first[0] == encoder.identity(tmp_path / "m")
    assert looked(*asked) == first
    encoder_folder(tmp_path / "m", seed=1)
    second = looked(*asked)
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert looked()[0] is None
    threads = [looked(*asked, f"train.threads={count}")[2] for count in (1, 2)]
    assert threads[0] != threads[1], "they change the last bits of what is compared"
    assert looked("train.threads=1")[2] == looked("train.threads=2")[2], "and nothing else here"


def test_data_is_prepared_again_where_answers_may_be_longer(tmp_path: Path) -> None:
    entry = {"path": "d.csv", "name": "a", "input": "{message}", "label": "intent", "task": "generation"}

    def key(**method: Any) -> str:
        made = samples.resolved(
            objective={}, data={"train": [{**entry, "rewards": [{"type": "exact"}]}]}, method={"type": "grpo", **method}
        )
        return STAGES["prepare"].key(RunFolder(tmp_path), made)

    assert key() == key(num_generations=4) != key(max_completion_length=8) != key(max_completion_length=9)


@pytest.mark.parametrize("given", [None, False, True])
def test_activations_are_computed_twice_where_memory_asks_for_it_and_nobody_has_decided(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, given: bool | None
) -> None:
    monkeypatch.setattr(start, "memory_asks_for_checkpointing", lambda *_: True)
    key = "train.gradient_checkpointing"
    path = recipe(tmp_path, tiny_model, system="x", labels=("a", "b"))
    overrides = [] if given is None else [f"{key}={str(given).lower()}"]
    prepared = look(path, overrides=overrides, offline=True, say=lambda _: None)
    assert prepared.resolved.recipe.train.gradient_checkpointing is (True if given is None else given)
    reason = "without it training would not fit objective.budget.ram_gib" if given is None else "given in the recipe"
    assert prepared.resolved.reasons[key] == reason


def test_a_recipe_that_is_begun_again_keeps_its_first_reasons(tmp_path: Path) -> None:
    run, first = RunFolder(tmp_path), samples.resolved()
    again = first.model_copy(update={"reasons": {**first.reasons, "method.type": "measured since then"}})
    assert start._with_first_reasons(run, again) == again
    run.resolved.write_text(first.to_json(), encoding="utf-8")
    assert start._with_first_reasons(run, again) == first
    other = samples.resolved(train={"seed": 3})
    assert start._with_first_reasons(run, other) == other
    run.resolved.write_text("{}", encoding="utf-8")
    assert start._with_first_reasons(run, again) == again


def test_a_glossary_that_cannot_be_read_is_refused_before_a_run_begins(tmp_path: Path, tiny_model: Path) -> None:
    rows = "".join(f"where is parcel {number},wo ist Paket {number}\n" for number in range(40))
    (tmp_path / "data.csv").write_text("en,de\n" + rows, encoding="utf-8")
    entry = "{path: data.csv, name: t, task: translation, input: '{en}', label: de, glossary: terms.tsv}"
    (tmp_path / "r.yaml").write_text(f"name: r\nmodel: {tiny_model}\ndata: {{train: [{entry}]}}\n", encoding="utf-8")

    def looked() -> dict[str, str]:
        return look(str(tmp_path / "r.yaml"), overrides=(), offline=True, say=lambda _: None).resolved.data_sha256

    with pytest.raises(DataError, match=r"evaluate\.glossary: 'terms\.tsv': it does not exist"):
        looked()
    (tmp_path / "terms.tsv").write_text("parcel\tPaket\n\tWirbel\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"evaluate\.glossary: terms\.tsv:2: an empty term"):
        looked()
    (tmp_path / "terms.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"terms\.tsv is not UTF-8 text"):
        looked()
    (tmp_path / "terms.tsv").write_text("parcel\tPaket\n", encoding="utf-8")
    before = looked()["evaluate.glossary"]
    (tmp_path / "terms.tsv").write_text("parcel\tPäckchen\n", encoding="utf-8")
    assert looked()["evaluate.glossary"] != before
