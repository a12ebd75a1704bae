"""The house rules: floors, sizes, tables, what starts without torch, and what never stands in the code."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.spec.plugins import ADAPTERS, EXPORTS, METHODS, METRICS, READERS, SINKS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "luthier"
FLOORS = {
    "errors": 1,
    "recipes": 1,
    "records": 2,
    "spec": 3,
    "data_report": 4,
    "eval_records": 3,
    "systems": 2,
    "search_records": 3,
    "plan_records": 3,
    "train_records": 3,
    "prune_records": 3,
    "vocabulary_records": 3,
    "approval_records": 3,
    "store": 4,
    "plan": 5,
    "rewards": 5,
    "data": 5,
    "models": 5,
    "engines": 6,
    "train": 7,
    "compress": 7,
    "evals": 7,
    "govern": 7,
    "report": 7,
    "serve": 7,
    "launch": 7,
    "web": 7,
    "pipeline": 8,
    "cli": 9,
}
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MAX_FILE, MAX_FUNCTION, MAX_CONSTRUCTOR, MAX_ARGUMENTS = 600, 100, 60, 9


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    """Rooms of luthier that a file imports, wherever in it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("luthier"):
            parts = node.module.split(".")
            found += [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("luthier.")]
    return [name for name in found if not name.startswith("__")]


def test_rooms_import_only_from_lower_floors() -> None:
    wrong = [
        f"{path.relative_to(SOURCE)} imports {other}"
        for path, tree in TREES.items()
        if path != SOURCE / "__init__.py"
        for other in imports(tree)
        if other != room(path) and FLOORS[other] >= FLOORS[room(path)]
    ]
    assert not wrong


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in FILES} - {"__init__"} <= set(FLOORS)
    assert not (SOURCE / "utils").exists()


def test_files_and_functions_keep_their_size() -> None:
    wrong = []
    for path, tree in TREES.items():
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MAX_FILE:
            wrong.append(f"{path.name}: {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                limit = MAX_CONSTRUCTOR if node.name == "__init__" else MAX_FUNCTION
                arguments = len(node.args.args) + len(node.args.kwonlyargs) + len(node.args.posonlyargs)
                if length > limit or arguments > MAX_ARGUMENTS:
                    wrong.append(f"{path.name}:{node.lineno} {node.name}: {length} lines, {arguments} arguments")
    assert not wrong


def test_nothing_is_caught_too_widely_and_nothing_is_a_stub() -> None:
    wrong = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"(bare)"}
                if names & {"Exception", "BaseException", "(bare)"}:
                    wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno} except {names}")
            if isinstance(node, ast.Name) and node.id == "NotImplementedError":
                wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno} stub")
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                if {"pickle", "dill", "shelve"} & set(modules):
                    wrong.append(f"{path.relative_to(SOURCE)}:{node.lineno} pickle")
    assert not wrong


@pytest.mark.parametrize(
    ("table", "place"),
    [
        (METHODS, "train/methods"),
        (EXPORTS, "compress/export"),
        (METRICS, "evals/metrics"),
        (READERS, "data/readers"),
        (SINKS, "train/sinks"),
    ],
    ids=["methods", "exports", "metrics", "readers", "sinks"],
)
def test_every_descriptor_has_its_implementation_and_the_other_way_round(table: object, place: str) -> None:
    built = {path.stem for path in (SOURCE / place).glob("*.py")} - {"__init__"}
    assert built == set(table.names())  # type: ignore[attr-defined]
    assert all(facts.name == name for name, facts in table.entries().items())  # type: ignore[attr-defined]


def test_every_adapter_is_known_to_peft() -> None:
    import peft

    beside = {name for name, facts in ADAPTERS.entries().items() if not facts.trains_base}
    assert {name.upper() for name in beside} <= {member.name for member in peft.PeftType}


@pytest.mark.parametrize(
    "statement",
    [
        "import luthier",
        "import luthier.cli",
        "from luthier.cli import app; app(['--help'], standalone_mode=False)",
        "import luthier.pipeline.start, luthier.pipeline.drive, luthier.data.prepare",
        "import luthier.plan.make, luthier.report.html",
        "import luthier.models.source, luthier.models.shape",
        "import luthier.pipeline.inspect, luthier.data.readers.xlsx, luthier.data.readers.sqlite",
    ],
)
def test_starts_without_torch_and_transformers(statement: str) -> None:
    look = "bad = {'torch', 'transformers', 'peft'} & set(sys.modules); sys.exit(repr(bad) if bad else 0)"
    check = f"import sys; {statement}; {look}"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_luthier_itself_imports_nothing() -> None:
    check = "import sys; before = set(sys.modules); import luthier; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['luthier']"


def test_no_machine_path_or_registry_host_in_the_tree() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    words = ("/" + "work/", "/" + "root/", "files.pythonhosted" + ".org", "pypi" + ".org/simple")
    wrong = [
        f"{name}: {word}"
        for name in files
        if (ROOT / name).suffix in {".py", ".md", ".yaml", ".toml", ".sh", ".txt", ""} and (ROOT / name).is_file()
        for word in words
        if word in (ROOT / name).read_text(encoding="utf-8", errors="replace")
    ]
    assert not wrong


def test_the_package_is_typed() -> None:
    assert importlib.util.find_spec("luthier") is not None
    assert (SOURCE / "py.typed").is_file()


def test_test_files_have_names_of_their_own() -> None:
    """pytest takes two of one name in two folders for the same module, where both are collected."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert not sorted({name for name in names if names.count(name) > 1})
