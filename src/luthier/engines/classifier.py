"""A sequence classification model asked as any user of transformers asks it, through its own forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.engines.protocol import Item, Result
from luthier.models.classifier import open_classifier


class ClassifierEngine:
    """Shares no code with the packed rows that training and the server compute, so it can bear witness for them."""

    name = "transformers classifier"

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def open(cls, folder: Path, adapter: Path | None = None, *, num_labels: int) -> ClassifierEngine:
        """Load a folder, with the adapter of another folder where given."""
        return cls(open_classifier(folder, adapter=adapter, num_labels=num_labels))

    @torch.inference_mode()
    def class_logits(self, prompt_ids: Sequence[int], task: str = "") -> NDArray[np.float32]:
        """Score of each label after the prompt; [C]. There is one head, whatever the task."""
        scores: NDArray[np.float32] = self.model(input_ids=torch.tensor([list(prompt_ids)])).logits[0].numpy()
        return scores

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of the items, one after the other."""
        return map(function, items)
