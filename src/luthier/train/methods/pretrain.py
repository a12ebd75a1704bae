"""Continued pre-training: - sum over t > 0 of log p(ids[t] | ids[:t]) over all tokens of a document.

What is learned stands in the shards: a piece that goes on with a document begins with tokens of the piece before, which
are read and not learned, so that each token is learned once (`luthier.data.documents`). The loss is that of sft.
"""

from __future__ import annotations

from luthier.records import RequestContract
from luthier.spec.section import Method as Settings
from luthier.train.methods.sft import Sft


def open_method(settings: Settings, contract: RequestContract) -> Sft:
    """Replayed texts are rows like all others by now, so there is nothing left to set."""
    return Sft()
