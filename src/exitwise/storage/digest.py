"""What tells whether labelled images are the same: one digest of all. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def digest_of(images: Iterable[tuple[str, int, str]]) -> str:
    """Return the SHA-256 over name, class index and stamp of images, in order."""
    digest = hashlib.sha256()
    for name, label, stamp in images:
        digest.update(f"{name}\t{label}\t{stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
