"""``exitwise export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from exitwise.catalogue.formats import FORMATS
from exitwise.catalogue.lookup import summaries
from exitwise.cli.progress import plain_console
from exitwise.deploy.bundle import check_out
from exitwise.errors import UserError
from exitwise.settings.checks import check_run_folder
from exitwise.shown import pasteable

if TYPE_CHECKING:
    Format = str
else:
    Format = Literal[tuple(FORMATS)]


def export(
    run: Path,
    *,
    out: Path | None = None,
    calibration: str | None = None,
    format: Annotated[Format, Parameter(help=summaries(FORMATS))] = "onnx",
    int8: Literal["dynamic", "static"] | None = None,
    seal: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a calibrated run for another runtime: files that run without torch.

    Examples:

        exitwise export runs/photos --out photos.bundle
        exitwise export runs/photos --int8 static --out small.bundle
        exitwise export --seal photos.bundle
        exitwise predict photos.bundle holiday.jpg

    Parameters
    ----------
    run
        Calibrated run folder; with --seal a bundle.
    out
        Folder to write; by default RUN/onnx.
    calibration
        Name of a calibration that the run keeps (calibrate --name); by default the usual one.
    int8
        Weights of eight bits: static, with ranges of activations found on the calibration images (for convolutions);
        dynamic, with ranges found as it runs (for linear layers). Thresholds are found anew for the same wish.
    seal
        Make a bundle valid again whose files or calibration you have changed on purpose.
    overwrite
        Replace an export that is there, as after another calibration.
    """
    if seal:
        if out is not None or int8 is not None or overwrite:
            raise UserError("--seal changes a bundle where it is; got it with other options")
        from exitwise.deploy.sealing import seal_bundle

        plain_console().print(f"{run} is sealed: {seal_bundle(run)} files")
        return
    check_run_folder(run)
    out = out or run / format
    check_out(out, overwrite)

    import exitwise as ew
    from exitwise.workflows.classifier import classifies

    console = plain_console()
    console.print(ew.export(run, out, calibration=calibration, format=format, int8=int8, overwrite=overwrite))
    if format == "onnx":
        one = classifies(out).removesuffix("s").upper()
        console.print(f"next: {pasteable('exitwise', 'predict', out, one)}")
