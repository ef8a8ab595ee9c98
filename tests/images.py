"""Small image folders for tests: each class has its own brightness, so that there is something to learn.

And files of every kind that is broken, or needs to be converted.
"""

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def save_image(path: Path, size=(8, 8), mode="RGB", level=128, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(-40, 40, (size[1], size[0], 3))
    Image.fromarray(np.clip(level + noise, 0, 255).astype(np.uint8)).convert(mode).save(path)


def make_folder(root: Path, classes=("dark", "grey", "light"), count=12, **options) -> Path:
    for c, name in enumerate(classes):
        for i in range(count):
            save_image(root / name / f"{i:02d}.png", level=60 + 70 * c, seed=100 * c + i, **options)
    return root


def encoded(format="PNG", size=(8, 8), mode="RGB", seed=0, **options) -> bytes:
    """A noise image as the content of a file."""
    noise = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, format, **options)
    return buffer.getvalue()


def cut(content: bytes, share=0.6) -> bytes:
    return content[: int(len(content) * share)]


def png(width: int, height: int, pixels: bytes = b"", bits=8, colour=2, extra: bytes = b"") -> bytes:
    """A PNG file that says what it is told to say."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    text = chunk(b"zTXt", extra) if extra else b""
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def flipped(content: bytes) -> bytes:
    """A bit of the compressed pixels turned over."""
    at = content.index(b"IDAT") + 30
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def broken_files(target: Path) -> dict[str, tuple[str, bytes, str]]:
    """By name: suffix, content and the kind of fault. A pickle among them would create ``target``."""
    noise = [[1.5, 2.5]] * 8
    floats, integers = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.array(noise, dtype=np.float32)).save(floats, "TIFF")
    Image.fromarray(np.array(noise, dtype=np.int32)).save(integers, "TIFF")
    return {
        "truncated png": (".png", cut(encoded("PNG")), "damaged"),
        "truncated jpeg": (".jpg", cut(encoded("JPEG", (32, 32)), 0.8), "damaged"),
        "truncated progressive jpeg": (".jpg", cut(encoded("JPEG", (32, 32), progressive=True), 0.9), "damaged"),
        "truncated webp": (".webp", cut(encoded("WEBP", (32, 32))), "damaged"),
        "truncated bmp": (".bmp", cut(encoded("BMP")), "damaged"),
        "truncated tiff": (".tif", cut(encoded("TIFF", (32, 32))), "damaged"),
        "flipped png": (".png", flipped(encoded("PNG")), "damaged"),
        "header only": (".jpg", encoded("JPEG")[:12], "damaged"),
        "zero bytes": (".jpg", b"", "empty"),
        "zeros": (".png", bytes(500), "not an image"),
        "text": (".jpg", b"these are not pixels\n" * 20, "not an image"),
        "postscript": (".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "not an image"),
        "pickle": (".png", pickle.dumps(Malicious(target)), "not an image"),
        "bomb": (".png", png(30000, 30000), "too large"),
        "text bomb": (".png", png(8, 8, extra=b"a\0\0" + zlib.compress(bytes(2**27))), "damaged"),
        "line": (".png", encoded("PNG", (1010, 10)), "too large"),
        "floats": (".tif", floats.getvalue(), "unsupported"),
        "integers": (".tif", integers.getvalue(), "unsupported"),
    }


def odd_files() -> dict[str, tuple[str, bytes, tuple[str, ...]]]:
    """By name: suffix, content and the conversions that it needs."""
    sixteen = io.BytesIO()
    Image.fromarray(np.arange(0, 64000, 1000, dtype=np.uint16).reshape(8, 8)).save(sixteen, "PNG")
    frames = [Image.new("RGB", (8, 8), (0, 100 * k, 255)) for k in range(3)]
    moving = {}
    for format in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
        moving[format] = buffer.getvalue()
    wide = png(8, 8, b"".join(b"\0" + bytes([200, 0] * 24) for _ in range(8)), bits=16)
    return {
        "cmyk jpeg": (".jpg", encoded("JPEG", mode="CMYK"), ("CMYK",)),
        "cmyk tiff": (".tif", encoded("TIFF", mode="CMYK"), ("CMYK",)),
        "palette png": (".png", encoded("PNG", mode="P"), ("palette",)),
        "palette with transparency": (".png", encoded("PNG", mode="P", transparency=0), ("palette", "alpha")),
        "16-bit grey": (".png", sixteen.getvalue(), ("16-bit",)),
        "16-bit rgb": (".png", wide, ("16-bit",)),
        "alpha": (".png", encoded("PNG", mode="RGBA"), ("alpha",)),
        "grey with alpha": (".png", encoded("PNG", mode="LA"), ("alpha",)),
        "animated gif": (".gif", moving["GIF"], ("palette", "animated")),
        "animated webp": (".webp", moving["WEBP"], ("animated",)),
        "animated png": (".png", moving["PNG"], ("animated",)),
        "png named jpg": (".jpg", encoded("PNG"), ()),
        "grey": (".png", encoded("PNG", mode="L"), ()),
        "one bit": (".png", encoded("PNG", mode="1"), ()),
    }


def write_files(folder: Path, files) -> list[Path]:
    """Files of :func:`broken_files` or :func:`odd_files`, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / (name.replace(" ", "_") + suffix) for name, (suffix, *_) in files.items()]
    for path, (_, content, _) in zip(paths, files.values(), strict=True):
        path.write_bytes(content)
    return paths
