"""`prepare` on ever more rows, beside datasets + datasketch on the same rows; notes in results/prepare_scale.csv.

    LUTHIER_DATA=FOLDER python benchmarks/prepare_scale.py make 1000000 rows.csv
    python benchmarks/prepare_scale.py ours rows.csv 100000 [...]
    python benchmarks/prepare_scale.py pair rows.csv 50000

`make` writes messages from banking77, clinc150 and sst2 of FOLDER: two sentences of different sets each, one in twenty
an exact copy of an earlier row, one in twenty a copy with one word changed, one in ten with an e-mail address, a phone
or a card number. `ours` prepares the first N rows in a process of its own and notes time and peak memory. `pair` lets
both pipelines take turns on the same N rows and notes the ratios; the peer is the pipeline that a user of these two
packages writes: html.unescape and NFC by `map`, patterns for the same kinds of personal data, MinHash and MinHashLSH at
the same threshold with 128 permutations, `train_test_split`, `map` with the same tokenizer in batches; once in one
process and once with `num_proc` of all processors. It looks for no conflicting labels, no leaks between the splits and
makes no report; ours does.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import html
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import append, commit, processor

RESULT = Path(__file__).parent / "results" / "prepare_scale.csv"
NEAR = 0.8


def sentences(folder: Path) -> list[tuple[str, str]]:
    """(text, label) of the three sets."""
    found = []
    for name, label in (("banking77", "label"), ("clinc150", "label"), ("sst2", "label")):
        path = next(path for path in sorted((folder / name).glob("train.jsonl*")))
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for line in lines:
                row = json.loads(line)
                found.append((str(row["text"]), str(row.get(f"{label}_name", row[label]))))
    return found


def make(count: int, folder: Path) -> Iterator[tuple[str, str, str]]:
    """(customer, message, label)."""
    rng = random.Random(0)
    known = sentences(folder)
    kept: list[tuple[str, str]] = []
    for number in range(count):
        draw = rng.random()
        if kept and draw < 0.05:
            text, label = rng.choice(kept)
        elif kept and draw < 0.10:
            text, label = rng.choice(kept)
            words = text.split()
            words[rng.randrange(len(words))] = rng.choice(known)[0].split()[0]
            text = " ".join(words)
        else:
            text, label = rng.choice(known)
            text = f"{text} {rng.choice(known)[0]}"
            if draw > 0.9:
                phone = f"+49 170 {rng.randrange(10**7):07d}"
                text += rng.choice(
                    [f" mail me: user{number}@mail.example", f" call {phone}", " card 4111 1111 1111 1111"]
                )
            kept.append((text, label))
        yield f"C{rng.randrange(count // 3 + 1):07d}", text, label


def write(count: int, path: Path) -> None:
    """The file that all measurements read."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["customer", "message", "label"])
        writer.writerows(make(count, Path(os.environ["LUTHIER_DATA"])))


def head(path: Path, count: int, out: Path) -> None:
    """The first `count` rows of a file."""
    with path.open(encoding="utf-8", newline="") as file, out.open("w", encoding="utf-8", newline="") as short:
        writer = csv.writer(short)
        for number, row in enumerate(csv.reader(file)):
            if number > count:
                break
            writer.writerow(row)


def recipe(folder: Path) -> Path:
    """A recipe for rows.csv beside it."""
    path = folder / "recipe.yaml"
    path.write_text(
        "name: scale\nmodel: {name: smollm2-135m-instruct}\ndata:\n"
        "  train: [{name: intent, task: classification, path: rows.csv, input: '{message}', label: label}]\n"
        "  split: {test: 0.1, validation: 0.05, group_by: customer}\n"
        "  privacy: {action: redact, secrets: redact, profile: fast}\n"
        f"  dedupe: {{near: {NEAR}}}\n",
        encoding="utf-8",
    )
    return path


