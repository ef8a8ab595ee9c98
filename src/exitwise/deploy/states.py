"""Samples between two stages as bytes, from a device to a server: checked against the bundle that they are of.

A header (JSON, after its length in 8 bytes) says which bundle and stage they are for, and each array's name, type,
shape and, of eight bits, its scales; the arrays follow. Nothing is executed by reading it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from exitwise.deploy.calibration import CALIBRATION
from exitwise.deploy.chain import Inside
from exitwise.deploy.manifest import MANIFEST, TYPES
from exitwise.errors import DataError, UserError
from exitwise.exiting.rule import Thresholds, finite_thresholds

Precision = Literal["float32", "float16", "int8"]
"""Of a state that is sent: as it is; half of the bytes; or a quarter, with a scale for each sample."""

_CARRIED, _MOST_HEADER = "carried/", 100_000


def digest_of(*files: Path) -> str:
    """Return the SHA-256 of files together; those that are not there count nothing."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


def bundle_digest(folder: Path) -> str:
    """Return what a bundle is recognised by: its manifest, which seals the graphs, and its calibration."""
    return digest_of(folder / MANIFEST, folder / CALIBRATION.file)


def check_precision(precision: str) -> None:
    """Raise UserError unless a state can be sent so."""
    if precision not in get_args(Precision):
        raise UserError(f"expected precision as {', '.join(get_args(Precision))}; got {precision!r}")


def packed(inside: Inside, stage: int, thresholds: Thresholds, digest: str, precision: Precision = "float32") -> bytes:
    """Return samples before a stage (0-based) as bytes."""
    arrays = {**inside.arrays, **{_CARRIED + name: array for name, array in (inside.carried or {}).items()}}
    entries, parts = [], []
    for name, array in arrays.items():
        entry: dict[str, Any] = {"name": name, "type": str(array.dtype), "shape": list(array.shape)}
        sent = array
        if array.dtype == np.float32 and not name.startswith(_CARRIED) and precision != "float32":
            entry["sent"] = precision
            if precision == "int8":
                scales = np.abs(array).reshape(len(array), -1).max(axis=1) / 127
                entry["scales"] = scales.tolist()
                sent = np.rint(array / np.maximum(_along(scales, array), np.finfo(np.float32).tiny))
            sent = sent.astype(precision)
        entries.append(entry)
        parts.append(np.ascontiguousarray(sent).tobytes())
    head = json.dumps({"bundle": digest, "stage": stage, "thresholds": list(thresholds), "arrays": entries}).encode()
    return b"".join([struct.pack("<Q", len(head)), head, *parts])


def unpacked(
    content: bytes, digest: str, shapes: Mapping[int, Mapping[str, tuple[Any, ...]]]
) -> tuple[Inside, int, Thresholds]:
    """Return samples, the stage that they are before, and the thresholds that they leave by.

    Args:
        content: what :func:`packed` gave.
        digest: of the bundle that goes on with them.
        shapes: for each stage, what it takes: of each array the type and the shape of a sample.

    Raises:
        DataError: for anything else, or samples of another bundle.
    """
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > _MOST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        head = json.loads(content[8 : 8 + length])
        if head["bundle"] != digest:
            raise DataError("expected states of the bundle that is served; got those of another")
        stage, thresholds = head["stage"], finite_thresholds(head["thresholds"])
        if stage not in shapes or len(thresholds) != len(shapes):
            raise ValueError(f"stage {stage!r} with {len(thresholds)} thresholds")
        arrays, place = {}, 8 + length
        for entry in head["arrays"]:
            array, place = _read(content, place, entry)
            arrays[entry["name"]] = array
        found = {name: (str(array.dtype), *array.shape[1:]) for name, array in arrays.items()}
        sizes = {len(array) for array in arrays.values()}
        if found != dict(shapes[stage]) or len(sizes) != 1 or 0 in sizes or place != len(content):
            raise ValueError(f"arrays {found}")
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"expected the state of samples as a device sends it; got something else ({error})") from error
    if not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f"):
        raise DataError("expected finite numbers in a state; got others")
    carried = {name.removeprefix(_CARRIED): array for name, array in arrays.items() if name.startswith(_CARRIED)}
    inside = {name: array for name, array in arrays.items() if not name.startswith(_CARRIED)}
    return Inside(inside, carried or None), stage, thresholds


def described(inside: Inside) -> dict[str, tuple[Any, ...]]:
    """Return the type and the shape of a sample of each array that :func:`packed` sends."""
    arrays = {**inside.arrays, **{_CARRIED + name: array for name, array in (inside.carried or {}).items()}}
    return {name: (str(array.dtype), *array.shape[1:]) for name, array in arrays.items()}


def _read(content: bytes, place: int, entry: dict[str, Any]) -> tuple[npt.NDArray[Any], int]:
    kind, sent, shape = entry["type"], entry.get("sent", entry["type"]), entry["shape"]
    if kind not in TYPES or sent not in (kind, "float16", "int8") or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"{kind} sent as {sent}, {shape}")
    size = int(np.prod(shape, dtype=object)) * np.dtype(sent).itemsize
    if place + size > len(content):
        raise ValueError(f"{len(content)} bytes")
    array = np.frombuffer(content, sent, int(np.prod(shape, dtype=object)), place).reshape(shape).astype(kind)
    if sent == "int8" and kind != "int8":
        scales = np.array(entry["scales"], np.float32)
        if scales.shape != (shape[0],):
            raise ValueError(f"{scales.shape} scales")
        array = array * _along(scales, array)
    return array, place + size


def _along(scales: npt.NDArray[Any], array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a number per sample in the shape that multiplies the samples."""
    return scales.astype(np.float32).reshape(-1, *[1] * (array.ndim - 1))
