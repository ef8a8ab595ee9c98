"""PNG files with long texts or colour profiles, which Pillow refuses to read: the same without these, for their pixels.

Needs no torch, and decodes nothing but texts, no further than to the limit.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO, NamedTuple

from PIL import PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
MOST_TEXT: int = PngImagePlugin.MAX_TEXT_CHUNK
"""Bytes of texts and profiles, once inflated, that are left in a file."""


class _Chunk(NamedTuple):
    name: bytes
    start: int
    end: int


def without_long_texts(file: BinaryIO) -> BytesIO | None:
    """Return a PNG file without the texts and profiles beyond :data:`MOST_TEXT`; None if there are none, or it is
    another file, which is left at its start."""
    file.seek(0)
    try:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            return None
        room, dropped = MOST_TEXT, []
        for chunk in _chunks(file):
            if chunk.name not in TEXTS:
                continue
            file.seek(chunk.start + 8)
            size = _inflated(chunk.name, file.read(chunk.end - chunk.start - 12))
            if size > room:
                dropped.append(chunk)
            else:
                room -= size
        if not dropped:
            return None
        file.seek(0)
        content = file.read()
    finally:
        file.seek(0)
    starts = [0, *(chunk.end for chunk in dropped)]
    ends = [*(chunk.start for chunk in dropped), len(content)]
    return BytesIO(b"".join(content[start:end] for start, end in zip(starts, ends, strict=True)))


def _chunks(file: BinaryIO) -> Iterator[_Chunk]:
    """Yield the whole chunks of a file, in order."""
    start, size = len(SIGNATURE), file.seek(0, 2)
    while start + 12 <= size:
        file.seek(start)
        head = file.read(8)
        end = start + 12 + int.from_bytes(head[:4], "big")
        if end > size:
            return
        yield _Chunk(head[4:], start, end)
        start = end


def _inflated(name: bytes, data: bytes) -> int:
    """Return the size of a text or profile, more than :data:`MOST_TEXT` for any that is longer."""
    if name == b"tEXt":
        return len(data)
    _, _, rest = data.partition(b"\0")
    if name == b"iTXt":
        if rest[:1] != b"\1":
            return len(data)
        packed = rest[2:].split(b"\0", 2)[-1]
    else:
        packed = rest[1:]
    try:
        return len(zlib.decompressobj().decompress(packed, MOST_TEXT + 1))
    except zlib.error:
        return len(data)
