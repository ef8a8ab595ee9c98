"""One HTML file about evaluated runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from exitwise.shown import Shown
from exitwise.storage.files import check_output, write_text

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class WrittenReport(Shown):
    """A report that was written: its file, and its size in bytes."""

    path: Path
    size: int

    def __rich__(self) -> RenderableType:
        return f"written to {self.path} ({self.size / 2**20:.1f} MiB); open it in any browser"


def report(
    runs: str | PathLike[str] | Sequence[str | PathLike[str]],
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    device: str = "auto",
) -> WrittenReport:
    """Write a report on runs: what budgets give, which images leave where, and more.

    Args:
        runs: a calibrated and evaluated run folder, or several of the same data.
        out: file to write; by default RUN/report.html, of several runs report.html in the current folder.
        overwrite: whether that file may be replaced.
        device: where to run the networks and measure times.

    Raises:
        UserError: for runs that cannot be compared, or a file that is there already.
    """
    paths = [Path(runs)] if isinstance(runs, (str, PathLike)) else [Path(run) for run in runs]
    file = Path(out) if out else (paths[0] / "report.html" if len(paths) == 1 else Path("report.html"))
    check_output(file, overwrite)

    from exitwise.reporting.gather import gather
    from exitwise.reporting.render import render

    page = render(gather(paths, device))
    write_text(file, page)
    return WrittenReport(file, len(page.encode()))
