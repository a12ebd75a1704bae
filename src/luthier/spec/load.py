"""Read a recipe: YAML, aliases, overrides, environment, then the typed sections. Every fault names file, line, key."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from luthier.errors import RecipeError
from luthier.spec.aliases import ALIASES, ELSEWHERE, NOT_BUILT
from luthier.spec.limits import Limit, parse_limit
from luthier.spec.plugins import ADAPTERS, EXPORTS, METHODS, READERS, SINKS, Table
from luthier.spec.recipe import Recipe
from luthier.spec.section import Section
from luthier.spec.steps import refuse_impossible

_MOST_NODES = 10_000  # of a recipe once its YAML aliases are written out; the longest real one has some hundred
_ENVIRONMENT = re.compile(r"\$(\$)?\{([A-Za-z_][A-Za-z0-9_]*)\}")

_FILE_KEY = re.compile(
    r"data\.(?:train\.\d+\.path|validation|test|leakage\.benchmarks\.\d+|privacy\.annotations|teacher\.path)"
)
_CREDENTIAL = re.compile(
    r"://[^/@:]*:([^/]*)@"
    r"|[?&;][\w.-]*(?:password|passwd|pwd|token|secret|sig|signature|key|credential)=([^&;]*)",
    re.IGNORECASE,
)

_DOTTED = (["objective", "targets"], ["objective", "non_regression"])


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe with what is needed to talk about it."""

    recipe: Recipe
    path: Path
    text: str
    notes: tuple[str, ...]
    """What was translated: aliases taken, one sentence each."""
    places: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Key path -> 'FILE:LINE'."""

    @property
    def folder(self) -> Path:
        """Folder that the recipe's paths are relative to."""
        return self.path.parent

    def where(self, key: str) -> str:
        """'FILE:LINE' of a key, or of the innermost section around it that was written down."""
        return _place({"": str(self.path), **self.places}, key)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads 2e-4 as a number, as YAML 1.2 does."""


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: a column called '0E0' goes into quotes."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def dump_recipe(tree: Mapping[str, object]) -> str:
    """The tree as the YAML of a recipe."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


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
    tree, places = _parse(path, text)
    notes = _take_aliases(tree, places)
    _normalise(tree)
    for override in overrides:
        notes += _override(tree, override, places)
        _normalise(tree)  # so that the next may go on below a short form
    _refuse_credentials(tree, places)
    tree = _substitute(tree, environment, "", places)
    _refuse_unknown_types(tree, places)
    _refuse_unknown(tree, Recipe, "", places)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise translate(error, places) from error
    _refuse_unknown_values(recipe, places)
    return LoadedRecipe(recipe, path, text, tuple(notes), places)


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
                key=f"objective.{'non_regression' if limit.relative else 'targets'}.{limit.key}",
            )
    return tuple(limits)


def _read(path: Path) -> str:
    if not path.is_file():
        raise RecipeError(
            f"recipe {str(path)!r} is not a file", way_out="give a YAML file, or a name from `luthier recipes ls`"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: byte {error.start} is not UTF-8", way_out="save it as UTF-8 text") from error
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}", way_out="check its permissions") from error
    if not text.strip():
        raise RecipeError(f"{path} is empty", way_out="start from `luthier init DATA` or `luthier recipes cp`")
    return text


