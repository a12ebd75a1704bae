"""How well personal data is found: Presidio's default beside our three profiles; rows in results/privacy_quality.csv.

    python benchmarks/privacy_quality.py FOLDER [--split validation]

FOLDER holds train.jsonl and the split, each line a text with 'spans' of 'start', 'end' and 'type', as in
presidio-research. `maximum` learns from train.jsonl; the others learn nothing. All see the same texts in one run.

Mapping of types, made before measuring: STREET_ADDRESS, GPE, ZIP_CODE (and Presidio's LOCATION) are one type, 'place';
DATE_TIME is 'date', DOMAIN_NAME is 'url', NRP is 'nationality', PERSON is 'name'. TITLE, AGE, ORGANIZATION and all
others keep their own type and count against a system that does not know them. Of Presidio's overlapping finds the one
with the higher score counts, then the longer one. Both versions of the text rest on one small spaCy model.

`presidio_default` is its shipped configuration (conf/default.yaml, which ignores organizations) on the small model;
`presidio_organizations` is the same with organizations.

Exact (strict): type and both ends agree; all types count, as the set marks them. Half: the type agrees and the pieces
share at least half of the characters that either has. The set marks an address here whole and there in pieces ('172',
'Maneezi 75', 'Saarekula'), so a second scoring, 'joined', makes one of places with nothing between them but blanks,
commas, full stops and '>', in the truth and in every system's finds alike, and leaves out signs at both ends. 'known'
is 'joined' over the types that Presidio's shipped configuration knows (`KNOWN`: no organization, title, age), on both
sides. 'near' is 'known' where a find counts that shares any character with a span of its type, and the other way round.
A span is masked where every letter and digit of it is covered by any find; a text is clean where all its spans are.
Harmless masked: share of the letters and digits outside all spans that are covered. Intervals: 95 %, percentile
bootstrap over texts, the same resamples for all systems.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rows import append, commit, processor

from luthier.data.privacy.annotations import learn
from luthier.data.privacy.ner import MODEL
from luthier.data.privacy.profiles import FAST, open_detector, teachers
from luthier.data.privacy.spans import Span

RESULT = Path(__file__).parent / "results" / "privacy_quality.csv"
RESAMPLES, SEED = 2000, 0
TRUTH = {
    "PERSON": "name", "STREET_ADDRESS": "place", "GPE": "place", "ZIP_CODE": "place", "ORGANIZATION": "organization",
    "CREDIT_CARD": "card", "DATE_TIME": "date", "TITLE": "title", "PHONE_NUMBER": "phone", "AGE": "age",
    "NRP": "nationality", "EMAIL_ADDRESS": "email", "DOMAIN_NAME": "url", "IBAN_CODE": "iban", "US_SSN": "ssn",
    "IP_ADDRESS": "ip", "US_DRIVER_LICENSE": "driver_license", "LOCATION": "place", "URL": "url",
}  # fmt: skip
OURS = {
    "address": "place",
    "location": "place",
    "postcode": "place",
    "date_of_birth": "date",
    "ipv4": "ip",
    "ipv6": "ip",
}
Find = Callable[[str], list[Span]]
COUNTS = (
    "hit", "found", "true", "half", "masked", "spans", "clean", "texts", "covered", "outside",
    "joined_hit", "joined_found", "joined_true", "known_hit", "known_found", "known_true", "near_found", "near_true",
)  # fmt: skip
KNOWN = frozenset(TRUTH.values()) - {"organization", "title", "age"}
Place = tuple[int, int, str]


def presidio_default(*, organizations: bool = False) -> Find:
    """Presidio in its shipped configuration, on the small model; its look-up of a list of domains stays offline."""
    import presidio_analyzer
    import tldextract
    import yaml
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    shipped = yaml.safe_load((Path(presidio_analyzer.__file__).parent / "conf" / "default.yaml").read_text())
    shipped["models"] = [{"lang_code": "en", "model_name": MODEL}]
    ignored = shipped["ner_model_configuration"]["labels_to_ignore"]
    if organizations:
        shipped["ner_model_configuration"]["labels_to_ignore"] = [one for one in ignored if not one.startswith("ORG")]
    engine = AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=shipped).create_engine())

    def find(text: str) -> list[Span]:
        taken: list[Span] = []
        for one in sorted(engine.analyze(text, language="en"), key=lambda one: (-one.score, one.start - one.end)):
            if all(one.end <= other.start or other.end <= one.start for other in taken):
                taken.append(Span(one.start, one.end, TRUTH.get(one.entity_type, one.entity_type)))
        return taken

    return find


def counts(row: dict[str, Any], found: list[Span]) -> list[int]:
    """What `COUNTS` names, of one text."""
    text = row["text"]
    true = {(one["start"], one["end"], TRUTH[one["type"]]) for one in row["spans"]}
    said = {(one.start, one.end, OURS.get(one.kind, one.kind)) for one in found}
    solid = np.array([char.isalnum() for char in text], bool)
    cover, inside = np.zeros(len(text), bool), np.zeros(len(text), bool)
    for start, end, _ in said:
        cover[start:end] = True
    for start, end, _ in true:
        inside[start:end] = True
    masked = [bool((cover | ~solid)[start:end].all()) for start, end, _ in true]
    free, half = set(said), 0
    for one in sorted(true):
        match = next((other for other in sorted(free) if one[2] == other[2] and shared(one, other) >= 0.5), None)
        if match:
            free.remove(match)
            half += 1
    return [
        len(true & said), len(said), len(true), half, sum(masked), len(masked), int(all(masked)), 1,
        int((cover & solid & ~inside).sum()), int((solid & ~inside).sum()),
        *leniently(joined(true, text), joined(said, text)),
    ]  # fmt: skip


def leniently(true: set[Place], said: set[Place]) -> list[int]:
    """The counts of 'joined', 'known' and 'near'."""
    known_true, known_said = ({one for one in places if one[2] in KNOWN} for places in (true, said))

    def meet(some: set[Place], others: set[Place]) -> int:
        return sum(any(a[2] == b[2] and min(a[1], b[1]) > max(a[0], b[0]) for b in others) for a in some)

    return [
        len(true & said), len(said), len(true), len(known_true & known_said), len(known_said), len(known_true),
        meet(known_said, known_true), meet(known_true, known_said),
    ]  # fmt: skip


def joined(places: set[Place], text: str) -> set[Place]:
    """Places that follow each other made one; no signs at the ends."""
    whole: list[Place] = []
    for start, end, kind in sorted(places):
        if whole and kind == whole[-1][2] == "place" and not text[whole[-1][1] : start].strip(" \t\n\r,.>"):
            whole[-1] = (whole[-1][0], end, kind)
        else:
            whole.append((start, end, kind))
    tidy = set()
    for start, end, kind in whole:
        solid = [index for index in range(start, end) if text[index].isalnum()]
        if solid:
            tidy.add((solid[0], solid[-1] + 1, kind))
    return tidy


def shared(one: Place, other: Place) -> float:
    """Characters in both over characters in either."""
    both = min(one[1], other[1]) - max(one[0], other[0])
    return both / (max(one[1], other[1]) - min(one[0], other[0]))


def scores(total: np.ndarray) -> dict[str, float]:
    """From sums of `COUNTS` to what is reported."""
    sums = dict(zip(COUNTS, total.tolist(), strict=True))
    return {
        "precision": sums["hit"] / max(1, sums["found"]),
        "recall": sums["hit"] / max(1, sums["true"]),
        "f1": 2 * sums["hit"] / max(1, sums["found"] + sums["true"]),
        "half_f1": 2 * sums["half"] / max(1, sums["found"] + sums["true"]),
        "joined_f1": 2 * sums["joined_hit"] / max(1, sums["joined_found"] + sums["joined_true"]),
        "known_f1": 2 * sums["known_hit"] / max(1, sums["known_found"] + sums["known_true"]),
        "near_f1": harmonic(
            sums["near_found"] / max(1, sums["known_found"]), sums["near_true"] / max(1, sums["known_true"])
        ),
        "masked": sums["masked"] / max(1, sums["spans"]),
        "clean_texts": sums["clean"] / max(1, sums["texts"]),
        "harmless_masked": sums["covered"] / max(1, sums["outside"]),
    }


def harmonic(one: float, other: float) -> float:
    """Harmonic mean."""
    return 2 * one * other / (one + other) if one + other else 0.0


def measure(system: str, find: Find, rows: list[dict[str, Any]], split: str) -> dict[str, object]:
    """One row of the table."""
    find("a text that warms up")
    began = time.perf_counter()
    found = [find(row["text"]) for row in rows]
    seconds = time.perf_counter() - began
    table = np.array([counts(row, spans) for row, spans in zip(rows, found, strict=True)])
    generator = np.random.Generator(np.random.PCG64(SEED))
    draws = [scores(table[generator.integers(0, len(rows), len(rows))].sum(0)) for _ in range(RESAMPLES)]
    head, dirty = commit()
    row: dict[str, object] = {
        "commit": head, "dirty": dirty, "presidio": version("presidio-analyzer"), "spacy": version("spacy"),
        "model": MODEL, "processor": processor(), "split": split, "texts": len(rows),
        "spans": int(table.sum(0)[COUNTS.index("spans")]), "system": system, "resamples": RESAMPLES,
    }  # fmt: skip
    for name, value in scores(table.sum(0)).items():
        low, high = np.quantile([draw[name] for draw in draws], (0.025, 0.975))
        row |= {name: f"{value:.4f}", f"{name}_low": f"{low:.4f}", f"{name}_high": f"{high:.4f}"}
    return {**row, "docs_per_second": round(len(rows) / seconds, 1)}


def read(path: Path) -> list[dict[str, Any]]:
    """JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Measure and append a row for each system."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="validation", choices=["validation", "test"])
    asked = parser.parse_args()
    rows = read(asked.folder / f"{asked.split}.jsonl")
    balanced = open_detector("balanced")
    tagger = learn(asked.folder / "train.jsonl", teachers())
    systems = {
        "presidio_default": presidio_default(),
        "presidio_organizations": presidio_default(organizations=True),
        "fast": FAST.find,
        "balanced": balanced.find,
        "maximum": open_detector("maximum", tagger=tagger).find,
    }
    made = [measure(name, find, rows, asked.split) for name, find in systems.items()]
    for row in made:
        append(RESULT, row)
    shown = ("system", "precision", "recall", "f1", "half_f1", "joined_f1", "known_f1", "near_f1", "masked",
             "clean_texts", "harmless_masked", "docs_per_second")  # fmt: skip
    for row in made:
        print({key: row[key] for key in shown})


if __name__ == "__main__":
    main()
