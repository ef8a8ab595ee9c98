"""What a network is given: arrays that are checked, and image files that become arrays. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from exitwise.deploy.manifest import TEXT_PARTS, Input
from exitwise.errors import DataError, UserError
from exitwise.storage.images import ImageLike, read_pixels


def check_inputs(inputs: Sequence[Input], given: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays given by name, if they are what a network takes.

    What a network answers to numbers that are none, to ids below 0 or to rows without a token is chance.

    Raises:
        UserError: if they are others, or hold no sample.
        DataError: for numbers that are not finite, ids below 0, or a row that is masked as a whole.
    """
    wanted = [each.name for each in inputs]
    if set(given) != set(wanted):
        raise UserError(f"expected inputs {', '.join(wanted)}; got {', '.join(map(str, given))}")
    sizes: dict[str, int] = {}
    if any(isinstance(array, np.ndarray) and array.ndim and len(array) == 0 for array in given.values()):
        raise UserError(f"expected at least one sample of {', '.join(wanted)}; got none")
    if any(isinstance(array, np.ndarray) and array.size == 0 for array in given.values()):
        raise UserError(f"expected at least one token of {', '.join(wanted)}; got none")
    found = {}
    for each in inputs:
        found[each.name] = _as_taken(given[each.name], each)
        _check(each, found[each.name], sizes)
        _check_numbers(each, found[each.name])
    return found


def _as_taken(array: Any, each: Input) -> Any:
    """Return whole numbers in the type of a network's whole numbers, if that holds them."""
    wanted = np.dtype(each.type)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iub" or wanted.kind != "i":
        return array
    fits = np.iinfo(wanted).min <= array.min() and array.max() <= np.iinfo(wanted).max
    return array.astype(wanted) if fits else array


def _check(each: Input, array: Any, sizes: dict[str, int]) -> None:
    """Raise UserError unless an array is what an input takes; ``sizes`` are those of named axes so far."""
    batch = sizes.get(str(each.shape[0]), "B")
    right = (
        isinstance(array, np.ndarray)
        and array.dtype == each.type
        and array.ndim == len(each.shape)
        and all(
            size == (sizes.setdefault(axis, size) if isinstance(axis, str) else axis)
            for axis, size in zip(each.shape, array.shape, strict=True)
        )
    )
    if not right:
        wanted = "x".join(str(sizes.get(axis, axis) if isinstance(axis, str) else axis) for axis in each.shape[1:])
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UserError(f"expected {each.type} {each.name} ({batch}, {wanted}); got {found}")


def _check_numbers(each: Input, array: npt.NDArray[Any]) -> None:
    rows = array.reshape(len(array), -1)
    if array.dtype.kind == "f":
        if np.isfinite(array).all():  # several times as fast as row by row
            return
        wrong, wanted = ~np.isfinite(rows).all(axis=1), f"finite numbers in {each.name}"
    elif array.ndim == 2 and array.dtype.kind == "i":
        wrong, wanted = (rows < 0).any(axis=1), f"whole numbers from 0 in {each.name}"
        if TEXT_PARTS.get(each.name) == "attention_mask" and not wrong.any():
            wrong, wanted = ~rows.any(axis=1), f"a token in each row of {each.name}"
    else:
        return
    if wrong.any():
        which = ", ".join(str(number + 1) for number in np.flatnonzero(wrong)[:5])
        raise DataError(f"expected {wanted}; sample {which} of {len(array)} has others")


def read_input(each: Input, image: ImageLike) -> npt.NDArray[np.float32]:
    """Return an image as an input wants it: (channels, height, width).

    Raises:
        DataError: if it is no image.
        UserError: if an image does not become this input.
    """
    from PIL import Image

    wish = each.preprocessing
    if wish is None or wish["kind"] != "image":
        raise UserError(f"expected an input that is made of image files; {each.name} is given as a tensor")
    size, shorter = wish["image_size"], wish["shorter_side"]
    upright = read_pixels(image, len(wish["mean"]))
    width, height = upright.size
    if min(width, height) != shorter:
        scale = shorter / min(width, height)
        target = (shorter, int(height * scale)) if width <= height else (int(width * scale), shorter)
        upright = upright.resize(target, Image.Resampling[wish["interpolation"].upper()])
    width, height = upright.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    pixels = np.asarray(upright.crop((left, top, left + size, top + size))).reshape(size, size, -1)
    found = np.empty((pixels.shape[2], size, size), np.float32)
    for channel, values in enumerate(_standardised(tuple(wish["mean"]), tuple(wish["std"]))):
        np.take(values, pixels[..., channel], out=found[channel], mode="clip")
    return found


@cache
def _standardised(mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Return what each of the 256 values of a pixel becomes, per channel: faster looked up than computed."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    return (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
