"""``exitwise report``."""

from __future__ import annotations

from pathlib import Path

from exitwise.cli.progress import plain_console
from exitwise.storage.files import check_output, write_text


def report(runs: list[Path], *, out: Path | None = None, overwrite: bool = False, device: str = "auto") -> None:
    """Show runs in one HTML file, which opens offline: what budgets give, which images leave where, and more.

    Examples:

        exitwise report runs/photos
        exitwise report runs/uniform-0 runs/uniform-1 runs/weighted-0 --out compared.html

    Parameters
    ----------
    runs
        Calibrated and evaluated run folders, of the same data. Those that differ in the seed alone become one line.
    out
        File to write; by default RUN/report.html, of several runs report.html here.
    overwrite
        Replace that file if it exists.
    device
        Where to run the networks and measure times: auto, cpu, cuda, ...
    """
    out = out or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    check_output(out, overwrite)

    from exitwise.reporting.gather import gather
    from exitwise.reporting.render import render

    page = render(gather(runs, device))
    write_text(out, page)
    plain_console().print(f"written to {out} ({len(page.encode()) / 2**20:.1f} MiB); open it in any browser")
