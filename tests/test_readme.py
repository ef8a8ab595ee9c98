"""The README's Python runs as printed."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=["inference", "training loop"])
def test_python_blocks_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_training_loop_fits_in_25_lines():
    assert len([line for line in BLOCKS[1].splitlines() if line.strip()]) <= 25


def test_linked_files_exist():
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (root / target).exists(), target
