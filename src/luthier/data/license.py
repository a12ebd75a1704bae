"""The license that a data set states itself: in its card, as the hub keeps it, or in `dataset_info.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

_CARD, _INFO = "README.md", "dataset_info.json"
_MOST_BYTES = 1 << 20
_MOST_CHARS = 200


def stated_license(path: Path) -> str:
    """What is stated for a folder, or for the one that a file lies in; '' where nothing is."""
    folder = path if path.is_dir() else path.parent
    places = [folder, folder.parent] if folder.name == "data" else [folder]
    for place in places:
        for name, read in ((_CARD, _front_matter), (_INFO, _info)):
            if (found := _license(read(place / name))) != "":
                return found
    return ""


def _text(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _front_matter(path: Path) -> Any:
    """The YAML between the '---' lines that a card begins with; None for a README that is something else."""
    first, _, rest = _text(path).lstrip("\ufeff").partition("\n")
    if first.rstrip() != "---":
        return None
    matter, end, _ = rest.replace("\r\n", "\n").partition("\n---")
    try:
        return yaml.safe_load(matter) if end else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _info(path: Path) -> Any:
    try:
        return json.loads(_text(path) or "null")
    except (ValueError, RecursionError):
        return None


def _license(facts: Any) -> str:
    if not isinstance(facts, dict):
        return ""
    named = facts.get("license")
    if named == "other":  # the hub's word for one that it has no name for
        named = facts.get("license_name") or named
    names = named if isinstance(named, list) else [named]
    return ", ".join(one.strip() for one in names if isinstance(one, str) and one.strip())[:_MOST_CHARS]
