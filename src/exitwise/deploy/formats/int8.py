"""A bundle's stages with weights, and if wished activations, of eight bits, by ONNX Runtime's own quantisation."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from exitwise.catalogue.extras import needing_extras
from exitwise.deploy.bundle import stage_file
from exitwise.deploy.formats.onnx_weights import WeightFiles
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.deploy.stages import ExportError

Int8 = Literal["dynamic", "static"]
"""Ranges of activations: found as it runs, of linear layers alone; or beforehand on held-out samples, of all that has a
form in eight bits."""

DYNAMIC_OPERATORS = ["MatMul", "Gemm", "Attention", "EmbedLayerNormalization", "Gather", "LSTM"]
"""Convolutions are not among them: with ranges found as they run they take longer than in float32."""

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
            try:
                _quantise(bundle / stage_file(k), made, how, [batch[k] for batch in given])
                graphs.append(weights.move_out(ir.load(made), f"stage_{k}.data"))
            except Exception as error:  # its quantiser raises errors of many kinds
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise ExportError(f"stage {k + 1} cannot be quantised by ONNX Runtime: {reason}") from error
    return graphs


def _quantise(source: Path, made: Path, how: Int8, batches: list[Arrays]) -> None:
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # which it writes its advice to
    try:
        whole, prepared = made.with_suffix(".whole.onnx"), made.with_suffix(".prepared.onnx")
        onnx.save(onnx.load(source), whole)
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


class _Reader:
    """Hands batches to the quantiser, as its ``CalibrationDataReader`` does."""

    def __init__(self, batches: Iterable[Arrays]) -> None:
        self._batches: Iterator[Arrays] = iter(batches)

    def get_next(self) -> Arrays | None:
        return next(self._batches, None)