def together_gib(root: int) -> float:
    """Memory of a process and all that it started, shared pages divided among those that share them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if entry.name.isdecimal():
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, total = [root], 0
    for process in found:
        found += children.get(process, [])
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 2**20


def ours(folder: Path) -> tuple[float, float, int]:
    """(seconds, peak GiB of all its processes, rows kept) of `luthier prepare`."""
    command = [
        sys.executable, "-m", "luthier.cli", "prepare", str(recipe(folder)), "--out", str(folder / "runs"), "--json",
    ]  # fmt: skip
    began, peak = time.perf_counter(), 0.0
    with (folder / "report.json").open("w+") as said:
        with subprocess.Popen(command, stdout=said) as process:
            while process.poll() is None:
                peak = max(peak, together_gib(process.pid))
                time.sleep(0.25)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"prepare ended with {process.returncode}")
        said.seek(0)
        return seconds, peak, int(json.load(said)["rows_out"])


_FOUND = re.compile(
    r"[\w.+-]+@[\w-]+\.[\w.-]+|(?:\d[ -]?){13,19}|\+?\d[\d -]{7,}\d|AKIA[0-9A-Z]{16}|(?:\d{1,3}\.){3}\d{1,3}"
    r"|[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}|gh[pousr]_\w{30,}"
)


def clean(row: dict[str, str]) -> dict[str, str]:
    """Text repaired and redacted, as a user of `map` would."""
    text = unicodedata.normalize("NFC", html.unescape(row["message"]))
    return {"message": _FOUND.sub("[REDACTED]", " ".join(text.split()))}


def hashed(row: dict[str, str]) -> dict[str, list[int]]:
    """The MinHash of a row, so that processes can share the work."""
    from datasketch import MinHash

    text = row["message"].casefold()
    made = MinHash(num_perm=128)
    made.update_batch([text[at : at + 5].encode() for at in range(max(1, len(text) - 4))])
    return {"hashed": made.hashvalues.tolist()}


def peer(folder: Path, workers: int) -> tuple[float, int]:
    """(seconds, rows kept) of the same work with datasets and datasketch, by so many processes."""
    from datasets import Dataset, disable_progress_bars
    from datasketch import MinHash, MinHashLSH
    from tokenizers import Tokenizer

    disable_progress_bars()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        rows = Dataset.from_csv(str(folder / "rows.csv"), cache_dir=cache)
        rows = rows.map(clean, num_proc=workers).map(hashed, num_proc=workers)
        seen: set[str] = set()
        index, scheme = MinHashLSH(threshold=NEAR, num_perm=128), MinHash(num_perm=1).scheme

        def is_new(row: dict[str, Any], number: int) -> bool:
            text = row["message"].casefold()
            if text in seen:
                return False
            seen.add(text)
            made = MinHash(num_perm=128, hashvalues=row["hashed"], scheme=scheme)
            if index.query(made):
                return False
            index.insert(number, made)
            return True

        rows = rows.filter(is_new, with_indices=True)
        parts = rows.train_test_split(test_size=0.15, seed=0)
        tokenizer = Tokenizer.from_file(os.environ["LUTHIER_TOKENIZER"])

        def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            texts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in batch["message"]]
            return {"input_ids": [one.ids for one in tokenizer.encode_batch_fast(texts)]}

        parts.map(encode, batched=True, num_proc=workers)
        return time.perf_counter() - began, len(rows)


def note(**row: object) -> None:
    """Append a row to the results."""
    commit_hash, dirty = commit()
    row = {"commit": commit_hash, "dirty": dirty, "processor": processor(), "threads": os.cpu_count()} | row
    append(RESULT, row)
    print(row)


def main(verb: str, *arguments: str) -> None:
    """See the module's docstring."""
    if verb == "make":
        write(int(arguments[0]), Path(arguments[1]))
        return
    path, smallest = Path(arguments[0]), 0.0
    for count in map(int, arguments[1:]):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            head(path, count, folder / "rows.csv")
            seconds, peak, kept = ours(folder)
            smallest = smallest or seconds / count
            row: dict[str, object] = {
                "rows": count,
                "rows_kept": kept,
                "peak_gib": round(peak, 2),
                "seconds_per_row_over_the_first": round(seconds / count / smallest, 2),
                "peer_kept": "",
                "times_as_fast_as_peer": "",
                "times_as_fast_as_peer_with_processes": "",
            }
            if verb == "pair":
                theirs = [peer(folder, workers) for workers in (1, os.cpu_count() or 1)]
                row["peer_kept"] = theirs[0][1]
                row["times_as_fast_as_peer"] = round(theirs[0][0] / seconds, 2)
                row["times_as_fast_as_peer_with_processes"] = round(theirs[1][0] / seconds, 2)
            note(**row)


if __name__ == "__main__":
    main(*sys.argv[1:])
