"""The wheel that a release would publish installs into a bare environment and runs there."""

import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow


def call(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (file,) = folder.glob("exitwise-*.whl")
    return file


def test_it_holds_the_package_and_nothing_else(wheel):
    names = call(sys.executable, "-m", "zipfile", "-l", wheel)
    assert "exitwise/reporting/template/run.html" in names
    assert "exitwise/py.typed" in names
    assert "exitwise/data/sources/digits.npz" in names
    assert "exitwise/data/sources/digits.txt" in names
    assert "tests/" not in names


def test_it_runs_in_a_bare_environment(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", f"{wheel}[train]")
    assert "Train, calibrate and run" in call(tmp_path / "venv" / "bin" / "exitwise", "--help")
    assert "msdnet_cifar_5" in call(python, "-m", "exitwise", "models")
    assert "True" in call(python, "-c", "import exitwise as ew; print(len(ew.list_models()) > 5)")


BUNDLE = ROOT / "tests" / "cases" / "bundle_v1_plain"
LIGHT = """
import sys
import numpy as np
import exitwise as ew
assert ew.OnnxRunner(sys.argv[1])(np.zeros((2, 1, 8, 8), np.float32)).prediction.shape == (2,)
try:
    ew.train
except ImportError as error:
    print(error)
"""


def test_a_light_install_runs_bundles(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    size = sum(file.stat().st_size for file in (tmp_path / "venv").rglob("*") if not file.is_symlink())
    assert size <= 300 * 2**20, f"{size / 2**20:.0f} MiB"
    assert "torch" not in call(python, "-m", "pip", "list").split()
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    image.save(tmp_path / "x.png")
    assert "1 image," in call(tmp_path / "venv" / "bin" / "exitwise", "predict", BUNDLE, tmp_path / "x.png")
    assert "exitwise.train needs torch: pip install 'exitwise[train]'" in call(python, "-c", LIGHT, BUNDLE)
