"""The pipelines that users of other packages write for what `luthier prepare` does; see prepare_scale.py."""

from __future__ import annotations

import csv
import html
import os
import re
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def with_datasets(path: Path, workers: int, *, near: float) -> tuple[float, int]:
    """(seconds, rows kept) with datasets and datasketch, by so many processes.

    html.unescape and NFC by `map`, patterns for the same kinds of personal data, MinHash and MinHashLSH at the same
    threshold with 128 permutations, `train_test_split`, `map` with the same tokenizer in batches. It looks for no
    conflicting labels, no leaks between the splits and makes no report; ours does.
    """
    from datasets import Dataset, disable_progress_bars
    from datasketch import MinHash, MinHashLSH
    from tokenizers import Tokenizer

    disable_progress_bars()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        rows = Dataset.from_csv(str(path), cache_dir=cache)
        rows = rows.map(clean, num_proc=workers).map(hashed, num_proc=workers)
        seen: set[str] = set()
        index, scheme = MinHashLSH(threshold=near, num_perm=128), MinHash(num_perm=1).scheme

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


def with_datatrove(path: Path, workers: int) -> tuple[float, int]:
    """(seconds, rows kept) with datatrove's own steps on its local executor, by so many processes.

    CSV; the repairs and patterns of the other peer in the place of its PII formatter, which knows e-mail and IP
    addresses alone; MinHash in its four stages with its own settings (14 bands of 8, five words a shingle); tokens by
    the same tokenizer. It has no exact comparison of the candidates, so it drops what merely collides; no labels, no
    split, no leaks. A file is read by one process, so the rows are cut into a file a process before the clock starts.
    """
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.formatters.base import BaseFormatter
    from datatrove.pipeline.readers.csv import CsvReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter

    class Cleaned(BaseFormatter):  # type: ignore[misc]
        name = "cleaned"

        def format(self, text: str) -> str:
            return clean({"message": text})["message"]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cut(path, folder / "rows", workers)
        config = MinhashConfig()
        tokenizer = os.environ["LUTHIER_TOKENIZER"]

        def run(*steps: Any, tasks: int) -> None:
            LocalPipelineExecutor(list(steps), tasks=tasks, workers=workers).run()

        def read() -> list[Any]:
            return [CsvReader(str(folder / "rows"), text_key="message"), Cleaned()]

        began = time.perf_counter()
        run(*read(), MinhashDedupSignature(str(folder / "signatures"), config), tasks=workers)
        buckets = MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config)
        run(buckets, tasks=config.num_buckets)
        run(MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=config), tasks=1)
        kept = JsonlWriter(str(folder / "kept"), compression=None)
        tokens = DocumentTokenizer(str(folder / "tokens"), tokenizer, shuffle_documents=False)
        run(*read(), MinhashDedupFilter(str(folder / "remove")), kept, tokens, tasks=workers)
        seconds = time.perf_counter() - began
        return seconds, sum(1 for _ in lines_of(folder / "kept"))


def lines_of(folder: Path) -> Iterator[str]:
    """Of all files."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            yield from file


def cut(path: Path, folder: Path, parts: int) -> None:
    """The rows of a CSV file, dealt out to so many."""
    folder.mkdir()
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        header = next(rows)
        files = [(folder / f"{part}.csv").open("w", encoding="utf-8", newline="") for part in range(parts)]
        writers = [csv.writer(one) for one in files]
        for writer in writers:
            writer.writerow(header)
        for number, row in enumerate(rows):
            writers[number % parts].writerow(row)
        for one in files:
            one.close()
