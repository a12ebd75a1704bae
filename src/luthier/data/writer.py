"""A teacher writes the answers of rows, which are then learned: sequence-level distillation (`data.teacher`).

Instead of all that a teacher finds likely, one sequence of it is learned, which any model can give, whatever its
vocabulary (Kim and Rush 2016, arXiv 1606.07947, section 3.2). What is sent is the text as it will be learned, after
privacy was seen to; what comes back is looked through like a row of a file. Rows without answers come from a file of
their own and join the training split alone: what validation or test says, equal or nearly, is never asked about.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from luthier.data.contract import Renderer, prepare_text
from luthier.data.endpoint import BudgetSpent, Questions
from luthier.data.firewall import keep_off_benchmarks
from luthier.data.inputs import as_text, fill, missing_column
from luthier.data.items import Item, Ledger, Verdict, answer_of, digest_of, group_of, labels_of
from luthier.data.likeness import compared_text
from luthier.data.near import NearPairs
from luthier.data.read import Row, rows
from luthier.data.replay import guarded
from luthier.data.step import Flow
from luthier.data_report import EndpointUse, TextChange
from luthier.errors import DataError
from luthier.records import Message, is_closed
from luthier.spec.asking import Writer
from luthier.spec.template import fields
from luthier.store.home import home

TEACHER = "teacher"
"""`made_by` of a row whose text stands in a file of its own, and whose answer a teacher wrote."""

KEY = "data.teacher"
SHOWN = 3
"""Rows that the report shows."""
_SHOWN_CHARS = 400
_BESIDE_LABEL = 32
"""Tokens that an answer may have more than characters of the longest label: quotes, a full stop, a word of courtesy."""
_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which JSON can escape and no tokenizer reads."""


class Written(NamedTuple):
    """What a teacher wrote, before it is known what of it will be learned."""

    available: int
    """Rows that could be read from the file."""
    rows: list[Item]
    """New training rows."""
    rewritten: int
    """Training rows that have its answer now."""
    kept: int
    """Training rows that keep their own."""
    dropped: Mapping[str, int]
    """Reason -> rows, of both kinds, without an answer of it."""
    findings: Mapping[str, int]
    use: EndpointUse
    examples: tuple[TextChange, ...]


def write_answers(flow: Flow, rules: Writer) -> Written:
    """Ask for the answers of the file's rows, and of the training rows where the recipe says so.

    Answers of training rows are changed in place.

    Raises:
        DataError: the file cannot be used, rows hold personal data that may not be sent, or there is no answer.
        RecipeError: the endpoint's key is not in the environment.
        SecretFound: a row holds a secret, and data.privacy.secrets says 'stop'.
    """
    dropped, found = Counter[str](), Counter[str]()
    read = list(_rows(flow, rules.path, dropped)) if rules.path is not None else []
    new = _usable(read, flow, dropped, found)
    own = [item for item in flow.items if item.split == "train" and not item.made_by] if rules.rewrite else []
    judge = _Judge(flow, rules)
    questions = Questions(rules, key=KEY, cache=home() / "answers")
    asked = [(item, judge.messages(item)) for item in (*new, *own)]
    questions.refuse_personal([(item, judge.told(item)) for item, _ in asked], flow.renderer)
    answered = list[Item]()
    with questions:
        for item, messages in asked:
            try:
                said = questions.ask(messages, max_tokens=judge.max_tokens)
            except BudgetSpent:
                questions.passed_over()
                continue
            verdict = judge.judged(said, item)
            if isinstance(verdict, tuple):
                dropped[verdict[0]] += 1
            else:
                _answer(item, verdict)
                answered.append(item)
    made = [item for item in answered if item.made_by]
    return Written(
        available=len(read),
        rows=made,
        rewritten=len(answered) - len(made),
        kept=len(own) - len(answered) + len(made),
        dropped=dict(sorted(dropped.items())),
        findings=dict(sorted(found.items())),
        use=questions.use,
        examples=_examples(answered, flow.renderer),
    )


# --- rows without answers --------------------------------------------------------------------------------------------


def _rows(flow: Flow, path: str, dropped: Counter[str]) -> Iterator[Item]:
    """The rows of the file, cleaned as those of training."""
    names = fields(flow.contract.input)
    for row in rows(flow.resolved.file(path)):
        if not isinstance(row, Row):
            dropped[row.reason] += 1
            continue
        for name in names:
            if name not in row.values:
                raise missing_column(name, list(row.values), key=f"{flow.resolved.file(path)}: {KEY}.path")
        said = any(as_text(row.values[name]).strip() for name in names)
        text = prepare_text(
            fill(flow.contract.input, row.values) if said else "",
            transforms=flow.contract.transforms,
            redact_personal=False,
            redact_secrets=False,
        )
        if not text:
            dropped["empty_input"] += 1
            continue
        name = f"{path}/{row.file}" if row.file else path
        item = Item(name, row.line, None, {}, text=text, made_by=TEACHER)
        item.digest = digest_of(item.key)
        item.group = f"{TEACHER}={item.digest.hex()}"
        column = flow.resolved.recipe.data.split.group_by
        if column and as_text(row.values.get(column)).strip():  # it belongs to the rows of that group
            item.group = group_of(column, as_text(row.values[column]).strip())
        yield item


