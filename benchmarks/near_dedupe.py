"""Near-duplicates among short rows: ours, datasketch and rensa on the same rows; a row in results/near_dedupe.csv.

    python benchmarks/near_dedupe.py [FILE.jsonl[.gz] ...]    (column 'text'; without files, the shipped messages)

Rows are made from the messages: halves of two of them, or (a quarter) an earlier row with one word exchanged. All three
work on the same 5-character shingles at likeness 0.8. Recall and precision are those of pairs, against all pairs of a
sample compared exactly; the speed is that of a whole pass (drop what repeats a kept row), in one run, on one thread.
datasketch and rensa say which pairs are likely, at their own settings for the threshold; ours compares those exactly
within its time.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from datasketch import MinHash, MinHashLSH
from rensa import RMinHash, RMinHashLSH
from rows import append, commit, processor
from scipy.sparse import csr_matrix

from luthier.data.dedupe import near_repeated, text_key
from luthier.data.near import NearPairs, shingles
from luthier.recipes import find

RESULT = Path(__file__).parent / "results" / "near_dedupe.csv"
LIKENESS, HASHES = 0.8, 128
SAMPLE, COMPARED, SIZES = 4_000, 20_000, (250_000, 500_000, 1_000_000)

Pairs = set[tuple[int, int]]


def messages(files: Iterable[str]) -> list[str]:
    """Texts of the files, each once."""
    found = []
    for name in files:
        path = Path(name)
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            found += [text_key(json.loads(line)["text"]) for line in file]
    if not found:
        with (find("support-intents").parent / "support.csv").open(encoding="utf-8", newline="") as file:
            found = [text_key(row["message"]) for row in csv.DictReader(file)]
    return list(dict.fromkeys(found))


def make_rows(texts: list[str], count: int) -> list[str]:
    """`count` rows, the same for the same texts."""
    draw = random.Random(0)
    split = [text.split() for text in texts]
    words = [word for text in split for word in text]
    rows: list[str] = []
    for _ in range(count):
        if rows and draw.random() < 0.25:
            row = draw.choice(rows).split()
            row[draw.randrange(len(row))] = draw.choice(words)
        else:
            one, other = draw.choice(split), draw.choice(split)
            row = one[: (len(one) + 1) // 2] + other[len(other) // 2 :]
        rows.append(" ".join(row))
    return rows


def all_pairs(texts: list[str]) -> Pairs:
    """Every pair that reaches the likeness, by counting shared shingles of all pairs."""
    sets = [sorted(shingles(text)) for text in texts]
    number = {shingle: place for place, shingle in enumerate(sorted({one for found in sets for one in found}))}
    columns = np.array([number[shingle] for found in sets for shingle in found])
    sizes = np.array([len(found) for found in sets])
    ends = np.r_[0, np.cumsum(sizes)]
    have = csr_matrix((np.ones(len(columns), dtype=np.int32), columns, ends), shape=(len(sets), len(number)))
    shared = (have @ have.T).tocoo()
    alike = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data) >= LIKENESS
    return {(int(a), int(b)) for a, b in zip(shared.row[alike], shared.col[alike], strict=True) if a < b}


def ours_pairs(texts: list[str]) -> Pairs:
    """Pairs that are found when every row is kept."""
    pairs = NearPairs(texts, LIKENESS)
    return set(zip(pairs.earlier.tolist(), pairs.later.tolist(), strict=True))


def sketch(text: str) -> MinHash:
    """Datasketch's own sketch of the same shingles."""
    made = MinHash(num_perm=HASHES)
    made.update_batch([shingle.encode() for shingle in shingles(text)])
    return made


def datasketch_pairs(texts: list[str], *, drop: bool = False) -> Pairs:
    """Pairs that datasketch takes for alike; with `drop`, rows that have one are not kept."""
    lsh, found = MinHashLSH(threshold=LIKENESS, num_perm=HASHES), set()
    for row, text in enumerate(texts):
        made = sketch(text)
        like = lsh.query(made)
        found |= {(other, row) for other in like}
        if not (drop and like):
            lsh.insert(row, made)
    return found


def rensa_pairs(texts: list[str], *, drop: bool = False) -> Pairs:
    """Pairs that rensa takes for alike; with `drop`, rows that have one are not kept."""
    lsh, found = RMinHashLSH(threshold=LIKENESS, num_perm=HASHES, num_bands=16), set()
    for row, text in enumerate(texts):
        made = RMinHash(num_perm=HASHES, seed=0)
        made.update(list(shingles(text)))
        like = lsh.query(made)
        found |= {(other, row) for other in like}
        if not (drop and like):
            lsh.insert(row, made)
    return found


def seconds(work: Callable[[], object]) -> float:
    """Processor time: one thread does the work, and other processes may want the processor too."""
    began = time.process_time()
    work()
    return time.process_time() - began


def peak_gib() -> float:
    """Highest resident size so far; the texts of all rows are part of it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure and append the row."""
    texts = messages(sys.argv[1:])
    rows = make_rows(texts, SIZES[-1])
    true = all_pairs(rows[:SAMPLE])
    quality = {}
    ways = {"ours": ours_pairs, "datasketch": datasketch_pairs, "rensa": rensa_pairs}
    for name, way in ways.items():
        found = way(rows[:SAMPLE])
        quality[f"{name}_recall"] = round(len(found & true) / len(true), 4)
        quality[f"{name}_precision"] = round(len(found & true) / len(found), 4)
    some = rows[:COMPARED]
    took = {
        "ours": seconds(lambda: near_repeated(NearPairs(some, LIKENESS), [""] * COMPARED)),
        "datasketch": seconds(lambda: datasketch_pairs(some, drop=True)),
        "rensa": seconds(lambda: rensa_pairs(some, drop=True)),
    }
    before, scale = peak_gib(), {}
    for size in SIZES:
        part = rows[:size]
        began = time.process_time()
        pairs = NearPairs(part, LIKENESS)
        result = near_repeated(pairs, [""] * size)
        scale[f"seconds_{size}"] = round(time.process_time() - began, 1)
        scale[f"dropped_{size}"] = sum(match is not None for match in result.first)
        scale[f"crowded_{size}"] = pairs.crowded
        print(scale, file=sys.stderr)
    head, dirty = commit()
    row = {
        "commit": head,
        "dirty": dirty,
        "numpy": np.__version__,
        "datasketch": version("datasketch"),
        "rensa": version("rensa"),
        "processor": processor(),
        "threads": 1,
        "messages": len(texts),
        "true_pairs_of_sample": len(true),
        **quality,
        "rows_compared": COMPARED,
        "seconds_ours": round(took["ours"], 2),
        "times_faster_than_datasketch": round(took["datasketch"] / took["ours"], 1),
        "times_faster_than_rensa": round(took["rensa"] / took["ours"], 1),
        **scale,
        "peak_gib_before": round(before, 2),
        "peak_gib": round(peak_gib(), 2),
    }
    append(RESULT, row)
    print(row)


if __name__ == "__main__":
    main()
