"""Read a recipe: YAML, overrides, environment, aliases, then the typed sections. Every fault names file, line and key."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from luthier.errors import RecipeError
from luthier.spec.aliases import ALIASES, NOT_BUILT
from luthier.spec.limits import Limit, parse_limit
from luthier.spec.plugins import ADAPTERS, EXPORTS, METHODS
from luthier.spec.recipe import Recipe, Section

_ENVIRONMENT = re.compile(r"\$(\$)?\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with what is needed to talk about it."""

    recipe: Recipe
    path: Path
    text: str
    notes: tuple[str, ...]
    """What was translated: aliases taken, one sentence each."""

    @property
    def folder(self) -> Path:
        """Folder that the recipe's paths are relative to."""
        return self.path.parent


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 2e-4 as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load_recipe(
    path: Path, *, overrides: Sequence[str] = (), environment: Mapping[str, str] = os.environ
) -> LoadedRecipe:
    """Read the recipe at `path`.

    Args:
        path: a YAML file.
        overrides: `key.path=value` texts, the value in YAML.
        environment: where `${NAME}` is looked up.

    Raises:
        RecipeError: with file, line or key, the value found and the way out.
    """
    text = _read(path)
    tree, lines = _parse(path, text)
    for override in overrides:
        _override(tree, override)
    notes = _take_aliases(tree, path)
    _normalise(tree)
    tree = _substitute(tree, environment, path)
    _refuse_unknown(tree, Recipe, "", path, lines)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise _translate(error, path, lines) from error
    _refuse_unbuilt_values(recipe, path)
    return LoadedRecipe(recipe, path, text, tuple(notes))


def limits_of(recipe: Recipe) -> tuple[Limit, ...]:
    """All lines of the objective, targets first.

    Raises:
        RecipeError: a line cannot be read, or names no data entry.
    """
    objective = recipe.objective
    limits = [parse_limit(key, text, section="targets") for key, text in objective.targets.items()]
    limits += [parse_limit(key, text, section="non_regression") for key, text in objective.non_regression.items()]
    for limit in limits:
        if limit.subject not in ("general", recipe.entry.name):
            raise RecipeError(
                f"objective: {limit.key!r} names no data entry (there is {recipe.entry.name!r})",
                way_out=f"write '{recipe.entry.name}.{limit.metric}', or set data.train[0].name",
            )
    return tuple(limits)


def _read(path: Path) -> str:
    if not path.is_file():
        raise RecipeError(f"recipe {str(path)!r} is not a file", way_out="give a YAML file, or a name from `luthier recipes ls`")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8", way_out="save the recipe as UTF-8 text") from error
    if not text.strip():
        raise RecipeError(f"{path} is empty", way_out="start from `luthier init DATA` or `luthier recipes cp`")
    return text


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        node = yaml.compose(text, Loader=_Loader)
        lines = dict(_lines(node, "", path)) if node is not None else {}
        tree = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{where}: not YAML: {problem}", way_out="check indentation and quotes on that line") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: nested too deeply to be a recipe", way_out="see `luthier recipes cp`") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections, found {type(tree).__name__}",
                          way_out="start from `luthier init DATA` or `luthier recipes cp`")
    return tree, lines


