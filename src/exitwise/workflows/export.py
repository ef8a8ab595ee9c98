"""Write a calibrated run for other runtimes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, overload

from torch import nn

from exitwise.catalogue.formats import FORMATS
from exitwise.catalogue.lookup import find
from exitwise.data.loaders import pairs_of
from exitwise.deploy.anew import check_repeatable
from exitwise.deploy.bundle import check_out
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.formats.int8 import Int8
from exitwise.deploy.preprocessing import preprocessing_for
from exitwise.errors import UserError
from exitwise.evaluation.exported import arrays_of
from exitwise.evaluation.outputs import EVALUATION_BATCH
from exitwise.models.staged import StagedModel
from exitwise.runs.build import image_preprocessing_of, texts_of
from exitwise.runs.folder import Run
from exitwise.runs.other_images import calibrated_on
from exitwise.shown import Shown, percent
from exitwise.workflows.arguments import check_network_call
from exitwise.workflows.quantise import Batches, Compared, quantise

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


@dataclass(frozen=True)
class Exported(Shown):
    """An export that was checked against the network: its folder, the files in it, and, of one in eight bits, float32
    and int8 compared."""

    path: Path
    files: tuple[Path, ...]
    precisions: tuple[Compared, ...] = ()

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        sizes = (f"{file.name:16}{file.stat().st_size / 2**20:8.1f} MiB" for file in self.files)
        if not self.precisions:
            return Group(*sizes, f"written to {self.path} and checked against the network")
        return Group(*sizes, self._table(), f"written to {self.path}, calibrated anew for the same wish")

    def _table(self) -> Table:
        """Return a row per precision: accuracy, cost and time on the held-out samples."""
        from rich.table import Table

        table = Table(title="Held-out samples, each under its own thresholds; times in turn on this machine")
        for name in ("", "accuracy", "last exit", "of full MACs", "ms alone", "ms together", "MiB"):
            table.add_column(name, justify="right" if name else "left")
        for each in self.precisions:
            times = (f"{1000 * seconds:.3g}" for seconds in (each.alone, each.together))
            accuracies = percent(each.accuracy), percent(each.full_accuracy)
            table.add_row(each.name, *accuracies, percent(each.share), *times, f"{each.size / 2**20:.1f}")
        return table


@overload
def export(
    run: str | Path,
    out: str | Path,
    /,
    *,
    calibration: str | None = None,
    format: str = "onnx",
    int8: Int8 | None = None,
    overwrite: bool = False,
) -> Exported: ...
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
    int8: Int8 | None = None,
    held_out: Iterable[Any] | None = None,
    overwrite: bool = False,
) -> Exported: ...
def export(
    source: str | Path | StagedModel,
    *rest: Any,
    calibration: str | None = None,
    preprocessing: Any = None,
    classes: Sequence[str] | None = None,
    format: str = "onnx",
    int8: Int8 | None = None,
    held_out: Iterable[Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a calibrated network for other runtimes: ``export(run, out)`` or ``export(network, calibration, out)``.

    ``onnx``: see :func:`~exitwise.deploy.formats.onnx.export_onnx`; ``pt2``:
    :func:`~exitwise.deploy.formats.pt2.export_programs`.

    Args:
        source: a calibrated run folder, or a network.
        rest: of a network its calibration, then the folder to write.
        calibration: of a run, the name of one that it keeps.
        preprocessing: of a network, what is done to an image or a text before it is run, as
            :func:`~exitwise.deploy.preprocessing.preprocessing_for` takes it: a :class:`~exitwise.data.Preprocessing`,
            an image processor or a tokenizer; without it the export takes tensors. A run knows.
        classes: of a network, names in the order of the logits; their numbers by default.
        format: a name of the catalogue.
        int8: weights of eight bits, by ONNX Runtime: ``dynamic``, with ranges of activations found as it runs, of
            linear layers alone; ``static``, with ranges found on held-out samples, of convolutions too. Thresholds are
            found anew for the same wish.
        held_out: with ``int8``, of a network: a loader that may be read several times, as for ``calibrate``.
        overwrite: whether an export that is there may be replaced.

    Raises:
        UserError: without calibration, for preprocessing of other inputs, if something is at ``out`` (other than an
            export to ``overwrite``), if the network cannot be exported, or loses more accuracy in eight bits than its
            calibration allows.
    """
    if int8 not in (None, "dynamic", "static") or (int8 and format != "onnx"):
        raise UserError(f"expected int8 as dynamic or static, with format onnx; got {int8!r} with {format}")
    if (int8 is None or not isinstance(source, nn.Module)) and held_out is not None:
        raise UserError("held-out samples are for int8 of a network; got some without it, or with a run")
    write = find(FORMATS, format, "format").load()
    if isinstance(source, nn.Module):
        if calibration is not None:
            raise UserError(f"a name is for a calibration that a run keeps; got {calibration} with a network")
        first, second = rest if len(rest) == 2 else (None, None)
        check_network_call(source, first, second, "exported by export(network, calibration, out)")
        rest[0].check_network(source)
        model, name, (calibrated, out) = source, "", rest
        names = [str(label) for label in range(model.num_classes)] if classes is None else list(classes)
        if len(set(names)) != model.num_classes or not all(isinstance(each, str) for each in names):
            raise UserError(f"expected {model.num_classes} different names of classes; got {names}")
        prepared = preprocessing_for(model, preprocessing)
    else:
        if len(rest) != 1 or preprocessing is not None or classes is not None:
            raise UserError("a run, which knows its classes and preprocessing, is exported as export(run, out)")
        run, (out,) = Run(source).under(calibration), rest
        model = run.model("cpu")
        calibrated = run.read_calibration(model)
        names, name = run.classes, run.network
        prepared = (
            image_preprocessing_of(run.settings) if run.settings.tokens is None else texts_of(run.settings, model)
        )
    about: dict[str, Any] = {"classes": names, "preprocessing": prepared, "name": name}
    out = Path(out)
    if int8 is None:
        write(model, calibrated, out, **about, overwrite=overwrite)
        return Exported(out, tuple(sorted(out.iterdir())))
    check_out(out, overwrite)
    check_repeatable(calibrated)
    batches = _held_out(model, held_out) if isinstance(source, nn.Module) else _held_out_of(run, calibrated, model)
    with TemporaryDirectory() as folder:
        write(model, calibrated, Path(folder) / "float32", **about)
        precisions = quantise(Path(folder) / "float32", out, int8, calibrated, batches, overwrite=overwrite)
    return Exported(out, tuple(sorted(out.iterdir())), precisions)


def _held_out(model: StagedModel, loader: Iterable[Any] | None) -> Batches:
    if loader is None:
        raise UserError("a network in eight bits is calibrated anew: expected held_out, a loader; got none")
    return lambda: arrays_of(model, pairs_of(loader, model, "held-out loader"))


def _held_out_of(run: Run, calibration: Calibration, model: StagedModel) -> Batches:
    split = calibrated_on(run, calibration, run.splits().calibration)
    return lambda: arrays_of(model, split.batches(EVALUATION_BATCH, run.settings.workers))
