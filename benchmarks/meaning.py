"""Duplicates by meaning: what embedding and comparing cost, what likeness says; a row in results/meaning.csv.

    python benchmarks/meaning.py [FILE.jsonl[.gz] ...]    (columns 'text' and 'label'; without files, shipped messages)

Processor time of one thread, on real messages, each different text once. Embedding is compared with PyTorch running the
same model by transformers, one thread, in batches of equal lengths, in the same run. Comparing is measured on as many
random unit rows as `SIZES` says, because its time does not depend on what the rows hold. Of all pairs of the messages
that reach a likeness the share that carries the same label is noted: a pair with two labels is no repetition.
"""

from __future__ import annotations

import csv
import gzip
import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rows import append, commit, processor
from transformers import AutoModel

from luthier.data.dedupe import text_key
from luthier.data.encoder import Encoder, Floats, locate
from luthier.data.meaning import repeated_by_meaning
from luthier.recipes import find
from luthier.spec.recipe import BUNDLED_EMBEDDINGS

RESULT = Path(__file__).parent / "results" / "meaning.csv"
TIMED, SIZES, LEVELS = 1_000, (5_000, 10_000, 20_000), (0.8, 0.85, 0.9, 0.95)


def messages(files: Iterable[str]) -> tuple[list[str], list[str]]:
    """Texts and labels of the files; each text with its label once."""
    found: list[tuple[str, str]] = []
    for name in files:
        path = Path(name)
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            found += [(text_key(row["text"]), row["label"]) for row in map(json.loads, file)]
    if not found:
        with (find("support-intents").parent / "support.csv").open(encoding="utf-8", newline="") as file:
            found = [(text_key(row["message"]), row["intent"]) for row in csv.DictReader(file)]
    texts, labels = zip(*dict.fromkeys(found), strict=True)
    return list(texts), list(labels)


def seconds(work: Callable[[], object]) -> float:
    """Processor time: one thread does the work, and other processes may want the processor too."""
    began = time.process_time()
    work()
    return time.process_time() - began


def torch_vectors(place: Path, encoder: Encoder, texts: list[str]) -> Callable[[], Floats]:
    """The same vectors by transformers, texts of one length at a time as ours does."""
    model: Any = AutoModel.from_pretrained(place, local_files_only=True).eval()
    ids = [encoding.ids for encoding in encoder._tokenizer.encode_batch(texts)]

    def work() -> Floats:
        units = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
        for length in {len(one) for one in ids}:
            members = [row for row, one in enumerate(ids) if len(one) == length]
            for start in range(0, len(members), max(1, 4096 // length)):
                chosen = members[start : start + max(1, 4096 // length)]
                states = model(torch.tensor([ids[row] for row in chosen])).last_hidden_state.mean(1)
                units[chosen] = torch.nn.functional.normalize(states).numpy()
        return units

    return work


def shares(units: Floats, labels: list[str]) -> dict[str, object]:
    """Of all pairs that reach each likeness, how many there are and the share with one label."""
    codes = np.unique(labels, return_inverse=True)[1]
    counts = dict.fromkeys(LEVELS, 0)
    same = dict.fromkeys(LEVELS, 0)
    for start in range(0, len(units), 1024):
        products = units[start : start + 1024] @ units.T
        rows, columns = np.nonzero(products >= LEVELS[0])
        is_before = columns < rows + start
        rows, columns = rows[is_before], columns[is_before]
        agree = codes[rows + start] == codes[columns]
        for level in LEVELS:
            reached = products[rows, columns] >= level
            counts[level] += int(reached.sum())
            same[level] += int((reached & agree).sum())
    return {
        name: value
        for level in LEVELS
        for name, value in (
            (f"pairs_{level}", counts[level]),
            (f"same_label_{level}", round(same[level] / counts[level], 4) if counts[level] else ""),
        )
    }


def main() -> None:
    """Measure and append the row."""
    torch.set_num_threads(1)
    texts, labels = messages(sys.argv[1:])
    place = locate(BUNDLED_EMBEDDINGS, folder=Path())
    encoder = Encoder(place, name=BUNDLED_EMBEDDINGS, threads=1)
    some = texts[:: max(1, len(texts) // TIMED)][:TIMED]
    reference = torch_vectors(place, encoder, some)
    with torch.inference_mode():
        off = float(np.abs(reference() - encoder.embed(some)[0]).max())
        took = {"ours": seconds(lambda: encoder.embed(some)), "torch": seconds(reference)}
    began = time.process_time()
    units, is_read = encoder.embed(texts)
    embedding = time.process_time() - began
    told = shares(units, labels)
    dropped = {
        f"dropped_{level}": sum(one is not None for one in repeated_by_meaning(units, labels, threshold=level).first)
        for level in LEVELS[2:]
    }
    draw, scale = np.random.default_rng(0), {}
    for size in SIZES:
        rows = draw.normal(size=(size, units.shape[1])).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        empty = [""] * size
        took_here = seconds(lambda rows=rows, empty=empty: repeated_by_meaning(rows, empty, threshold=0.9))
        scale[f"compare_seconds_{size}"] = round(took_here, 2)
    head, dirty = commit()
    row = {
        "commit": head,
        "dirty": dirty,
        "numpy": np.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": processor(),
        "threads": 1,
        "model": BUNDLED_EMBEDDINGS,
        "messages": len(texts),
        "not_read": int((~is_read).sum()),
        "embed_rows_a_second": round(len(texts) / embedding, 1),
        "torch_seconds_over_ours": round(took["torch"] / took["ours"], 2),
        "largest_difference_from_torch": f"{off:.1e}",
        **told,
        **dropped,
        **scale,
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    append(RESULT, row)
    print(row)


if __name__ == "__main__":
    main()
