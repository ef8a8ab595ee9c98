"""Where the authors' recordings lie, or what stands in for them."""

import os
from pathlib import Path

OWN_CASES = Path(__file__).parent / "cases"
"""Small committed cases, made by make_cases.py; they stand in where the authors' reference data is not at hand."""


def reference_dir() -> Path:
    given = os.environ.get("EXITWISE_REFERENCE")
    return Path(given) if given else OWN_CASES


def reference_files(pattern: str) -> list[Path]:
    files = sorted(reference_dir().glob(pattern))
    assert files, f"no {pattern} in {reference_dir()}"
    return files
