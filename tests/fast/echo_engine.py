"""A small real language model in numpy, with tokenizer, contract and rows, for tests of rooms that only ask.

The model repeats the letters that its prompt holds most of; how strongly is a parameter, so that a "tuned" one is
better than a "base". A byte is a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from luthier.data.contract import Renderer
from luthier.data.shards import Example
from luthier.engines.ask import Asker
from luthier.engines.protocol import Item, Result, Score
from luthier.records import Message, RequestContract

LABELS = ("ggg", "hhh", "kkk")
START, END = "<|im_start|>", "<|im_end|>"
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokenizer() -> Tokenizer:
    """Bytes and the two marks of a turn; 258 tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("."), "isolated"), to_bytes])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([START, END])
    return made


TOKENIZER = tokenizer()
VOCABULARY = TOKENIZER.get_vocab_size()


def contract(**changes: Any) -> RequestContract:
    end = TOKENIZER.encode(END + "\n", add_special_tokens=False).ids
    values: dict[str, Any] = {
        "name": "letter",
        "task": "classification",
        "transforms": ("collapse_whitespace",),
        "privacy_action": "report",
        "system": "",
        "input": "{text}",
        "labels": LABELS,
        "chat_template": CHAT,
        "bos_token": "",
        "eos_token": END,
        "end_of_turn": END + "\n",
        "end_of_turn_ids": tuple(end),
        "stop_ids": (end[0],),
        "tokenizer_sha256": "0" * 64,
        "max_length": 256,
        "max_new_tokens": 6,
    }
    return RequestContract(**(values | changes))


class EchoEngine:
    """Next-token scores: how often each token has been read, and a fixed random habit after each token.

    logits[t, v] = echo * count(v in ids[:t+1]) + habit[ids[t], v]
    """

    name = "echo"

    def __init__(self, echo: float, *, seed: int = 0) -> None:
        self.echo = echo
        self.habit = np.random.default_rng(seed).normal(size=(VOCABULARY, VOCABULARY))

    def score(self, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Score]:
        if not prompt_ids or not all(answers):
            raise ValueError("the prompt or an answer is empty")
        return [self._score([*prompt_ids, *answer], len(answer)) for answer in answers]

    def _score(self, ids: list[int], length: int) -> Score:
        greedy = self.logits(ids)[-length - 1 : -1].argmax(axis=1).tolist() == ids[-length:]
        return Score(float(self.logprobs(ids)[-length:].sum()), greedy)

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        ids = list(prompt_ids)
        for _ in range(max_new_tokens):
            following = int(self.logits(ids)[-1].argmax())
            if following in stop_ids:
                break
            ids.append(following)
        return ids[len(prompt_ids) :]

    def logprobs(self, ids: Sequence[int]) -> NDArray[np.float64]:
        logits = self.logits(ids).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return np.array([log_probabilities[t - 1, ids[t]] for t in range(1, len(ids))])

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        return map(function, items)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        read = np.cumsum(np.eye(VOCABULARY)[list(ids)], axis=0)
        return np.asarray(self.echo * read + self.habit[list(ids)], dtype=np.float32)


def asker(echo: float, made: RequestContract | None = None, *, seed: int = 0) -> Asker:
    made = made or contract()
    return Asker(made, Renderer(made, TOKENIZER), EchoEngine(echo, seed=seed))


def example(text: str, answer: str, *, line: int = 2, group: str = "", made: RequestContract | None = None) -> Example:
    """A prepared row as `prepare` would write it."""
    renderer = Renderer(made or contract(), TOKENIZER)
    prompt, ids = renderer.prompt_ids(renderer.messages(text)), renderer.answer_ids(answer)
    return Example(
        line=line,
        group=group,
        text=text,
        answer=answer,
        prompt_tokens=len(prompt),
        input_ids=prompt + ids,
        supervised=[False] * len(prompt) + [True] * len(ids),
    )


def chat_example(turns: Sequence[Message], *, line: int, made: RequestContract) -> Example:
    """A conversation whose last turn is the answer."""
    renderer = Renderer(made, TOKENIZER)
    row = example(turns[-2].content, turns[-1].content, line=line, made=made)
    prompt = renderer.prompt_ids(turns[:-1])
    ids = renderer.answer_ids(turns[-1].content)
    return dataclasses.replace(
        row, prompt_tokens=len(prompt), input_ids=prompt + ids, supervised=[False] * len(prompt) + [True] * len(ids)
    )


def rows(count: int, *, seed: int = 0, groups: int = 0, made: RequestContract | None = None) -> list[Example]:
    """Texts in which the letter of the label is the commonest, among others; lines count from 2."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        label = LABELS[int(rng.integers(len(LABELS)))]
        letters = [label[0]] * int(rng.integers(3, 8)) + list(rng.choice(list("ghkqz "), size=6))
        text = " ".join("".join(rng.permutation(letters)).split())
        group = f"g{rng.integers(groups)}" if groups else ""
        found.append(example(text, label, line=index + 2, group=group, made=made))
    return found
