"""The Dockerfiles copy what is there, run as nobody in particular, and install extras that exist."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_dockerfile_names_is_there(file):
    lines = file.read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(" ", 1) for line in lines if line and line[0] != "#"]
    copied = {name for kind, rest in steps if kind == "COPY" and "--from" not in rest for name in rest.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    assert copied <= allowed
    assert [rest for kind, rest in steps if kind == "USER"][-1] == "10001"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = re.findall(r"\.\[([\w,]+)\]", file.read_text())
    assert set(wanted.split(",")) <= set(extras)
    (entry,) = [rest for kind, rest in steps if kind == "ENTRYPOINT"]
    assert entry.startswith('["exitwise"')


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("docker"), reason="no docker here")
def test_the_server_s_image_is_built():
    file = "docker/serve.Dockerfile"
    (base, *_) = re.findall(r"^FROM (\S+)", (ROOT / file).read_text(), re.MULTILINE)
    if subprocess.run(["docker", "pull", base], check=False, capture_output=True, timeout=300).returncode != 0:
        pytest.skip(f"docker cannot have {base} here")
    command = ["docker", "build", "-f", file, "-t", "exitwise-serve-test", "."]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
