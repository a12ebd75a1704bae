"""Rows said in other words by a model behind an OpenAI-compatible endpoint: asked once, kept, and within a budget.

What is sent is the text as it will be learned, after privacy was seen to. Answers are kept by their content under
LUTHIER_HOME/paraphrases, readable by their owner only, so the same rows are never asked about twice.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from luthier.data import noise
from luthier.data.contract import Renderer
from luthier.data.dedupe import text_key
from luthier.data.items import Item, Verdict
from luthier.data_report import EndpointUse
from luthier.errors import DataError, LuthierError, RecipeError
from luthier.spec.recipe import Paraphrase
from luthier.store.files import sha256_json, write_atomic
from luthier.store.home import home

PARAPHRASE = "paraphrase"
"""Name of the technique."""

REPHRASE = (
    "You rewrite messages. Say the user's message in other words of the same language. Keep its meaning and its tone, "
    "and leave names, numbers, addresses and everything in brackets as they are. Write the new message only."
)
TRANSLATE = (
    "You translate messages. Translate the user's message into {language}. Leave names, numbers, addresses and "
    "everything in brackets as they are. Write the translation only."
)
TRANSLATE_BACK = (
    "You translate messages. Translate the user's message from {language} into the language of this text: "
    "{original!r}. Leave names, numbers, addresses and everything in brackets as they are. Write the translation only."
)

_TRIES = 4
_SECONDS = 120.0
_PASSING = frozenset((408, 429, 500, 502, 503, 504))
_LONGEST_WAIT = 60.0
_MOST_BYTES = 8_000_000
"""Of an answer; more is no paraphrase."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which JSON can escape and no tokenizer reads."""


class BudgetSpent(Exception):
    """Nothing more may be asked; caught where the rows are counted."""


def asked_text(item: Item) -> str:
    """What a row asks: its text, or the last user turn of a conversation; '' where it has none."""
    if not item.turns:
        return item.text
    return next((turn.content for turn in reversed(item.turns[:-1]) if turn.role == "user"), "")


