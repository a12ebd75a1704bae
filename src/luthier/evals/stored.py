"""predictions.jsonl: what every system said to every test row, so that no later comparison needs a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.shards import Example
from luthier.errors import RunError
from luthier.evals.marks import with_marks
from luthier.evals.observed import Observed
from luthier.records import RequestContract
from luthier.store.files import write_atomic


@dataclass(frozen=True)
class Stored:
    """What a run keeps of its evaluation."""

    name: str
    """As it is shown, e.g. 'support-intents/0123456789ab'."""
    contract: RequestContract
    test: Sequence[Example]
    predictions: Path


def write_predictions(
    path: Path, test: Sequence[Example], seen: Mapping[str, Observed], *, tags: Sequence[str]
) -> None:
    """What every system said, one line an item: all that a later comparison needs.

    Args:
        path: of the file.
        test: N items.
        seen: system -> what it said to each; the tuned one is among them.
        tags: labels of which several may be right, if the task has such.
    """
    lines = []
    for index, example in enumerate(test):
        line: dict[str, object] = {
            "line": example.line,
            "expected": example.answer,
            "contaminated": example.contaminated,
            "predicted": {name: said.predicted[index] for name, said in seen.items()},
            "probabilities": {name: said.probabilities[index] for name, said in seen.items() if said.probabilities},
            # What greedy decoding writes; of a closed task the label that it is, '' where it would be anything else.
            "greedy": {name: said.free_text[index] for name, said in seen.items() if said.free_text},
        }
        if chances := {name: said.chances[index].tolist() for name, said in seen.items() if said.chances.size}:
            line["probabilities"] = {name: dict(zip(tags, each, strict=True)) for name, each in chances.items()}
        if any(said.answered for said in seen.values()):
            line["abstained"] = [name for name, said in seen.items() if said.answered and not said.answered[index]]
        leads = {name: float(said.leads[index]) for name, said in seen.items() if said.leads.size}
        line |= {"leads": leads} if leads else {}
        if seen["tuned"].answer_bytes.size:
            line["nats"] = {name: said.answer_nll[index] for name, said in seen.items()}
            line |= {"tokens": seen["tuned"].answer_tokens[index], "bytes": seen["tuned"].answer_bytes[index]}
        if seen["tuned"].terms.any():
            line["terms"] = {"met": int(seen["tuned"].terms[index, 1])} | {
                "kept": {name: int(said.terms[index, 0]) for name, said in seen.items()}
            }
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines))


def systems_of(stored: Stored) -> list[str]:
    """Names of the systems whose answers a run has stored, in the order of its evaluation; none without test rows.

    Raises:
        RunError: see `read_system`.
    """
    return list(_lines_of(stored)[0]["predicted"]) if len(stored.test) else []


def read_system(stored: Stored, system: str) -> Observed:
    """What a system said to each test row, as the evaluation stored it.

    Raises:
        RunError: the file is missing, damaged, is not about these rows, or does not have the system.
    """
    lines = _lines_of(stored)
    try:
        asked = [(line["line"], line["expected"]) for line in lines]
        predicted = tuple(str(line["predicted"][system]) for line in lines)
        probabilities = tuple(line["probabilities"][system] for line in lines if system in line["probabilities"])
        tags = stored.contract.tags
        chances = np.array([[said[tag] for tag in tags] for said in probabilities if tags], dtype=np.float64)
        greedy = tuple(str(line["greedy"][system]) for line in lines if system in line["greedy"])
        told = [line for line in lines if system in line.get("nats", {})]
        losses = [(line["nats"][system], line["tokens"], line["bytes"]) for line in told]
        nats, tokens, num_bytes = np.array(losses, dtype=np.float64).reshape(-1, 3).T
        leads = [line["leads"][system] for line in lines if system in line.get("leads", {})]
        met = [line["terms"] for line in lines if system in line.get("terms", {}).get("kept", {})]
        kept = [(each["kept"][system], each["met"]) for each in met]
        terms = np.array(kept, dtype=np.float64).reshape(-1, 2)
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(stored) from error
    sizes = {len(part) for part in (probabilities, greedy, losses, kept, leads) if part}
    if asked != [(row.line, row.answer) for row in stored.test] or sizes - {len(lines)}:
        raise RunError(f"{stored.predictions} is not about the test rows beside it", way_out=_anew(stored))
    said = Observed(
        tuple(row.answer for row in stored.test),
        predicted,
        () if tags else probabilities,
        greedy,
        answer_nll=nats,
        answer_tokens=tokens,
        answer_bytes=num_bytes,
        prefers=stored.contract.task == "preference",
        leads=np.array(leads, dtype=np.float64),
        order=stored.contract.label_order,
        terms=terms,
        chances=chances,
        translates=stored.contract.task == "translation",
    )
    return with_marks(said, stored.contract)


def _lines_of(stored: Stored) -> list[dict[str, Any]]:
    if not stored.predictions.is_file():
        raise RunError(f"{stored.predictions} is missing: {stored.name} was not evaluated", way_out=_anew(stored))
    try:
        lines = [json.loads(line) for line in stored.predictions.read_text(encoding="utf-8").split("\n") if line]
    except ValueError as error:
        raise _damaged(stored) from error
    if not all(isinstance(line, dict) and isinstance(line.get("predicted"), dict) for line in lines):
        raise _damaged(stored)
    if len(lines) != len(stored.test):
        raise RunError(f"{stored.predictions} is not about the test rows beside it", way_out=_anew(stored))
    return lines


def _damaged(stored: Stored) -> RunError:
    return RunError(f"{stored.predictions} is damaged", way_out=_anew(stored))


def _anew(stored: Stored) -> str:
    return f"luthier evaluate {stored.name} makes it anew"
