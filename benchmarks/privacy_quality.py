"""How well personal data is found: Presidio's default beside our three profiles; rows in results/privacy_quality.csv.

    python benchmarks/privacy_quality.py FOLDER [--split validation]

FOLDER holds train.jsonl and the split, each line a text with 'spans' of 'start', 'end' and 'type', as in
presidio-research. `maximum` learns from train.jsonl; the others learn nothing. All see the same texts in one run.

Mapping of types, made before measuring: STREET_ADDRESS, GPE, ZIP_CODE (and Presidio's LOCATION) are one type, 'place';
DATE_TIME is 'date', DOMAIN_NAME is 'url', NRP is 'nationality', PERSON is 'name'. TITLE, AGE, ORGANIZATION and all
others keep their own type and count against a system that does not know them. Of Presidio's overlapping finds the one
with the higher score counts, then the longer one. Both versions of the text rest on one small spaCy model.

Exact: type and both ends agree. Half: the type agrees and the pieces share at least half of the characters that either
has. A span is masked where every letter and digit of it is covered by any find; a text is clean where all its spans
are. Harmless masked: share of the letters and digits outside all spans that are covered. Intervals: 95 %, percentile
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
from luthier.data.privacy.profiles import FAST, open_detector
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
COUNTS = ("hit", "found", "true", "half", "masked", "spans", "clean", "texts", "covered", "outside")


def presidio_default() -> Find:
    """Presidio as its documentation starts it, on the small model; its look-up of a list of domains stays offline."""
    import tldextract
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    logging.getLogger("presidio-analyzer").setLevel(logging.ERROR)
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    models = {"nlp_engine_name": "spacy", "models": [{"lang_code": "en", "model_name": MODEL}]}
    engine = AnalyzerEngine(nlp_engine=NlpEngineProvider(nlp_configuration=models).create_engine())

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
    ]  # fmt: skip


def shared(one: tuple[int, int, str], other: tuple[int, int, str]) -> float:
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
        "masked": sums["masked"] / max(1, sums["spans"]),
        "clean_texts": sums["clean"] / max(1, sums["texts"]),
        "harmless_masked": sums["covered"] / max(1, sums["outside"]),
    }


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
    tagger = learn(asked.folder / "train.jsonl", balanced.find)
    systems = {
        "presidio_default": presidio_default(),
        "fast": FAST.find,
        "balanced": balanced.find,
        "maximum": open_detector("maximum", tagger=tagger).find,
    }
    made = [measure(name, find, rows, asked.split) for name, find in systems.items()]
    for row in made:
        append(RESULT, row)
    for row in made:
        print({key: row[key] for key in ("system", "precision", "recall", "f1", "half_f1", "masked", "clean_texts",
                                         "harmless_masked", "docs_per_second")})  # fmt: skip


if __name__ == "__main__":
    main()
