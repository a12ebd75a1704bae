"""The file of terms that a recipe names."""

from __future__ import annotations

from luthier.errors import DataError
from luthier.evals.glossary import read_glossary
from luthier.evals.terminology import read_terminology
from luthier.records import is_text
from luthier.spec.resolve import ResolvedRecipe


def glossary_of(resolved: ResolvedRecipe) -> tuple[str, str] | None:
    """Its name and text; None where the recipe names none.

    Raises:
        DataError: it is no text.
    """
    name = resolved.recipe.evaluate.glossary
    if name is None:
        return None
    try:
        return name, resolved.file(name).read_text(encoding="utf-8")
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise DataError(f"evaluate.glossary: {name} is not UTF-8 text", way_out="write one term a line") from error


def refuse_odd_glossary(resolved: ResolvedRecipe) -> None:
    """A file that cannot be read as the task needs it stops before anything is trained.

    Raises:
        DataError: see `luthier.evals.terminology.read_terminology` and `luthier.evals.glossary.read_glossary`.
    """
    found = glossary_of(resolved)
    if found is None:
        return
    name, text = found
    task = resolved.recipe.entry.task or ""
    if is_text(task):
        read_glossary(text, name=name)
    else:
        read_terminology(text, name=name, task=task)
