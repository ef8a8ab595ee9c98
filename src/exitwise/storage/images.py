"""One image file to 8-bit grey or RGB pixels: what is converted, and what is refused. Needs no torch.

It knows neither data sets nor what becomes of a file that is refused; docs/data.md states the policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from exitwise.errors import DataError
from exitwise.storage.jpeg import with_end
from exitwise.storage.png import without_long_texts

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may contain, whatever its name; formats whose readers start other programs are not among them."""

MOST_PIXELS = 178_956_970
"""Larger images are taken for decompression bombs; it is where Pillow itself refuses."""

MOST_ELONGATED = 100
"""The longest side over the shortest; resizing the shortest of a longer image would make a bomb of it."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its orientation in EXIF (JEITA CP-3451)."""

_EIGHT_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"})


ImageLike = str | PathLike[str] | bytes | BinaryIO | npt.NDArray[Any]
"""A file by its path, its bytes, a file that is open, or pixels: uint8 (height, width) or (height, width, 3)."""


class BrokenImageError(DataError):
    """An image file that cannot be used.

    Attributes:
        path: the file.
        kind: ``empty``, ``not an image``, ``damaged``, ``too large``, ``unsupported`` or ``unreadable``.
        reason: what the reader said.
    """

    def __init__(self, path: Path, kind: str, reason: str) -> None:
        super().__init__(f"expected an image in {path}; could not read it: {reason}")
        self.path, self.kind, self.reason = path, kind, reason


class Header(NamedTuple):
    """The header of an image file: (width, height), and the kinds of conversion that it needs."""

    size: tuple[int, int]
    conversions: tuple[str, ...]


def read_header(path: str | PathLike[str] | bytes) -> Header:
    """Look at an image, a path or the bytes of a file, without decoding it.

    Raises:
        BrokenImageError: if it cannot be used, as far as its header tells.
    """
    with _opened(path) as image:
        return Header(image.size, _conversions(image))


def read_pixels(image: ImageLike, channels: int) -> Image.Image:
    """Decode an image to mode L (1 channel) or RGB (3), turned as its EXIF data says.

    16-bit grey is scaled by 1/257, transparency is laid on white, of several frames the first is taken.

    Raises:
        BrokenImageError: if it cannot be used.
        DataError: for an array of another kind.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image).convert("L" if channels == 1 else "RGB")
    with _opened(image) as opened:
        is_transparent = opened.has_transparency_data
        upright = _upright(_whole(opened))
        if upright.mode.startswith("I"):
            pixels = np.asarray(upright, dtype=np.float64) / 257
            upright = Image.fromarray(np.rint(pixels).astype(np.uint8))
        elif is_transparent:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return upright.convert("L" if channels == 1 else "RGB")


@contextmanager
def _opened(source: str | PathLike[str] | bytes | BinaryIO) -> Iterator[ImageFile.ImageFile]:
    path = Path(source) if isinstance(source, (str, PathLike)) else Path(getattr(source, "name", "bytes"))
    try:
        file: Path | BytesIO = path
        if not isinstance(source, (str, PathLike)):
            file = BytesIO(source if isinstance(source, bytes) else source.read())
        if (len(file.getbuffer()) if isinstance(file, BytesIO) else file.stat().st_size) == 0:
            raise BrokenImageError(path, "empty", "the file is empty")
        with _as_pillow_takes_it(file) as content, Image.open(content, formats=FORMATS) as image:
            _check(path, image)
            yield image
    except BrokenImageError:
        raise
    except Exception as error:  # a decoder may raise anything at a damaged file
        raise BrokenImageError(path, *_diagnosis(error)) from error


@contextmanager
def _as_pillow_takes_it(file: Path | BytesIO) -> Iterator[BinaryIO]:
    """Yield the content of a file: of a PNG without texts that are too long, of a TIFF from memory, as Pillow turns no
    TIFF upright that is mapped there."""
    with file.open("rb") if isinstance(file, Path) else nullcontext(file) as content:
        if content.read(4) in (b"II*\0", b"MM\0*"):
            content.seek(0)
            yield BytesIO(content.read())
        else:
            yield without_long_texts(content) or content


def _whole(image: ImageFile.ImageFile) -> Image.Image:
    """Decode an image; a JPEG may lack its end mark."""
    file = image.fp
    try:
        image.load()
    except OSError:
        if image.format != "JPEG" or file is None:
            raise
        file.seek(0)
        ended = with_end(file.read())
        if ended is None:
            raise
        return ended
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Return an image turned as its EXIF data says, as far as that can be read."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a reader of tags may raise anything at odd ones
        turn = None
    return image if turn is None else image.transpose(turn)


def _from_array(pixels: npt.NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.size == 0 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise DataError(
            f"expected pixels as uint8 (height, width) or (height, width, 3); got {pixels.dtype} {pixels.shape}"
        )
    return Image.fromarray(pixels)


def _check(path: Path, image: ImageFile.ImageFile) -> None:
    """Raise BrokenImageError for pixels without an agreed range, and for bombs."""
    if image.mode not in _EIGHT_BITS and not _is_sixteen_bit_grey(image):
        raise BrokenImageError(path, "unsupported", f"pixels of mode {image.mode} have no agreed range")
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise BrokenImageError(path, "too large", f"{width}x{height} pixels, more than {MOST_PIXELS} in all")
    if max(image.size) > MOST_ELONGATED * min(image.size):
        raise BrokenImageError(
            path, "too large", f"{width}x{height} pixels, a side over {MOST_ELONGATED} times the other"
        )


def _conversions(image: ImageFile.ImageFile) -> tuple[str, ...]:
    applies = {
        "CMYK": image.mode == "CMYK",
        "palette": image.mode in ("P", "PA"),
        "16-bit": ";16" in str(image.tile) or _is_sixteen_bit_grey(image),
        "alpha": image.has_transparency_data,
        "animated": getattr(image, "is_animated", False),
    }
    return tuple(kind for kind, needed in applies.items() if needed)


def _is_sixteen_bit_grey(image: ImageFile.ImageFile) -> bool:
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _diagnosis(error: Exception) -> tuple[str, str]:
    if isinstance(error, UnidentifiedImageError):
        return "not an image", "not an image of a known format"
    text = str(error).strip()
    reason = text.splitlines()[0] if text else type(error).__name__
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return "too large", reason
    if isinstance(error, OSError) and error.errno is not None:
        return "unreadable", error.strerror or reason
    return "damaged", reason
