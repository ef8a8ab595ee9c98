"""Shared by all tests: one thread per process (pytest runs two), and where the reference data lies."""

import os
from pathlib import Path

import pytest
import torch

from exitwise import workflow
from exitwise.recipes import compose

torch.set_num_threads(1)

pytest_plugins = ["hostile_runs"]

OWN_CASES = Path(__file__).parent / "cases"
"""Small committed cases, made by make_cases.py; they stand in where the authors' reference data is not at hand."""


def reference_dir() -> Path:
    given = os.environ.get("EXITWISE_REFERENCE")
    return Path(given) if given else OWN_CASES


def reference_files(pattern: str) -> list[Path]:
    files = sorted(reference_dir().glob(pattern))
    assert files, f"no {pattern} in {reference_dir()}"
    return files


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A network trained on digits for 3 epochs; tests that use it belong to the xdist group "export"."""
    settings = compose("digits", flags={"method": "uniform", "epochs": 3, "device": "cpu"})
    return workflow.train(settings, tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
