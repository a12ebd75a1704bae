"""Rows that a recipe does not want: too short, too long, another language, little but repetition."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from luthier.data.items import Item, Verdict
from luthier.data_report import Languages
from luthier.errors import MissingExtra, RecipeError
from luthier.spec.recipe import Filter

FEWEST_LETTERS = 20
"""Letters below which a language cannot be told; such rows stay."""

UNLIKELY = 0.05
"""Probability of all wanted languages together below which a row counts as being in another one."""

_TOLD = 1000

FEWEST_WORDS = 12
"""Words below which repetition says nothing; such rows stay."""

_WORD = re.compile(r"\w+")


def filtered(items: Sequence[Item], rules: Filter) -> list[Verdict | None]:
    """A verdict for each row that the rules set aside.

    Raises:
        MissingExtra: a language is asked for and the package that tells languages is not installed.
        RecipeError: a language is not known to it.
    """
    identify = _identifier(rules.languages) if rules.languages else None
    return [_verdict(_text(item), rules, identify) for item in items]


def tell_languages(items: Sequence[Item]) -> Languages | None:
    """Languages of at most `_TOLD` rows, evenly spread; None where the package that tells languages is missing."""
    if find_spec("py3langid") is None:
        return None
    every = range(0, len(items), -(-len(items) // _TOLD) or 1)
    texts = [_text(items[place]) for place in every]
    long = [text for text in texts if sum(map(str.isalpha, text)) >= FEWEST_LETTERS]
    counts = Counter(_model().classify(text)[0] for text in long)
    rows = dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
    return Languages(looked_at=len(texts), rows=rows, too_short=len(texts) - len(long))


def _text(item: Item) -> str:
    return "\n".join(turn.content for turn in item.turns) if item.turns else item.text


def _verdict(text: str, rules: Filter, identify: Any) -> Verdict | None:
    if rules.min_chars is not None and len(text) < rules.min_chars:
        return "too_short", f"{len(text)} characters, data.filter.min_chars is {rules.min_chars}"
    if rules.max_chars is not None and len(text) > rules.max_chars:
        return "too_many_characters", f"{len(text)} characters, data.filter.max_chars is {rules.max_chars}"
    if rules.max_repetition is not None and (share := repetition(text)) > rules.max_repetition:
        most = rules.max_repetition
        return "repetitive", f"{share:.2f} of its words are repeated, data.filter.max_repetition is {most}"
    if identify is not None and sum(map(str.isalpha, text)) >= FEWEST_LETTERS:
        likely: list[tuple[str, float]] = identify(text)
        if sum(probability for language, probability in likely if language in rules.languages) < UNLIKELY:
            language, probability = likely[0]
            asked = ", ".join(rules.languages)
            return "other_language", f"{language} ({probability:.2f}), data.filter.languages is {asked}"
    return None


def repetition(text: str) -> float:
    """Share of the words that occurred before in the text; 0 for a text of few words."""
    words = _WORD.findall(text.casefold())
    return 1 - len(set(words)) / len(words) if len(words) >= FEWEST_WORDS else 0.0


def _identifier(languages: Sequence[str]) -> Any:
    found = _model()
    unknown = sorted(set(languages) - set(found.labels))
    if unknown:
        raise RecipeError(
            f"data.filter.languages: {unknown[0]!r} is not known",
            way_out=f"codes are those of ISO 639-1: {', '.join(sorted(found.labels))}",
        )
    return found.rank


@functools.cache
def _model() -> Any:
    try:
        from py3langid import langid
    except ImportError as error:
        raise MissingExtra("py3langid", extra="data", purpose="data.filter.languages") from error
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
