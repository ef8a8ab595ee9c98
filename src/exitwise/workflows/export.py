"""Write a calibrated run for other runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from exitwise.catalogue.formats import FORMATS
from exitwise.catalogue.lookup import find
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.preprocessing import preprocessing_for
from exitwise.errors import UserError
from exitwise.models import count_cost
from exitwise.models.staged import StagedModel, check_staged
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


@overload
def export(run: str | Path, out: str | Path, /, *, format: str = "onnx", overwrite: bool = False) -> Exported: ...
@overload
def export(
    network: StagedModel,
    calibration: Calibration,
    out: str | Path,
    /,
    *,
    preprocessing: Any = None,
    classes: Sequence[str] | None = None,
    format: str = "onnx",
    overwrite: bool = False,
) -> Exported: ...
def export(
    source: str | Path | StagedModel,
    *rest: Any,
    preprocessing: Any = None,
    classes: Sequence[str] | None = None,
    format: str = "onnx",
    overwrite: bool = False,
) -> Exported:
    """Write a calibrated network for other runtimes: ``export(run, out)`` or ``export(network, calibration, out)``.

    ``onnx``: see :func:`~exitwise.deploy.formats.onnx.export_onnx`; ``pt2``:
    :func:`~exitwise.deploy.formats.pt2.export_programs`.

    Args:
        source: a calibrated run folder, or a network.
        rest: of a network its calibration, then the folder to write.
        preprocessing: of a network, what is done to an image or a text before it is run, as
            :func:`~exitwise.deploy.preprocessing.preprocessing_for` takes it: a :class:`~exitwise.data.Preprocessing`,
            an image processor or a tokenizer; without it the export takes tensors. A run knows.
        classes: of a network, names in the order of the logits; their numbers by default.
        format: a name of the catalogue.
        overwrite: whether an export that is there may be replaced.

    Raises:
        UserError: without calibration, for preprocessing of other inputs, if something is at ``out`` (other than an
            export to ``overwrite``), or if the network cannot be exported.
    """
    write = find(FORMATS, format, "format").load()
    if isinstance(source, nn.Module):
        check_staged(source)
        if len(rest) != 2 or not isinstance(rest[0], Calibration):
            raise UserError("a network is exported as export(network, calibration, out); got other arguments")
        if rest[0].exit_macs != count_cost(source).macs:
            raise UserError("expected the calibration of this network; got that of one with other costs")
        model, name, (calibration, out) = source, "", rest
        names = [str(label) for label in range(model.num_classes)] if classes is None else list(classes)
        if len(set(names)) != model.num_classes or not all(isinstance(each, str) for each in names):
            raise UserError(f"expected {model.num_classes} different names of classes; got {names}")
        prepared = preprocessing_for(model, preprocessing)
    else:
        if len(rest) != 1 or preprocessing is not None or classes is not None:
            raise UserError("a run, which knows its classes and preprocessing, is exported as export(run, out)")
        run, (out,) = Run(source), rest
        calibration, model = run.read_calibration(), run.model("cpu")
        names, prepared, name = run.classes, preprocessing_of(run.settings), run.settings.model
    write(model, calibration, out, classes=names, preprocessing=prepared, name=name, overwrite=overwrite)
    return Exported(Path(out), tuple(sorted(Path(out).iterdir())))
