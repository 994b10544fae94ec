"""What the faces of a release say (card, Croissant, report), whichever manifest they name and whatever they play.

A face names the digest of its manifest, and the manifest has a digest of what the face says: neither can be changed
alone. Sound is no part of what a report says, so that it is the same report without.
"""

from __future__ import annotations

import hashlib
import re

SILENT = "<em>Its sound is not published.</em>"  # in place of a player

_PLAYER = re.compile(r'<(audio|video)\b[^>]*\bsrc="data:[^"]*"[^>]*>\s*</\1>')
_MEDIA = re.compile(r"data:(?:audio|video)/[^\"'\s)>]*")


def without_sound(page: str) -> str:
    """A report that holds no media: previews of sound are taken out."""
    return _MEDIA.sub("data:,", _PLAYER.sub(SILENT, page))


def said(text: str, manifest: str) -> str:
    """SHA-256 of what a face says, apart from the digest of its manifest, which may stand there in short, and sound."""
    plain = without_sound(text).replace(manifest, "").replace(manifest[:12], "")
    return hashlib.sha256(plain.encode()).hexdigest()
