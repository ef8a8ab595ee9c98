"""Write a calibrated run for other runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exitwise.catalogue.formats import FORMATS
from exitwise.catalogue.lookup import find
from exitwise.runs.build import preprocessing_of
from exitwise.runs.folder import Run
from exitwise.shown import Shown

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Exported(Shown):
    """An export that was checked against the network: its folder, and the files in it."""

    path: Path
    files: tuple[Path, ...]

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        sizes = (f"{file.name:16}{file.stat().st_size / 2**20:8.1f} MiB" for file in self.files)
        return Group(*sizes, f"written to {self.path} and checked against the network")


def export(path: str | Path, out: str | Path, format: str = "onnx", *, overwrite: bool = False) -> Exported:
    """Write a calibrated run for other runtimes.

    ``onnx``: see :func:`~exitwise.deploy.formats.onnx.export_onnx`; ``pt2``:
    :func:`~exitwise.deploy.formats.pt2.export_programs`.

    Raises:
        UserError: without calibration, if something is at ``out`` (other than an export to ``overwrite``), or if the
            network cannot be exported.
    """
    write = find(FORMATS, format, "format").load()
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
    return Exported(Path(out), tuple(sorted(Path(out).iterdir())))
