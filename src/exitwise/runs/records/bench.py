"""bench.json: measured times of a run's network in the forms that it would be deployed in."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from exitwise.runs.records.environment import environment
from exitwise.shown import Shown
from exitwise.storage.record import Record

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

FormName = Literal["eager", "compiled", "onnx", "int8"]
Kind = Literal["full", "early", "static"]


class Network(NamedTuple):
    """One of those compared: ``full`` (without early exits), ``early`` or ``static``."""

    name: str
    kind: Kind


class Gap(NamedTuple):
    """How much more accurate one network is than another on the same samples.

    Attributes:
        mean: share of the samples.
        half: half the width of the 95 % interval, from the samples' own differences.
    """

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{100 * self.mean:+.1f} ± {100 * self.half:.1f}"


class Saved(NamedTuple):
    """How much of the time of the network in full another takes less.

    Attributes:
        mean: share of its mean time.
        half: half the width of the 95 % interval, from the spread over batches.
    """

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.0f} ± {100 * self.half:.0f}"


@dataclass(frozen=True)
class Row:
    """A network in one form at one batch size.

    Attributes:
        network: which.
        form: how it runs.
        batch_size: samples per call.
        mean: seconds per call, the mean over batches of their median.
        p50, p95, p99: percentiles of seconds per call.
        accuracy: on the test samples, in this form; None where unknown.
        macs: mean multiply-accumulates per sample.
        gap: to the network in full, in float32; None where the accuracy is unknown.
        weights: bytes of weights; of a bundle or graph, of its files.
        saved: beside the network in full in the same form; None for itself, or where it was not timed.
        joules: of the processors per call, everything that ran meanwhile included; None where the machine does not say.
    """

    network: Network
    form: FormName
    batch_size: int
    mean: float
    p50: float
    p95: float
    p99: float
    accuracy: float | None = None
    macs: float | None = None
    gap: Gap | None = None
    weights: int | None = None
    saved: Saved | None = None
    joules: float | None = None

    @property
    def images_per_second(self) -> float:
        """Throughput."""
        return self.batch_size / self.mean


class Link(NamedTuple):
    """What a split after an exit saves and sends, for a sample that the device does not answer.

    Attributes:
        after: the last exit on the device, from 1.
        seconds: that the stages behind would take here, one sample at a time, down to the exits that samples leave at.
        sizes: bytes of its state, by precision.
    """

    after: int
    seconds: float
    sizes: dict[str, int]

    def pays_from(self, precision: str) -> float:
        """Return the bits per second from which sending takes less time than going on; a link's delay, and the
        server's own time, come on top."""
        return 8 * self.sizes[precision] / self.seconds

    def __str__(self) -> str:
        rates = ", ".join(
            f"{_three_digits(self.pays_from(name) / 1e6)} ({name}, {size / 1e3:.3g} kB)"
            for name, size in self.sizes.items()
        )
        took = f"{_three_digits(1000 * self.seconds)} ms"
        return f"split after exit {self.after}: going on takes {took}; sending the state less, above {rates} Mbit/s"


@dataclass(frozen=True)
class Bench(Shown):
    """Result of :func:`bench`.

    Attributes:
        rows: of all networks, forms and batch sizes.
        verdicts: what they say, by batch size.
        left_out: forms and budgets that were not timed, and why.
        doubts: times that hardly can be.
        links: for which links a split between device and server pays, after each exit that samples stay at; none where
            the form ``onnx`` was not timed.
        stored: the file that it was written to; None: nowhere.
    """

    rows: list[Row]
    verdicts: dict[int, str]
    left_out: dict[str, str]
    doubts: list[str] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    stored: Path | None = field(default=None, compare=False, repr=False)

    def is_dominated(self, row: Row) -> bool:
        """Return whether another row of the batch size is no slower and no less accurate; False where unknown."""
        known = [r for r in self.rows if r.batch_size == row.batch_size and r.accuracy is not None]
        return any(_dominates(other, row) for other in known)

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        left_out = [f"{form} was left out: {reason}" for form, reason in self.left_out.items()]
        doubts = [f"doubtful: {text}" for text in self.doubts]
        verdicts = (f"batch {size}: {text}" for size, text in self.verdicts.items())
        return Group(self._table(), *left_out, *doubts, *verdicts, *map(str, self.links))

    def _table(self) -> Table:
        """Return a row per network, by batch size and form: times, time saved beside the full network, accuracy."""
        from rich.table import Table

        title = "Milliseconds per call, in turn; * no row is faster and as accurate"
        table = Table(title=title, box=None, padding=(0, 0, 0, 1), pad_edge=False)
        table.add_column(overflow="fold", min_width=18)
        metered = any(row.joules is not None for row in self.rows)
        energy = ["mJ"] if metered else []
        for name in ("mean", "p50", "p95", "p99", *energy, "saved %", "MB", "acc. %", "gap", " "):
            table.add_column(name, justify="right", no_wrap=True)
        for size, form in sorted({(row.batch_size, row.form): None for row in self.rows}, key=lambda cell: cell[0]):
            table.add_row()
            table.add_row(f"batch {size}, {form}", style="bold")
            for row in (row for row in self.rows if (row.batch_size, row.form) == (size, form)):
                table.add_row(
                    row.network.name,
                    *(_three_digits(1000 * value) for value in (row.mean, row.p50, row.p95, row.p99)),
                    *(["" if row.joules is None else _three_digits(1000 * row.joules)] if metered else []),
                    "" if row.saved is None else str(row.saved),
                    "" if row.weights is None else f"{row.weights / 1e6:.1f}",
                    "" if row.accuracy is None else f"{100 * row.accuracy:.1f}",
                    "" if row.gap is None or row.gap == (0, 0) else str(row.gap),
                    "" if row.accuracy is None or self.is_dominated(row) else "*",
                )
        return table


def _three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def _dominates(one: Row, other: Row) -> bool:
    if one.accuracy is None or other.accuracy is None:
        return False
    ordered = (one.mean, -one.accuracy), (other.mean, -other.accuracy)
    return all(a <= b for a, b in zip(*ordered, strict=True)) and ordered[0] != ordered[1]


def _encode(result: Bench) -> dict[str, Any]:
    return {
        "rows": [
            {
                **asdict(row),
                "network": row.network._asdict(),
                "gap": row.gap and row.gap._asdict(),
                "saved": row.saved and row.saved._asdict(),
            }
            for row in result.rows
        ],
        "verdicts": result.verdicts,
        "left_out": result.left_out,
        "doubts": result.doubts,
        "links": [link._asdict() for link in result.links],
        "machine": environment([]),
    }


def _decode(content: dict[str, Any], version: int) -> Bench:
    verdicts = {int(size): text for size, text in content["verdicts"].items()}
    links = [Link(**link) for link in content.get("links", [])]
    rows = [_row(row) for row in content["rows"]]
    return Bench(rows, verdicts, content["left_out"], content.get("doubts", []), links)


def _row(content: dict[str, Any]) -> Row:
    network = dict(content["network"])
    of_row = {name: network.pop(name) for name in ("accuracy", "macs") if name in network}  # of version 1
    gap, saved = content.get("gap"), content.get("saved")
    intervals = {"gap": None if gap is None else Gap(**gap), "saved": None if saved is None else Saved(**saved)}
    return Row(**{**content, **of_row, **intervals, "network": Network(**network)})


BENCH = Record(
    "bench.json",
    "exitwise/bench",
    _encode,
    _decode,
    expected="measured times",
    version=3,
    again="run `exitwise bench {run}`",
)
