"""``exitwise bench``: whether early exits are worth it on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from exitwise.budgets import parse_numbers
from exitwise.cli.progress import plain_console
from exitwise.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from exitwise.runs.records.bench import Bench


def bench(
    run: Path,
    *,
    forms: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    batch_sizes: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    budgets: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    static: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    seconds: float = 60.0,
    device: str = "auto",
) -> None:
    """Time a run on this machine: in full, leaving early, and cut at one exit; say whether leaving early is worth it.

    Examples:

        exitwise bench runs/photos
        exitwise bench runs/photos --forms eager,onnx --batch-sizes 1,32
        exitwise bench runs/photos --static timm/resnet10t

    Parameters
    ----------
    run
        Run folder.
    forms
        Of eager, compiled (takes minutes to compile) and onnx; by default all.
    batch_sizes
        Images per call; by default 1, 8 and 64.
    budgets
        Shares of the full network's MACs; by default 0.3, 0.5 and 0.7.
    static
        Networks without exits to compare with: run folders, or models of which only the time is known.
    seconds
        About how long to measure, besides compiling and exporting.
    device
        auto, cpu, cuda, ...
    """
    sizes = parse_numbers(batch_sizes, "batch sizes") if batch_sizes else [1, 8, 64]
    if any(size != int(size) for size in sizes):
        raise UserError(f"expected whole numbers for batch sizes; got {' '.join(batch_sizes or [])}")
    shares = parse_numbers(budgets, "budgets") if budgets else [0.3, 0.5, 0.7]
    names = [name for text in forms for name in text.split(",") if name] if forms else ["eager", "compiled", "onnx"]

    import exitwise as ew

    console = plain_console()
    result = ew.bench(
        run,
        forms=names,
        batch_sizes=[int(size) for size in sizes],
        budgets=shares,
        static=static or (),
        seconds=seconds,
        device=device,
        tell=console.print,
    )
    console.print(bench_table(result))
    for form, reason in result.left_out.items():
        console.print(f"{form} was left out: {reason}")
    for size, sentence in result.verdicts.items():
        console.print(f"batch {size}: {sentence}")
    console.print(f"stored in {run / 'bench.json'}")


def bench_table(result: Bench) -> Table:
    """A row per network, form and batch size, with times and the time saved against the full network."""
    from rich import box
    from rich.table import Table

    from exitwise.cli.tables import percent

    table = Table(title="Times per call on this machine, in turn", box=box.SIMPLE, padding=(0, 0, 0, 1))
    for name in ("", "", "p50 ms", "p95", "p99", "images/s", "saved", "accuracy"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    size = None
    for row in sorted(result.rows, key=lambda row: row.batch_size):
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
            "" if row.network.kind == "full" else percent(1 - row.mean / result.full(row).mean),
            "" if accuracy is None else percent(accuracy),
        )
    return table
