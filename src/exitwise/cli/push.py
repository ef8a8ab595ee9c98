"""``exitwise push``."""

from __future__ import annotations

from pathlib import Path

from exitwise.cli.progress import plain_console
from exitwise.settings.checks import check_run_folder


def push(
    run: Path,
    name: str,
    *,
    calibration: str | None = None,
    license: str | None = None,
    private: bool = False,
) -> None:
    """Send a calibrated and evaluated run to Hugging Face's hub, with a model card.

    Example:

        exitwise push runs/photos owner/photos --license apache-2.0

    Parameters
    ----------
    run
        Run folder.
    name
        OWNER/NAME on the hub; made if it is not there.
    calibration
        Name of the calibration that the card is of; by default the usual one.
    license
        Of the weights, by its short name.
    private
        Make a new repository private.
    """
    check_run_folder(run)

    import exitwise as ew

    plain_console().print(ew.push(run, name, calibration=calibration, licence=license, private=private))
