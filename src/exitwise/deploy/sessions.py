"""ONNX Runtime: graphs as sessions to run, on which processor and how many cores. The one place that imports it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from exitwise.catalogue.extras import needing_extras
from exitwise.deploy.bundle import Weight
from exitwise.errors import UserError, in_a_line, near_match
from exitwise.storage.protobuf import BundleError

LEAST = "1.20"
"""ONNX Runtime that runs bundles."""

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "directml": "DmlExecutionProvider",
    "rocm": "ROCMExecutionProvider",
}
"""What runs graphs, and what ONNX Runtime calls it; which there are depends on the variant that is installed."""

_shared = False


def allowed_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_threads(threads: int | None = None) -> None:
    """Let all sessions that are made from now on share one pool of threads, in place of one each.

    It holds for the whole process and cannot be undone: ONNX Runtime then refuses sessions of other code that do not
    set ``SessionOptions.use_per_session_threads = False``. Does nothing where ONNX Runtime is too old to do so.

    Args:
        threads: how many; by default the cores that this process may use.

    Raises:
        UserError: if there is a pool already.
    """
    global _shared
    runtime = _runtime()
    if not hasattr(runtime, "set_global_thread_pool_sizes"):
        return
    try:
        runtime.set_global_thread_pool_sizes(_checked(threads) or allowed_cores(), 1)
    except Exception as error:  # onnxruntime has its own exceptions, without a common base
        raise UserError(f"expected no pool of threads yet; {str(error).splitlines()[0]}") from error
    _shared = True


def open_session(
    content: bytes, threads: int | None = None, weights: Mapping[str, Weight] | None = None, provider: str = "cpu"
) -> Any:
    """Return an onnxruntime session, whose threads rest when it has run.

    Args:
        content: an ONNX model.
        threads: on the CPU; by default as many as cores may be used. A shared pool has its own number.
        weights: tensors that the model keeps elsewhere, which must stay in memory as long as the session.
        provider: of :data:`PROVIDERS`; what it cannot run is run by the CPU.

    Raises:
        UserError: if onnxruntime or the provider is missing, or cannot load the graph (:class:`BundleError`).
    """
    runtime = _runtime()
    wanted = _provider(runtime, provider)
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    # Else the threads of a stage that has run keep the cores from the next one's, which are others, for a while.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if _shared:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = _checked(threads) or allowed_cores()
    providers = list(dict.fromkeys([wanted, PROVIDERS["cpu"]]))
    try:
        if weights:
            make = runtime.OrtValue.ortvalue_from_numpy_with_onnx_type
            values = [make(weight.array, weight.type) for weight in weights.values()]
            options.add_external_initializers(list(weights), values)
        session = runtime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # onnxruntime has its own exceptions, without a common base
        raise BundleError(f"onnxruntime cannot load it: {str(error).splitlines()[0]}") from error
    if session.get_providers()[0] != wanted:
        raise UserError(f"ONNX Runtime has {provider}, and cannot use it here: a driver or a library is missing")
    return session


def run_session(session: Any, outputs: Sequence[str], inputs: Mapping[str, Any]) -> list[Any]:
    """Return what a graph gives.

    Raises:
        UserError: if it fails on these inputs.
    """
    try:
        found: list[Any] = session.run(outputs, inputs)
    except Exception as error:  # onnxruntime has its own exceptions, without a common base
        given = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in inputs.items())
        raise UserError(f"expected inputs that the network takes; it fails on {given}: {in_a_line(error)}") from error
    return found


def _checked(threads: int | None) -> int | None:
    if threads is not None and threads < 1:
        raise UserError(f"expected at least one thread; got {threads}")
    return threads


def _runtime() -> Any:
    with needing_extras("running a bundle"):
        import onnxruntime
    found = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if found < tuple(int(part) for part in LEAST.split(".")):
        raise UserError(
            f"expected ONNX Runtime {LEAST} or newer; got {onnxruntime.__version__}: pip install 'onnxruntime>={LEAST}'"
        )
    return onnxruntime


def _provider(runtime: Any, name: str) -> str:
    if name not in PROVIDERS:
        raise UserError(f"unknown provider {name!r}; {near_match(name, PROVIDERS)}")
    there = runtime.get_available_providers()
    if PROVIDERS[name] not in there:
        known = ", ".join(short for short, long in PROVIDERS.items() if long in there)
        raise UserError(
            f"expected a provider of this ONNX Runtime, {known}; got {name}, which another variant of it has "
            "(docs/deploying.md)"
        )
    return PROVIDERS[name]
