"""Shared by all tests: one thread per process (pytest runs two), and where the reference data lies."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

OWN_CASES = Path(__file__).parent / "cases"
"""Small committed cases, made by make_cases.py; they stand in where the authors' reference data is not at hand."""


def reference_dir() -> Path:
    given = os.environ.get("EXITWISE_REFERENCE")
    return Path(given) if given else OWN_CASES


def reference_files(pattern: str) -> list[Path]:
    files = sorted(reference_dir().glob(pattern))
    assert files, f"no {pattern} in {reference_dir()}"
    return files


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
