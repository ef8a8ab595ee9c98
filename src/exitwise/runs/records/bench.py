"""bench.json: measured times of a run's network in the forms that it would be deployed in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from exitwise.runs.records.environment import environment
from exitwise.shown import Shown, percent
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

    @property
    def images_per_second(self) -> float:
        """Throughput."""
        return self.batch_size / self.mean


@dataclass(frozen=True)
class Bench(Shown):
    """Result of :func:`bench`: all rows, what it says for each batch size, and which forms were left out, why."""

    rows: list[Row]
    verdicts: dict[int, str]
    left_out: dict[str, str]

    def full(self, row: Row) -> Row:
        """Return the network in full at the same batch size, in the same form where it was timed in it."""
        full = [r for r in self.rows if r.network.kind == "full" and r.batch_size == row.batch_size]
        return next((r for r in full if r.form == row.form), full[0])

    def is_dominated(self, row: Row) -> bool:
        """Return whether another row of the batch size is no slower and no less accurate; False where unknown."""
        known = [r for r in self.rows if r.batch_size == row.batch_size and r.accuracy is not None]
        return any(_dominates(other, row) for other in known)

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        left_out = [f"{form} was left out: {reason}" for form, reason in self.left_out.items()]
        return Group(self._table(), *left_out, *(f"batch {size}: {text}" for size, text in self.verdicts.items()))

    def _table(self) -> Table:
        """Return a row per network, form and batch size: times, time saved against the full network, accuracy."""
        from rich import box
        from rich.table import Table

        title = "Times per call on this machine, in turn; * no row is faster and as accurate"
        table = Table(title=title, box=box.SIMPLE, padding=(0, 0, 0, 1))
        for name in ("", "", "p50 ms", "p95", "p99", "samples/s", "saved", "MB", "accuracy", "gap", " "):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        size = None
        for row in sorted(self.rows, key=lambda row: row.batch_size):
            if size != row.batch_size:
                size = row.batch_size
                table.add_section()
                table.add_row(f"batch {size}", style="bold")
            times = (f"{1000 * value:.3g}" for value in (row.p50, row.p95, row.p99))
            table.add_row(
                f"  {row.network.name}",
                row.form,
                *times,
                f"{row.images_per_second:.0f}",
                "" if row.network.kind == "full" else percent(1 - row.mean / self.full(row).mean),
                "" if row.weights is None else f"{row.weights / 1e6:.1f}",
                "" if row.accuracy is None else percent(row.accuracy),
                "" if row.gap is None or row.gap == (0, 0) else str(row.gap),
                "" if row.accuracy is None or self.is_dominated(row) else "*",
            )
        return table


def _dominates(one: Row, other: Row) -> bool:
    if one.accuracy is None or other.accuracy is None:
        return False
    ordered = (one.mean, -one.accuracy), (other.mean, -other.accuracy)
    return all(a <= b for a, b in zip(*ordered, strict=True)) and ordered[0] != ordered[1]


def _encode(result: Bench) -> dict[str, Any]:
    return {
        "rows": [
            {**asdict(row), "network": row.network._asdict(), "gap": row.gap and row.gap._asdict()}
            for row in result.rows
        ],
        "verdicts": result.verdicts,
        "left_out": result.left_out,
        "machine": environment([]),
    }


def _decode(content: dict[str, Any], version: int) -> Bench:
    verdicts = {int(size): text for size, text in content["verdicts"].items()}
    return Bench([_row(row) for row in content["rows"]], verdicts, content["left_out"])


def _row(content: dict[str, Any]) -> Row:
    network = dict(content["network"])
    of_row = {name: network.pop(name) for name in ("accuracy", "macs") if name in network}  # of version 1
    gap = content.get("gap")
    return Row(**{**content, **of_row, "network": Network(**network), "gap": None if gap is None else Gap(**gap)})


BENCH = Record(
    "bench.json",
    "exitwise/bench",
    _encode,
    _decode,
    expected="measured times",
    version=2,
    again="run `exitwise bench {run}`",
)
