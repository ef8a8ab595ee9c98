"""Write a calibrated run for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from exitwise.runs.build import preprocessing_of
from exitwise.runs.folder import Run


def export(
    path: str | Path, out: str | Path, format: Literal["onnx", "pt2"] = "onnx", *, overwrite: bool = False
) -> list[Path]:
    """Write a calibrated run for other runtimes; returns the files.

    ``onnx``: see :func:`~exitwise.deploy.formats.onnx.export_onnx`; ``pt2``:
    :func:`~exitwise.deploy.formats.pt2.export_programs`.

    Raises:
        UserError: without calibration, if something is at ``out`` (other than an export to ``overwrite``), or if the
            network cannot be exported.
    """
    from exitwise.deploy.formats.onnx import export_onnx
    from exitwise.deploy.formats.pt2 import export_programs

    write = {"onnx": export_onnx, "pt2": export_programs}[format]
    run = Run(path)
    calibration = run.read_calibration()
    write(
        run.model("cpu"),
        calibration.policy,
        out,
        classes=run.classes,
        preprocessing=preprocessing_of(run.settings),
        exit_macs=calibration.exit_macs,
        name=run.settings.model,
        reference=calibration.reference,
        overwrite=overwrite,
    )
    return sorted(Path(out).iterdir())
