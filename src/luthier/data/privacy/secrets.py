"""Keys, tokens and passwords: the formats that their issuers document, and what stands after 'password:'."""

from __future__ import annotations

import re
from collections.abc import Iterator

from luthier.data.privacy.spans import Span

_SECRETS = {
    "private_key_block": r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----"
    r"(?:[\s\S]{0,20000}?-----END [A-Z ]{0,30}PRIVATE KEY-----|[\s\S]*)",
    "aws_access_key": r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "github_token": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255})",
    "gitlab_token": r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,}",
    "slack_token": r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,}|https://hooks\.slack\.com/services/[A-Za-z0-9/]{20,}",
    "google_api_key": r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}",
    "anthropic_key": r"(?<![A-Za-z0-9])sk-ant-[A-Za-z0-9_-]{20,}",
    "openai_key": r"(?<![A-Za-z0-9])sk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{20,}",
    "stripe_key": r"(?<![A-Za-z0-9])[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "huggingface_token": r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}",
    "jwt": r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
}
_SECRET = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _SECRETS.items()))

_MARKERS = (
    "PRIVATE KEY", "AKIA", "ASIA", "_", "glpat-", "xox", "hooks.slack.com", "AIza", "sk-", "eyJ",
)  # fmt: skip

_ASSIGNMENT = re.compile(
    r"(?<![A-Za-z])(?:password|passwd|passphrase|passwort|pwd|api[ _-]?key|secret(?:[ _-]?key)?|(?:access[ _-]?)?token)"
    r"[\"']?\s{0,3}(?:[:=]|\bis\b:?)\s{0,3}[\"']?(?P<value>[^\s\"'\[\]<>{}]{6,})",
    re.IGNORECASE,
)
_EXPRESSION = re.compile(  # what stands there in a program: get_token(, contract.token, API_TOKEN; never between quotes
    r"[A-Za-z_][\w.]*\([\w=,.]*|[A-Za-z_]\w*(?:\.[A-Za-z_]+)+|[A-Z]+(?:_[A-Z]+)+"
)
_ASSIGNMENT_HINTS = ("pass", "pwd", "api", "secret", "token")


def tokens(text: str) -> Iterator[Span]:
    """Keys and tokens of the formats above."""
    if any(marker in text for marker in _MARKERS):  # words are found much faster than the pattern
        for match in _SECRET.finditer(text):
            yield Span(match.start(), match.end(), f"secret.{match.lastgroup}")


def passwords(text: str) -> Iterator[Span]:
    """'password: xyz' where xyz mixes letters with digits or signs, as passwords do and words of a sentence do not."""
    low = text.lower()
    if not any(hint in low for hint in _ASSIGNMENT_HINTS):
        return
    for match in _ASSIGNMENT.finditer(text):
        value = match["value"].rstrip(".,;:)")
        inner = value[1:-1]
        mixed = any(char.isdigit() for char in value) or any(not (char.isalnum() or char in "-'’/") for char in inner)
        quoted = text[match.start("value") - 1] in "\"'"
        if not quoted and _EXPRESSION.fullmatch(value):
            continue
        if len(value) >= 6 and mixed and any(char.isalpha() for char in value) and "://" not in value:
            yield Span(match.start("value"), match.start("value") + len(value), "secret.password")