def _usable(read: Sequence[Item], flow: Flow, dropped: Counter[str], found: Counter[str]) -> list[Item]:
    """Those that stand nowhere else, in which personal data was seen to."""
    held, taken, kept = {item.digest for item in flow.items}, set[bytes](), list[Item]()
    near = _near_kept_back(read, flow)
    groups = {item.group for item in flow.items if item.split != "train"}
    for item in read:
        reason = "stands_in_the_data" if item.digest in held else "repeated" if item.digest in taken else ""
        reason = reason or ("nearly_in_the_data" if id(item) in near else "")
        reason = reason or ("group_kept_back" if item.group in groups else "")
        if not reason:
            taken.add(item.digest)
            reason, kinds = guarded(item, flow)
            found.update(kinds if not reason else {})
            if not reason and digest_of(item.key) in held:  # as it stands there, what was found in it redacted
                reason = "stands_in_the_data"
        if reason:
            dropped[reason] += 1
        else:
            kept.append(item)
    if not flow.resolved.recipe.data.leakage.benchmarks:
        return kept
    aside = Ledger(flow.ledger.detector)
    kept = keep_off_benchmarks(kept, flow.contract, flow.resolved, aside, None)[0]
    for (_, reason), count in aside.unmade.items():
        dropped[reason] += count
    return kept


def _near_kept_back(read: Sequence[Item], flow: Flow) -> set[int]:
    """Identities of the rows that nearly ask what a row of validation or test asks."""
    threshold = flow.resolved.recipe.data.leakage.threshold
    held = [item for item in flow.items if item.split != "train"]
    if threshold is None or not held or not read:
        return set()
    texts = [compared_text(item, flow.contract.input) for item in (*held, *read)]
    pairs = NearPairs(texts, threshold, left=len(held), crew=flow.crew)
    return {id(read[place - len(held)]) for place in pairs.later.tolist()}


# --- questions and answers -------------------------------------------------------------------------------------------


class _Judge:
    """How the teacher is asked, and what of its answers can be learned."""

    def __init__(self, flow: Flow, rules: Writer) -> None:
        self._renderer, self._rules = flow.renderer, rules
        contract = flow.contract
        labels = labels_of(item for item in flow.items if item.split == "train") if is_closed(contract.task) else ()
        self._labels = {_plain(label): label for label in sorted(labels)}
        if is_closed(contract.task) and len(self._labels) < len(labels):
            raise DataError(
                f"{KEY}: labels that differ only in case or punctuation cannot be told apart in an answer",
                way_out="give them other names with data.labels.rename",
            )
        longest = max(map(len, self._labels.values()), default=0)
        self.max_tokens = longest + _BESIDE_LABEL if self._labels else contract.max_length

    def messages(self, item: Item) -> list[Message]:
        """The question as the student will get it, under the recipe's system prompt for the teacher if there is one."""
        turns = item.turns[:-1] if item.turns else (Message(role="user", content=item.text),)
        system = self._rules.system
        if system is not None:
            turns = tuple(turn for turn in turns if turn.role != "system")
            return [*([Message(role="system", content=system)] if system else []), *turns]
        asked = list(self._renderer.with_system(turns))
        if not self._labels:
            return asked
        choice = f"Answer with one of these labels and nothing else: {', '.join(self._labels.values())}."
        if asked[0].role == "system":
            return [Message(role="system", content=f"{asked[0].content}\n{choice}"), *asked[1:]]
        return [Message(role="system", content=choice), *asked]

    def told(self, item: Item) -> str:
        """All that the teacher is told of a row: its turns, its own system turn included where that is sent."""
        if not item.turns:
            return item.text
        turns = (turn for turn in item.turns[:-1] if turn.role != "system" or self._rules.system is None)
        return "\n".join(turn.content for turn in turns)

    def judged(self, said: str | Verdict, item: Item) -> str | Verdict:
        """The answer as it will be learned, or why it cannot be."""
        if isinstance(said, tuple):
            return said
        transforms = self._renderer.contract.transforms
        answer = prepare_text(said, transforms=transforms, redact_personal=False, redact_secrets=False).strip()
        if not answer:
            return "empty", ""
        if _SURROGATE.search(answer):
            return "no_text", ""
        if self._labels:
            return self._labels.get(_plain(answer)) or ("not_a_label", "")
        asked = Counter(span.kind for turn in self.messages(item) for span in self._renderer.find(turn.content))
        if Counter(span.kind for span in self._renderer.find(answer)) - asked:
            return "personal_data", ""
        return answer


def _plain(label: str) -> str:
    """A label without what models put around it."""
    return " ".join(label.split()).strip(" \"'`*.:;,!").casefold()


def _answer(item: Item, answer: str) -> None:
    if item.turns:
        item.turns = (*item.turns[:-1], item.turns[-1].model_copy(update={"content": answer}))
    else:
        item.answer = answer


def _examples(answered: Sequence[Item], renderer: Renderer) -> tuple[TextChange, ...]:
    """Questions and answers for people to look at; none in which something was found."""
    shown: list[TextChange] = []
    for item in answered:
        question, answer = item.text or item.turns[-2].content, answer_of(item)
        if len(shown) == SHOWN:
            break
        if not renderer.find(question) and not renderer.find(answer):
            shown.append(
                TextChange(file=item.file, line=item.line, before=question[:_SHOWN_CHARS], after=answer[:_SHOWN_CHARS])
            )
    return tuple(shown)
