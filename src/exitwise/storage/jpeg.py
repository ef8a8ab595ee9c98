"""JPEG files that end before their end mark: whole if all pixels are there, told by decoding them twice."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from io import BytesIO

from PIL import Image

FRAMES, SCAN = (0xC0, 0xC1, 0xC2), 0xDA
MARK = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]")
"""What begins a segment, or a scan."""

END = b"\xff\xd9"
TAILS = tuple(hashlib.sha512(seed).digest().replace(b"\xff", b"\x7f") for seed in (b"one", b"another"))
"""Different bits that could follow those of a scan; ``ff`` would begin a mark."""


def with_end(content: bytes) -> Image.Image | None:
    """Return a JPEG image that lacks its end mark and nothing else; None if pixels are missing.

    What follows the last pixel of a scan changes none of them. So pixels are missing where what is decoded depends on
    the bits that are put behind, or where scans are.
    """
    if not _has_all_scans(content):
        return None
    content = content.rstrip(b"\xff")
    one, another = (_decoded(content + tail + END) for tail in TAILS)
    return one if one is not None and another is not None and one.tobytes() == another.tobytes() else None


def _has_all_scans(content: bytes) -> bool:
    """Return whether every coefficient of every component has been sent to its last bit (ITU-T T.81, B.2 and G.1)."""
    missing: set[tuple[int, int]] = set()
    for marker, segment in _segments(content):
        if marker in FRAMES:
            missing = {(component, k) for component in segment[6::3] for k in range(64)}
        elif marker == SCAN and len(segment) == 4 + 2 * segment[0]:
            first, last, bits = segment[-3:]
            if not bits & 15:
                missing -= {(component, k) for component in segment[1:-3:2] for k in range(first, last + 1)}
    return not missing


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the marker and the content of each whole segment; bits of scans are passed over."""
    end = 0
    while mark := MARK.search(content, end):
        start = mark.end() + 2
        end = mark.end() + int.from_bytes(content[mark.end() : start], "big")
        if end < start:
            return
        yield content[mark.start() + 1], content[start:end]


def _decoded(content: bytes) -> Image.Image | None:
    try:
        image = Image.open(BytesIO(content), formats=("JPEG",))
        image.load()
    except Exception:  # a decoder may raise anything at a damaged file
        return None
    return image
