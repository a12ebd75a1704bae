"""Every verb: help, exit codes, JSON on standard output, and errors that say what to do. No torch is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from command import call, luthier, paper_model
from luthier import __version__
from luthier.cli import app
from luthier.plan_records import Plan
from luthier.records import DataProfile
from luthier.spec.resolve import ResolvedRecipe
from tiny import write_recipe


def _verbs(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = getattr(command, "commands", {})
    return [path, *(verb for name, one in inner.items() for verb in _verbs(one, (*path, name)))]


VERBS = _verbs(typer.main.get_command(app))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with messages.csv, tiny.yaml and a model that can be looked at."""
    folder = tmp_path_factory.mktemp("place")
    write_recipe(folder, paper_model(folder / "model"))
    return folder


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb) or "luthier")
def test_every_verb_has_help(tmp_path: Path, verb: tuple[str, ...]) -> None:
    done = call(*verb, "--help", cwd=tmp_path).succeeds()
    assert "Usage: luthier" in done.out
    assert not done.err
    assert not list(tmp_path.iterdir())


def test_the_help_names_every_verb_and_the_exit_codes(tmp_path: Path) -> None:
    text = call("--help", cwd=tmp_path).out
    for verb in (
        "init",
        "check",
        "plan",
        "prepare",
        "train",
        "run",
        "evaluate",
        "export",
        "gate",
        "report",
        "predict",
        "serve",
        "data",
        "recipes",
        "registry",
        "audit",
    ):
        assert f" {verb} " in text
    assert "_stage" not in text
    assert "3 the gate refused" in " ".join(text.split())


