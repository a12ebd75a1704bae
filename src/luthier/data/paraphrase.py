"""Rows said in other words by a model behind an OpenAI-compatible endpoint: asked once, kept, and within a budget.

What is sent is the text as it will be learned, after privacy was seen to. Answers are kept under
LUTHIER_HOME/paraphrases, so the same rows are never asked about twice.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from luthier.data import noise
from luthier.data.contract import Renderer
from luthier.data.dedupe import text_key
from luthier.data.endpoint import BudgetSpent, Questions
from luthier.data.items import Item, Verdict
from luthier.data_report import EndpointUse
from luthier.records import Message
from luthier.spec.asking import Paraphrase
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

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which JSON can escape and no tokenizer reads."""


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
        self._rules = rules
        self._renderer = renderer
        self._labels = sorted(label for label in labels if len(label) > 2)
        self._questions = Questions(
            rules,
            key="data.augment.paraphrase",
            cache=cache or home() / "paraphrases",
            sleep=sleep,
            environment=environment,
        )

    @property
    def use(self) -> EndpointUse:
        """What was asked so far."""
        return self._questions.use

    def say(self, wanted: Sequence[tuple[Item, int]]) -> Iterator[tuple[Item, str | Verdict]]:
        """Each row with its text in other words, or why what was said cannot be used.

        Rows beyond the budget are left out and counted; answers that are kept cost nothing.

        Args:
            wanted: rows, and for each the number of the offspring; another number is another question.

        Raises:
            DataError: the rows hold personal data that the recipe does not allow to be sent, or there is no answer.
        """
        self._questions.refuse_personal([(item, asked_text(item)) for item, _ in wanted], self._renderer)
        with self._questions:
            for item, number in wanted:
                try:
                    said = self._reworded(asked_text(item), number)
                except BudgetSpent:
                    self._questions.passed_over()
                    continue
                yield item, said if isinstance(said, tuple) else self._judged(said, item)

    def _reworded(self, text: str, number: int) -> str | Verdict:
        language = self._rules.via
        if language is None:
            return self._ask(REPHRASE, text, number)
        there = self._ask(TRANSLATE.format(language=language), text, number)
        if isinstance(there, tuple) or not there:
            return there
        return self._ask(TRANSLATE_BACK.format(language=language, original=text[:80]), there, number)

    def _ask(self, system: str, text: str, number: int) -> str | Verdict:
        messages = [Message(role="system", content=system), Message(role="user", content=text)]
        return self._questions.ask(messages, max_tokens=max(64, len(text)), number=number)

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


def _names(text: str, label: str) -> bool:
    """Whether a text holds a label as words of its own."""
    words = f" {' '.join(noise.words_of(text))} "
    return f" {' '.join(noise.words_of(label))} " in words
