"""`prepare` on ever more rows, beside other packages on the same rows; notes in results/prepare_scale.csv.

    LUTHIER_DATA=FOLDER python benchmarks/prepare_scale.py make 1000000 rows.csv
    python benchmarks/prepare_scale.py ours rows.csv 100000 [...]
    python benchmarks/prepare_scale.py pair rows.csv 50000

`make` writes messages from banking77, clinc150 and sst2 of FOLDER: two sentences of different sets each, one in twenty
an exact copy of an earlier row, one in twenty a copy with one word changed, one in ten with an e-mail address, a phone
or a card number. `ours` prepares the first N rows in a process of its own and notes time and peak memory. `pair` lets
our pipeline and those of prepare_peers.py take turns on the same N rows and notes the ratios: datasets + datasketch in
one process and in as many as there are processors, and datatrove in as many. LUTHIER_TOKENIZER names the tokenizer.json
of the base model for them, LUTHIER_PEERS those that take a turn (all if it is not set).
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from prepare_peers import with_datasets, with_datatrove
from rows import append, commit, processor

RESULT = Path(__file__).parent / "results" / "prepare_scale.csv"
NEAR = 0.8
PEERS = os.environ.get("LUTHIER_PEERS", "peer peer_with_processes datatrove").split()


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


def peer(name: str, rows: Path) -> tuple[float, int]:
    """(seconds, rows kept) of one of the other pipelines."""
    workers = 1 if name == "peer" else os.cpu_count() or 1
    return with_datatrove(rows, workers) if name == "datatrove" else with_datasets(rows, workers, near=NEAR)


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
                "datatrove_kept": "",
                "times_as_fast_as_datatrove": "",
            }
            for name in PEERS if verb == "pair" else ():
                took, left = peer(name, folder / "rows.csv")
                row[f"times_as_fast_as_{name}"] = round(took / seconds, 2)
                row[f"{name.removesuffix('_with_processes')}_kept"] = left
            note(**row)


if __name__ == "__main__":
    main(*sys.argv[1:])
