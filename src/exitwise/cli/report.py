"""``exitwise report``."""

from __future__ import annotations

from pathlib import Path

from exitwise.cli.progress import plain_console


def report(
    runs: list[Path],
    *,
    out: Path | None = None,
    calibration: str | None = None,
    monitor: Path | None = None,
    figures: Path | None = None,
    data: Path | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> None:
    """Show runs in one HTML file, which opens offline: what budgets give, which images leave where, and more.

    Examples:

        exitwise report runs/photos
        exitwise report runs/photos --figures paper/figures
        exitwise report runs/study
        exitwise report runs/uniform-0 runs/uniform-1 runs/weighted-0 --out compared.html

    Parameters
    ----------
    runs
        Calibrated and evaluated run folders, of the same data. Those that differ in the seed alone become one line. Or
        the folder of a study.
    out
        File to write; by default RUN/report.html, of several runs report.html here.
    calibration
        Name of a calibration that the runs keep (calibrate --name); by default the usual one.
    monitor
        Of one run: what deployed inputs looked like (ew.write_monitored), to be shown beside the calibration.
    figures
        Folder for PNG and SVG figures of the same, for papers.
    data
        Where the runs' images lie now, if they have moved.
    overwrite
        Replace that file if it exists, and figures in that folder.
    device
        Where to run the networks and measure times: auto, cpu, cuda, ...
    """
    import exitwise as ew

    plain_console().print(
        ew.report(
            runs,
            out,
            calibration=calibration,
            monitor=monitor,
            figures=figures,
            data=data,
            overwrite=overwrite,
            device=device,
        )
    )
