"""The engine that is always there: a transformers module, plain or with an adapter, in float32."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.engines.protocol import Item, Result, Score
from luthier.errors import ModelError
from luthier.models.adapters import bare
from luthier.models.base import load_base
from luthier.models.beside import load_beside
from luthier.models.classifier import class_scores
from luthier.models.forward import forward_logits
from luthier.models.generate import go_on, greedy
from luthier.models.packing import Segment, lay_out, lay_out_rows
from luthier.models.tuned import can_switch_off, load_tuned

_LOGITS_CHUNK = 256  # positions whose vocabulary-wide scores are held at once
AT_ONCE = 4
"""Questions computed at the same time at most: with more they would wait for each other in the interpreter."""


class TransformersEngine:
    """Asks a live module. A question has a forward pass of its own, so an answer never depends on its neighbours."""

    name = "transformers"

    def __init__(self, model: Any, *, at_once: int = AT_ONCE) -> None:
        """Ask `model`, at most `at_once` questions at the same time."""
        self.whole = model
        self.model = bare(model)
        self.device = self.model.device
        self._threads = torch.get_num_threads()
        self._at_once = min(self._threads, at_once) if self.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(
            self._at_once, initializer=torch.set_num_threads, initargs=(self._threads // self._at_once,)
        )

    @classmethod
    def open(cls, base: Path, adapter: Path | None = None, *, device: str = "cpu") -> TransformersEngine:
        """Load a folder, with the adapter of another folder where given; whole weights that stand there replace it."""
        model: Any = load_base(base) if adapter is None else load_tuned(base, adapter)
        return cls(model.to(device))

    def beside(self, model: Any) -> TransformersEngine:
        """An engine for another model on the same device, whose questions share this one's threads."""
        other = TransformersEngine(model, at_once=self._at_once)
        other._pool = self._pool
        return other

    def without_adapter(self) -> TransformersEngine:
        """The base under the same weights: this model with its adapter switched off while it is asked."""
        assert can_switch_off(self.whole), "the base is not under these weights; see `base_and_tuned`"
        return _WithoutAdapter(self.whole)

    @torch.inference_mode()
    def score(self, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Score]:
        """One forward pass for all answers: the prompt and the answers' common starts are computed once."""
        if not prompt_ids or not answers or not all(answers):
            raise ValueError("score needs a prompt and answers that are not empty")
        # An answer's last token is scored but never read, so it takes no place.
        layout, places = lay_out_rows([[*prompt_ids, *answer[:-1]] for answer in answers], shared=1)
        # The score of a token stands at the position before it.
        before = [place[len(prompt_ids) - 1 :] for place in places]
        keep, where = torch.unique(torch.cat(before).to(self.device), return_inverse=True)
        logits = forward_logits(self.model, layout, keep).double()  # [distinct positions, vocabulary]
        log_norm, greedy = torch.logsumexp(logits, dim=-1), logits.argmax(dim=-1)
        scores = []
        for nodes, answer in zip(where.split([len(answer) for answer in answers]), answers, strict=True):
            tokens = torch.tensor(list(answer), device=self.device)
            logprob = float((logits[nodes, tokens] - log_norm[nodes]).sum())
            scores.append(Score(logprob, bool((greedy[nodes] == tokens).all())))
        return scores

    @torch.inference_mode()
    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        """Greedy continuation with a key-value cache."""
        return go_on(self.model, prompt_ids, max_new_tokens=max_new_tokens, stop_ids=stop_ids, choose=greedy).ids

    @torch.inference_mode()
    def logprobs(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Log p(ids[t] | ids[:t]) for t = 1 .. T-1; shape [T-1]."""
        layout = lay_out([Segment(ids)])
        targets = torch.tensor(list(ids[1:]), device=self.device)
        parts = [np.zeros(0)]
        for start in range(0, len(ids) - 1, _LOGITS_CHUNK):
            keep = torch.arange(start, min(start + _LOGITS_CHUNK, len(ids) - 1), device=self.device)
            logits = forward_logits(self.model, layout, keep).double()
            chosen = logits.gather(1, targets[keep][:, None])[:, 0]
            parts.append((chosen - torch.logsumexp(logits, dim=-1)).cpu().numpy())
        return np.concatenate(parts)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Raw scores at every position; shape [T, vocabulary]."""
        layout = lay_out([Segment(ids)])
        keep = torch.arange(len(ids), device=self.device)
        scores: NDArray[np.float32] = forward_logits(self.model, layout, keep).float().cpu().numpy()
        return scores

    @torch.inference_mode()
    def class_logits(self, prompt_ids: Sequence[int], task: str = "") -> NDArray[np.float32]:
        """Scores of the labels by the head of the task; [C]."""
        layout = lay_out([Segment(prompt_ids)])
        scores = class_scores(self.model, layout, torch.tensor([len(prompt_ids) - 1]), task)
        found: NDArray[np.float32] = scores[0].cpu().numpy()
        return found

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in order; no more than can be computed at once are under way, so that other callers get their turn.

        A pass of a hundred tokens has little to share: two threads at one question are slower than one thread each at
        two (benchmarks/LOG.md). All questions go this way, also single ones: another number of threads adds in another
        order, and an answer's last digits would depend on who asks.
        """
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(function, item))
                if len(waiting) > self._at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(self._threads)  # what a worker sets is also the default of threads yet to start


def base_and_tuned(
    base: Path, tuned: Path, *, under: Path | None = None, device: str = "cpu"
) -> tuple[TransformersEngine, TransformersEngine]:
    """The untuned and the tuned model; one set of weights in memory where an adapter alone tells them apart.

    `under` is what the adapter stands beside where that is not the base as it is.
    """
    engine = TransformersEngine.open(under or base, tuned, device=device)
    if under in (None, base) and can_switch_off(engine.whole):
        return engine.without_adapter(), engine
    return TransformersEngine.open(base, device=device), engine


def base_and_each(
    base: Path, adapters: Mapping[str, Path], *, under: Path | None = None, device: str = "cpu"
) -> tuple[TransformersEngine, dict[str, TransformersEngine]]:
    """The untuned model, and name -> the model with that adapter; one set of the base's weights in memory.

    `under` is what the adapters stand beside where that is not the base as it is, which is then held too.
    """
    untuned, tuned = load_beside(under or base, adapters, device=device)
    first = TransformersEngine(untuned)
    engines = {name: first.beside(model) for name, model in tuned.items()}
    return (first if under in (None, base) else TransformersEngine.open(base, device=device)), engines


class _WithoutAdapter(TransformersEngine):
    """Every question is asked with the adapter off; it stays off until the last of those asked at once is answered."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._lock = Lock()
        self._asking = 0
        self._off = ExitStack()

    @contextmanager
    def _adapter_off(self) -> Iterator[None]:
        with self._lock:
            if self._asking == 0:
                self._off.enter_context(self.whole.disable_adapter())
            self._asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1
                if self._asking == 0:
                    self._off.close()

    def score(self, prompt_ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[Score]:
        with self._adapter_off():
            return super().score(prompt_ids, answers)

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int, stop_ids: Sequence[int]) -> list[int]:
        with self._adapter_off():
            return super().generate(prompt_ids, max_new_tokens=max_new_tokens, stop_ids=stop_ids)

    def logprobs(self, ids: Sequence[int]) -> NDArray[np.float64]:
        with self._adapter_off():
            return super().logprobs(ids)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        with self._adapter_off():
            return super().logits(ids)

    def class_logits(self, prompt_ids: Sequence[int], task: str = "") -> NDArray[np.float32]:
        """Refused: a head was learned, so the base has none."""
        raise ModelError("the base has no classification head", way_out="ask it in words, see `in_words`")
