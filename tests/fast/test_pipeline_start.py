"""What is found before anything is written: secrets in the wording, labels that look alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import MissingExtra, SecretFound
from luthier.pipeline import start
from luthier.pipeline.start import look

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