def _parse(path: Path, text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The tree, and key path -> 'FILE:LINE'; the key '' stands for the recipe as a whole."""
    node, tree = _yaml(text, str(path), way_out="check indentation and quotes on that line")
    if not isinstance(tree, dict):
        raise RecipeError(
            f"{path}: a recipe is a mapping of sections, found {type(tree).__name__}",
            way_out="start from `luthier init DATA` or `luthier recipes cp`",
        )
    assert node is not None
    return tree, {"": str(path), **dict(_places(node, "", path))}


def _yaml(text: str, where: str, *, way_out: str) -> tuple[yaml.Node | None, Any]:
    """Nodes and values of a YAML text; small once its aliases are written out."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None and _size(node, {}) > _MOST_NODES:
            raise RecipeError(
                f"{where}: more than {_MOST_NODES} values, YAML aliases written out",
                way_out="write what is meant without `&` and `*`",
            )
        return node, yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}{line}: not YAML: {problem}", way_out=way_out) from error
    except RecursionError as error:
        raise RecipeError(f"{where}: nested too deeply to be a recipe", way_out="see `luthier recipes cp`") from error
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # what PyYAML's constructors let through
        raise RecipeError(
            f"{where}: a date, number or tagged value cannot be read: {error}", way_out="put it in quotes if it is text"
        ) from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values below and with `node`, one that is referred to again counted again; a few times the limit at most."""
    if id(node) not in known:
        known[id(node)] = _MOST_NODES  # a node that contains itself is endless
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        inner = 0 if isinstance(node, yaml.ScalarNode) else sum(_size(part, known) for part in parts)
        known[id(node)] = min(1 + inner, 2 * _MOST_NODES)
    return known[id(node)]


def _places(node: yaml.Node, prefix: str, path: Path) -> Iterator[tuple[str, str]]:
    """Key path -> 'FILE:LINE', lines from 1; list items are `key.0`."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            where = f"{path}:{key.start_mark.line + 1}"
            if name in seen:
                raise RecipeError(f"{where}: the key {prefix + name!r} stands twice", way_out="keep one of them")
            seen.add(name)
            yield prefix + name, where
            yield from _places(value, f"{prefix}{name}.", path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield f"{prefix}{index}", f"{path}:{value.start_mark.line + 1}"
            yield from _places(value, f"{prefix}{index}.", path)


def _place(places: Mapping[str, str], key: str) -> str:
    """Where `key`, or the innermost section around it that was written down, stands."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places[key]


def _override(tree: dict[str, Any], override: str, places: dict[str, str]) -> list[str]:
    """Put one `--set` into the tree; returns a note where its key is an alias."""
    where = f"--set {override!r}"
    key, equals, value = override.partition("=")
    asked = key.strip()
    if not equals or not all(asked.split(".")):
        raise RecipeError(f"{where} is not KEY=VALUE", way_out="write e.g. --set train.seed=1")
    key = _canonical(asked)
    *parts, leaf = _parts(key)
    if parts in _DOTTED:  # '>= 0.9' is our own text, which YAML would take for a block scalar
        parsed: Any = value.strip().strip("'\"")
    else:
        _, parsed = _yaml(value, where, way_out="quote the value")
    place: Any = tree
    for part in parts:
        if isinstance(place, list) and part.isdecimal() and int(part) < len(place):
            place = place[int(part)]
        elif isinstance(place, dict) and isinstance(place.setdefault(part, {}), dict | list):
            place = place[part]
        else:
            raise RecipeError(f"{where}: there is nothing below {part!r} to set", way_out="set the section as a whole")
    if isinstance(place, list) and leaf.isdecimal() and int(leaf) < len(place):
        place[int(leaf)] = parsed
    elif isinstance(place, dict):
        place[leaf] = parsed
    else:
        raise RecipeError(f"{where}: {leaf!r} is not an item of that list", way_out="set the list as a whole")
    for known in [known for known in places if known.startswith(f"{key}.")]:
        del places[known]
    places[key] = where
    return [f"{asked!r} is taken as {key!r}"] if asked != key else []


def _parts(key: str) -> list[str]:
    """The steps to a key; what stands below targets and limits is NAME.METRIC, one key with a dot in it."""
    parts = key.split(".")
    return [*parts[:2], ".".join(parts[2:])] if parts[:2] in _DOTTED and len(parts) > 2 else parts


def _canonical(key: str) -> str:
    """The recipe's own name of a key that other tools call otherwise."""
    for alias, canonical in ALIASES.items():
        section = canonical.partition(".")[0]
        for known in (alias, f"{section}.{alias}"):
            if key == known or key.startswith(f"{known}."):
                return canonical + key[len(known) :]
    return key


def _take_aliases(tree: dict[str, Any], places: dict[str, str]) -> list[str]:
    notes = []
    for alias, canonical in ALIASES.items():
        section, leaf = canonical.split(".")
        holders = [(tree, alias)]
        inner = tree.get(section)
        if isinstance(inner, dict) and alias != leaf:
            holders.append((inner, f"{section}.{alias}"))
        for holder, shown in holders:
            if alias not in holder:
                continue
            where = _place(places, shown)
            target = tree.get(section)
            if target is None or (isinstance(target, str) and section == "model"):
                tree[section] = target = {"name": target} if isinstance(target, str) else {}
            if not isinstance(target, dict):
                raise RecipeError(
                    f"{where}: {section!r} must be a mapping to take {shown!r}", way_out=f"write {canonical!r}"
                )
            if leaf in target:
                raise RecipeError(
                    f"{where}: {shown!r} and {canonical!r} say the same thing", way_out=f"keep {canonical!r}"
                )
            target[leaf] = holder.pop(alias)
            places |= {
                canonical + key[len(shown) :]: place
                for key, place in places.items()
                if key == shown or key.startswith(f"{shown}.")
            }
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
    if isinstance(tree.get("method"), dict):
        tree["method"].setdefault("type", "auto")
    if isinstance(tree.get("adapter"), str):
        tree["adapter"] = {"type": tree["adapter"]}
    if isinstance(tree.get("export"), str):
        tree["export"] = [tree["export"]]
    train = tree.get("train")
    if isinstance(train, dict) and isinstance(train.get("report_to"), str):
        train["report_to"] = [] if train["report_to"] == "none" else [train["report_to"]]
    data = tree.get("data")
    if isinstance(data, str):
        tree["data"] = data = {"train": data}
    if isinstance(data, dict):
        for name in ("privacy", "augment", "canaries"):
            if name in data and data[name] is None:
                data[name] = {}
        for name in ("augment", "canaries"):
            if data.get(name) is False:
                del data[name]
        train = data.get("train")
        if isinstance(train, str | dict):
            train = [train]
        if isinstance(train, list):
            data["train"] = [{"path": item} if isinstance(item, str) else item for item in train]
            for item in data["train"]:
                if isinstance(item, dict) and isinstance(item.get("method"), str):
                    item["method"] = {"type": item["method"]}


def without_environment(text: str) -> str:
    """`text` as a recipe must say it, so that a '${NAME}' in it stands for itself."""
    return re.sub(r"\$(?=\{[A-Za-z_][A-Za-z0-9_]*\})", "$$", text)


def _substitute(value: Any, environment: Mapping[str, str], key: str, places: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            name: _substitute(item, environment, f"{key}.{name}".lstrip("."), places) for name, item in value.items()
        }
    if isinstance(value, list):
        return [_substitute(item, environment, f"{key}.{index}", places) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    try:
        substituted = with_environment(value, environment)
    except RecipeError as error:
        raise RecipeError(f"{_place(places, key)}: {key}: {error.what}", way_out=error.way_out) from error
    # A URL keeps its names, so that no record ever holds a password; what opens it looks them up.
    return value if _FILE_KEY.fullmatch(key) and "://" in substituted else substituted


def with_environment(text: str, environment: Mapping[str, str]) -> str:
    """The text with what the environment holds for each `${NAME}`.

    Raises:
        RecipeError: a name is not set.
    """

    def look_up(match: re.Match[str]) -> str:
        if match[1]:
            return "${" + match[2] + "}"
        if match[2] not in environment:
            raise RecipeError(
                f"${{{match[2]}}} is not set in the environment",
                way_out=f"export {match[2]}=..., or write $${{{match[2]}}} for the text itself",
            )
        return environment[match[2]]

    return _ENVIRONMENT.sub(look_up, text)


def _refuse_credentials(tree: Any, places: Mapping[str, str], key: str = "") -> None:
    """A password in a URL would go into every record of a run; a name of the environment does not.

    Raises:
        RecipeError: without the value.
    """
    if isinstance(tree, dict | list):
        for name, item in tree.items() if isinstance(tree, dict) else enumerate(tree):
            _refuse_credentials(item, places, f"{key}.{name}".lstrip("."))
    elif isinstance(tree, str) and _FILE_KEY.fullmatch(key):
        where = _place(places, key)
        refuse_credentials(tree, where=f"{'--set' if where.startswith('--set') else where}: {key}")


def refuse_credentials(text: str, *, where: str) -> None:
    """Stop where a password stands in a URL.

    Args:
        text: what may be a URL.
        where: it was written, for the message.

    Raises:
        RecipeError: without the value.
    """
    for match in _CREDENTIAL.finditer(text):
        if not _ENVIRONMENT.fullmatch(match[1] or match[2] or ""):
            raise RecipeError(
                f"{where}: a password stands in the URL",
                way_out="put it into the environment and write ${NAME} in its place",
            )


def _refuse_unknown(tree: Any, section: type[BaseModel], prefix: str, places: Mapping[str, str]) -> None:
    if not isinstance(tree, dict):
        return
    for key, value in tree.items():
        full = f"{prefix}{key}"
        where = _place(places, full)
        if full in NOT_BUILT:
            raise RecipeError(f"{where}: {full!r} ({NOT_BUILT[full]}) is not built yet", way_out="remove it")
        known = list(section.model_fields)
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix + close[0]!r}? " if close else ""
            hint = f"here that is {ELSEWHERE[key]}; " if key in ELSEWHERE else hint
            raise RecipeError(f"{where}: unknown key {full!r}", way_out=f"{hint}known here: {', '.join(known)}")
        for index, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
            inner = _section_of(section, key, item.get("type") if isinstance(item, dict) else None)
            if inner is not None:
                _refuse_unknown(item, inner, f"{full}." if index is None else f"{full}.{index}.", places)


def _section_of(section: type[BaseModel], key: str, tag: object) -> type[Section] | None:
    """What stands below a key; of several, the one that `tag` chooses."""
    found = sections_in(section.model_fields[key].annotation)
    if len(found) > 1:
        usual = found[0].model_fields["type"].default
        found = [one for one in found if one.model_fields["type"].default == (usual if tag is None else tag)]
    return found[0] if found else None


def sections_in(annotation: Any) -> list[type[Section]]:
    """The sections that a field of this type may hold."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Section) else []
    return [found for part in get_args(annotation) for found in sections_in(part)]


def key_of(place: Sequence[int | str]) -> str:
    """The key of a validation error; the `type` of a section, which pydantic puts into it, is no part of the key."""
    section: type[BaseModel] | None = Recipe
    parts: list[str] = []
    for part in place:
        if section is not None and isinstance(part, str) and part not in section.model_fields:
            if parts and (tagged := _section_of(Recipe, parts[0], part)) is not None and len(parts) == 1:
                section = tagged
                continue
            section = None
        parts.append(str(part))
        if section is not None and isinstance(part, str):
            found = sections_in(section.model_fields[part].annotation)
            # Of several sections the next part says which.
            section = found[0] if len(found) == 1 else _Tagged if found else None
    return ".".join(parts)


class _Tagged(BaseModel):
    """One of several sections; no key is known before its `type` is."""


def translate(error: ValidationError, places: Mapping[str, str]) -> RecipeError:
    """A validation error in words, with the place of its key."""
    first = error.errors()[0]
    key = key_of(first["loc"])
    where = _place(places, key)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return RecipeError(
            f"{where}: the key {key!r} is missing", way_out=f"add {key!r}; `luthier init DATA` writes a whole recipe"
        )
    found = "" if isinstance(first["input"], dict | list) else f", found {first['input']!r}"
    return RecipeError(
        f"{where}: {key or 'recipe'}: {message}{found}",
        way_out="correct the value; `luthier check --explain` shows all keys",
    )


def _refuse_unknown_types(tree: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Said first: which keys a section has follows from its type."""
    tables: dict[str, Table[Any]] = {"method": METHODS, "adapter": ADAPTERS}
    for key, table in tables.items():
        section = tree.get(key)
        name = section.get("type") if isinstance(section, dict) else None
        if isinstance(name, str) and (key, name) != ("method", "auto"):
            with _at(places, f"{key}.type"):
                table.get(name)


def _refuse_unknown_values(recipe: Recipe, places: Mapping[str, str]) -> None:
    """Names that are in no table, and lines of the objective that cannot be read."""
    if len(recipe.data.train) == 1 and "weight" in recipe.data.train[0].model_fields_set:
        raise RecipeError(
            f"{_place(places, 'data.train.0.weight')}: data.train.0.weight is what a task counts beside others, and "
            "there is one entry",
            way_out="leave it out",
        )
    for index, entry in enumerate(recipe.data.train):
        if entry.format is not None:
            with _at(places, f"data.train.{index}.format"):
                READERS.get(entry.format)
    for index, name in enumerate(recipe.export or ()):
        with _at(places, f"export.{index}"):
            EXPORTS.get(name)
    for index, name in enumerate(recipe.train.report_to):
        with _at(places, f"train.report_to.{index}"):
            SINKS.get(name)
    for key, given in (("export", recipe.export or ()), ("train.report_to", recipe.train.report_to)):
        if len(set(given)) != len(given):
            raise RecipeError(f"{_place(places, key)}: {key}: a name stands twice in {list(given)}", way_out="keep one")
    try:
        refuse_impossible(recipe.data.steps or ())
    except RecipeError as error:
        raise RecipeError(f"{_place(places, error.key)}: data.steps: {error.what}", way_out=error.way_out) from error
    objective = recipe.objective
    for section, limits in (("targets", objective.targets), ("non_regression", objective.non_regression)):
        for key, text in limits.items():
            with _at(places, f"objective.{section}.{key}"):
                parse_limit(key, text, section=section)


@contextlib.contextmanager
def _at(places: Mapping[str, str], key: str) -> Iterator[None]:
    """Say where in the recipe an error comes from."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{_place(places, key)}: {error.what}", way_out=error.way_out) from error
