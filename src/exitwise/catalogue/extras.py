"""What is installed with which extra, and what is said where it is not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from exitwise.errors import UserError

_TRAIN = "torch torchvision timm safetensors onnx onnxscript onnx_ir matplotlib plotly jinja2"
EXTRAS = {
    **dict.fromkeys(_TRAIN.split(), "train"),
    "scipy": "calibrate",
    "transformers": "hf",
    "tokenizers": "text",
    "pyarrow": "parquet",
    "datasets": "datasets",
    "huggingface_hub": "hub",
    **{name: name for name in ("tensorboard", "trackio", "mlflow", "wandb")},
    "ray": "ray",
    **dict.fromkeys(("fastapi", "uvicorn", "prometheus_client", "python_multipart"), "serve"),
}
"""The extra of each module that may be missing."""

INSTALLED = ("numpy", "PIL", "onnxruntime", "cyclopts", "rich", "pydantic", "yaml")
"""Modules that come with exitwise itself."""


class MissingExtraError(UserError, ImportError):
    """Something needs a library that is not installed."""


def missing(error: ImportError, what: str = "this") -> MissingExtraError | None:
    """Return what to say of a library that is not there, with the command that installs it; None for other modules."""
    name = (error.name or "").split(".")[0]
    if name not in EXTRAS and name not in INSTALLED:
        return None
    extra = f"[{EXTRAS[name]}]" if name in EXTRAS else ""
    return MissingExtraError(f"{what} needs {name}: pip install 'exitwise{extra}'")


@contextmanager
def needing_extras(what: str = "this") -> Iterator[None]:
    """Turn a failed import of a library that an extra brings into one line.

    Args:
        what: needs it.

    Raises:
        MissingExtraError: for a library that is not there.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        said = missing(error, what)
        if said is None:
            raise
        raise said from error
