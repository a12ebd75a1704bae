"""Several adapters over one base in memory: each has modules of its own, and the base's weights are held once.

Nothing is switched on and off, so a question to one adapter cannot meet another, whoever asks at the same time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from luthier.models.adapters import load_adapter
from luthier.models.base import load_base


def same_weights(base: Any) -> Any:
    """A model of its own whose parameters and buffers are those of `base`, not copies of them."""
    held: dict[int, Any] = {id(tensor): tensor for tensor in chain(base.parameters(), base.buffers())}
    return copy.deepcopy(base, held)


def load_beside(base: Path, adapters: Mapping[str, Path], *, device: str = "cpu") -> tuple[Any, dict[str, Any]]:
    """The base alone, and name -> the base with that adapter; all in evaluation mode, over one set of weights.

    Args:
        base: folder of what the adapters stand beside.
        adapters: name -> folder of an adapter that leaves the base's own weights as they are.
        device: where they are.

    Raises:
        ModelError: see `load_base` and `load_adapter`.
    """
    untuned = load_base(base).to(device)
    return untuned, {name: load_adapter(same_weights(untuned), folder).to(device) for name, folder in adapters.items()}
