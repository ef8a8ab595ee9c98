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

from exitwise.deploy.bundle import Graph, read_bundle
from exitwise.deploy.inputs import check_inputs, read_input
from exitwise.deploy.manifest import TOKENIZER, Manifest
from exitwise.deploy.monitor import Monitor, Reference
from exitwise.deploy.names import LOGITS, NEXT, PROBABILITIES, STATE, source_of
from exitwise.deploy.sessions import open_session, run_session
from exitwise.deploy.texts import TextReader, are_texts
from exitwise.errors import UserError
from exitwise.exiting.arrays import softmax
from exitwise.exiting.measures import Reading, State, rows
from exitwise.exiting.rule import Thresholds, finite_thresholds, leaves
from exitwise.storage.images import ImageLike
from exitwise.storage.protobuf import BundleError


class OnnxResult(NamedTuple):
    """The fate of a batch, one entry per sample in the order given.

    Attributes:
        prediction: class index, int64 (B).
        exit: exit taken, 0-based, int64 (B).
        confidence: at that exit, float32 (B).
        macs: multiply-accumulates spent, float64 (B).
        logits: of that exit, divided by its temperature, or logarithms of the probabilities that the measure makes of
            several exits', float32 (B, classes); None of a bundle of version 1.
    """

    prediction: npt.NDArray[np.int64]
    exit: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float32]
    macs: npt.NDArray[np.float64]
    logits: npt.NDArray[np.float32] | None = None

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
        self._bundle = bundle  # keeps the weights in memory
        self._first = {source_of(f"{STATE}0"): self.inputs[0].name} if bundle.manifest.version == 1 else {}
        self._sessions = [self._open(stage) for stage in bundle.stages]
        self._takes = [[each.name for each in session.get_inputs()] for session in self._sessions]
        self._gives = [[each.name for each in session.get_outputs()] for session in self._sessions]
        self._check_chain()
        self._reader: TextReader | None = None
        self._single: Any = None
        self._single_thresholds: Thresholds | None = None
        if bundle.manifest.version == 1:
            self._single_thresholds = bundle.calibration.policy.thresholds

    def _open(self, graph: Graph) -> Any:
        return open_session(graph.to_run, weights=graph.weights, **self._how)

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
        given = self._check_inputs(inputs)
        single = _size(given) == 1 and self._fits_single(thresholds)
        result = self._one_by_one(given, thresholds) if single else self._by_stages(given, thresholds)
        if self.monitor is not None:
            self.monitor.add(*result[1:4], time.perf_counter() - start, thresholds)
        return result

    def by_stages(self, inputs: Tensors) -> OnnxResult:
        """Classify a batch by a graph per stage; samples that leave are dropped."""
        return self._by_stages(self._check_inputs(inputs), self.thresholds)

    def logits(self, inputs: Tensors) -> npt.NDArray[np.float32]:
        """Return the logits of all exits, (B, exits, classes): what a calibration is made of.

        Raises:
            UserError: for a bundle of version 1, whose graphs do not give them.
        """
        if self._bundle.manifest.version == 1:
            raise UserError("a bundle of version 1 gives no logits: export it again")
        given = self._check_inputs(inputs)
        found = []
        for k in range(len(self._sessions)):
            given |= self._run(k, given)
            found.append(given[LOGITS].astype(np.float32, copy=False))
        return np.stack(found, axis=1)

    def before_stages(self, inputs: Tensors) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Yield what each stage takes, by the names of its inputs, where nobody leaves."""
        given = self._check_inputs(inputs)
        for k, names in enumerate(self._takes):
            yield {name: given[source_of(name)] for name in names}
            given |= self._run(k, given)

    def _run(self, k: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a stage gives, from all that there is before it, by name."""
        taken = {name: given[source_of(name)] for name in self._takes[k]}
        return dict(zip(self._gives[k], run_session(self._sessions[k], self._gives[k], taken), strict=True))

    def _read(self, given: Mapping[str, Any], k: int, carried: State) -> Reading:
        if LOGITS not in given:
            return Reading(given["confidence"], given["prediction"])
        return self.calibration.policy.measure.read(given[LOGITS].astype(np.float32, copy=False), k, carried)

    def _by_stages(self, given: dict[str, npt.NDArray[Any]], thresholds: Thresholds) -> OnnxResult:
        n = _size(given)
        prediction, exit = np.zeros(n, np.int64), np.zeros(n, np.int64)
        confidence = np.zeros(n, np.float32)
        logits = None
        inside = np.arange(n)
        carried: State = None
        given = {**given, **{name: given[source] for name, source in self._first.items()}}
        for k in range(len(self._sessions)):
            needed = {source_of(name) for names in self._takes[k:] for name in names}
            given = {name: array for name, array in given.items() if name in needed}
            given |= self._run(k, given)
            confident, label, carried, mixed = self._read(given, k, carried)
            leaving = leaves(confident, k, thresholds)
            go = inside[leaving]
            prediction[go], confidence[go], exit[go] = label[leaving], confident[leaving], k
            if LOGITS in given:
                if logits is None:
                    logits = np.zeros((n, given[LOGITS].shape[-1]), np.float32)
                logits[go] = self._scaled(given[LOGITS][leaving], k) if mixed is None else _log(mixed[leaving])
            if leaving.all():
                break
            if leaving.any():
                stay = ~leaving
                inside, carried = inside[stay], rows(carried, stay)
                given = {name: array[stay] for name, array in given.items()}
        return OnnxResult(prediction, exit, confidence, self.exit_macs[exit], logits)

    def _scaled(self, logits: npt.NDArray[Any], exit: npt.NDArray[np.int64] | int) -> npt.NDArray[Any]:
        """Return logits divided by the temperatures of their exits."""
        temperatures = self.calibration.policy.measure.temperatures
        return logits if temperatures is None else logits / np.array(temperatures, np.float32)[exit, ..., None]

    def one_by_one(self, inputs: Tensors) -> OnnxResult:
        """Classify samples singly, by the one graph that skips what follows an exit.

        Raises:
            UserError: if the bundle has no such graph for its calibration's measure (or, of version 1, thresholds).
        """
        given, thresholds = self._check_inputs(inputs), self.thresholds
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
            self._single = self._open(self._bundle.single)
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
        logits = self._scaled(found[LOGITS], exit) if LOGITS in found else None
        if PROBABILITIES in found:
            logits = _log(found[PROBABILITIES])
        return OnnxResult(found["prediction"], exit, found["confidence"], self.exit_macs[exit], logits)

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

    def read_texts(self, texts: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
        """Return texts as the network wants them: an array (B, tokens) for each input, filled up to the longest.

        Raises:
            DataError: if they are no texts.
            UserError: if the bundle has no tokenizer, or the library for it is missing.
        """
        if self._reader is None:
            if self._bundle.tokenizer is None:
                raise UserError(f"expected a bundle with a tokenizer; {self.folder} takes arrays, by name")
            self._reader = TextReader(self._bundle.tokenizer, self.inputs, self.folder / TOKENIZER)
        return self._reader(texts)

    def _check_inputs(self, inputs: Tensors) -> dict[str, npt.NDArray[Any]]:
        if isinstance(inputs, (list, tuple)) and not inputs:
            raise UserError(f"expected at least one sample of {', '.join(each.name for each in self.inputs)}; got none")
        if are_texts(inputs):
            inputs = self.read_texts(inputs)  # type: ignore[arg-type]
        if isinstance(inputs, str):
            raise UserError("expected a list of texts, or arrays by name; got str")
        named = inputs if isinstance(inputs, Mapping) else {self.inputs[0].name: inputs}
        return check_inputs(self.inputs, named)

    def _check_chain(self) -> None:
        """Raise BundleError unless each stage takes what there is before it, and what the manifest says."""
        there = {source_of(name) for name in (self._first or [each.name for each in self.inputs])}
        handed = list(self._first)
        for stage, session, takes, gives in zip(
            self._bundle.stages, self._sessions, self._takes, self._gives, strict=True
        ):
            if [takes, gives] != [stage.inputs, stage.outputs]:
                raise BundleError(
                    f"{stage.file} disagrees with the manifest: expected inputs {stage.inputs} and outputs "
                    f"{stage.outputs}; got {takes} and {gives}"
                )
            taken = [source_of(name) for name in takes if name.startswith(STATE)]
            if taken != handed or not {source_of(name) for name in takes} <= there:
                raise BundleError(
                    f"{stage.file} disagrees with the stage before: expected inputs {handed}; got {stage.inputs}"
                )
            for each in session.get_inputs():
                self._check_takes(stage, each)
            handed = [name for name in gives if name.startswith(NEXT)]
            there = {*there, *gives}
        if handed:
            raise BundleError(f"{stage.file} disagrees with its place: the last stage hands on {handed}")

    def _check_takes(self, stage: Graph, taken: Any) -> None:
        """Raise BundleError if an input of a stage is one of the bundle's, and of another shape or type."""
        name = self._first.get(source_of(taken.name), taken.name)
        said = next((each for each in self.inputs if each.name == name), None)
        if said is None or (self._first and stage is not self._bundle.stages[0]):
            return
        shape = tuple(size if isinstance(size, int) else None for size in taken.shape)
        wanted = tuple(size if isinstance(size, int) else None for size in said.shape)
        if shape != wanted or taken.type != f"tensor({_ONNX_TYPES.get(said.type, said.type)})":
            raise BundleError(
                f"{stage.file} disagrees with the manifest: it takes {name} of {taken.type} {list(taken.shape[1:])}"
            )


_ONNX_TYPES = {"float32": "float", "float64": "double"}


def _log(probabilities: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny, dtype=np.float32))


def _size(given: Mapping[str, npt.NDArray[Any]]) -> int:
    return len(next(iter(given.values())))
