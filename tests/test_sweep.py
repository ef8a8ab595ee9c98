"""One network of each kind, as the sweep over all of them tries it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_quick_part_of_the_sweep(tmp_path):
    pytest.importorskip("transformers")
    command = [sys.executable, "benchmarks/sweep.py", "--quick", "--check", "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
