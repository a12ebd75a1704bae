"""What is known of licenses, one sentence each. An aid for the reader of a gate or card, not legal advice.

Identifiers are those of https://spdx.org/licenses and of the Hugging Face model cards.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["permissive", "share-alike", "restricted", "non-commercial", "stated", "unknown"]

_NOTICE = "may be used, changed and passed on when its notices are kept"
_ATTRIBUTION = "may be used, changed and passed on when its authors are named"
_FREE = "is given away without conditions"
_SAME_TERMS = "may be used and changed; what is passed on of it comes under the same terms"
_OWN_TERMS = "comes under terms of its maker, which forbid some uses and must be passed on with it"
_UNCHANGED = "may be passed on unchanged only; what is made from it may not be passed on"
_UNSTATED = "comes with no stated license: find out whether you may use it and pass it on"
_OTHER_WORDS = "comes under words that are not known here: read them before you pass anything on"
_NO_PROFIT = "may not be used for commercial purposes"

_FAMILIES: tuple[tuple[str, Kind, str], ...] = (
    (r"|unknown|none|noassertion|other", "unknown", _UNSTATED),
    # Before all others the trap: a part that says 'nc' decides, whatever stands around it.
    (r"(.*-)?nc(-.*)?|.*non-?commercial.*|.*-research|.*research-only.*", "non-commercial", _NO_PROFIT),
    (r"cc-by-nd(-.*)?", "restricted", _UNCHANGED),
    (r"gemma.*|llama-?\d.*|(bigscience|creativeml|bigcode)-.*|openrail.*", "restricted", _OWN_TERMS),
    (r"(cc-by-sa|cdla-sharing|odbl|a?gpl|lgpl|mpl|epl|eupl)(-.*)?", "share-alike", _SAME_TERMS),
    (r"cc0(-.*)?|pddl(-.*)?|unlicense|0bsd|public-domain", "permissive", _FREE),
    (r"(cc-by|odc-by)(-\d.*)?", "permissive", _ATTRIBUTION),
    # The whole id and nothing after it: 'apache-2.0 with commons clause' is something else.
    (r"(apache|mit|isc|zlib|cdla-permissive|ms-pl|afl|ecl)(-[\d.]+)?|bsd(-\d-clause)?|bsl-1\.0", "permissive", _NOTICE),
)


@dataclass(frozen=True)
class Assessment:
    """What a license means for one thing, ready for a line of the gate."""

    kind: Kind
    observed: str
    passed: bool


def assess(license_id: str, subject: str) -> Assessment:
    """Say what is known of a license.

    Only a license that forbids commercial use stops the gate; one that is not stated, or not known here, is noted.

    Args:
        license_id: an SPDX id or words.
        subject: what it is the license of, e.g. 'the base model'.
    """
    normal = _normal(license_id)
    known = ((kind, sentence) for pattern, kind, sentence in _FAMILIES if re.fullmatch(pattern, normal))
    kind, sentence = next(known, ("stated", _OTHER_WORDS))
    named = subject if kind == "unknown" else f"{subject} ({license_id})"
    way_out = "; choose another, or agree other terms with its owner and state them" if kind == "non-commercial" else ""
    return Assessment(kind, f"{named} {sentence}{way_out}", kind != "non-commercial")


def _normal(license_id: str) -> str:
    """'Apache License, Version 2.0' -> 'apache-2.0'."""
    words = re.sub(r"\b(the|licen[sc]ed?|version|v(?=\d))\b|v(?=\d)", " ", license_id.lower())
    return re.sub(r"[^a-z0-9.]+", "-", words).strip("-")
