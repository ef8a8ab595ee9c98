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

FormName = Literal["eager", "compiled", "onnx"]


class Network(NamedTuple):
    """One of those compared: ``full`` (without early exits), ``early`` or ``static``, with what it is known for.

    Attributes:
        name: for people.
        kind: of the three.
        accuracy: on the test images; None where unknown.
        macs: mean multiply-accumulates per image; None where unknown.
    """

    name: str
    kind: Literal["full", "early", "static"]
    accuracy: float | None
    macs: float | None


@dataclass(frozen=True)
class Row:
    """A network in one form at one batch size.

    Attributes:
        network: which.
        form: how it runs.
        batch_size: images per call.
        mean: seconds per call, the mean over batches of their median.
        p50, p95, p99: percentiles of seconds per call.
    """

    network: Network
    form: FormName
    batch_size: int
    mean: float
    p50: float
    p95: float
    p99: float

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
        """Return the full network in the same form and batch size."""
        return next(r for r in self.rows if (r.form, r.batch_size) == (row.form, row.batch_size))

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        left_out = [f"{form} was left out: {reason}" for form, reason in self.left_out.items()]
        return Group(self._table(), *left_out, *(f"batch {size}: {text}" for size, text in self.verdicts.items()))

    def _table(self) -> Table:
        """Return a row per network, form and batch size, with times and the time saved against the full network."""
        from rich import box
        from rich.table import Table

        table = Table(title="Times per call on this machine, in turn", box=box.SIMPLE, padding=(0, 0, 0, 1))
        for name in ("", "", "p50 ms", "p95", "p99", "images/s", "saved", "accuracy"):
            table.add_column(name, justify="right" if name else "left", no_wrap=True)
        size = None
        for row in sorted(self.rows, key=lambda row: row.batch_size):
            if size != row.batch_size:
                size = row.batch_size
                table.add_section()
                table.add_row(f"batch {size}", style="bold")
            times = (f"{1000 * value:.3g}" for value in (row.p50, row.p95, row.p99))
            accuracy = row.network.accuracy
            table.add_row(
                f"  {row.network.name}",
                row.form,
                *times,
                f"{row.images_per_second:.0f}",
                "" if row.network.kind == "full" else percent(1 - row.mean / self.full(row).mean),
                "" if accuracy is None else percent(accuracy),
            )
        return table


def _encode(result: Bench) -> dict[str, Any]:
    return {
        "rows": [{**asdict(row), "network": row.network._asdict()} for row in result.rows],
        "verdicts": result.verdicts,
        "left_out": result.left_out,
        "machine": environment([]),
    }


def _decode(content: dict[str, Any], version: int) -> Bench:
    rows = [Row(**{**row, "network": Network(**row["network"])}) for row in content["rows"]]
    return Bench(rows, {int(size): text for size, text in content["verdicts"].items()}, content["left_out"])


BENCH = Record(
    "bench.json", "exitwise/bench", _encode, _decode, expected="measured times", again="run `exitwise bench {run}`"
)
