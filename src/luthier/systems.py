"""The systems that an evaluation compares: their names, and which of them speak first where they win."""

from __future__ import annotations

from dataclasses import dataclass

PARENT = "parent "
"""How the system of a merged run begins; its name follows."""

PRUNED = "pruned"
"""What pruning left of the base, before training healed it."""

LINEAR = ("tfidf_logreg", "tfidf_ridge")
"""Those that count words."""

SHORT = 14
"""Characters of a short title."""


@dataclass(frozen=True)
class _Names:
    title: str
    """In charts and tables."""
    subject: str
    """Begins a sentence."""
    short: str
    """In a narrow column."""
    in_first_line: bool = False
    """Whether its victory is the first line of a report; of the others the difference to the base says enough."""


_SYSTEMS = {
    "tfidf_logreg": _Names("TF-IDF + logistic regression", "TF-IDF + logistic regression", "TF-IDF", True),
    "tfidf_ridge": _Names("TF-IDF + ridge regression", "TF-IDF + ridge regression", "TF-IDF", True),
    "few_shot": _Names("base model, few-shot", "The base model with examples in its prompt", "few-shot", True),
    "length": _Names("length alone", "Choosing by length alone", "length", True),
    PARENT: _Names("merged run", "The merged run", ""),
    "base_per_token": _Names("base model, a token", "The base model, by likelihood a token,", "base, a token", True),
    "base": _Names("base model", "The base model without tuning", "base"),
    PRUNED: _Names("pruned, not healed", "The pruned model before it was healed", "pruned"),
    "majority": _Names("majority class", "Always answering the most frequent label", "majority"),
    "mean": _Names("mean", "Always answering the mean of the training rows", "mean", True),
    "tuned": _Names("tuned model", "The tuned model", "tuned"),
}
"""Those that are told first come first."""


def _names(system: str) -> _Names:
    return _SYSTEMS[PARENT if system.startswith(PARENT) else system]


def system_title(system: str) -> str:
    """Short name; a merged run goes by its own."""
    return system.removeprefix(PARENT) if system.startswith(PARENT) else _names(system).title


def short_title(system: str) -> str:
    """For a narrow column; a merged run goes by its own name, which is cut."""
    return _names(system).short or _cut(system.removeprefix(PARENT))


def _cut(name: str) -> str:
    return name if len(name) <= SHORT else name[: SHORT - 1] + "…"


def subject(system: str) -> str:
    """What a sentence about it begins with."""
    named = f" {system.removeprefix(PARENT)}" if system.startswith(PARENT) else ""
    return _names(system).subject + named


def is_in_first_line(system: str) -> bool:
    """Whether a report begins with it where it beats the tuned model."""
    return _names(system).in_first_line


def place(system: str) -> int:
    """The lower the earlier it is told."""
    return list(_SYSTEMS).index(PARENT if system.startswith(PARENT) else system)
