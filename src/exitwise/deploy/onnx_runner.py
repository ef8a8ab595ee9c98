"""Runs an exported bundle with onnxruntime and numpy alone: no torch.

Everything about the bundle is checked (:mod:`exitwise.deploy.bundle`) before a file is handed to onnxruntime.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from exitwise.deploy.bundle import read_bundle
from exitwise.deploy.chain import Chain, Inside, logarithms
from exitwise.deploy.inputs import check_inputs, read_input
from exitwise.deploy.manifest import TOKENIZER, Manifest
from exitwise.deploy.monitor import Monitor, Reference
from exitwise.deploy.names import LOGITS, PROBABILITIES
from exitwise.deploy.sessions import open_session, run_session
from exitwise.deploy.texts import TextReader, are_texts
from exitwise.errors import DataError, UserError
from exitwise.exiting.arrays import softmax
from exitwise.exiting.rule import Thresholds, finite_thresholds, leaves
from exitwise.storage.images import ImageLike


class OnnxResult(NamedTuple):
    """The fate of a batch, one entry per sample in the order given.

    Attributes:
        prediction: class index, int64 (B).
        exit: exit taken, 0-based, int64 (B).
        confidence: at that exit, float32 (B).
        macs: multiply-accumulates spent, float64 (B).
        logits: of that exit, divided by its temperature, or logarithms of the probabilities that the measure makes of
            several exits', float32 (B, classes); None of a bundle of version 1.
        answered: whether it is confident enough to be answered, bool (B); the prediction is a guess where not.
    """

    prediction: npt.NDArray[np.int64]
    exit: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    macs: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float32] | None
    answered: npt.NDArray[np.bool_]

    def top(self, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the likeliest classes of each sample, likeliest first, and their probabilities, (B, count) each.

        Raises:
            UserError: for a bundle of version 1, whose graphs do not give them, or a count out of range.
        """
        if self.logits is None:
            raise UserError("a bundle of version 1 gives no probabilities of all classes: export it again")
        if not 1 <= count <= self.logits.shape[1]:
            raise UserError(f"expected 1 to {self.logits.shape[1]} classes; got {count}")
        probabilities = softmax(self.logits)
        classes = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
        return classes, np.take_along_axis(probabilities, classes, 1)


Tensors = npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | Sequence[str]
"""What a network is given: the array of its one input, an array for each by name, or texts."""


