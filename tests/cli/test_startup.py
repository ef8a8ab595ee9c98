"""What only lists or helps starts at once: without torch, and without the settings' schema."""

import subprocess
import sys

import pytest

CODE = """
import sys
for name in ("torch", "numpy", "yaml", "exitwise.settings"):
    sys.modules[name] = None  # importing it fails
from exitwise.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("words", ["--help", "--version", "models", "methods", "recipes"])
def test_needs_no_torch(words):
    result = subprocess.run([sys.executable, "-c", CODE, *words.split()], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_each_command_s_help_tells_its_examples():
    command = [sys.executable, "-m", "exitwise", "export", "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "exitwise export runs/photos --out photos.bundle" in output
    assert "onnx: a graph per stage" in output