def _lines(node: yaml.Node, prefix: str, path: Path) -> Iterator[tuple[str, int]]:
    """Key path -> 1-based line; list items are `key.0`."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen:
                raise RecipeError(f"{path}:{key.start_mark.line + 1}: the key {prefix + name!r} stands twice",
                                  way_out="keep one of them")
            seen.add(name)
            yield prefix + name, key.start_mark.line + 1
            yield from _lines(value, f"{prefix}{name}.", path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield f"{prefix}{index}", value.start_mark.line + 1
            yield from _lines(value, f"{prefix}{index}.", path)


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override!r} is not KEY=VALUE", way_out="write e.g. --set train.seed=1")
    try:
        parsed = yaml.load(value, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {override!r}: the value is not YAML", way_out="quote it") from error
    place: Any = tree
    for part in parts[:-1]:
        if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
            continue
        if not isinstance(place, dict):
            raise RecipeError(f"--set {override!r}: {part!r} cannot be reached", way_out="set the section as a whole")
        if not isinstance(place.get(part), dict | list):
            place[part] = {}
        place = place[part]
    if isinstance(place, list) and parts[-1].isdecimal() and int(parts[-1]) < len(place):
        place[int(parts[-1])] = parsed
    elif isinstance(place, dict):
        place[parts[-1]] = parsed
    else:
        raise RecipeError(f"--set {override!r}: the last part cannot be reached", way_out="set the section as a whole")


def _take_aliases(tree: dict[str, Any], path: Path) -> list[str]:
    notes = []
    for alias, canonical in ALIASES.items():
        section, leaf = canonical.split(".")
        places = [(tree, alias, alias)]
        inner = tree.get(section)
        if isinstance(inner, dict) and alias != leaf:
            places.append((inner, alias, f"{section}.{alias}"))
        for place, key, shown in places:
            if key not in place:
                continue
            value = place.pop(key)
            target = tree.get(section)
            if target is None or (isinstance(target, str) and section == "model"):
                target = {"name": target} if isinstance(target, str) else {}
                tree[section] = target
            if not isinstance(target, dict):
                raise RecipeError(f"{path}: {section!r} must be a mapping to take {shown!r}", way_out=f"write {canonical}")
            if leaf in target:
                raise RecipeError(f"{path}: {shown!r} and {canonical!r} say the same thing", way_out=f"keep {canonical!r}")
            target[leaf] = value
            notes.append(f"{shown!r} is taken as {canonical!r}")
    return notes


def _normalise(tree: dict[str, Any]) -> None:
    """Short forms: `model: NAME`, `data.train: FILE`, an empty section."""
    for name in ("objective", "data", "method", "adapter", "train", "evaluate"):
        if name in tree and tree[name] is None:
            tree[name] = {}
    if isinstance(tree.get("model"), str):
        tree["model"] = {"name": tree["model"]}
    if isinstance(tree.get("method"), str):
        tree["method"] = {"type": tree["method"]}
    if isinstance(tree.get("export"), str):
        tree["export"] = [tree["export"]]
    data = tree.get("data")
    if isinstance(data, str):
        tree["data"] = data = {"train": data}
    if isinstance(data, dict):
        if "privacy" in data and data["privacy"] is None:
            data["privacy"] = {}
        train = data.get("train")
        if isinstance(train, str | dict):
            train = [train]
        if isinstance(train, list):
            data["train"] = [{"path": item} if isinstance(item, str) else item for item in train]


def _substitute(value: Any, environment: Mapping[str, str], path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, environment, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, environment, path) for item in value]
    if not isinstance(value, str):
        return value

    def look_up(match: re.Match[str]) -> str:
        if match[1]:
            return "${" + match[2] + "}"
        if match[2] not in environment:
            raise RecipeError(f"{path}: ${{{match[2]}}} is not set in the environment",
                              way_out=f"export {match[2]}=..., or write $${{{match[2]}}} for the text itself")
        return environment[match[2]]

    return _ENVIRONMENT.sub(look_up, value)


def _refuse_unknown(
    tree: Any, section: type[BaseModel], prefix: str, path: Path, lines: Mapping[str, int]
) -> None:
    if not isinstance(tree, dict):
        return
    for key, value in tree.items():
        full = f"{prefix}{key}"
        where = f"{path}:{lines[full]}" if full in lines else str(path)
        if full in NOT_BUILT:
            raise RecipeError(f"{where}: {full!r} ({NOT_BUILT[full]}) is not built yet", way_out="remove it")
        known = list(section.model_fields)
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix + close[0]!r}? " if close else ""
            raise RecipeError(f"{where}: unknown key {full!r}", way_out=f"{hint}known here: {', '.join(known)}")
        inner = _section_of(section.model_fields[key].annotation)
        if inner is not None:
            for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
                _refuse_unknown(item, inner, f"{full}." if index is None else f"{full}.{index}.", path, lines)


def _section_of(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Section) else None
    return next((found for part in get_args(annotation) if (found := _section_of(part))), None)


def _translate(error: ValidationError, path: Path, lines: Mapping[str, int]) -> RecipeError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    known = key
    while known and known not in lines:
        known = known.rpartition(".")[0]
    where = f"{path}:{lines[known]}" if known else str(path)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return RecipeError(f"{where}: the key {key!r} is missing", way_out=f"add {key!r}; `luthier init DATA` writes a whole recipe")
    found = "" if isinstance(first["input"], dict | list) else f", found {first['input']!r}"
    return RecipeError(f"{where}: {key or 'recipe'}: {message}{found}", way_out="correct the value; `luthier check --explain` shows all keys")


def _refuse_unbuilt_values(recipe: Recipe, path: Path) -> None:
    if recipe.method.type != "auto":
        METHODS.get(recipe.method.type)
    if recipe.adapter.type is not None:
        ADAPTERS.get(recipe.adapter.type)
    for name in recipe.export or ():
        EXPORTS.get(name)
    if recipe.export is not None and len(set(recipe.export)) != len(recipe.export):
        raise RecipeError(f"{path}: export: a name stands twice in {list(recipe.export)}", way_out="keep one")
