"""A GGUF file asked in llama.cpp, through xllamacpp's server on this machine.

llama.cpp shows no logits: it reports the log-softmax of the raw logits, before bias and sampling, of tokens that it
generates. So the distribution of the next token is what it is compared by. Keys and values are kept in float32 and
without flash attention, so that what is seen is the file and not the cache; nothing is kept between questions, as
another start of the cache gives other digits (benchmarks/LOG.md, 2026-11-22).
"""

from __future__ import annotations

import gc
import http.client
import importlib.util
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from luthier.errors import MissingExtra, ModelError
from luthier.records import Message, RequestContract, is_text

_CERTAIN = 1e6
"""Added to the logit of a token that shall be generated."""


def refuse_missing_llama_cpp() -> None:
    """Raises MissingExtra where there is no llama.cpp to hold a file to."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingExtra("xllamacpp", extra="gguf", purpose="export of GGUF, which is held to parity in llama.cpp,")


class LlamaCppEngine:
    """A GGUF file, opened. It listens on loopback alone, under a key that is drawn each time; `close` ends it."""

    name = "llama.cpp"

    def __init__(self, file: Path, *, n_ctx: int, threads: int) -> None:
        """Open `file` for questions and answers of `n_ctx` tokens together.

        Raises:
            MissingExtra: xllamacpp is not installed.
            ModelError: llama.cpp cannot load the file.
        """
        refuse_missing_llama_cpp()
        import xllamacpp

        params, self._key = xllamacpp.CommonParams(), secrets.token_hex(16)
        params.model.path, params.api_keys, params.hostnames, params.port = str(file), [self._key], ["127.0.0.1"], 0
        params.n_ctx, params.n_parallel, params.warmup, params.fit_params, params.verbosity = n_ctx, 1, False, False, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.n_gpu_layers, params.use_jinja, params.cache_prompt, params.ui = 0, True, False, False
        params.offline = True
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise ModelError(f"llama.cpp cannot load {file.name}: {error}", way_out="") from error
        address = urlsplit(self._server.listening_address)
        self._host, self._port = str(address.hostname), int(address.port or 80)
        self._carrier = self._tokens("A", special=False)[0]
        self._puts_bos = self._tokens("A", special=True) != [self._carrier]
        self.vocab_size = int(self._ask("/v1/models", None)["data"][0]["meta"]["n_vocab"])

    def close(self) -> None:
        """End the server and free the file."""
        self._server = None
        gc.collect()  # the class has no method to end it

    def encode(self, contract: RequestContract, user_text: str) -> tuple[str, list[int]]:
        """User text -> (prompt, ids) by the file's own chat template and tokenizer, as its chat endpoint does it.

        Of a template that begins with the BOS token llama.cpp shows the rest, where it puts that token itself.
        """
        if is_text(contract.task):
            prompt = user_text
        else:
            system = [Message(role="system", content=contract.system)] if contract.system else []
            turns = [
                message.model_dump(include={"role", "content"})
                for message in (*system, Message(role="user", content=user_text))
            ]
            prompt = str(self._ask("/apply-template", {"messages": turns})["prompt"])
        ids = self._tokens(prompt, special=True)
        bos = contract.bos_token
        return (prompt if not bos or prompt.startswith(bos) or not self._puts_bos else bos + prompt), ids

    def next_logprobs(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Log-probability of every token after `ids`, normalised in float64, in nats; shape [vocabulary].

        A plain token is made to be generated: of one that ends inside a character llama.cpp reports nothing.
        """
        reply = self._complete(ids, 1, n_probs=self.vocab_size, logit_bias=[[self._carrier, _CERTAIN]])
        [report] = reply["completion_probabilities"]
        found = np.full(self.vocab_size, np.nan)
        for entry in report["top_logprobs"]:
            found[entry["id"]] = entry["logprob"]
        with np.errstate(invalid="ignore"):  # no number is seen for what it is
            normalised: NDArray[np.float64] = found - np.logaddexp.reduce(found)  # sums of float32 are off by 2e-4
        return normalised

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """Greedy continuation, without the stop token; at most `max_new_tokens` ids.

        llama.cpp also ends at whatever else it holds for the end of an answer.
        """
        said = [int(token) for token in self._complete(prompt_ids, max_new_tokens)["tokens"]]
        end = next((place for place, token in enumerate(said) if token in stop_ids), len(said))
        return said[:end]

    def _complete(self, ids: Sequence[int], max_new_tokens: int, **more: Any) -> Any:
        body = {
            "prompt": list(ids), "n_predict": max_new_tokens, "temperature": 0, "cache_prompt": False,
            "return_tokens": True, **more,
        }  # fmt: skip
        return self._ask("/completion", body)

    def _tokens(self, text: str, *, special: bool) -> list[int]:
        """Ids of a text; with `special` as a prompt is read, its control tokens included, else as plain text."""
        body = {"content": text, "add_special": special, "parse_special": special}
        return [int(token) for token in self._ask("/tokenize", body)["tokens"]]

    def _ask(self, path: str, body: object) -> Any:
        """One question over loopback; no proxy of the environment stands between.

        Raises:
            ModelError: llama.cpp refuses it, or has ended.
        """
        connection = http.client.HTTPConnection(self._host, self._port, timeout=600)
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            text = None if body is None else json.dumps(body)
            connection.request("GET" if body is None else "POST", path, text, headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ModelError(f"llama.cpp does not answer {path}: {error}", way_out="") from error
        finally:
            connection.close()
        if answer.status != http.client.OK:
            said = content.decode("utf-8", "replace")[:300]
            raise ModelError(f"llama.cpp answers {path} with {answer.status}: {said}", way_out="")
        return json.loads(content)
