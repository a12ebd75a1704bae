"""What people may want to look at among the rows that are left; nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.data.filters import tell_languages
from luthier.data.items import Item
from luthier.data.labels import suspected
from luthier.data.step import Facts
from luthier.data_report import LabelReview, LabelSuspect
from luthier.spec.resolve import ResolvedRecipe


def looked_at(items: Sequence[Item], resolved: ResolvedRecipe) -> Facts:
    """Languages and doubtful labels of the rows that stand in a file."""
    own = [item for item in items if not item.made_by]
    return {"review": _review(own, resolved), "languages": tell_languages(own)}


def _review(items: Sequence[Item], resolved: ResolvedRecipe) -> LabelReview | None:
    """Rows whose label a simple model of the other rows contradicts, the surest first; for people to look at."""
    if not resolved.recipe.data.labels.review:
        return None
    found = suspected(
        [item.text for item in items],
        [item.answer for item in items],
        [item.group for item in items],
        seed=resolved.recipe.data.split.seed,
    )
    if found is None:
        return None
    suspects = tuple(
        LabelSuspect(
            file=items[one.index].file,
            line=items[one.index].line,
            label=items[one.index].answer,
            suggested=one.suggested,
            given_probability=one.given_probability,
            suggested_probability=one.suggested_probability,
        )
        for one in found.suspects
    )
    return LabelReview(agreement=found.agreement, suspects=suspects)
