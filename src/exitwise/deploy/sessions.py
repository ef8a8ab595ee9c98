"""ONNX Runtime: graphs as sessions to run. The one place that imports it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exitwise.catalogue.extras import needing_extras
from exitwise.deploy.bundle import Weight
from exitwise.storage.protobuf import BundleError

LEAST = "1.20"
"""ONNX Runtime that runs bundles."""


def open_session(content: bytes, threads: int | None = None, weights: Mapping[str, Weight] | None = None) -> Any:
    """Return an onnxruntime session on the CPU, whose threads rest when it has run.

    Args:
        content: an ONNX model.
        threads: of onnxruntime; its own choice if None.
        weights: tensors that the model keeps elsewhere, which must stay in memory as long as the session.

    Raises:
        UserError: if onnxruntime is missing, or cannot load the graph (:class:`BundleError`).
    """
    with needing_extras("running a bundle"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Else the threads of a stage that has run keep the cores from the next one's, which are others, for a while.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        if weights:
            make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
            values = [make(weight.array, weight.type) for weight in weights.values()]
            options.add_external_initializers(list(weights), values)
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has its own exceptions, without a common base
        raise BundleError(f"onnxruntime cannot load it: {str(error).splitlines()[0]}") from error
