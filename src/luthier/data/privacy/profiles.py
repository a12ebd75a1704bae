"""The three profiles behind one interface, and what each cannot find, in words.

`fast` is what stands in `luthier.data.privacy` itself. `balanced` adds, where the patterns found nothing, names,
places, nationalities and dates by a small language model, and detect-secrets. `maximum` adds a tagger that is trained
on the user's own annotated sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from luthier.data import privacy
from luthier.data.privacy import cues
from luthier.data.privacy.dates import dates
from luthier.data.privacy.features import Word
from luthier.data.privacy.ner import Presidio
from luthier.data.privacy.patterns import all_urls
from luthier.data.privacy.scanners import detect_secrets
from luthier.data.privacy.settle import settle
from luthier.data.privacy.spans import Span, add_cut, add_free, joined, placeholders
from luthier.data.privacy.tagger import Tagger
from luthier.errors import RecipeError
from luthier.records import PrivacyProfile


@dataclass(frozen=True)
class Detector:
    """Finds personal data and secrets in a text; the same text always gives the same finds.

    Attributes:
        profile: which detectors take part.
        find: everything.
        find_secrets: the same secrets, and whatever else needs no model, for where only secrets count.
    """

    profile: PrivacyProfile
    find: Callable[[str], list[Span]]
    find_secrets: Callable[[str], list[Span]]

    def remembering(self) -> Detector:
        """The same, which knows the finds of the last texts: a row is looked at, then treated until nothing changes."""
        find = lru_cache(maxsize=_LAST)(lambda text: tuple(self.find(text)))
        return Detector(self.profile, lambda text: list(find(text)), self.find_secrets)

    def scrub(self, text: str, *, personal: bool, secrets: bool) -> str:
        """`text` redacted until nothing more of what is asked for is found."""
        return privacy.scrub(
            text, personal=personal, secrets=secrets, find=self.find if personal else self.find_secrets
        )


def teachers() -> Callable[[str], tuple[list[Span], list[Word]]]:
    """What a tagger learns beside: the finds of 'balanced' in a text, and what its model says of the words.

    Raises:
        MissingExtra: a package of the extra is not installed.
    """
    return _Models(None).look


FAST = Detector("fast", privacy.find, privacy.find)

NOT_LOOKED_FOR: dict[PrivacyProfile, str] = {
    "fast": "names of people and addresses are found only where the words around them give them away",
    "balanced": "names and places are looked for by a small English model, which misses some",
    "maximum": "names and places are looked for by a small English model and by a tagger learned from the "
    "annotated sample, which miss some",
}
"""Profile -> what must not be expected of it."""


def open_detector(profile: PrivacyProfile, *, tagger: Tagger | None = None) -> Detector:
    """The detector of a profile.

    Args:
        profile: which detectors take part.
        tagger: trained on the user's annotations; of 'maximum' only.

    Raises:
        MissingExtra: a package that the profile needs is not installed; nothing is looked for with less instead.
        RecipeError: a tagger is there without 'maximum', or the other way round.
    """
    if (tagger is not None) != (profile == "maximum"):
        raise RecipeError(
            f"data.privacy.profile {profile!r} {'needs' if tagger is None else 'does not use'} a trained tagger",
            way_out="set data.privacy.annotations together with profile: maximum",
        )
    if profile == "fast":
        return FAST
    return Detector(profile, _Models(tagger), with_scanner)


def with_scanner(text: str) -> list[Span]:
    """What needs no model: the patterns, and the formats of keys that detect-secrets knows besides."""
    found = privacy.find(text)
    taken = [span for span in found if span.is_secret]
    add_free(taken, detect_secrets(text))  # before the e-mail that 'https://ana:password@host.org' seems to hold
    add_free(taken, (span for span in found if not span.is_secret))
    return sorted(taken, key=lambda span: span.start)


class _Models:
    """Patterns first; what a model finds is cut to what they left; the tagger adds, and masks nothing less."""

    def __init__(self, tagger: Tagger | None) -> None:
        self._entities = Presidio()
        self._tagger = tagger
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._find)

    def look(self, text: str) -> tuple[list[Span], list[Word]]:
        """What all but the tagger find, and what the language model says of the words."""
        entities, words = self._entities.read(text)
        taken = with_scanner(text)
        add_free(taken, all_urls(text))
        add_free(taken, dates(text))
        closed = placeholders(text)
        add_cut(taken, cues.firms(text), closed, text)
        add_cut(taken, cues.retyped(cues.unusual(cues.tidy(entities, text), text), text), closed, text)
        add_cut(taken, cues.said(text), closed, text)
        return joined(_mentioned(joined(cues.agreed(taken, text), text), text), text), words

    def __call__(self, text: str) -> list[Span]:
        return list(self._remembered(text))

    def _find(self, text: str) -> tuple[Span, ...]:
        known, words = self.look(text)
        if self._tagger is None:
            return tuple(known)
        taken = settle(known, self._tagger(text, known, words), text)
        return tuple(sorted(_mentioned(taken, text), key=lambda span: span.start))


def _mentioned(taken: list[Span], text: str) -> list[Span]:
    """With the other mentions of what is taken, and the titles before names."""
    closed = placeholders(text)
    add_cut(taken, list(cues.again(taken, text)), closed, text)
    add_cut(taken, list(cues.titles(taken, text)), closed, text)
    return taken


_LAST = 4
_REMEMBERED = 256
"""Texts whose finds are kept: a row is looked at, and then redacted."""
