"""The core runs where only torch, torchvision, timm, numpy and safetensors are installed; settings need no torch."""

import subprocess
import sys

import pytest

CORE = """
import sys
for name in ("pydantic", "cyclopts", "rich", "yaml", "onnxruntime", "plotly", "jinja2", "torchmetrics",
             "jaxtyping", "beartype"):
    sys.modules[name] = None  # importing it fails
import pkgutil, importlib, exitwise
for part in ("data", "evaluation", "exiting", "kernels", "methods", "models", "processes", "training", "weighting"):
    package = importlib.import_module(f"exitwise.{part}")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
import exitwise.benching.timing
for name in ("Trainer", "add_exits", "meta_gradient", "calibrate_macs", "EarlyExitRunner", "create_model"):
    getattr(exitwise, name)
"""

SETTINGS = """
import sys
sys.modules["torch"] = None
import exitwise, exitwise.settings.compose, exitwise.cli
exitwise.settings.compose.compose("digits")
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_core_needs_no_user_facing_library():
    result = run(CORE)
    assert result.returncode == 0, result.stderr


def test_settings_are_checked_without_torch():
    result = run(SETTINGS)
    assert result.returncode == 0, result.stderr


def test_unknown_public_name():
    result = run("import exitwise; exitwise.trainer_of_dreams")
    assert "module 'exitwise' has no attribute 'trainer_of_dreams'" in result.stderr
