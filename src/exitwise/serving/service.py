"""A bundle that is served: its runner and scheduler, the budget dial, and what takes its place. Knows no HTTP."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exitwise.deploy.chain import Inside
from exitwise.deploy.monitor import Monitor
from exitwise.deploy.onnx_runner import OnnxRunner, Tensors
from exitwise.deploy.split import TOKENS, ServerHalf
from exitwise.errors import DataError, UserError
from exitwise.exiting.arrays import softmax
from exitwise.exiting.rule import Thresholds
from exitwise.exiting.table import line_for
from exitwise.serving.fates import LateError, Left
from exitwise.serving.scheduler import Scheduler
from exitwise.storage.images import read_header

SHED_FROM = 0.5
"""Share of the places taken from which the budget falls, where that is wished; it is the least when all are taken."""


class TooLargeError(UserError):
    """More than the server takes: pixels, samples."""


class NoAnswerError(DataError):
    """The network gives no finite answer to a sample."""


@dataclass(frozen=True)
class Dial:
    """What a sample may spend: the share of the full network's MACs that was dialled (None: as calibrated), and the
    thresholds for it."""

    budget: float | None
    thresholds: Thresholds


class Live:
    """One bundle, as it is served.

    Args:
        folder: the bundle.
        threads, provider: of :class:`~exitwise.OnnxRunner`.
        max_pixels: of the images of a request together.
        schedule: makes what runs samples through the stages, :class:`~exitwise.serving.scheduler.Scheduler` by default.
        limits: of it.

    Attributes:
        continued: reads what devices send that have run its first stages.
        users: requests that are using it; who uses it counts.

    Raises:
        UserError: if the bundle is not what it says, or does not run.
    """

    def __init__(
        self,
        folder: Path,
        threads: int | None,
        provider: str,
        max_pixels: int = 50_000_000,
        schedule: Callable[..., Any] | None = None,
        **limits: Any,
    ) -> None:
        self.runner = OnnxRunner(folder, threads, provider=provider)
        self.max_pixels = max_pixels
        self.continued = ServerHalf(self.runner)  # runs each stage once: what cannot run is not served
        self.scheduler = (schedule or Scheduler)(self.runner.chain, **limits)
        self.monitor = Monitor(len(self.runner.chain), self.runner.reference, noun=self.runner.manifest.noun)
        self.users = 0

    @property
    def takes_texts(self) -> bool:
        """Return whether it is given texts."""
        return self.runner.manifest.noun == "texts"

    def read_images(self, images: Sequence[bytes], until: float | None = None) -> Inside:
        """Return images as samples before the first stage.

        Args:
            images: files.
            until: time (``perf_counter``) from which no other is read.

        Raises:
            DataError: for one that is no image.
            TooLargeError: for too many pixels.
            LateError: if it takes longer.
            UserError: if the bundle takes no images.
        """
        if self.takes_texts:
            raise UserError("expected texts; got images")
        pixels = 0
        for image in images:
            width, height = read_header(image).size
            pixels += width * height
            if pixels > self.max_pixels:
                raise TooLargeError(
                    f"expected images of at most {self.max_pixels} pixels, those of a request together; "
                    f"got {pixels} by one of {width}x{height}"
                )
        read = []
        for image in images:
            if until is not None and time.perf_counter() > until:
                raise LateError("its deadline passed before it was read")
            read.append(self.runner.read(image))
        return self.enter({name: np.stack([each[name] for each in read]) for name in read[0]})

    def read_texts(self, texts: Sequence[str]) -> Inside:
        """Return texts as samples before the first stage.

        Raises:
            DataError: if they are no texts.
            UserError: if the bundle takes none.
        """
        if not self.takes_texts:
            raise UserError("expected images; got texts")
        return self.enter(self.runner.read_texts(texts, TOKENS))

    def enter(self, inputs: Tensors) -> Inside:
        """Return arrays, of one input or by name, as samples before the first stage.

        Raises:
            DataError: for one that is not finite.
            UserError: if the network takes others.
        """
        return self.runner.chain.enter(self.runner.check_inputs(inputs))

    def dial(self, budget: float | None) -> Dial:
        """Return thresholds for a budget of the bundle's table; for None its own.

        Raises:
            UserError: if the table has none.
        """
        return Dial(budget, self.runner.thresholds if budget is None else self.runner.thresholds_for(budget))

    def shed(self, dial: Dial) -> Dial:
        """Return what a sample may spend at the present load: less from half of the places taken."""
        table, calibration = self.runner.calibration.table, self.runner.calibration
        excess = (self.scheduler.load - SHED_FROM) / (1 - SHED_FROM)
        if not table or excess <= 0:
            return dial
        own = dial.budget
        if own is None:
            own = calibration.expected.get("macs", calibration.full_macs) / calibration.full_macs
        least = table[0].budget
        lower = max(least, own - min(excess, 1.0) * (own - least))
        return Dial(lower, line_for(table, lower).thresholds) if lower < own else dial

    def says(self, left: Left, dial: Dial, top: int = 1) -> dict[str, Any]:
        """Return an answer as plain values.

        Args:
            left: the fate of a sample.
            dial: what it might spend.
            top: likeliest classes to name, with more than 1.

        Raises:
            NoAnswerError: if the network gave none.
        """
        classes = self.runner.classes
        if not np.isfinite(left.confidence) or (left.logits is not None and not np.isfinite(left.logits).all()):
            raise NoAnswerError("expected an input with a finite answer; the network gives none")
        macs = float(self.runner.exit_macs[left.exit])
        answered = bool(self.runner.calibration.policy.answered(np.array([left.confidence], np.float32))[0])
        said: dict[str, Any] = {
            "class": classes[left.prediction] if answered else None,
            "answered": answered,
            "index": left.prediction,
            "confidence": left.confidence,
            "exit": left.exit + 1,
            "exits": len(self.runner.chain),
            "macs": macs,
            "compute": macs / self.runner.full_macs,
            "budget": dial.budget,
            "thresholds": list(left.thresholds),
            "in_time": left.in_time,
        }
        if left.logits is None:
            return said
        probabilities = softmax(left.logits[None])[0]
        said["probability"] = float(probabilities[left.prediction])
        if top > 1:
            likeliest = np.argsort(-probabilities, kind="stable")[:top]
            said["top"] = [{"class": classes[k], "probability": float(probabilities[k])} for k in likeliest]
        return said

    def note(self, fates: Sequence[Left], seconds: float) -> None:
        """Tell the monitor of samples that left together."""
        exits = np.array([each.exit for each in fates])
        confidences = np.array([each.confidence for each in fates])
        self.monitor.add(exits, confidences, self.runner.exit_macs[exits], seconds, fates[0].thresholds)


class Service:
    """What is served, and what may change while it is.

    Args:
        folder: the bundle.
        budget: the dial at first: share of the full network's MACs, of the bundle's table; None: as calibrated.
        shed_compute: whether samples may spend less as places run out.
        options: of :class:`Live`.

    Attributes:
        live: the bundle that is served now.
        log: says what was not asked for.
        reloads: how often another took its place, and how often one was refused.
    """

    log = logging.getLogger("exitwise.serving")

    def __init__(
        self, folder: Path, *, budget: float | None = None, shed_compute: bool = False, **options: Any
    ) -> None:
        self.folder, self.shed_compute, self._options = folder, shed_compute, options
        self._reloading = threading.Lock()
        self.reloads = {"done": 0, "refused": 0}
        self.live = Live(folder, **options)
        try:
            self._dial = self.live.dial(budget)
        except UserError:
            self.live.scheduler.close(0)
            raise

    @property
    def budget(self) -> float | None:
        """The dial: share of the full network's MACs that a sample may spend; None: as calibrated."""
        return self._dial.budget

    def set_budget(self, budget: float | None) -> None:
        """Turn the dial; samples inside keep theirs.

        Raises:
            UserError: if the bundle's table has no such budget.
        """
        self._dial = self.live.dial(budget)

    def submit(
        self,
        live: Live,
        inside: Inside,
        budget: float | None = None,
        seconds: float | None = None,
        thresholds: Thresholds | None = None,
    ) -> tuple[Dial, list[Future[Left]]]:
        """Take samples in.

        Args:
            live: the bundle that they were read for.
            inside: before its first stage.
            budget: of its table, in place of the dial's.
            seconds: until they are answered with the best exit reached.
            thresholds: of a device, in place of all budgets.

        Raises:
            UserError: if the bundle's table has no such budget.
            FullError: if there is no place for them.
        """
        if thresholds is not None:
            dial = Dial(None, thresholds)
        else:
            dial = live.dial(budget) if budget is not None or live is not self.live else self._dial
            if self.shed_compute:
                dial = live.shed(dial)
        return dial, live.scheduler.submit(inside, dial.thresholds, seconds)

    def reload(self) -> None:
        """Serve what is in the bundle's folder now; samples inside are answered by what they came to.

        Raises:
            UserError: if it is broken, or another reload is going on; what is served stays.
        """
        if not self._reloading.acquire(blocking=False):
            raise UserError("expected one reload at a time; another is going on")
        try:
            try:
                live = Live(self.folder, **self._options)
            except UserError:
                self.reloads["refused"] += 1
                raise
            try:
                dial = live.dial(self.budget)
            except UserError:  # its table has no such budget
                dial = live.dial(None)
            before, self.live, self._dial = self.live, live, dial
            self.reloads["done"] += 1
            while before.users:
                time.sleep(0.01)
            before.scheduler.close()
        finally:
            self._reloading.release()

    def close(self, seconds: float | None = None) -> bool:
        """Answer what is inside, and stop; return whether all was answered in time."""
        return self.live.scheduler.close(seconds)
