"""Runs an exported bundle with onnxruntime and numpy alone: no torch.

A bundle is a folder with a manifest and the ONNX files it names. Everything about it is checked before a file is
handed to onnxruntime.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from exitwise.errors import UserError
from exitwise.files import expand
from exitwise.monitor import Monitor, Reference

MANIFEST, SINGLE, VERSION = "manifest.json", "single.onnx", 1
_KEYS = {
    "classes",
    "exit_macs",
    "input_shape",
    "num_classes",
    "preprocessing",
    "single",
    "stages",
    "thresholds",
}


_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")

LARGEST = 8192
"""Side of an image that a bundle may ask for."""


class BundleError(UserError):
    """A bundle is damaged, altered or of another kind."""


class OnnxResult(NamedTuple):
    """What became of a batch, one entry per image in the order given.

    Attributes:
        prediction: class index, int64 (B).
        exit: exit taken, 0-based, int64 (B).
        confidence: at that exit, float32 (B).
        macs: multiply-accumulates spent, float64 (B).
    """

    prediction: npt.NDArray[np.int64]
    exit: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    macs: npt.NDArray[np.float64]


class OnnxRunner:
    """Early-exit inference from a bundle; call it with a batch of preprocessed images.

    Args:
        folder: what ``exitwise export`` wrote.
        threads: of onnxruntime; its own choice if None.
        monitor: told of every call.

    Attributes:
        classes: names, in the order of the logits.
        reference: how the calibration images left, for a :class:`~exitwise.monitor.Monitor`; None if not recorded.
        thresholds: one per exit but the last, None where nobody can leave; may be changed while it runs.

    Raises:
        UserError: if onnxruntime is missing, or the bundle is not what its manifest says (:class:`BundleError`).
    """

    def __init__(self, folder: str | Path, threads: int | None = None, monitor: Monitor | None = None) -> None:
        self.folder = Path(folder)
        self.monitor = monitor
        manifest = read_manifest(self.folder)
        self.classes: list[str] = manifest["classes"]
        self.input_shape = tuple(manifest["input_shape"])
        self.preprocessing: dict[str, Any] = manifest["preprocessing"]
        self.thresholds: list[float | None] = manifest["thresholds"]
        self.reference: Reference | None = manifest["reference"]
        self.exit_macs = np.array(manifest["exit_macs"], dtype=np.float64)
        self._stages = manifest["stages"]
        files = [*self._stages, manifest["single"]]
        contents = {entry["file"]: _checked(self.folder, entry) for entry in files}
        self._sessions = [_session(contents[stage["file"]], stage, threads) for stage in self._stages]
        _check_chain(self._stages)
        takes = self._sessions[0].get_inputs()[0].shape
        if takes[1:] != list(self.input_shape):
            raise BundleError(f"{self._stages[0]['file']} disagrees with the manifest: it takes images of {takes[1:]}")
        self._single_bytes = contents[manifest["single"]["file"]]
        self._single: Any = None
        self._single_thresholds = list(self.thresholds)
        self._threads = threads

    def __call__(self, images: npt.NDArray[np.float32]) -> OnnxResult:
        """Classify images (B, channels, height, width), each as deep as it needs."""
        start = time.perf_counter()
        single = len(images) == 1 and self.thresholds == self._single_thresholds
        result = self.one_by_one(images) if single else self.by_stages(images)
        if self.monitor is not None:
            self.monitor.add(*result[1:], time.perf_counter() - start)
        return result

    def by_stages(self, images: npt.NDArray[np.float32]) -> OnnxResult:
        """Classify images by a graph per stage, whose thresholds can be changed; those that leave are dropped."""
        self._check_images(images)
        n, thresholds = len(images), list(self.thresholds)
        prediction, exit = np.zeros(n, np.int64), np.zeros(n, np.int64)
        confidence = np.zeros(n, np.float32)
        inside = np.arange(n)
        state: list[Any] = [images]
        votes: list[Any] = []
        for k, (stage, session) in enumerate(zip(self._stages, self._sessions, strict=True)):
            answers = session.run(stage["outputs"], dict(zip(stage["inputs"], [*state, *votes], strict=True)))
            named = dict(zip(stage["outputs"], answers, strict=True))
            state = [value for name, value in named.items() if name.startswith("next_")]
            if "streak" in named:
                votes = [named["prediction"], named["streak"]]
            leaves = _leaves(named["confidence"], k, thresholds)
            go = inside[leaves]
            prediction[go], confidence[go], exit[go] = named["prediction"][leaves], named["confidence"][leaves], k
            if leaves.all():
                break
            if leaves.any():
                stay = ~leaves
                inside = inside[stay]
                state, votes = [part[stay] for part in state], [part[stay] for part in votes]
        return OnnxResult(prediction, exit, confidence, self.exit_macs[exit])

    def one_by_one(self, images: npt.NDArray[np.float32]) -> OnnxResult:
        """Classify images singly, by the one graph that skips what follows an exit; it has its own thresholds."""
        self._check_images(images)
        if self._single is None:
            self._single = open_session(self._single_bytes, self._threads)
        name = self._single.get_inputs()[0].name
        outputs = ["prediction", "exit", "confidence"]
        answers = [self._single.run(outputs, {name: image[None]}) for image in images]
        prediction, exit, confidence = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return OnnxResult(prediction, exit, confidence, self.exit_macs[exit])

    def read_image(self, path: str | Path) -> npt.NDArray[np.float32]:
        """An image file as the network wants it: (channels, height, width).

        Raises:
            DataError: if it is no image.
        """
        from PIL import Image

        from exitwise.images import read_pixels

        wish = self.preprocessing
        size, shorter = wish["image_size"], wish["shorter_side"]
        upright = read_pixels(path, len(wish["mean"]))
        width, height = upright.size
        if min(width, height) != shorter:
            scale = shorter / min(width, height)
            target = (shorter, int(height * scale)) if width <= height else (int(width * scale), shorter)
            upright = upright.resize(target, Image.Resampling[wish["interpolation"].upper()])
        width, height = upright.size
        left, top = round((width - size) / 2), round((height - size) / 2)
        pixels = np.asarray(upright.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        mean, std = (np.array(wish[key], dtype=np.float32)[:, None, None] for key in ("mean", "std"))
        return np.ascontiguousarray((pixels - mean) / std)

    def _check_images(self, images: npt.NDArray[np.float32]) -> None:
        if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != self.input_shape:
            wanted = "x".join(map(str, self.input_shape))
            raise UserError(f"expected float32 images (B, {wanted}); got {images.dtype} {images.shape}")
        if len(images) == 0:
            raise UserError("expected at least one image; got none")


def _leaves(confidences: npt.NDArray[np.float32], k: int, thresholds: Sequence[float | None]) -> npt.NDArray[np.bool_]:
    if k == len(thresholds):
        return np.ones(len(confidences), np.bool_)
    threshold = thresholds[k]
    if threshold is None:
        return np.zeros(len(confidences), np.bool_)
    return confidences >= np.float32(threshold)


def is_bundle(path: str | Path) -> bool:
    """Whether a folder holds a manifest."""
    return (Path(path) / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle.

    Raises:
        BundleError: if there is none, or it is of another kind.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"expected an exported bundle with {MANIFEST} at {folder}; found none")
    try:
        manifest = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"expected JSON at {path}; {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != "exitwise-onnx":
        raise BundleError(f"expected a manifest of format exitwise-onnx at {path}; got another")
    if manifest.get("version") != VERSION:
        raise BundleError(f"expected a bundle of version {VERSION} at {folder}; got {manifest.get('version')}")
    missing = sorted(_KEYS - set(manifest))
    if missing:
        raise BundleError(f"expected {missing[0]} in {path}; it is missing")
    exits = len(manifest["stages"])
    lengths = {"thresholds": exits - 1, "exit_macs": exits}
    for key, length in lengths.items():
        if not isinstance(manifest[key], list) or len(manifest[key]) != length:
            raise BundleError(f"expected {length} {key} for {exits} stages in {path}; got {manifest[key]!r}")
    if not isinstance(manifest["classes"], list) or len(manifest["classes"]) != manifest["num_classes"]:
        raise BundleError(f"expected {manifest['num_classes']} classes in {path}; got {manifest['classes']!r}")
    _check_values(manifest, path)
    try:
        reference = manifest.get("reference")
        manifest["reference"] = None if reference is None else Reference.from_dict(reference)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"expected images, shares, edges and bins in the reference of {path}; {error!r}") from error
    return manifest


def _check_values(manifest: dict[str, Any], path: Path) -> None:
    """Raise BundleError unless every value is of its kind and within its range."""
    shape, wish = manifest["input_shape"], manifest["preprocessing"]
    if not isinstance(wish, dict) or not isinstance(shape, list):
        raise BundleError(f"expected an input_shape and its preprocessing in {path}; got {shape!r} and {wish!r}")
    costs, size = manifest["exit_macs"], wish.get("image_size")
    numbers = {key: wish.get(key) for key in ("mean", "std")}
    rules = {
        "thresholds as numbers or null": all(t is None or _is_number(t) for t in manifest["thresholds"]),
        "different names of classes": len({name for name in manifest["classes"] if isinstance(name, str)})
        == len(manifest["classes"]),
        "exit_macs that rise": all(map(_is_number, costs)) and costs[0] >= 0 and costs == sorted(costs),
        "an input_shape of 1 or 3 channels and image_size": len(shape) == 3
        and shape[0] in (1, 3)
        and shape[1:] == [size, size]
        and isinstance(size, int)
        and 0 < size <= LARGEST,
        "a shorter_side from image_size up": isinstance(wish.get("shorter_side"), int)
        and isinstance(size, int)
        and size <= wish["shorter_side"] <= 4 * LARGEST,
        "an interpolation bilinear, bicubic or nearest": wish.get("interpolation") in _INTERPOLATIONS,
        **{
            f"{key} as a number per channel": isinstance(values, list)
            and len(values) == shape[0]
            and all(map(_is_number, values))
            and (key == "mean" or 0 not in values)
            for key, values in numbers.items()
        },
    }
    wrong = [expected for expected, holds in rules.items() if not holds]
    if wrong:
        raise BundleError(f"expected {wrong[0]} in {path}; got something else")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _checked(folder: Path, entry: dict[str, Any]) -> bytes:
    """The content of a file that the manifest names, if it is a plain file there and what the manifest says."""
    name = entry.get("file")
    if not isinstance(name, str) or Path(name).name != name or "\\" in name or name in ("", ".", ".."):
        raise BundleError(f"expected the name of a file in {folder}; the manifest has {name!r}")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"expected a file {name} in {folder}; found {'a link' if path.is_symlink() else 'none'}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.get("sha256"):
        raise BundleError(f"{path} is not what the manifest says: its SHA-256 differs")
    if any(_external_data(content)):
        raise BundleError(f"{path} keeps data in other files; expected all in one")
    return content


def _session(content: bytes, stage: dict[str, Any], threads: int | None) -> Any:
    session = open_session(content, threads)
    inputs, outputs = [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]
    if inputs != stage.get("inputs") or outputs != stage.get("outputs"):
        raise BundleError(
            f"{stage['file']} disagrees with the manifest: expected inputs {stage.get('inputs')} and outputs "
            f"{stage.get('outputs')}; got {inputs} and {outputs}"
        )
    return session


def _check_chain(stages: list[dict[str, Any]]) -> None:
    """Raise BundleError unless each stage takes what the one before hands on."""
    handed = ["state_0"]
    for stage in stages:
        taken = [name for name in stage["inputs"] if name.startswith("state_")]
        if taken != handed:
            raise BundleError(f"{stage['file']} disagrees with the stage before: expected inputs {handed}; got {taken}")
        handed = [name.replace("next_", "state_") for name in stage["outputs"] if name.startswith("next_")]
    if handed:
        raise BundleError(f"{stages[-1]['file']} disagrees with its place: the last stage hands on {handed}")


def open_session(content: bytes, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU, whose threads rest when it has run.

    Raises:
        UserError: if onnxruntime is missing, or cannot load the graph (:class:`BundleError`).
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("running a bundle needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Else the threads of a stage that has run keep the cores from the next one's, which are others, for a while.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own exceptions, without a common base
        raise BundleError(f"onnxruntime cannot load it: {str(error).splitlines()[0]}") from error


def _external_data(model: bytes) -> Iterator[bool]:
    """Whether each tensor of an ONNX model keeps its data elsewhere. Reads the protocol buffer without onnx.

    Fields: ModelProto.graph 7, .functions 25; GraphProto.node 1, .initializer 5, .sparse_initializer 15;
    FunctionProto.node 7; NodeProto.attribute 5; AttributeProto.t 5, .g 6, .tensors 10, .graphs 11,
    .sparse_tensor 22, .sparse_tensors 23; SparseTensorProto.values 1, .indices 2; TensorProto.external_data 13,
    .data_location 14.
    """
    for number, value in _fields(model):
        if number == 7:
            yield from _in_graph(value)
        elif number == 25:
            for inner, node in _fields(value):
                if inner == 7:
                    yield from _in_node(node)


def _in_graph(graph: bytes) -> Iterator[bool]:
    for number, value in _fields(graph):
        if number == 1:
            yield from _in_node(value)
        elif number == 5:
            yield _is_external(value)
        elif number == 15:
            yield from _in_sparse(value)


def _in_node(node: bytes) -> Iterator[bool]:
    for number, attribute in _fields(node):
        if number != 5:
            continue
        for kind, value in _fields(attribute):
            if kind in (5, 10):
                yield _is_external(value)
            elif kind in (6, 11):
                yield from _in_graph(value)
            elif kind in (22, 23):
                yield from _in_sparse(value)


def _in_sparse(sparse: bytes) -> Iterator[bool]:
    return (_is_external(value) for number, value in _fields(sparse) if number in (1, 2))


def _is_external(tensor: bytes) -> bool:
    return any(number == 13 or (number == 14 and value != b"\0") for number, value in _fields(tensor))


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each field of a protocol buffer message; numbers as their last byte.

    Raises:
        BundleError: if it is none.
    """
    at, end = 0, len(message)
    view = memoryview(message)
    while at < end:
        key, at = _varint(view, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(view, at)
            yield number, bytes([value & 0x7F])
        elif kind == 2:
            size, at = _varint(view, at)
            if at + size > end:
                raise BundleError("an ONNX file is truncated")
            yield number, bytes(view[at : at + size]) if size < 2**31 else b""
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise BundleError("an ONNX file is damaged: expected a protocol buffer")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while at < len(view) and shift < 64:
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise BundleError("an ONNX file is truncated")


@dataclass(frozen=True)
class Prediction:
    """What a network says about one image: class name, confidence, exit (from 1), and share of the full MACs spent."""

    file: str
    prediction: str
    confidence: float
    exit: int
    compute: float


def predict(folder: str | Path, files: Iterable[str | Path], batch_size: int = 64) -> list[Prediction]:
    """Classify image files, and those in folders, with a bundle.

    Raises:
        UserError: for a damaged bundle, no images, or a broken one.
    """
    runner = OnnxRunner(folder)
    images = expand(files)
    runner.monitor = Monitor.of_all(len(runner.exit_macs), runner.reference, len(images))
    predictions = []
    for start in range(0, len(images), batch_size):
        chunk = images[start : start + batch_size]
        result = runner(np.stack([runner.read_image(file) for file in chunk]))
        columns = (result.prediction, result.confidence, result.exit, result.macs / runner.exit_macs[-1])
        rows = zip(chunk, *(column.tolist() for column in columns), strict=True)
        predictions += [
            Prediction(str(file), runner.classes[label], confidence, exit + 1, share)
            for file, label, confidence, exit, share in rows
        ]
    return predictions
