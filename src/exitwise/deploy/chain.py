"""The stages of a bundle as a chain: what a stage takes, one stage's step, what it hands on. Knows no thresholds.

Who runs stages decides which samples go on: a runner a batch at a time, a server from a queue per stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from exitwise.deploy.bundle import Bundle, Graph
from exitwise.deploy.names import LOGITS, NEXT, STATE, source_of
from exitwise.deploy.sessions import open_session, run_session
from exitwise.exiting.measures import Measure, Reading, State, rows
from exitwise.storage.protobuf import BundleError

_ONNX_TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Inside:
    """Samples before a stage.

    Attributes:
        arrays: what the stages from there on take, by name, batch first.
        carried: what the measure carries of them.
    """

    arrays: dict[str, npt.NDArray[Any]]
    carried: State = None

    @property
    def samples(self) -> int:
        """How many there are."""
        return len(next(iter(self.arrays.values())))

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of a sample's arrays: samples of the same make a batch."""
        return tuple(array.shape[1:] for array in self.arrays.values())

    def rows(self, index: Any) -> Inside:
        """Return some of the samples."""
        return Inside({name: array[index] for name, array in self.arrays.items()}, rows(self.carried, index))

    @classmethod
    def together(cls, parts: Sequence[Inside]) -> Inside:
        """Return samples that come to the same stage from several batches."""
        first = parts[0]
        if len(parts) == 1:
            return first
        arrays = {name: _joined([part.arrays[name] for part in parts]) for name in first.arrays}
        carried = first.carried and {
            name: _joined([part.carried[name] for part in parts if part.carried]) for name in first.carried
        }
        return cls(arrays, carried)


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return rows one after the other: without a copy where they lie so, as those that left a stage together do."""
    first = parts[0]
    whole = first.base
    if isinstance(whole, np.ndarray) and whole.flags.c_contiguous and whole.dtype == first.dtype:
        place = start = first.ctypes.data
        for part in parts:
            if part.base is not whole or part.ctypes.data != place or not part.flags.c_contiguous:
                break
            place += part.nbytes
        else:
            numbers = slice(*((each - whole.ctypes.data) // whole.itemsize for each in (start, place)))
            return whole.reshape(-1)[numbers].reshape(sum(map(len, parts)), *first.shape[1:])
    return np.concatenate(parts)


class Answer(NamedTuple):
    """What an exit says of samples.

    Attributes:
        confidence: which the exit rule compares, float32 (B).
        prediction: class index, int64 (B).
        logits: divided by the exit's temperature, or logarithms of the probabilities that the measure makes of several
            exits', float32 (B, classes); None of a bundle of version 1.
    """

    confidence: npt.NDArray[Any]
    prediction: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32] | None


class Chain:
    """The stages of a bundle, each ready to be run.

    Args:
        bundle: which it keeps, and with it the weights in memory.
        how: threads and provider, of :func:`~exitwise.deploy.sessions.open_session`.

    Raises:
        BundleError: if a stage does not take what the one before gives, or not what the manifest says.
    """

    def __init__(self, bundle: Bundle, **how: Any) -> None:
        self._bundle, self._how = bundle, how
        self._measure: Measure = bundle.calibration.policy.measure
        self._first = {source_of(f"{STATE}0"): bundle.manifest.inputs[0].name} if bundle.manifest.version == 1 else {}
        self.sessions: list[Any] = [self._open(k) for k in range(len(bundle.stages))]
        self._takes = [[each.name for each in session.get_inputs()] for session in self.sessions]
        self._gives = [[each.name for each in session.get_outputs()] for session in self.sessions]
        self._needed = [
            {source_of(name) for names in self._takes[k:] for name in names} for k in range(len(self.sessions) + 1)
        ]
        self._check()

    def __len__(self) -> int:
        return len(self.sessions)

    def _open(self, k: int) -> Any:
        stage = self._bundle.stages[k]
        return open_session(stage.to_run, weights=stage.weights, **self._how)

    def restart(self, k: int) -> None:
        """Open a stage anew, in place of one that failed or hangs."""
        self.sessions[k] = self._open(k)

    def keep(self, stages: range) -> None:
        """Close the other stages, which are run elsewhere."""
        self.sessions = [session if k in stages else None for k, session in enumerate(self.sessions)]

    def enter(self, given: Mapping[str, npt.NDArray[Any]]) -> Inside:
        """Return inputs, which are checked, as samples before the first stage."""
        there = {**given, **{name: given[source] for name, source in self._first.items()}}
        return Inside({name: array for name, array in there.items() if name in self._needed[0]})

    def taken(self, k: int, inside: Inside) -> dict[str, npt.NDArray[Any]]:
        """Return what a stage takes, by the names of its inputs."""
        return {name: inside.arrays[source_of(name)] for name in self._takes[k]}

    def run(self, k: int, inside: Inside) -> tuple[dict[str, npt.NDArray[Any]], Inside]:
        """Return what a stage gives, by name, and the samples before the next, as the measure has not read them."""
        given = dict(
            zip(self._gives[k], run_session(self.sessions[k], self._gives[k], self.taken(k, inside)), strict=True)
        )
        there = {**inside.arrays, **given}
        return given, Inside(
            {name: array for name, array in there.items() if name in self._needed[k + 1]}, inside.carried
        )

    def step(self, k: int, inside: Inside) -> tuple[Answer, Inside]:
        """Return what the exit of a stage says of samples, and all of them before the next stage."""
        given, behind = self.run(k, inside)
        confidence, prediction, carried, mixed = self._read(given, k, inside.carried)
        logits = given.get(LOGITS)
        if logits is not None:
            logits = self.scaled(logits.astype(np.float32, copy=False), k) if mixed is None else logarithms(mixed)
        return Answer(confidence, prediction, logits), Inside(behind.arrays, carried)

    def _read(self, given: Mapping[str, Any], k: int, carried: State) -> Reading:
        if LOGITS not in given:
            return Reading(given["confidence"], given["prediction"])
        return self._measure.read(given[LOGITS].astype(np.float32, copy=False), k, carried)

    def scaled(self, logits: npt.NDArray[Any], exit: npt.NDArray[np.int64] | int) -> npt.NDArray[Any]:
        """Return logits divided by the temperatures of their exits."""
        temperatures = self._measure.temperatures
        return logits if temperatures is None else logits / np.array(temperatures, np.float32)[exit, ..., None]

    def _check(self) -> None:
        """Raise BundleError unless each stage takes what there is before it, and what the manifest says."""
        there = {source_of(name) for name in (self._first or [each.name for each in self._bundle.manifest.inputs])}
        handed = list(self._first)
        for stage, session, takes, gives in zip(
            self._bundle.stages, self.sessions, self._takes, self._gives, strict=True
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
        said = next((each for each in self._bundle.manifest.inputs if each.name == name), None)
        if said is None or (self._first and stage is not self._bundle.stages[0]):
            return
        shape = tuple(size if isinstance(size, int) else None for size in taken.shape)
        wanted = tuple(size if isinstance(size, int) else None for size in said.shape)
        if shape != wanted or taken.type != f"tensor({_ONNX_TYPES.get(said.type, said.type)})":
            raise BundleError(
                f"{stage.file} disagrees with the manifest: it takes {name} of {taken.type} {list(taken.shape[1:])}"
            )


def logarithms(probabilities: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the logarithms of probabilities, which may be 0."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny, dtype=np.float32))
