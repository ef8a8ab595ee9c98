"""A bundle split in two places: a device answers what leaves early, a server the rest."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from exitwise.deploy.chain import Inside
from exitwise.deploy.onnx_runner import OnnxResult, OnnxRunner, Tensors
from exitwise.deploy.states import Precision, bundle_digest, check_precision, described, packed, unpacked
from exitwise.errors import DataError, UserError
from exitwise.exiting.rule import Thresholds, finite_thresholds

STATE_TYPE = "application/x-exitwise-state"
"""Content type of samples between two stages."""

BUNDLE, THRESHOLDS = "x-exitwise-bundle", "x-exitwise-thresholds"
"""Headers of an image that a device sends as it is: the bundle that it is for, and thresholds in JSON."""

TOKENS = 16
"""Length of a free axis, such as of tokens, in an input made up to try a bundle."""


class Rest(NamedTuple):
    """Samples that a device has not answered.

    Attributes:
        places: in the batch, int64 (R).
        inside: before the server's first stage.
        message: the same as bytes, for the server; empty if there are none.
    """

    places: npt.NDArray[np.int64]
    inside: Inside
    message: bytes


class DeviceHalf:
    """The stages up to an exit.

    Args:
        runner: of the bundle.
        after: the last exit here, from 1.
        precision: in which the rest is sent.
    """

    def __init__(self, runner: OnnxRunner, after: int, precision: Precision) -> None:
        self.runner, self.after, self.precision = runner, after, precision
        self.digest = bundle_digest(runner.folder)

    def __call__(self, inputs: Tensors) -> tuple[OnnxResult, Rest]:
        """Return the fates of samples, with an exit of -1 for those that go on, and these."""
        inside = self.runner.chain.enter(self.runner.check_inputs(inputs))
        thresholds = self.runner.thresholds
        result, places, rest = self.runner.through(inside, thresholds, end=self.after)
        message = self.pack(rest, thresholds) if len(places) else b""
        return result, Rest(places, rest, message)

    def pack(self, inside: Inside, thresholds: Thresholds) -> bytes:
        """Return samples as bytes for the server."""
        return packed(inside, self.after, thresholds, self.digest, self.precision)

    @property
    def state_bytes(self) -> int:
        """Return how many bytes a sample takes that goes on."""
        (_, inside) = list(stages_tried(self.runner))[self.after - 1]
        return len(self.pack(inside, self.runner.thresholds))


class ServerHalf:
    """The stages after it."""

    def __init__(self, runner: OnnxRunner) -> None:
        self.runner = runner
        self._digest, self._shapes = bundle_digest(runner.folder), shapes_between(runner)

    def unpack(self, message: bytes) -> tuple[Inside, int, Thresholds]:
        """Return samples that a device sent, the stage that they are before, and the thresholds that they leave by.

        Raises:
            DataError: for anything else, or samples of another bundle.
        """
        return unpacked(message, self._digest, self._shapes)

    def thresholds_of(self, headers: Mapping[str, str]) -> Thresholds | None:
        """Return the thresholds that an image leaves by; None if it is not of a device.

        Raises:
            DataError: for one that is meant for another bundle, or thresholds that are none.
        """
        if BUNDLE not in headers:
            return None
        if headers[BUNDLE] != self._digest:
            raise DataError("expected images for the bundle that is served; got one for another")
        try:
            thresholds = finite_thresholds(json.loads(headers.get(THRESHOLDS, "")))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"expected thresholds of a device in JSON; {error}") from error
        if len(thresholds) != len(self.runner.chain) - 1:
            raise DataError(f"expected {len(self.runner.chain) - 1} thresholds of a device; got {len(thresholds)}")
        return thresholds

    def __call__(self, message: bytes) -> OnnxResult:
        """Return the fates of samples that a device sent."""
        inside, stage, thresholds = self.unpack(message)
        return self.runner.through(inside, thresholds, stage)[0]


class Split(NamedTuple):
    """The two halves of a bundle, for one process or two."""

    device: DeviceHalf
    server: ServerHalf


def split(bundle: str | Path, after: int, precision: Precision = "float32", *, threads: int | None = None) -> Split:
    """Split a bundle between a device and a server.

    Args:
        bundle: both have it.
        after: the last exit on the device, from 1.
        precision: in which the state of the rest is sent: float32 gives the answers of the whole; float16 and int8
            (with a scale for each sample) are half and a quarter of the bytes.
        threads: of each half on the CPU.

    Raises:
        UserError: for an exit that is none or the last, another precision, or a bundle that is not what it says.
    """
    check_precision(precision)
    runner = OnnxRunner(bundle, threads)
    if not 1 <= after < len(runner.chain):
        raise UserError(f"expected to split after an exit from 1 to {len(runner.chain) - 1}; got {after}")
    return Split(DeviceHalf(runner, after, precision), ServerHalf(runner))


class SplitClient:
    """Answers on a device, and by a server that serves the same bundle what does not leave here.

    A sample that goes on is sent as its state or as the image file itself, whichever is smaller. Either way it leaves
    by the device's thresholds, at an exit after the device's.

    Args:
        bundle: the same as the server's.
        after: the last exit here, from 1.
        url: of the server, such as ``http://10.0.0.5:8000``.
        precision: of states.
        token: that the server wants, if it does.
        seconds: to wait for the server.

    Attributes:
        sent: bytes so far, as states and as files.
    """

    def __init__(
        self,
        bundle: str | Path,
        after: int,
        url: str,
        precision: Precision = "float32",
        *,
        token: str | None = None,
        seconds: float = 30.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"expected the URL of a server, such as http://10.0.0.5:8000; got {url!r}")
        self.device = split(bundle, after, precision).device
        self.url, self.seconds = url.rstrip("/"), seconds
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self.sent = {"states": 0, "files": 0}

    def __call__(self, images: Sequence[bytes]) -> list[dict[str, Any]]:
        """Return the answers to image files, as the server gives them; ``where`` says which half answered.

        Raises:
            UserError: if the server does not answer, or not so; and for a broken image.
        """
        if not images:
            return []
        runner, after = self.device.runner, self.device.after
        as_file = {
            BUNDLE: self.device.digest,
            THRESHOLDS: json.dumps([*[None] * after, *runner.thresholds[after:]]),
        }
        read = [runner.read(image) for image in images]
        result, rest = self.device({name: np.stack([each[name] for each in read]) for name in read[0]})
        answers: list[dict[str, Any]] = [
            {"class": runner.classes[label], "index": label, "exit": exit + 1, "confidence": sure, "where": "device"}
            for label, exit, sure in zip(*(each.tolist() for each in result[:3]), strict=True)
        ]
        for number, place in enumerate(rest.places.tolist()):
            state = self.device.pack(rest.inside.rows(slice(number, number + 1)), runner.thresholds)
            as_state = len(state) <= len(images[place])
            path, body, headers = (
                ("/continue", state, {"content-type": STATE_TYPE})
                if as_state
                else ("/predict", images[place], {"content-type": "application/octet-stream", **as_file})
            )
            self.sent["states" if as_state else "files"] += len(body)
            answers[place] = {**self._ask(path, body, headers), "where": "server"}
        return answers

    def _ask(self, path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, body, {**headers, **self._headers})
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as answer:
                said: dict[str, Any] = json.load(answer)["answers"][0]
                return said
        except urllib.error.HTTPError as error:
            raise UserError(f"the server at {self.url} answers {error.code}: {_reason(error)}") from error
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"expected an answer of the server at {self.url}; {error}") from error


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (OSError, ValueError, LookupError, TypeError):
        return error.reason


def entered(runner: OnnxRunner) -> Inside:
    """Return an input of zeros (ones, of whole numbers) as a sample before the first stage."""
    arrays = {}
    for each in runner.inputs:
        shape = tuple(1 if i == 0 else size if isinstance(size, int) else TOKENS for i, size in enumerate(each.shape))
        arrays[each.name] = (np.ones if "int" in each.type else np.zeros)(shape, each.type)
    return runner.chain.enter(runner.check_inputs(arrays))


def stages_tried(runner: OnnxRunner) -> list[tuple[int, Inside]]:
    """Run each stage once, on an input made up; return what comes before the next ones."""
    inside, found = entered(runner), []
    for k in range(len(runner.chain)):
        _, inside = runner.chain.step(k, inside)
        found.append((k + 1, inside))
    return found


def shapes_between(runner: OnnxRunner) -> dict[int, dict[str, tuple[Any, ...]]]:
    """Return, for each stage but the first (0-based), what it takes of a sample."""
    return {stage: described(inside) for stage, inside in stages_tried(runner)[:-1]}
