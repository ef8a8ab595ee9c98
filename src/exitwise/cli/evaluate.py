"""``exitwise evaluate``."""

from __future__ import annotations

from pathlib import Path

from exitwise.cli.progress import plain_console
from exitwise.settings.checks import check_device, check_run_folder


def evaluate(
    run: Path,
    *,
    calibration: str | None = None,
    data: Path | None = None,
    groups: Path | None = None,
    device: str = "auto",
) -> None:
    """Measure a run on its test images: the calibrated policy, every exit alone, and a range of budgets.

    Example:

        exitwise evaluate runs/digits

    Parameters
    ----------
    run
        Run folder.
    calibration
        Name of a calibration that the run keeps (calibrate --name); by default the usual one.
    data
        Where the run's images lie now, if they have moved.
    groups
        Say for each group of images, such as sites or cameras, what is lost: a CSV file with the columns image and
        group. Images are named by their paths, or the ends of them.
    device
        auto, cpu, cuda, ...
    """
    check_run_folder(run)
    check_device(device)

    import exitwise as ew

    evaluation = ew.evaluate(run, calibration, data=data, groups=groups, device=device)
    console = plain_console()
    console.print(evaluation)
    if evaluation.left_out:
        console.print(f"{evaluation.left_out} broken test images left out; see {run / 'skipped_images.csv'}")
    if evaluation.stored is not None:
        console.print(f"stored in {evaluation.stored} and {run / 'figures'}")
