"""detect-secrets without its entropy plugins, which flag every benign line, and without what our own patterns do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

from luthier.data.privacy.spans import Span

_PLUGINS = {  # those whose formats are not among our own
    "artifactory": "ArtifactoryDetector", "azure_storage_key": "AzureStorageKeyDetector",
    "basic_auth": "BasicAuthDetector", "cloudant": "CloudantDetector", "discord": "DiscordBotTokenDetector",
    "ibm_cloud_iam": "IbmCloudIamDetector", "ibm_cos_hmac": "IbmCosHmacDetector", "mailchimp": "MailchimpDetector",
    "npm": "NpmDetector", "pypi_token": "PypiTokenDetector", "sendgrid": "SendGridDetector",
    "softlayer": "SoftlayerDetector", "square_oauth": "SquareOAuthDetector",
    "telegram_token": "TelegramBotTokenDetector", "twilio": "TwilioKeyDetector",
}  # fmt: skip
_SHORTEST = 6


@lru_cache(maxsize=1)
def _plugins() -> tuple[tuple[str, Any], ...]:
    return tuple(
        (module, getattr(import_module(f"detect_secrets.plugins.{module}"), name)())
        for module, name in _PLUGINS.items()
    )


@lru_cache(maxsize=1)
def _name() -> str:
    return f"detect-secrets/{version('detect-secrets')}"


def detect_secrets(text: str) -> Iterator[Span]:
    """Secrets of the formats that only detect-secrets knows, each occurrence; the package must be installed."""
    for kind, plugin in _plugins():
        for value in sorted({found for found in plugin.analyze_string(text) if isinstance(found, str)}):
            start = text.find(value) if len(value) >= _SHORTEST else -1
            while start >= 0:
                yield Span(start, start + len(value), f"secret.{kind}", _name())
                start = text.find(value, start + len(value))
