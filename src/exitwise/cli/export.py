"""``exitwise export``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from exitwise.cli.progress import plain_console
from exitwise.deploy.bundle import check_out
from exitwise.settings.checks import check_run_folder


def export(
    run: Path, *, out: Path | None = None, format: Literal["onnx", "pt2"] = "onnx", overwrite: bool = False
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
    format
        onnx: a graph per stage, and one for single images. pt2: a torch.export program per stage.
    overwrite
        Replace an export that is there, as after another calibration.
    """
    check_run_folder(run)
    out = out or run / format
    check_out(out, overwrite)

    import exitwise as ew

    console = plain_console()
    console.print(ew.export(run, out, format, overwrite=overwrite))
    if format == "onnx":
        console.print(f"next: exitwise predict {out} IMAGE")
