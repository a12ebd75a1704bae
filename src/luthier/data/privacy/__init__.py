"""Personal data and secrets: one interface, `find(text) -> list[Span]`, in three profiles.

This file has the profile `fast`, which everything may use: patterns, checksums and the words around. `profiles` opens
the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from luthier.data.privacy import context, patterns
from luthier.data.privacy.addresses import addresses
from luthier.data.privacy.secrets import passwords, tokens
from luthier.data.privacy.spans import Span, add_free, redact

_DETECTORS: tuple[Callable[[str], Iterator[Span]], ...] = (
    tokens, patterns.emails, passwords, patterns.ibans, patterns.cards, patterns.ip_addresses,
    patterns.ipv6_addresses,
    context.numbered, patterns.urls, context.dates_of_birth, patterns.phones, addresses, context.names,
)  # fmt: skip


def find(text: str) -> list[Span]:
    """All finds in `text`, in order; where two claim the same characters, the earlier detector wins."""
    taken: list[Span] = []
    for detect in _DETECTORS:
        add_free(taken, detect(text))
    return sorted(taken, key=lambda span: span.start)


def scrub(text: str, *, personal: bool, secrets: bool, find: Callable[[str], list[Span]] = find) -> str:
    """Redact until nothing more of what is asked for is found; each round leaves less that can match."""
    while spans := [span for span in find(text) if (secrets if span.is_secret else personal)]:
        text = redact(text, spans)
    return text
