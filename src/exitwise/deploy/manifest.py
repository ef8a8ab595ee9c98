"""The manifest of a bundle, of either version: read, and every value checked. Knows neither torch nor onnxruntime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from exitwise.budgets import MOST
from exitwise.shown import Noun
from exitwise.storage.protobuf import BundleError

MANIFEST, VERSION = "manifest.json", 2
LARGEST = 8192
"""Side of an image that a bundle may ask for."""

TYPES = ("float32", "float64", "float16", "int64", "int32", "uint8", "bool")
"""Of inputs, as NumPy calls them."""

TOKENIZER = "tokenizer.json"
"""Of bundles that take texts: what the tokenizers library reads."""

TEXT_PARTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Inputs that are made of a text, and what the tokenizers library calls them."""

_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
_ALWAYS = {"classes", "exit_macs", "num_classes", "single", "stages"}
_KEYS = {1: {*_ALWAYS, "input_shape", "preprocessing", "thresholds"}, 2: {*_ALWAYS, "inputs", "data", "onnxruntime"}}


class Input(NamedTuple):
    """What a network takes.

    Attributes:
        name: of the graphs' input.
        type: of its elements, one of :data:`TYPES`.
        shape: an axis each: its size, or the name of one whose size is free; the batch first.
        preprocessing: how it is made of an image file: ``kind`` ``image`` with ``image_size``, ``shorter_side``,
            ``interpolation``, ``mean`` and ``std``; or of a text, by the bundle's tokenizer: ``kind`` ``text``; None
            for an input that is given as a tensor.
    """

    name: str
    type: str
    shape: tuple[int | str, ...]
    preprocessing: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {**self._asdict(), "shape": list(self.shape)}


class Manifest(NamedTuple):
    """What a manifest says: its JSON whole, and of that the version and the inputs."""

    content: dict[str, Any]
    version: int
    inputs: tuple[Input, ...]

    @property
    def exits(self) -> int:
        """Number of exits."""
        return len(self.content["stages"])

    @property
    def noun(self) -> Noun:
        """What samples are called."""
        return "texts" if any(each.preprocessing == TEXT for each in self.inputs) else "images"