class OnnxRunner:
    """Early-exit inference from a bundle; call it with a batch: of preprocessed images, an array per input by
    name, or texts.

    Args:
        folder: what ``exitwise export`` wrote.
        threads: on the CPU; by default as many as cores may be used (:func:`exitwise.share_threads` lets several
            runners share them).
        monitor: told of every call of the runner itself.
        budget: share of the full network's MACs to spend, by the calibration's table; by default its own thresholds.
        provider: what runs the graphs: cpu, cuda, tensorrt, openvino, coreml, directml or rocm, where the installed
            variant of ONNX Runtime has it.

    Attributes:
        chain: its stages, one at a time.
        classes: names, in the order of the logits.
        inputs: what it takes (:class:`~exitwise.deploy.manifest.Input`).
        calibration: what it was calibrated to be; its thresholds are those at first.
        full_macs: what shares of cost are of: of a cascade, the last network's alone; else the last exit's.
        reference: how the calibration images left, for a :class:`~exitwise.deploy.monitor.Monitor`; None if not
            recorded.
        thresholds: one per exit but the last, None where nobody can leave; may be exchanged while it runs, as a budget
            dial: a call keeps those it began with.

    Raises:
        UserError: if onnxruntime or the provider is missing, the table has no such budget, or the bundle is not what
            its manifest says (:class:`~exitwise.storage.protobuf.BundleError`).
        ValueError: if the monitor is of another number of exits, or thresholds are set that are not finite numbers.
    """

    def __init__(
        self,
        folder: str | Path,
        threads: int | None = None,
        monitor: Monitor | None = None,
        *,
        budget: float | None = None,
        provider: str = "cpu",
    ) -> None:
        self.folder = Path(folder)
        bundle = read_bundle(self.folder)
        self.classes: list[str] = bundle.manifest.content["classes"]
        self.inputs = bundle.manifest.inputs
        self.reference: Reference | None = bundle.calibration.reference
        self.exit_macs = np.array(bundle.manifest.content["exit_macs"], dtype=np.float64)
        self.full_macs = bundle.calibration.full_macs
        self.calibration = bundle.calibration
        self.thresholds = bundle.calibration.policy.thresholds if budget is None else self.thresholds_for(budget)
        if monitor is not None:
            monitor.check(len(self.exit_macs))
        self.monitor = monitor
        self._how: dict[str, Any] = {"threads": threads, "provider": provider}
        self._bundle = bundle
        self.chain = Chain(bundle, **self._how)
        self._reader: TextReader | None = None
        self._single: Any = None
        self._single_thresholds: Thresholds | None = None
        if bundle.manifest.version == 1:
            self._single_thresholds = bundle.calibration.policy.thresholds

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """Shape of a sample of the first input."""
        return self.inputs[0].shape[1:]

    @property
    def thresholds(self) -> Thresholds:
        return self._thresholds

    @thresholds.setter
    def thresholds(self, thresholds: Sequence[float | None]) -> None:
        values = finite_thresholds(thresholds)
        if len(values) != len(self.exit_macs) - 1:
            raise ValueError(f"expected {len(self.exit_macs) - 1} thresholds; got {len(values)}")
        self._thresholds = values

    def thresholds_for(self, budget: float) -> Thresholds:
        """Return thresholds that spend at most a share of the full network's MACs on images like the calibration's.

        Raises:
            UserError: if the calibration's table has none.
        """
        return self.calibration.thresholds_for(budget)

    def __call__(self, inputs: Tensors) -> OnnxResult:
        """Classify a batch, each sample as deep as it needs."""
        start = time.perf_counter()
        thresholds = self.thresholds
        given = self.check_inputs(inputs)
        single = _size(given) == 1 and self._fits_single(thresholds)
        result = self._one_by_one(given, thresholds) if single else self._by_stages(given, thresholds)
        if self.monitor is not None:
            self.monitor.add(*result[1:4], time.perf_counter() - start, thresholds)
        return result

    def by_stages(self, inputs: Tensors) -> OnnxResult:
        """Classify a batch by a graph per stage; samples that leave are dropped."""
        return self._by_stages(self.check_inputs(inputs), self.thresholds)

    def logits(self, inputs: Tensors) -> npt.NDArray[np.float32]:
        """Return the logits of all exits, (B, exits, classes): what a calibration is made of.

        Raises:
            UserError: for a bundle of version 1, whose graphs do not give them.
        """
        if self._bundle.manifest.version == 1:
            raise UserError("a bundle of version 1 gives no logits: export it again")
        inside = self.chain.enter(self.check_inputs(inputs))
        found = []
        for k in range(len(self.chain)):
            given, inside = self.chain.run(k, inside)
            found.append(given[LOGITS].astype(np.float32, copy=False))
        return np.stack(found, axis=1)

    def before_stages(self, inputs: Tensors) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yield what each stage takes, by the names of its inputs, where nobody leaves."""
        inside = self.chain.enter(self.check_inputs(inputs))
        for k in range(len(self.chain)):
            yield self.chain.taken(k, inside)
            _, inside = self.chain.run(k, inside)

    def _by_stages(self, given: dict[str, npt.NDArray[Any]], thresholds: Thresholds) -> OnnxResult:
        return self.through(self.chain.enter(given), thresholds)[0]

    def through(
        self, inside: Inside, thresholds: Thresholds, first: int = 0, end: int | None = None
    ) -> tuple[OnnxResult, npt.NDArray[np.int64], Inside]:
        """Run samples through some stages, and drop those that leave.

        Args:
            inside: samples before the first of them.
            thresholds: they leave by.
            first, end: stages from and before which, 0-based; all that follow by default.

        Returns:
            the fates of those that leave (of others an exit of -1), the places of the others, and these before the next
            stage.
        """
        n = inside.samples
        prediction, exit = np.zeros(n, np.int64), np.full(n, -1)
        confidence = np.zeros(n, np.float32)
        logits = None
        places = np.arange(n)
        for k in range(first, len(self.chain) if end is None else end):
            answer, inside = self.chain.step(k, inside)
            leaving = leaves(answer.confidence, k, thresholds)
            go = places[leaving]
            prediction[go], confidence[go], exit[go] = answer.prediction[leaving], answer.confidence[leaving], k
            if answer.logits is not None:
                if logits is None:
                    logits = np.zeros((n, answer.logits.shape[-1]), np.float32)
                logits[go] = answer.logits[leaving]
            if len(go) == len(places):
                places, inside = places[:0], inside.rows(slice(0, 0))
                break
            if len(go):
                staying = ~leaving
                places, inside = places[staying], inside.rows(staying)
        return self._result(prediction, exit, confidence, logits), places, inside

    def _result(self, prediction: Any, exit: Any, confidence: Any, logits: Any) -> OnnxResult:
        if not np.isfinite(confidence).all():
            which = ", ".join(str(i + 1) for i in np.flatnonzero(~np.isfinite(confidence))[:5])
            raise DataError(f"expected samples with a finite answer; the network gives none to number {which} of them")
        answered = self.calibration.policy.answered(confidence)
        return OnnxResult(prediction, exit, confidence, self.exit_macs[exit], logits, answered)

    def one_by_one(self, inputs: Tensors) -> OnnxResult:
        """Classify samples singly, by the one graph that skips what follows an exit.

        Raises:
            UserError: if the bundle has no such graph for its calibration's measure (or, of version 1, thresholds).
        """
        given, thresholds = self.check_inputs(inputs), self.thresholds
        if not self._fits_single(thresholds):
            raise UserError(f"{self.folder} has no graph for single samples with this measure and these thresholds")
        return self._one_by_one(given, thresholds)

    @property
    def has_single(self) -> bool:
        """Return whether there is a graph for single samples, with this measure (or, of version 1, thresholds)."""
        return self._fits_single(self.thresholds)

    def _fits_single(self, thresholds: Thresholds) -> bool:
        if self._bundle.single is None:
            return False
        if self._single_thresholds is not None:
            return thresholds == self._single_thresholds
        return self._bundle.read_by == self.calibration.policy.measure

    def _one_by_one(self, given: Mapping[str, npt.NDArray[Any]], thresholds: Thresholds) -> OnnxResult:
        if self._single is None:
            assert self._bundle.single is not None
            single = self._bundle.single
            self._single = open_session(single.to_run, weights=single.weights, **self._how)
        takes = [each.name for each in self._single.get_inputs()]
        more = {}
        if self._single_thresholds is None:
            more["thresholds"] = np.array([np.inf if t is None else t for t in thresholds], np.float32)
        else:
            given = {takes[0]: given[self.inputs[0].name]}
        outputs = [each.name for each in self._single.get_outputs()]
        answers = [
            run_session(self._single, outputs, {**{name: array[i : i + 1] for name, array in given.items()}, **more})
            for i in range(_size(given))
        ]
        found = dict(zip(outputs, (np.concatenate(parts) for parts in zip(*answers, strict=True)), strict=True))
        exit = found["exit"]
        logits = self.chain.scaled(found[LOGITS], exit) if LOGITS in found else None
        if PROBABILITIES in found:
            logits = logarithms(found[PROBABILITIES])
        return self._result(found["prediction"], exit, found["confidence"], logits)

    def read(self, image: ImageLike) -> dict[str, npt.NDArray[np.float32]]:
        """Return an image as the network wants it: an array for each input, by its own preprocessing.

        The image is a path, the bytes of a file, a file that is open, or an array of pixels: uint8 (height, width) or
        (height, width, 3).

        Raises:
            DataError: if it is no image.
            UserError: if the bundle does not say how an image becomes an input.
        """
        return {each.name: read_input(each, image) for each in self.inputs}

    def read_image(self, image: ImageLike) -> npt.NDArray[np.float32]:
        """Return an image as the network's first input wants it, (channels, height, width): see :meth:`read`."""
        return read_input(self.inputs[0], image)

    def read_texts(self, texts: Sequence[str], multiple: int = 1) -> dict[str, npt.NDArray[Any]]:
        """Return texts as the network wants them: an array (B, tokens) for each input, filled up to the longest, and
        on to a multiple of so many tokens.

        Raises:
            DataError: if they are no texts.
            UserError: if the bundle has no tokenizer, or the library for it is missing.
        """
        if self._reader is None:
            if self._bundle.tokenizer is None:
                raise UserError(f"expected a bundle with a tokenizer; {self.folder} takes arrays, by name")
            self._reader = TextReader(self._bundle.tokenizer, self.inputs, self.folder / TOKENIZER)
        return self._reader(texts, multiple)

    def check_inputs(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        """Return a batch as arrays by name, if they are what the network takes.

        Raises:
            UserError: if not.
        """
        if isinstance(inputs, (list, tuple)) and not inputs:
            raise UserError(f"expected at least one sample of {', '.join(each.name for each in self.inputs)}; got none")
        if are_texts(inputs):
            inputs = self.read_texts(inputs)  # type: ignore[arg-type]
        if isinstance(inputs, str):
            raise UserError("expected a list of texts, or arrays by name; got str")
        named = inputs if isinstance(inputs, Mapping) else {self.inputs[0].name: inputs}
        return check_inputs(self.inputs, named)


def _size(given: Mapping[str, npt.NDArray[Any]]) -> int:
    return len(next(iter(given.values())))