def test_the_version(tmp_path: Path) -> None:
    assert call("--version", cwd=tmp_path).succeeds().out == __version__ + "\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "nosuch"], 2, ["'nosuch' is neither a file nor a shipped recipe", "support-intents"]),
        (["check", "nosuch.yaml"], 2, ["'nosuch.yaml' is not a file"]),
        (["plan", "a/nosuch"], 2, ["'a/nosuch' is not a file"]),
        (["prepare", "nosuch"], 2, ["'nosuch' is neither"]),
        (["train", "nosuch"], 2, ["'nosuch' is neither"]),
        (["train", "."], 2, ["'.' is not a run", "runs in runs: none"]),
        (["evaluate", "nosuch"], 2, ["'nosuch' is not a run"]),
        (["export", "nosuch"], 2, ["'nosuch' is not a run"]),
        (["gate", "nosuch"], 2, ["'nosuch' is not a run"]),
        (["report", "nosuch"], 2, ["'nosuch' is not a run"]),
        (["predict", "nosuch", "file.csv"], 2, ["registry.sqlite has no 'nosuch'"]),
        (["serve", "nosuch@production"], 2, ["registry.sqlite has no 'nosuch'"]),
        (["serve", "nosuch", "--host", "0.0.0.0"], 2, ["0.0.0.0", "key"]),
        (["serve", "nosuch", "--keys", "nosuch.txt"], 2, ["nosuch.txt"]),
        (["init", "nosuch.csv"], 2, ["nosuch.csv does not exist"]),
        (["init", "."], 2, ["is a folder"]),
        (["data", "inspect", "nosuch.csv"], 2, ["nosuch.csv does not exist"]),
        (["data", "inspect", "."], 2, ["is a folder without data files"]),
        (["recipes", "cp", "nosuch"], 2, ["no shipped recipe is called 'nosuch'", "support-intents"]),
        (["recipes", "cp", "support-intents", "."], 2, [". exists already"]),
        (["registry", "promote", "nosuch@1"], 2, ["has no 'nosuch'"]),
        (["registry", "rollback", "nosuch"], 2, ["has no 'nosuch'"]),
        (["registry", "rollback", "nosuch@production"], 2, ["give the name alone"]),
        (["_stage", "nosuch", "run"], 2, ["there is no stage 'nosuch'", "prepare"]),
        (["_stage", "prepare", "run"], 2, ["run", "is missing"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and value[0][:1].islower() else None,
)
def test_an_error_is_one_message_without_a_traceback(
    tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    if arguments[0] == "_stage":  # it gives the signals of its process back to the system
        luthier(*arguments, cwd=tmp_path).fails(code, *words)
    else:
        call(*arguments, cwd=tmp_path).fails(code, *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["nosuch"], ["run"], ["run", "a", "--nosuch"], ["serve", "a", "--port", "x"]])
def test_a_wrong_command_line_is_the_users(tmp_path: Path, arguments: list[str]) -> None:
    done = call(*arguments, cwd=tmp_path)
    assert done.code == 2
    assert not done.out
    assert "Traceback" not in done.err


def test_a_file_that_may_not_be_used_is_the_users(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    call("recipes", "cp", "support-intents", "file/inside", cwd=tmp_path).fails(2, "file")
    call("prepare", place / "tiny.yaml", "--out", tmp_path / "file", cwd=tmp_path).fails(2, str(tmp_path / "file"))


def test_a_run_folder_takes_no_overrides(place: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.resolved.json").write_text("{}")
    call("train", ".", "--set", "train.seed=1", cwd=tmp_path).fails(2, "is a run, its recipe is fixed", "--set")
    call("train", ".", cwd=tmp_path).fails(2, "recipe.resolved.json is not a ResolvedRecipe")


def test_check_finds_what_the_plan_cannot_work_with(place: Path) -> None:
    """A brace that stands alone, for instance, is fine as YAML."""
    words = ("data.train[0].input: '{text'", "stands alone")
    call("check", "tiny.yaml", "--set", "data.train.0.input='{text'", cwd=place).fails(2, *words)


# --- what reports: one JSON document, nothing else there ---


def test_check_prints_the_resolved_recipe(place: Path) -> None:
    done = call("check", "tiny.yaml", "--set", "train.seed=3", "--json", cwd=place).succeeds()
    resolved = ResolvedRecipe.model_validate(done.document)
    assert resolved.recipe.train.seed == 3
    assert resolved.recipe.train.warmup_ratio is not None
    assert not (place / "runs").exists()


def test_check_explains_every_value(place: Path) -> None:
    lines = call("check", "tiny.yaml", "--explain", cwd=place).succeeds().out.splitlines()
    assert lines[0].startswith("tiny.yaml: fine (120 rows")
    assert any("train.warmup_ratio" in line and "AdamW" in line for line in lines)
    keys = {line.split(" = ")[0] for line in lines[1:]}
    assert {
        "name",
        "data.train.0.path",
        "data.split.test",
        "adapter.r",
        "train.seed",
        "evaluate.level",
        "export",
    } <= keys


def test_plan_prints_a_plan_and_trains_nothing(place: Path) -> None:
    made = Plan.model_validate(call("plan", "tiny.yaml", "--json", cwd=place).succeeds().document)
    assert made.prediction.train_seconds > 0
    text = call("plan", "tiny.yaml", cwd=place).succeeds()
    assert made.chosen in text.out
    assert not text.err
    assert not (place / "runs").exists()


def test_aliases_are_taken_and_said_on_standard_error(place: Path) -> None:
    tree = yaml.safe_load((place / "tiny.yaml").read_text())
    tree["sequence_len"] = tree["train"].pop("max_length")
    (place / "alias.yaml").write_text(yaml.safe_dump(tree))
    done = call("check", "alias.yaml", "--json", cwd=place).succeeds()
    assert done.document["recipe"]["train"]["max_length"] == 128
    assert "'sequence_len' is taken as 'train.max_length'" in done.err


def test_check_and_plan_say_the_same_of_a_recipe_that_is_wrong(place: Path) -> None:
    for verb in ("check", "plan", "run"):
        call(verb, "tiny.yaml", "--set", "trian.seed=1", "--json", cwd=place).fails(
            2, "'trian'", "did you mean 'train'"
        )
        call(verb, "tiny.yaml", "--set", "model.name=nosuch", "--json", cwd=place).fails(
            2, "model.name 'nosuch'", "bundled"
        )
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("key", "value"), [("input", "'{txet}'"), ("label", "knid"), ("input", "'no column'"), ("input", "'{text'")]
)
def test_check_finds_a_column_that_is_not_there(place: Path, key: str, value: str) -> None:
    done = call("check", "tiny.yaml", "--set", f"data.train.0.{key}={value}", cwd=place).fails(2)
    named = value.strip("'{}")
    assert named in done.err
    if named in ("txet", "knid"):
        assert "did you mean" in done.err
        assert f": data.train.0.{key} names the column" in done.err


def test_check_finds_a_group_column_that_is_not_there(place: Path) -> None:
    call("check", "tiny.yaml", "--set", "data.split.group_by=custmer", cwd=place).fails(
        2, "data.split.group_by", "'customer'"
    )


def test_init_writes_a_recipe_that_check_takes(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "my messages (new).csv"
    data.write_bytes((place / "messages.csv").read_bytes())
    done = call("init", data, "--json", cwd=tmp_path).succeeds()
    recipe = Path(done.document["recipe"])
    assert recipe == tmp_path / "my-messages-new.yaml"
    assert DataProfile.model_validate(done.document["profile"]).label == "kind"
    checked = (
        call("check", recipe, "--set", f"model.name={place / 'model'}", "--json", cwd=tmp_path).succeeds().document
    )
    assert checked["recipe"]["data"]["train"][0]["input"] == "{text}"
    assert checked["recipe"]["data"]["split"]["group_by"] == "customer"
    call("init", data, cwd=tmp_path).fails(2, "exists already", "--output")
    other = call("init", data, "--output", "deep/er.yaml", cwd=tmp_path).succeeds()
    assert "next: luthier check deep/er.yaml" in other.out
    call("check", "deep/er.yaml", "--set", f"model.name={place / 'model'}", cwd=tmp_path).succeeds()


def test_init_says_what_it_sees_where_it_cannot_tell(tmp_path: Path) -> None:
    (tmp_path / "numbers.csv").write_text("a,b\n" + "".join(f"{n},{n * 7919 % 1000}.5\n" for n in range(60)))
    call("init", "numbers.csv", cwd=tmp_path).fails(2, "numbers.csv: cannot tell", "a (", "b (", "data.train[0].input")
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.csv"]


def test_recipes_are_listed_and_copied(tmp_path: Path) -> None:
    names = call("recipes", "ls", "--json", cwd=tmp_path).succeeds().document
    assert "support-intents" in names
    assert call("recipes", "ls", cwd=tmp_path).succeeds().out.split() == names
    done = call("recipes", "cp", "support-intents", "mine", cwd=tmp_path).succeeds()
    assert done.out.splitlines() == ["mine/recipe.yaml", "next: luthier run mine/recipe.yaml"]
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= {"recipe.yaml", "support.csv"}
    assert not list((tmp_path / "mine").rglob("__pycache__"))


def test_a_copied_recipe_is_found_by_its_folder_too(place: Path, tmp_path: Path) -> None:
    call("recipes", "cp", "support-intents", cwd=tmp_path).succeeds()
    change = ["--set", f"model.name={place / 'model'}", "--json"]
    by_folder = call("check", "support-intents", *change, cwd=tmp_path).succeeds().document
    by_file = call("check", "support-intents/recipe.yaml", *change, cwd=tmp_path).succeeds().document
    assert by_folder == by_file
    assert by_folder["folder"] == str(tmp_path / "support-intents")


def test_an_empty_registry_and_audit_log(tmp_path: Path) -> None:
    assert call("registry", "ls", "--json", cwd=tmp_path).succeeds().document == []
    assert call("registry", "ls", cwd=tmp_path).succeeds().out == "no versions yet\n"
    nowhere = "there is no audit log at runs/audit.jsonl: the folder does not exist"
    call("audit", "verify", cwd=tmp_path).fails(2, nowhere, "--out")
    assert call("audit", "ls", "--json", cwd=tmp_path).succeeds().document == []
    assert not list(tmp_path.iterdir())
    missing = "there is no audit log at audit.jsonl"
    assert call("audit", "verify", "--out", ".", cwd=tmp_path).succeeds().out == f"{missing}\n"
    assert call("audit", "verify", "--out", ".", "--json", cwd=tmp_path).succeeds().document == {
        "entries": 0,
        "first_broken": None,
        "problem": missing,
    }


def test_the_registry_and_the_audit_log_are_read_from_out(tmp_path: Path) -> None:
    from luthier.store.audit import AuditLog
    from luthier.store.registry import Registry

    Registry(tmp_path / "o" / "registry.sqlite").register(
        "a", tmp_path / "o" / "a" / "1", gate_passed=False, gate_seal="s", weights_sha256="w"
    )
    log = AuditLog(tmp_path / "o" / "audit.jsonl")
    for number in range(3):
        log.append("gate", actor="me", subject=f"a@{number}", details={})
    listed = call("registry", "ls", "--out", "o", "--json", cwd=tmp_path).succeeds().document
    assert [(one["name"], one["version"], one["gate_passed"]) for one in listed] == [("a", 1, False)]
    assert "a@1  gate REFUSED" in call("registry", "ls", "--out", "o", cwd=tmp_path).succeeds().out
    assert [one["subject"] for one in call("audit", "ls", "--out", "o", "--json", cwd=tmp_path).document] == [
        "a@0",
        "a@1",
        "a@2",
    ]
    assert call("audit", "verify", "--out", "o", cwd=tmp_path).succeeds().out == "3 entries, the chain is whole\n"
    text = log.path.read_text()
    log.path.write_text(text.replace('"a@1"', '"b@1"'))
    done = call("audit", "verify", "--out", "o", "--json", cwd=tmp_path)
    assert done.code == 2
    assert json.loads(done.out)["first_broken"] == 2
    assert "audit.jsonl: entry 2 is broken" in done.err
    assert "Traceback" not in done.err
    call("audit", "ls", "--out", "o", cwd=tmp_path).fails(2, "audit.jsonl")
    log.path.unlink()
    log.head_path.unlink()
    words = ("no audit log at o/audit.jsonl, although 1 versions are registered", "from a backup")
    call("audit", "verify", "--out", "o", "--json", cwd=tmp_path).fails(2, *words)


def test_verbs_that_only_look_start_without_torch(place: Path) -> None:
    import subprocess
    import sys

    from command import environment

    program = (
        "import sys; from luthier.cli import app\n"
        "for verb in ('check tiny.yaml', 'plan tiny.yaml', 'recipes ls', 'registry ls', 'audit verify --out .'):\n"
        "    app(verb.split(), standalone_mode=False)\n"
        "bad = {'torch', 'transformers', 'peft', 'sklearn', 'scipy.optimize'} & set(sys.modules)\n"
        "sys.exit(repr(bad) if bad else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=place, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
