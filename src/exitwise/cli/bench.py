"""``exitwise bench``: whether early exits are worth it on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from exitwise.budgets import parse_numbers
from exitwise.cli.progress import plain_console
from exitwise.errors import UserError


def bench(
    run: Path,
    *,
    calibration: str | None = None,
    beside: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    forms: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    batch_sizes: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    budgets: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    seconds: float = 60.0,
    data: Path | None = None,
    device: str = "auto",
) -> None:
    """Time a run on this machine: in full, leaving early, cut at one exit, and others beside it; say what to use.

    Examples:

        exitwise bench runs/photos
        exitwise bench runs/photos --forms eager,onnx --batch-sizes 1,32
        exitwise bench runs/photos --beside runs/smaller runs/cascade smaller.bundle

    Parameters
    ----------
    run
        Run folder.
    calibration
        Name of a calibration that the run keeps (calibrate --name); by default the usual one.
    beside
        What else could be used: other runs with the same test images, bundles, or models by name, of which only the
        time is known.
    forms
        Of eager, compiled (takes minutes to compile), onnx and int8 (ONNX in eight bits); by default all.
    batch_sizes
        Images per call; by default 1, 8 and 64.
    budgets
        Shares of the full network's MACs; by default 0.3, 0.5 and 0.7.
    seconds
        About how long to measure, besides compiling and exporting.
    data
        Where the run's images lie now, if they have moved.
    device
        auto, cpu, cuda, ...
    """
    sizes = parse_numbers(batch_sizes, "batch sizes", "1,32") if batch_sizes else [1, 8, 64]
    if any(size != int(size) for size in sizes):
        raise UserError(f"expected whole numbers for batch sizes; got {' '.join(batch_sizes or [])}")
    shares = parse_numbers(budgets, "budgets") if budgets else [0.3, 0.5, 0.7]
    names = [name for text in forms for name in text.split(",") if name] if forms else None

    import exitwise as ew

    console = plain_console()
    result = ew.bench(
        run,
        calibration,
        forms=names or ("eager", "compiled", "onnx", "int8"),
        beside=beside or (),
        batch_sizes=[int(size) for size in sizes],
        budgets=shares,
        seconds=seconds,
        data=data,
        device=device,
        tell=console.print,
    )
    console.print(result)
    if result.stored is not None:
        console.print(f"stored in {result.stored}")
