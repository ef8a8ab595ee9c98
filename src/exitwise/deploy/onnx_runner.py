"""Runs an exported bundle with onnxruntime and numpy alone: no torch.

Everything about the bundle is checked (:mod:`exitwise.deploy.bundle`) before a file is handed to onnxruntime.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from exitwise.deploy.bundle import read_bundle
from exitwise.deploy.monitor import Monitor, Reference
from exitwise.deploy.names import NEXT, STATE, source_of
from exitwise.errors import UserError
from exitwise.exiting.rule import Thresholds, finite_thresholds, leaves
from exitwise.shown import Shown, percent
from exitwise.storage.protobuf import BundleError

if TYPE_CHECKING:
    from rich.console import RenderableType


class OnnxResult(NamedTuple):
    """The fate of a batch, one entry per image in the order given.

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
        monitor: told of every call of the runner itself.

    Attributes:
        classes: names, in the order of the logits.
        reference: how the calibration images left, for a :class:`~exitwise.deploy.monitor.Monitor`; None if not
            recorded.
        thresholds: one per exit but the last, None where nobody can leave; may be exchanged while it runs, as a budget
            dial: a call keeps those it began with.

    Raises:
        UserError: if onnxruntime is missing, or the bundle is not what its manifest says
            (:class:`~exitwise.storage.protobuf.BundleError`).
        ValueError: if the monitor is of another number of exits, or thresholds are set that are not finite numbers.
    """

    def __init__(self, folder: str | Path, threads: int | None = None, monitor: Monitor | None = None) -> None:
        self.folder = Path(folder)
        manifest, contents = read_bundle(self.folder)
        self.classes: list[str] = manifest["classes"]
        self.input_shape = tuple(manifest["input_shape"])
        self.preprocessing: dict[str, Any] = manifest["preprocessing"]
        self.reference: Reference | None = manifest["reference"]
        self.exit_macs = np.array(manifest["exit_macs"], dtype=np.float64)
        self.thresholds = manifest["thresholds"]
        self._single_thresholds = self.thresholds
        if monitor is not None:
            monitor.check(len(self.exit_macs))
        self.monitor = monitor
        self._stages = manifest["stages"]
        self._sessions = [_session(contents[stage["file"]], stage, threads) for stage in self._stages]
        _check_chain(self._stages)
        takes = self._sessions[0].get_inputs()[0].shape
        if takes[1:] != list(self.input_shape):
            raise BundleError(f"{self._stages[0]['file']} disagrees with the manifest: it takes images of {takes[1:]}")
        self._single_bytes = contents[manifest["single"]["file"]]
        self._single: Any = None
        self._threads = threads

    @property
    def thresholds(self) -> Thresholds:
        return self._thresholds

    @thresholds.setter
    def thresholds(self, thresholds: Sequence[float | None]) -> None:
        values = finite_thresholds(thresholds)
        if len(values) != len(self.exit_macs) - 1:
            raise ValueError(f"expected {len(self.exit_macs) - 1} thresholds; got {len(values)}")
        self._thresholds = values

    def __call__(self, images: npt.NDArray[np.float32]) -> OnnxResult:
        """Classify images (B, channels, height, width), each as deep as it needs."""
        start = time.perf_counter()
        thresholds = self.thresholds
        single = len(images) == 1 and thresholds == self._single_thresholds
        result = self.one_by_one(images) if single else self._by_stages(images, thresholds)
        if self.monitor is not None:
            self.monitor.add(*result[1:], time.perf_counter() - start, thresholds)
        return result

    def by_stages(self, images: npt.NDArray[np.float32]) -> OnnxResult:
        """Classify images by a graph per stage, whose thresholds can be changed; those that leave are dropped."""
        return self._by_stages(images, self.thresholds)

    def _by_stages(self, images: npt.NDArray[np.float32], thresholds: Thresholds) -> OnnxResult:
        self._check_images(images)
        n = len(images)
        prediction, exit = np.zeros(n, np.int64), np.zeros(n, np.int64)
        confidence = np.zeros(n, np.float32)
        inside = np.arange(n)
        given: dict[str, Any] = {source_of(self._stages[0]["inputs"][0]): images}
        for k, (stage, session) in enumerate(zip(self._stages, self._sessions, strict=True)):
            answers = session.run(stage["outputs"], {name: given[source_of(name)] for name in stage["inputs"]})
            given = dict(zip(stage["outputs"], answers, strict=True))
            leaving = leaves(given["confidence"], k, thresholds)
            go = inside[leaving]
            prediction[go], confidence[go], exit[go] = given["prediction"][leaving], given["confidence"][leaving], k
            if leaving.all():
                break
            if leaving.any():
                stay = ~leaving
                inside = inside[stay]
                given = {name: array[stay] for name, array in given.items()}
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
        """Return an image file as the network wants it: (channels, height, width).

        Raises:
            DataError: if it is no image.
        """
        from PIL import Image

        from exitwise.storage.images import read_pixels

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
    handed = [f"{STATE}0"]
    answers: set[str] = set()
    for stage in stages:
        taken = [name for name in stage["inputs"] if name.startswith(STATE)]
        carried = {source_of(name) for name in stage["inputs"] if name not in taken}
        if taken != handed or not carried <= answers:
            raise BundleError(
                f"{stage['file']} disagrees with the stage before: expected inputs {handed}; got {stage['inputs']}"
            )
        handed = [name.replace(NEXT, STATE) for name in stage["outputs"] if name.startswith(NEXT)]
        answers = {name for name in stage["outputs"] if not name.startswith(NEXT)}
    if handed:
        raise BundleError(f"{stages[-1]['file']} disagrees with its place: the last stage hands on {handed}")


def open_session(content: bytes, threads: int | None = None) -> Any:
    """Return an onnxruntime session on the CPU, whose threads rest when it has run.

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


@dataclass(frozen=True)
class Prediction:
    """The answer for one image: class name, confidence, exit (from 1), and share of the full MACs spent."""

    file: str
    prediction: str
    confidence: float
    exit: int
    compute: float


class Predictions(Shown, list[Prediction]):
    """The answers for images, in the order given."""

    @property
    def compute(self) -> float:
        """Mean share of the full network's MACs."""
        return sum(each.compute for each in self) / len(self)

    @property
    def summary(self) -> str:
        """Return how many there are, and what they cost, in words."""
        return f"{len(self)} images, {100 * self.compute:.1f} % of the full network's MACs on average"

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name in ("file", "class", "confidence", "exit", "compute"):
            table.add_column(name, justify="left" if name in ("file", "class") else "right", overflow="fold")
        for each in self:
            names = Text(each.file), Text(each.prediction)  # no markup
            table.add_row(*names, f"{each.confidence:.3f}", str(each.exit), percent(each.compute))
        return Group(table, self.summary)
