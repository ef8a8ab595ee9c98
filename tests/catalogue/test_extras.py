"""What a light install lacks: each command says so in one line, with the command that installs it."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from exitwise.catalogue.extras import EXTRAS, INSTALLED, MissingExtraError, needing_extras

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml"}
CODE = f"""
import sys
for name in {list(EXTRAS)!r}:
    sys.modules[name] = None  # importing it fails
from exitwise.cli import main
main(sys.argv[1:])
"""
RUN = ROOT / "tests" / "cases" / "run_v1"
NEEDS = {
    "demo": [],
    "doctor": ["--data", "digits"],
    "train": ["--recipe", "digits", "--out", "OUT"],
    "calibrate": ["RUN", "--budget", "0.5"],
    "evaluate": ["RUN"],
    "predict": ["RUN", "RUN/config.yaml"],
    "export": ["RUN", "--out", "OUT"],
    "bench": ["RUN"],
    "report": ["RUN"],
}


@pytest.mark.parametrize("command", NEEDS)
def test_a_command_says_what_it_needs(command, tmp_path):
    run = shutil.copytree(RUN, tmp_path / "run")
    words = [word.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for word in NEEDS[command]]
    command = [sys.executable, "-c", CODE, command, *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(
        r"exitwise: \S+( \w+)* needs (torch|matplotlib): pip install 'exitwise\[train\]'\n", result.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_extras_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def names(requirements):
        return {re.match(r"[\w-]+", each)[0].lower() for each in requirements}

    assert names(project["dependencies"]) == {DISTRIBUTIONS.get(name, name) for name in INSTALLED}
    for module, extra in EXTRAS.items():
        assert module.replace("onnx_ir", "onnx").replace("_", "-") in names(extras[extra])


def test_other_modules_are_not_explained():
    with pytest.raises(ModuleNotFoundError, match="No module named 'nowhere'"), needing_extras():
        import nowhere  # noqa: F401
    said = r"^a wish needs scipy: pip install 'exitwise\[calibrate\]'$"
    with pytest.raises(MissingExtraError, match=said), needing_extras("a wish"):
        raise ModuleNotFoundError(name="scipy.optimize")
    assert issubclass(MissingExtraError, ImportError)
