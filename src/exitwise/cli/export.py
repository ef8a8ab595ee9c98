"""``exitwise export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from exitwise.catalogue.formats import FORMATS
from exitwise.catalogue.lookup import summaries
from exitwise.cli.progress import plain_console
from exitwise.deploy.bundle import check_out
from exitwise.settings.checks import check_run_folder

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[tuple(FORMATS)]


def export(
    run: Path,
    *,
    out: Path | None = None,
    format: Annotated[Format, Parameter(help=summaries(FORMATS))] = "onnx",
    overwrite: bool = False,
) -> None:
    """Write a calibrated run for another runtime: files that run without torch.

    Examples:

        exitwise export runs/photos --out photos.bundle
        exitwise predict photos.bundle holiday.jpg

    Parameters
    ----------
    run
        Calibrated run folder.
    out
        Folder to write; by default RUN/onnx.
    overwrite
        Replace an export that is there, as after another calibration.
    """
    check_run_folder(run)
    out = out or run / format
    check_out(out, overwrite)

    import exitwise as ew

    console = plain_console()
    console.print(ew.export(run, out, format=format, overwrite=overwrite))
    if format == "onnx":
        console.print(f"next: exitwise predict {out} IMAGE")