class Paraphraser:
    """Asks a model for other words, and judges what it says.

    Args:
        rules: which endpoint, and how much may be asked of it.
        renderer: knows the template and what counts as personal data.
        labels: of a closed set; empty for free answers.
        cache: folder of the answers; None takes the one in Luthier's own folder.
        sleep: waits before another try.
        environment: holds the key.

    Raises:
        RecipeError: the key is not in the environment.
    """

    def __init__(
        self,
        rules: Paraphrase,
        renderer: Renderer,
        labels: Collection[str],
        *,
        cache: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        if rules.key_env is not None and not environment.get(rules.key_env):
            raise RecipeError(
                f"data.augment.paraphrase.key_env: {rules.key_env} is not set in the environment",
                way_out=f"export {rules.key_env}=..., or leave key_env out for an endpoint without a key",
            )
        self._rules = rules
        self._renderer = renderer
        self._labels = sorted(label for label in labels if len(label) > 2)
        self._cache = cache or home() / "paraphrases"
        self._endpoint = Endpoint(rules.endpoint, environment.get(rules.key_env or "", ""), sleep=sleep)
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

    def say(self, wanted: Sequence[tuple[Item, int]]) -> Iterator[tuple[Item, str | Verdict]]:
        """Each row with its text in other words, or why what was said cannot be used.

        Rows beyond the budget are left out and counted; answers that are kept cost nothing.

        Args:
            wanted: rows, and for each the number of the offspring; another number is another question.

        Raises:
            DataError: the rows hold personal data that the recipe does not allow to be sent, or there is no answer.
        """
        self._refuse_personal([item for item, _ in wanted])
        self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.closing(self._endpoint):
            for item, number in wanted:
                try:
                    said = self._reworded(asked_text(item), number)
                except BudgetSpent:
                    self._unanswered += 1
                    continue
                yield item, said if isinstance(said, tuple) else self._judged(said, item)

    def _refuse_personal(self, items: Sequence[Item]) -> None:
        if self._rules.send_personal_data or self._renderer.contract.privacy_action != "report":
            return
        first, kinds, rows = "", list[str](), 0
        for item in items:
            if found := self._renderer.find(asked_text(item)):
                first, rows = first or f"{item.file}:{item.line}", rows + 1
                kinds += [span.kind for span in found]
        if rows:
            raise DataError(
                f"data.augment.paraphrase: {rows} of the {len(items)} rows that would be sent to "
                f"{self._rules.endpoint} hold personal data ({', '.join(sorted(set(kinds)))}), the first is {first}",
                way_out="set data.privacy.action to redact or pseudonymise, or allow it with "
                "data.augment.paraphrase.send_personal_data: true",
            )

    def _reworded(self, text: str, number: int) -> str | Verdict:
        language = self._rules.via
        if language is None:
            return self._ask(REPHRASE, text, number)
        there = self._ask(TRANSLATE.format(language=language), text, number)
        if isinstance(there, tuple) or not there:
            return there
        return self._ask(TRANSLATE_BACK.format(language=language, original=text[:80]), there, number)

    def _ask(self, system: str, text: str, number: int) -> str | Verdict:
        """One question, from the cache where it was asked before."""
        body = {
            "model": self._rules.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}],
            "temperature": self._rules.temperature,
            "max_tokens": max(64, len(text)),
        }
        path = self._cache / f"{sha256_json([self._rules.endpoint, body, number])}.json"
        if path.is_file():
            self._from_cache += 1
            return _read_kept(path)
        spent = self._rules.max_tokens is not None and self._tokens >= self._rules.max_tokens
        if spent or self._requests >= self._rules.max_requests:
            raise BudgetSpent
        self._requests += 1
        answer, whole, tokens = self._endpoint.complete(body, counted=self._rules.max_tokens is not None)
        self._tokens += tokens
        write_atomic(path, json.dumps({"text": answer, "whole": whole}))
        return answer if whole else ("cut_off", "")

    def _judged(self, said: str, item: Item) -> str | Verdict:
        """The answer without quotes around it, or why it cannot stand for the row."""
        text = asked_text(item)
        said = said.strip()
        if len(said) > 1 and said[0] == said[-1] == '"' and not text.startswith('"'):
            said = said[1:-1].strip()
        stays = [*noise.protected(text), *(words for _, words in noise.wording(text, self._renderer.contract.input))]
        if self._renderer.contract.task == "extraction":
            stays += [word for word in set(item.answer.split()) if word in text]
        own = item.answer.casefold()
        named = [label for label in self._labels if label.casefold() not in own and _names(said, label)]
        reasons = {
            "empty": not said,
            "no_text": _SURROGATE.search(said) is not None,
            "unchanged": text_key(said) == text_key(text),
            "too_long_answer": len(said) > 3 * len(text) + 40,
            "fixed_part_lost": any(part not in said for part in stays),
            "names_other_label": any(not _names(text, label) for label in named),
        }
        reason = next((reason for reason, applies in reasons.items() if applies), None)
        return said if reason is None else (reason, "")


def _read_kept(path: Path) -> str | Verdict:
    """An answer from the cache.

    Raises:
        DataError: the file is damaged.
    """
    try:
        kept = json.loads(path.read_bytes())
        return str(kept["text"]) if kept["whole"] else ("cut_off", "")
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"the kept answer {path} is damaged", way_out="remove it, and the row is asked about again"
        ) from error


def _names(text: str, label: str) -> bool:
    """Whether a text holds a label as words of its own."""
    words = f" {' '.join(noise.words_of(text))} "
    return f" {' '.join(noise.words_of(label))} " in words


class Endpoint:
    """One OpenAI-compatible server; asks again where a fault may pass."""

    def __init__(self, url: str, key: str, *, sleep: Callable[[float], None]) -> None:
        parts = urlsplit(url)
        self._url = url
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

    def complete(self, body: Mapping[str, Any], *, counted: bool) -> tuple[str, bool, int]:
        """Text of the first choice, whether it is whole, and how many tokens were counted.

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
            text, whole = choice["message"]["content"] or "", choice.get("finish_reason") != "length"
            tokens = (answer.get("usage") or {}).get("total_tokens")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"data.augment.paraphrase: {self._url} answers in another form than OpenAI's chat completions",
                way_out="give the base URL of an OpenAI-compatible server, which mostly ends in /v1",
            ) from error
        if not isinstance(text, str) or (counted and not isinstance(tokens, int)):
            raise DataError(
                f"data.augment.paraphrase: {self._url} does not tell how many tokens it used",
                way_out="leave max_tokens out and set data.augment.paraphrase.max_requests",
            )
        return text, whole, tokens if isinstance(tokens, int) else 0

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
            f"data.augment.paraphrase: {self._url} does not answer: {problem}",
            way_out="check endpoint, model and key_env, then run the same command again: what was answered is kept",
        )
