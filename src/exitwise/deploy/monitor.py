"""What a runner has done so far, and whether its inputs still look like those it was calibrated on.

Numbers in, numbers out: knows neither networks nor torch, and serves the runners of both.
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exitwise.errors import ExitwiseWarning
from exitwise.exiting.rule import Thresholds, finite_thresholds
from exitwise.shown import Noun

BINS = 10
"""Of confidence, equally full on the calibration images."""

LEAST_IMAGES = 50
"""Images that a comparison takes."""

LEAST_MOVED, NORMAL_DEVIATIONS = 0.05, 4.0
"""A warning takes a move of so large a share of the images, and one so unlikely by chance (about 1 in 30 000)."""


class DriftWarning(ExitwiseWarning):
    """Inputs differ from the calibration images."""


@dataclass(frozen=True)
class Reference:
    """How the calibration images left.

    Attributes:
        images: how many there were.
        shares: of them, leaving at each exit, K numbers.
        edges: of confidence at the exit taken, between bins, ascending.
        bins: share of the images in each bin, one more than edges.
        thresholds: they left by, K - 1 numbers or None; None: not recorded.

    Raises:
        ValueError: for numbers that cannot be these.
    """

    images: int
    shares: tuple[float, ...]
    edges: tuple[float, ...]
    bins: tuple[float, ...]
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        numbers = (*self.shares, *self.edges, *self.bins)
        if self.images < 1 or not self.shares or not all(0 <= number <= 1 for number in numbers):
            raise ValueError("expected a positive number of images, and shares and edges from 0 to 1")
        if len(self.bins) != len(self.edges) + 1:
            raise ValueError(f"expected one bin more than the {len(self.edges)} edges; got {len(self.bins)}")

    @classmethod
    def of(
        cls,
        exit: npt.ArrayLike,
        confidence: npt.ArrayLike,
        exits: int,
        thresholds: Thresholds | None = None,
    ) -> Reference:
        """From the exit taken (N, 0-based), the confidence there (N) and the thresholds of calibration images."""
        taken, values = np.asarray(exit), np.asarray(confidence, dtype=np.float64)
        edges = np.unique(np.quantile(values, np.arange(1, BINS) / BINS))
        bins = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1) / len(values)
        shares = np.bincount(taken, minlength=exits) / len(taken)
        return cls(len(taken), tuple(shares.tolist()), tuple(edges.tolist()), tuple(bins.tolist()), thresholds)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Reference:
        """From what :meth:`to_dict` gave."""
        shares, edges, bins = (tuple(map(float, content[key])) for key in ("shares", "edges", "bins"))
        limits = content.get("thresholds")
        return cls(int(content["images"]), shares, edges, bins, None if limits is None else finite_thresholds(limits))

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class Monitor:
    """Counts the images of a runner, and compares the latest with the calibration images.

    Give it to a runner (``EarlyExitRunner(..., monitor=monitor)``), which reports each call to it. Several threads may.

    Args:
        exits: number of exits K.
        reference: of the calibration; None: no drift is looked for.
        window: images per comparison, and calls that percentiles are of.
        noun: what messages call them.

    Attributes:
        images: seen so far.
        counts: of them, leaving at each exit, int64 (K).
        warned: drift messages so far.
    """

    def __init__(
        self, exits: int, reference: Reference | None = None, *, window: int = 1000, noun: Noun = "images"
    ) -> None:
        if window < LEAST_IMAGES:
            raise ValueError(f"window must be at least {LEAST_IMAGES} {noun}; got {window}")
        if reference is not None and len(reference.shares) != exits:
            raise ValueError(f"expected a reference of {exits} exits; got one of {len(reference.shares)}")
        self.reference = reference
        self.window = window
        self.noun: Noun = noun
        self.images = 0
        self.counts = np.zeros(exits, np.int64)
        self.warned: list[str] = []
        self._lock = threading.Lock()
        self._macs = 0.0
        self._seconds: deque[float] = deque(maxlen=window)
        bins = 0 if reference is None else len(reference.bins)
        self._compared = np.zeros(exits, np.int64), np.zeros(bins, np.int64)
        self._recent: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []

    @classmethod
    def of_all(cls, exits: int, reference: Reference | None, images: int, noun: Noun = "images") -> Monitor:
        """Return one that compares all of so many images at once."""
        return cls(exits, reference, window=max(images, LEAST_IMAGES), noun=noun)

    def check(self, exits: int) -> None:
        """Raise ValueError unless this is for networks with so many exits."""
        if len(self.counts) != exits:
            raise ValueError(f"expected a monitor of {exits} exits; got one of {len(self.counts)}")

    def add(
        self,
        exit: npt.NDArray[Any],
        confidence: npt.NDArray[Any],
        macs: npt.NDArray[Any],
        seconds: float,
        thresholds: Thresholds | None = None,
    ) -> None:
        """Count a call: exit (0-based), confidence and MACs of each image (B), and how long it took.

        Each time that ``window`` images have come together, a :class:`DriftWarning` says how they differ, if they do.
        Images that left by other ``thresholds`` than the calibration images say nothing of drift and are only counted.
        """
        with self._lock:
            self.images += len(exit)
            self.counts += np.bincount(exit, minlength=len(self.counts))
            self._macs += float(macs.sum())
            self._seconds.append(seconds)
            message = self._compare(exit, confidence, thresholds)
        if message is not None:
            warnings.warn(message, DriftWarning, stacklevel=3)

    def _compare(
        self, exit: npt.NDArray[Any], confidence: npt.NDArray[Any], thresholds: Thresholds | None
    ) -> str | None:
        """Return how the images since the last comparison differ, if they are enough and do."""
        if self.reference is None:
            return None
        expected = self.reference.thresholds
        if thresholds is not None and expected is not None and thresholds != expected:
            return None
        for total, part in zip(self._compared, self._counted(exit, confidence), strict=True):
            total += part
        self._recent.append((exit, confidence))
        if sum(len(part) for part, _ in self._recent) < self.window:
            return None
        message = self.drift()
        self._recent.clear()
        if message is not None:
            self.warned.append(message)
        return message

    def _counted(
        self, exits: npt.NDArray[Any], confidences: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return how many images left at each exit, and are in each bin of the reference."""
        assert self.reference is not None
        places = np.searchsorted(self.reference.edges, np.nan_to_num(confidences, nan=-1.0), side="right")
        bins = np.bincount(places, minlength=len(self.reference.bins))
        return np.bincount(exits, minlength=len(self.counts)), bins

    @property
    def compared(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Images that left by the calibration's thresholds: at each exit, and in each of its bins of confidence."""
        with self._lock:
            left, bins = self._compared
            return left.copy(), bins.copy()

    @property
    def shares(self) -> list[float]:
        """Share of the images that left at each exit, K numbers."""
        return (self.counts / max(self.images, 1)).tolist()

    @property
    def mean_macs(self) -> float:
        """Multiply-accumulates per image."""
        return self._macs / max(self.images, 1)

    def latency(self) -> dict[str, float]:
        """Median, 95th and 99th percentile of seconds per call, over the latest calls."""
        if not self._seconds:
            return {}
        values = np.percentile(list(self._seconds), [50, 95, 99]).tolist()
        return dict(zip(("p50", "p95", "p99"), values, strict=True))

    def drift(self) -> str | None:
        """Return how the images since the last comparison differ from the calibration images; None if they don't."""
        reference = self.reference
        size = sum(len(part) for part, _ in self._recent)
        if reference is None or size < LEAST_IMAGES:
            return None
        left, bins = self._counted(*map(np.concatenate, zip(*self._recent, strict=True)))
        return differences((left / size).tolist(), (bins / size).tolist(), size, reference, self.noun)


def differences(
    shares: Sequence[float], bins: Sequence[float], images: int, reference: Reference, noun: Noun = "images"
) -> str | None:
    """Return how images differ from the calibration images; None if they don't, or are too few to tell.

    Args:
        shares: of them, leaving at each exit, K numbers.
        bins: of them, in each of the reference's bins.
        images: how many there are.
        reference: of the calibration.
        noun: what they are called.
    """
    if images < LEAST_IMAGES:
        return None
    parts = []
    if _moved(shares, reference.shares, images, reference.images):
        parts.append(f"{_percent(shares)} left at the exits, {_percent(reference.shares)} in calibration")
    if _moved(bins, reference.bins, images, reference.images):
        edges = ", ".join(f"{edge:.2f}" for edge in reference.edges)
        parts.append(f"confidences between {edges}: {_percent(bins)}, {_percent(reference.bins)} in calibration")
    if not parts:
        return None
    return f"the last {images} {noun} differ from the calibration {noun}: {'; '.join(parts)}"


def _moved(found: Sequence[float], expected: Sequence[float], images: int, expected_images: int) -> bool:
    """Return whether shares of ``images`` differ from those of ``expected_images``: by much, and by Pearson's
    chi-square test of two samples, its quantile after Wilson and Hilferty (1931)."""
    shares, wanted = np.asarray(found), np.asarray(expected)
    if 0.5 * np.abs(shares - wanted).sum() < LEAST_MOVED:
        return False
    pooled = (shares * images + wanted * expected_images) / (images + expected_images)
    there = pooled > 0
    spread = pooled[there] * (1 / images + 1 / expected_images)
    statistic = float(((shares - wanted)[there] ** 2 / spread).sum())
    free = int(there.sum()) - 1
    if free < 1:
        return False
    limit = free * (1 - 2 / (9 * free) + NORMAL_DEVIATIONS * (2 / (9 * free)) ** 0.5) ** 3
    return statistic > limit


def _percent(shares: Sequence[float] | npt.NDArray[Any]) -> str:
    return "/".join(f"{100 * share:.0f}" for share in shares) + " %"
