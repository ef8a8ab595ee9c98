"""A bundle's stages with weights, and if wished activations, of eight bits, by ONNX Runtime's own quantisation."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from exitwise.catalogue.extras import needing_extras
from exitwise.deploy.bundle import stage_file
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.formats.onnx import write_bundle
from exitwise.deploy.formats.onnx_weights import WeightFiles
from exitwise.deploy.manifest import MANIFEST, TOKENIZER, read_manifest
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.stages import ExportError
from exitwise.exiting.policy import ExitPolicy

Int8 = Literal["dynamic", "static"]
"""Ranges of activations: found as it runs, of linear layers alone; or beforehand on held-out samples, of all that has a
form in eight bits."""

DYNAMIC_OPERATORS = ["MatMul", "Gemm", "Attention", "EmbedLayerNormalization", "Gather", "LSTM"]
"""Convolutions are not among them: with ranges found as they run they take longer than in float32."""

RANGES, RANGES_BATCH = 128, 16
"""Samples that static ranges are found on, and how many at a time."""

Arrays = Mapping[str, npt.NDArray[Any]]


def quantised(bundle: Path, weights: WeightFiles, how: Int8, samples: Iterable[Arrays]) -> list[Any]:
    """Return the stages of a bundle as ModelProtos of eight bits, their large weights in data files.

    Args:
        bundle: a folder of version 2, in float32.
        weights: where data files go.
        how: see :data:`Int8`.
        samples: batches of held-out inputs, by name, that static ranges are found on.

    Raises:
        UserError: if onnx is missing, or a stage cannot be quantised (:class:`ExportError`).
    """
    with needing_extras("quantisation"):
        import onnx_ir as ir
    runner = OnnxRunner(bundle)
    given = [list(runner.before_stages(batch)) for batch in samples] if how == "static" else []
    graphs = []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(len(runner.exit_macs)):
            made = Path(folder) / stage_file(k)
            quantise_graph(bundle / stage_file(k), made, how, [batch[k] for batch in given], f"stage {k + 1}")
            graphs.append(weights.move_out(ir.load(made), f"stage_{k}.data"))
    return graphs


def quantise_graph(source: Path, made: Path, how: Int8, batches: Iterable[Arrays], what: str) -> None:
    """Write one graph in eight bits.

    Args:
        source: in float32.
        made: file to write.
        how: see :data:`Int8`.
        batches: its inputs, by name, that static ranges are found on.
        what: what it is of, in an error.

    Raises:
        UserError: if onnx is missing, or it cannot be quantised (:class:`ExportError`).
    """
    with needing_extras("quantisation"):
        import onnx  # noqa: F401
    try:
        _quantise(source, made, how, batches)
    except Exception as error:  # its quantiser raises errors of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExportError(f"{what} cannot be quantised by ONNX Runtime: {reason}") from error


def _quantise(source: Path, made: Path, how: Int8, batches: Iterable[Arrays]) -> None:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # which it writes its advice to
    try:
        whole, prepared = made.with_suffix(".whole.onnx"), made.with_suffix(".prepared.onnx")
        onnx.save(_named_apart(onnx.load(source)), whole)
        quant_pre_process(whole, prepared, skip_symbolic_shape=True)
        if how == "dynamic":
            quantization.quantize_dynamic(
                prepared, made, op_types_to_quantize=DYNAMIC_OPERATORS, weight_type=quantization.QuantType.QInt8
            )
        else:
            quantization.quantize_static(
                prepared,
                made,
                _Reader(batches),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
            )
    finally:
        logging.root.setLevel(level)


def _named_apart(model: Any) -> Any:
    """Return a ModelProto whose inner names end in an underscore.

    Of a bias that several nodes share the quantiser makes copies, called by its name and a number: the first of
    ``val_11`` is ``val_110``, which may be there.
    """
    graph = model.graph
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return model
    outer = {each.name for each in (*graph.input, *graph.output)}
    inner = {each.name for each in graph.initializer} | {name for node in graph.node for name in node.output}
    new = {name: f"{name}_" for name in inner - outer if name}
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    for each in (*graph.initializer, *graph.value_info):
        each.name = new.get(each.name, each.name)
    return model


def for_ranges(inputs: Iterable[Arrays]) -> Iterator[Arrays]:
    """Return as many of the samples as static ranges are found on, a few at a time."""
    return islice(in_batches(inputs, RANGES_BATCH), RANGES // RANGES_BATCH)


def in_batches(inputs: Iterable[Arrays], size: int) -> Iterator[Arrays]:
    """Split batches into some of at most ``size`` samples."""
    for batch in inputs:
        for start in range(0, len(next(iter(batch.values()))), size):
            yield {name: array[start : start + size] for name, array in batch.items()}


class Int8Bundle:
    """A bundle's stages in eight bits, to be written as a bundle with one calibration after the other.

    Args:
        bundle: a folder of version 2, in float32.
        folder: where to; it is there and empty.
        how: see :data:`Int8`.
        samples: batches of held-out inputs, by name, that static ranges are found on.

    Raises:
        UserError: as :func:`quantised`.
    """

    def __init__(self, bundle: Path, folder: Path, how: Int8, samples: Iterable[Arrays]) -> None:
        said = dict(read_manifest(bundle / MANIFEST, bundle / MANIFEST).content)
        self._said = {key: value for key, value in said.items() if key not in _OF_FILES}
        self._folder, self._weights = folder, WeightFiles(folder)
        if (bundle / TOKENIZER).is_file():
            shutil.copy(bundle / TOKENIZER, folder / TOKENIZER)
        self._graphs = quantised(bundle, self._weights, how, samples)

    def write(self, calibration: Calibration) -> OnnxRunner:
        """Write it with a calibration, in place of the one before; return what runs it."""
        write_bundle(self._folder, self._graphs, self._weights.files, self._said, calibration)
        return OnnxRunner(self._folder)

    def uncalibrated(self) -> OnnxRunner:
        """Write it so that nobody leaves early."""
        nobody = ExitPolicy([None] * (len(self._graphs) - 1))
        return self.write(Calibration.of(nobody, self._said["exit_macs"]))


_OF_FILES = ("format", "version", "onnxruntime", "stages", "single", "data")
"""What a manifest says of its own files."""


class _Reader:
    """Hands batches to the quantiser, as its ``CalibrationDataReader`` does."""

    def __init__(self, batches: Iterable[Arrays]) -> None:
        self._batches: Iterator[Arrays] = iter(batches)

    def get_next(self) -> Arrays | None:
        return next(self._batches, None)