def read_json_object(path: Path, found: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        BundleError: if it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"expected JSON at {path}; {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"expected {found} at {path}; got another")
    return content


def read_manifest(path: Path, file: Path) -> Manifest:
    """Return the manifest at ``path``, from the ``file`` that it is (as a link may lead to).

    Raises:
        BundleError: if it is not what it should be.
    """
    content = read_json_object(file, "a manifest of format exitwise-onnx")
    if content.get("format") != "exitwise-onnx":
        raise BundleError(f"expected a manifest of format exitwise-onnx at {path}; got another")
    version = content.get("version")
    if version not in _KEYS:
        raise BundleError(f"expected a bundle of version 1 to {VERSION} at {path.parent}; got {version}")
    missing = sorted(_KEYS[version] - set(content))
    if missing:
        raise BundleError(f"expected {missing[0]} in {path}; it is missing")
    _check_files(content, version, path)
    exits = len(content["stages"])
    lengths = {"exit_macs": exits, **({"thresholds": exits - 1} if version == 1 else {})}
    for key, length in lengths.items():
        if not isinstance(content[key], list) or len(content[key]) != length:
            raise BundleError(f"expected {length} {key} for {exits} stages in {path}; got {content[key]!r}")
    if not isinstance(content["classes"], list) or len(content["classes"]) != content["num_classes"]:
        raise BundleError(f"expected {content['num_classes']} classes in {path}; got {content['classes']!r}")
    inputs = _inputs_v1(content, path) if version == 1 else _inputs(content, path)
    costs = content["exit_macs"]
    rules = {
        "thresholds as numbers or null": all(t is None or _is_number(t) for t in content.get("thresholds", [])),
        "different names of classes": len({name for name in content["classes"] if isinstance(name, str)})
        == len(content["classes"]),
        "exit_macs that rise": all(map(_is_number, costs)) and costs[0] >= 0 and costs == sorted(costs),
    }
    for each in inputs:
        rules |= _rules_of(each)
    rules |= _text_rules(inputs, content.get("tokenizer"))
    wrong = [expected for expected, holds in rules.items() if not holds]
    if wrong:
        raise BundleError(f"expected {wrong[0]} in {path}; got something else")
    return Manifest(content, version, inputs)


def _check_files(content: dict[str, Any], version: int, path: Path) -> None:
    single = [content["single"]] if version == 1 or content["single"] is not None else []
    data = content["data"] if version > 1 else []
    lists = isinstance(content["stages"], list) and isinstance(data, list)
    if not lists or not content["stages"] or not all(isinstance(e, dict) for e in [*content["stages"], *single, *data]):
        raise BundleError(f"expected a file for each stage and a single one in {path}; got something else")


def _inputs_v1(content: dict[str, Any], path: Path) -> tuple[Input, ...]:
    shape, wish = content["input_shape"], content["preprocessing"]
    if not isinstance(wish, dict) or not isinstance(shape, list):
        raise BundleError(f"expected an input_shape and its preprocessing in {path}; got {shape!r} and {wish!r}")
    return (Input("images", "float32", ("batch", *shape), {"kind": "image", **wish}),)


def _inputs(content: dict[str, Any], path: Path) -> tuple[Input, ...]:
    def is_axis(size: Any) -> bool:
        return bool(size) and (isinstance(size, str) or (isinstance(size, int) and size > 0))

    def is_input(each: Any) -> bool:
        return (
            isinstance(each, dict)
            and set(each) == set(Input._fields)
            and isinstance(each["name"], str)
            and each["type"] in TYPES
            and isinstance(each["shape"], list)
            and isinstance(next(iter(each["shape"]), None), str)
            and all(map(is_axis, each["shape"]))
            and (each["preprocessing"] is None or isinstance(each["preprocessing"], dict))
        )

    entries = content["inputs"]
    if not isinstance(entries, list) or not entries or not all(map(is_input, entries)):
        raise BundleError(f"expected inputs with name, type, shape and preprocessing in {path}; got {entries!r}")
    if len({each["name"] for each in entries}) < len(entries):
        raise BundleError(f"expected inputs of different names in {path}; got {[each['name'] for each in entries]}")
    return tuple(Input(**{**each, "shape": tuple(each["shape"])}) for each in entries)


def _rules_of(each: Input) -> dict[str, bool]:
    """Return whether the preprocessing of an input is of its kind and within its range, by what is expected."""
    wish = each.preprocessing
    if wish is None:
        return {}
    if wish == TEXT:
        return {
            f"{' or '.join(TEXT_PARTS)} as an input made of a text": each.name in TEXT_PARTS and len(each.shape) == 2
        }
    kind = _KINDS.get(str(wish.get("kind")))
    return kind(each.shape[1:], wish) if kind else {f"a preprocessing of kind {' or '.join(_KINDS)}": False}


TEXT = {"kind": "text"}


def _text_rules(inputs: tuple[Input, ...], tokenizer: Any) -> dict[str, bool]:
    """Return whether all inputs are made of a text where one is, and there is a tokenizer then."""
    texts = [each.preprocessing == TEXT for each in inputs]
    named = isinstance(tokenizer, dict) and tokenizer.get("file") == TOKENIZER
    return {f"{TOKENIZER} where inputs are made of texts, all of them": all(texts) and named if any(texts) else True}


def _image_rules(shape: tuple[Any, ...], wish: dict[str, Any]) -> dict[str, bool]:
    size, channels = wish.get("image_size"), next(iter(shape), None)
    numbers = {key: wish.get(key) for key in ("mean", "std")}
    return {
        "an input_shape of 1 or 3 channels and image_size": len(shape) == 3
        and channels in (1, 3)
        and list(shape[1:]) == [size, size]
        and isinstance(size, int)
        and 0 < size <= LARGEST,
        "a shorter_side from image_size up": isinstance(wish.get("shorter_side"), int)
        and isinstance(size, int)
        and size <= wish["shorter_side"] <= 4 * LARGEST,
        "an interpolation bilinear, bicubic or nearest": wish.get("interpolation") in _INTERPOLATIONS,
        **{
            f"{key} as a number per channel": isinstance(values, list)
            and len(values) == channels
            and all(map(_is_number, values))
            and (key == "mean" or 0 not in values)
            for key, values in numbers.items()
        },
    }


_KINDS: dict[str, Callable[[tuple[Any, ...], dict[str, Any]], dict[str, bool]]] = {"image": _image_rules}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= MOST
