"""llama.cpp's own tokenizer, through xllamacpp's server on this machine."""

from __future__ import annotations

import gc
import json
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import xllamacpp

TEXTS = (
    "order 40912 of 2024-01-31, 3.14159 and 1,000,000.00",
    "  two  blanks   and\t\ttabs\n\n\nlines \r\n end  ",
    "x2y3z 007 1st 22nd",
    "I'm, you're, we'll, they've, it's, I'd, CAN'T",
    "٣٤٥ ४५६ ²³¹ ½ Ⅷ ①②",
    "Где мой заказ? 我的订单在哪里？ أين طلبي؟ éàü e\u0301",
    "def f(x):\n    return x**2 + 10 # {'a': [1, 2]}\n",
    "👩‍🚀🎻🇫🇷 🙏🏽!!",
    "https://example.org/a?b=1&c=22#3 --flag=9 a_b-c",
    *("", " ", "\n", "7", " 7 8"),
)


@contextmanager
def tokenizer(model: Path) -> Iterator[Callable[[str], list[int]]]:
    """Text -> ids, special tokens read as plain text."""
    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.n_ctx, params.n_parallel = str(model), ["127.0.0.1"], 64, 1
    params.warmup, params.fit_params, params.verbosity = False, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    address = server.listening_address

    def tokenize(text: str) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(f"{address}/tokenize", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return list(json.loads(answer.read())["tokens"])

    try:
        yield tokenize
    finally:
        del server  # it has no method to end it
        gc.collect()
