"""A model behind an OpenAI-compatible endpoint: asked once, its answers kept, and within a budget.

Answers are kept by the content of the question under LUTHIER_HOME, readable by their owner only.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from luthier.data.contract import Renderer
from luthier.data.items import Item, Verdict
from luthier.data_report import EndpointUse
from luthier.errors import DataError, LuthierError, RecipeError
from luthier.records import Message
from luthier.spec.asking import Asking
from luthier.store.files import sha256_json, write_atomic

_TRIES = 4
_SECONDS = 120.0
_PASSING = frozenset((408, 429, 500, 502, 503, 504))
_LONGEST_WAIT = 60.0
_MOST_BYTES = 8_000_000
"""Of an answer; more is none."""


class BudgetSpent(Exception):
    """Nothing more may be asked; caught where the rows are counted."""


class Questions:
    """What is asked of one endpoint.

    Args:
        rules: which endpoint, and how much may be asked of it.
        key: of the recipe, for messages.
        cache: folder of the answers.
        sleep: waits before another try.
        environment: holds the API key.

    Raises:
        RecipeError: the API key is not in the environment.
    """

    def __init__(
        self,
        rules: Asking,
        *,
        key: str,
        cache: Path,
        sleep: Callable[[float], None] = time.sleep,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        if rules.key_env is not None and not environment.get(rules.key_env):
            raise RecipeError(
                f"{key}.key_env: {rules.key_env} is not set in the environment",
                way_out=f"export {rules.key_env}=..., or leave key_env out for an endpoint without a key",
            )
        self._rules, self._key, self._cache = rules, key, cache
        api_key = environment.get(rules.key_env or "", "")
        self._endpoint = Endpoint(rules.endpoint, api_key, named=key, sleep=sleep)
        self._requests = self._from_cache = self._tokens = self._unanswered = 0

    @property
    def use(self) -> EndpointUse:
        """What was asked so far."""
        return EndpointUse(
            endpoint=self._rules.endpoint,
            model=self._rules.model,
            requests=self._requests,
            from_cache=self._from_cache,
            tokens=self._tokens,
            unanswered=self._unanswered,
        )

    def __enter__(self) -> Self:
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._endpoint.close()

    def passed_over(self) -> None:
        """A row that was not asked about, because the budget was used up."""
        self._unanswered += 1

    def refuse_personal(self, texts: Sequence[tuple[Item, str]], renderer: Renderer) -> None:
        """Personal data is sent only where it was seen to, or the recipe allows it.

        Args:
            texts: what would be sent, each with its row.
            renderer: knows what counts as personal data.

        Raises:
            DataError: some hold it; names the first.
        """
        if self._rules.send_personal_data or renderer.contract.privacy_action != "report":
            return
        first, kinds, rows = "", list[str](), 0
        for item, text in texts:
            if found := renderer.find(text):
                first, rows = first or f"{item.file}:{item.line}", rows + 1
                kinds += [span.kind for span in found]
        if rows:
            raise DataError(
                f"{self._key}: {rows} of the {len(texts)} rows that would be sent to "
                f"{self._rules.endpoint} hold personal data ({', '.join(sorted(set(kinds)))}), the first is {first}",
                way_out="set data.privacy.action to redact or pseudonymise, or allow it with "
                f"{self._key}.send_personal_data: true",
            )

    def ask(self, messages: Sequence[Message], *, max_tokens: int, number: int = 0) -> str | Verdict:
        """One question, from the cache where it was asked before; or why there is no whole answer.

        Args:
            messages: of the question.
            max_tokens: of the answer.
            number: another one is another question, though it has the same words.

        Raises:
            BudgetSpent: nothing more may be asked.
            DataError: there is no answer, or a kept one is damaged.
        """
        body = {
            "model": self._rules.model,
            "messages": [{"role": one.role, "content": one.content} for one in messages],
            "temperature": self._rules.temperature,
            "max_tokens": max_tokens,
        }
        path = self._cache / f"{sha256_json([self._rules.endpoint, body, number])}.json"
        if path.is_file():
            self._from_cache += 1
            return _judged(_read_kept(path))
        spent = self._rules.max_tokens is not None and self._tokens >= self._rules.max_tokens
        if spent or self._requests >= self._rules.max_requests:
            raise BudgetSpent
        self._requests += 1
        said = self._endpoint.complete(body, counted=self._rules.max_tokens is not None)
        self._tokens += said.tokens
        write_atomic(path, json.dumps({"text": said.text, "whole": said.whole, "refused": said.refused}))
        return _judged(said)


class Said(NamedTuple):
    """The first choice of an answer."""

    text: str
    whole: bool
    refused: bool
    tokens: int = 0
    """Of question and answer, as the endpoint counts them."""


def _judged(said: Said) -> str | Verdict:
    if said.refused:
        return "refused", ""
    return said.text if said.whole else ("cut_off", "")


def _read_kept(path: Path) -> Said:
    """An answer from the cache.

    Raises:
        DataError: the file is damaged.
    """
    try:
        kept = json.loads(path.read_bytes())
        return Said(str(kept["text"]), bool(kept["whole"]), bool(kept.get("refused", False)))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"the kept answer {path} is damaged", way_out="remove it, and the row is asked about again"
        ) from error


class Endpoint:
    """One OpenAI-compatible server; asks again where a fault may pass."""

    def __init__(self, url: str, key: str, *, named: str, sleep: Callable[[float], None]) -> None:
        parts = urlsplit(url)
        self._url, self._named = url, named
        self._path = f"{parts.path.rstrip('/')}/chat/completions"
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname or "", parts.port, timeout=_SECONDS)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._sleep = sleep

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def complete(self, body: Mapping[str, Any], *, counted: bool) -> Said:
        """The first choice.

        Args:
            body: of the request.
            counted: whether the tokens must be told, because a budget hangs on them.

        Raises:
            DataError: there is no answer after several tries, or none of this form.
            NetworkRefused: the endpoint is elsewhere, and the run is offline.
        """
        content = self._post(json.dumps(body).encode())
        try:
            answer = json.loads(content)
            choice = answer["choices"][0]
            message, ended = choice["message"], choice.get("finish_reason")
            filtered, whole = ended == "content_filter", ended != "length"
            text = message["content"] or ""
            refused = filtered or (not text and bool(message.get("refusal")))
            tokens = (answer.get("usage") or {}).get("total_tokens")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self._named}: {self._url} answers in another form than OpenAI's chat completions",
                way_out="give the base URL of an OpenAI-compatible server, which mostly ends in /v1",
            ) from error
        if not isinstance(text, str) or (counted and not isinstance(tokens, int)):
            raise DataError(
                f"{self._named}: {self._url} does not tell how many tokens it used",
                way_out=f"leave max_tokens out and set {self._named}.max_requests",
            )
        return Said(text, whole, refused, tokens if isinstance(tokens, int) else 0)

    def _post(self, body: bytes) -> bytes:
        """The content of a good answer; what the server says of a bad one is not shown, it may hold what was sent."""
        problem, wait = "", 0.0
        for number in range(_TRIES):
            if number:
                self._sleep(wait)
            wait = 2.0**number
            try:
                self._connection.request("POST", self._path, body, self._headers)
                response = self._connection.getresponse()
                content = response.read(_MOST_BYTES)
            except LuthierError:  # offline: no try will help
                raise
            except (OSError, http.client.HTTPException) as error:
                problem = type(error).__name__
                self._connection.close()
                continue
            if response.status == 200:
                return content
            problem = f"{response.status} {http.client.responses.get(response.status, '')}".strip()
            if response.status not in _PASSING:
                break
            asked = response.headers.get("Retry-After", "")
            wait = min(float(asked), _LONGEST_WAIT) if asked.isdecimal() else wait
        raise DataError(
            f"{self._named}: {self._url} does not answer: {problem}",
            way_out="check endpoint, model and key_env, then run the same command again: what was answered is kept",
        )
