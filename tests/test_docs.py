"""README, docs and examples name nothing but the public door, and what they show runs."""

import ast
import os
import re
import runpy
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import exitwise as ew
from exitwise.catalogue.commands import COMMANDS
from images import make_folder

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CODE = [(page.name, block) for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]
CODE += [(example.name, example.read_text()) for example in EXAMPLES]
REFERENCE = re.findall(r"^::: exitwise\.(\w+)$", "".join(p.read_text() for p in ROOT.glob("docs/reference/*.md")), re.M)


def names_used(code):
    """What a piece of code asks of exitwise, with the module that it asks."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "exitwise":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ew":
            yield "exitwise", node.attr


@pytest.mark.parametrize(("where", "code"), CODE, ids=[f"{where}-{number}" for number, (where, _) in enumerate(CODE)])
def test_what_is_shown_imports_public_names_alone(where, code):
    if where == "CONTRIBUTING.md":
        pytest.skip("who contributes writes inside the package")
    for module, name in names_used(code):
        assert module == "exitwise"
        assert name in dir(ew)


def test_every_public_name_is_there_and_in_the_reference():
    assert sorted(REFERENCE) == sorted(set(dir(ew)) - {"__version__"})
    for name in dir(ew):
        assert getattr(ew, name) is not None


def test_the_reference_lists_what_the_catalogue_does():
    tables = runpy.run_path(str(ROOT / "docs" / "site" / "tables.py"))
    pages = {page.stem: page.read_text() for page in ROOT.glob("docs/reference/*.md")}
    made = {name: tables["on_page_markdown"](page) for name, page in pages.items()}
    commands = re.findall(r"^\| `exitwise (\S+)` \| (.+) \|$", made["commands"], re.MULTILINE)
    assert commands == [(command.name, command.summary) for command in COMMANDS.values()]
    for kind, entries in tables["KINDS"].items():
        (page,) = (name for name, page in pages.items() if f"<!-- table of {kind} -->\n" in page)
        assert "<!--" not in made[page]
        assert all(f"{name}` | {entry.summary} |" in made[page] for name, entry in entries.items())


def test_other_pages_name_commands_that_there_are():
    for page in set(PAGES) - {ROOT / "CONTRIBUTING.md"}:  # which adds one
        shell = "".join(re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL))
        named = re.findall(r"^exitwise ([a-z]+)\b", shell, re.MULTILINE)
        named += re.findall(r"`exitwise ([a-z]+)\b", page.read_text())
        assert set(named) <= set(COMMANDS), page


def run(example, *arguments, before=""):
    code = f"{before}\nimport runpy, sys; sys.argv[1:] = {list(map(str, arguments))!r}\n"
    code += f"runpy.run_path({str(ROOT / 'examples' / example)!r}, run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_own_loop():
    result = run("own_loop.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("meta loss") == 3


@pytest.mark.slow
def test_own_network(tmp_path):
    photos = make_folder(tmp_path / "photos", count=40, size=(40, 36))
    flags = ["--photos", photos, "--model", "resnet10t", "--image-size", 32, "--epochs", 1, "--seconds", 0.5]
    result = run("own_network.py", *flags, "--out", tmp_path / "own.bundle")
    assert result.returncode == 0, result.stderr
    assert "last exit unchanged to the bit: True" in result.stdout
    assert (tmp_path / "own.bundle" / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif("EXITWISE_DATA" not in os.environ, reason="EXITWISE_DATA is not set")
def test_own_network_on_real_photos(tmp_path):
    """One epoch of fine-tuning, for time; the last exit is unchanged, and early exits beat chance by far."""
    data = Path(os.environ["EXITWISE_DATA"])
    with tarfile.open(data / "flowers128.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    flags = ["--photos", tmp_path / "flowers", "--weights", data / "tf_efficientnet_lite0.safetensors", "--epochs", 1]
    result = run("own_network.py", *flags, "--seconds", 5, "--out", tmp_path / "own.bundle")
    assert result.returncode == 0, result.stderr
    assert "last exit unchanged to the bit: True" in result.stdout
    alone = {k: float(a) for k, a in re.findall(r"all at exit (\d)\D+([\d.]+) %", result.stdout)}
    assert alone["1"] > 45
    assert alone["4"] > 50
    calibrated = re.search(r"as calibrated\D+([\d.]+) %\D+[\d.]+M\D+([\d.]+) %", result.stdout)
    assert calibrated is not None, result.stdout
    assert float(calibrated[1]) > alone["4"] - 6


def test_bundle_without_torch(digits_run, tmp_path):
    pytest.importorskip("onnxruntime")
    from PIL import Image

    ew.calibrate(digits_run.run.path, budget=0.5)
    ew.export(digits_run.run.path, tmp_path / "bundle", overwrite=True)
    Image.new("L", (8, 8), 90).save(tmp_path / "grey.png")
    without_torch = "import sys; sys.modules['torch'] = None"
    result = run("bundle_without_torch.py", tmp_path / "bundle", tmp_path / "grey.png", before=without_torch)
    assert result.returncode == 0, result.stderr
    assert "at exit" in result.stdout
