"""monitor.json: what a Monitor has seen, to be looked at beside the calibration. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exitwise.deploy.monitor import Monitor, Reference, differences
from exitwise.errors import UserError
from exitwise.storage.files import read_json, write_json
from exitwise.storage.record import Record


@dataclass(frozen=True)
class Monitored:
    """What a monitor has seen.

    Attributes:
        images: how many.
        shares: of them, leaving at each exit, K numbers.
        mean_macs: multiply-accumulates per image.
        latency: percentiles of seconds per call, by name.
        warned: drift messages.
        reference: of the calibration that it compared with.
        compared: images that left by the calibration's thresholds.
        compared_shares: of those, leaving at each exit, K numbers.
        bins: of those, in each of the reference's bins of confidence.
    """

    images: int
    shares: tuple[float, ...]
    mean_macs: float
    latency: dict[str, float]
    warned: tuple[str, ...]
    reference: Reference
    compared: int
    compared_shares: tuple[float, ...]
    bins: tuple[float, ...]

    @property
    def differences(self) -> str | None:
        """Return how all images that can be compared differ from the calibration images; None if they don't."""
        return differences(self.compared_shares, self.bins, self.compared, self.reference)


def monitored(monitor: Monitor) -> Monitored:
    """Return what a monitor has seen so far.

    Raises:
        UserError: for one without a reference, or that has seen nothing.
    """
    if monitor.reference is None or not monitor.images:
        raise UserError("expected a monitor with a reference, that has seen images; got another")
    left, bins = monitor.compared
    size = max(int(left.sum()), 1)
    return Monitored(
        monitor.images,
        tuple(monitor.shares),
        monitor.mean_macs,
        monitor.latency(),
        tuple(monitor.warned),
        monitor.reference,
        int(left.sum()),
        tuple((left / size).tolist()),
        tuple((bins / size).tolist()),
    )


def write_monitored(monitor: Monitor, path: str | Path) -> None:
    """Write what a monitor has seen so far to a JSON file, whole or not at all.

    Raises:
        UserError: for one without a reference, or that has seen nothing.
    """
    write_json(Path(path), MONITORED.to_json(monitored(monitor)))


def read_monitored(path: str | Path) -> Monitored:
    """Return what :func:`write_monitored` wrote.

    Raises:
        UserError: if it is missing, damaged, or something else.
    """
    return MONITORED.parse(read_json(Path(path)), Path(path))


def _encode(seen: Monitored) -> dict[str, Any]:
    return {**vars(seen), "reference": seen.reference.to_dict()}


def _decode(content: dict[str, Any], version: int) -> Monitored:
    shares, compared_shares, bins = (tuple(map(float, content[k])) for k in ("shares", "compared_shares", "bins"))
    reference = Reference.from_dict(content["reference"])
    if not len(shares) == len(compared_shares) == len(reference.shares) or len(bins) != len(reference.bins):
        raise ValueError(f"expected {len(reference.shares)} shares and {len(reference.bins)} bins")
    return Monitored(
        int(content["images"]),
        shares,
        float(content["mean_macs"]),
        {str(name): float(seconds) for name, seconds in content["latency"].items()},
        tuple(map(str, content["warned"])),
        reference,
        int(content["compared"]),
        compared_shares,
        bins,
    )


MONITORED = Record("monitor.json", "exitwise/monitor", _encode, _decode, expected="the record of a monitor")
