"""What CONTRIBUTING.md says of additions is so: each is two files, and what they add is there for a user to use."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = {
    title: [block.split("\n", 1) for block in re.findall(r"```python\n# (.*?)```", text, re.DOTALL)]
    for title, text in re.findall(r"^## Add a(?:n)? (.*?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL)
}
"""Of each section, its files with their code."""

KINDS = [
    "command",
    "data source",
    "export format",
    "gradient flow",
    "loss",
    "measure",
    "measure with a state",
    "method",
    "model",
]

CALL = """
import contextlib, io, json, sys
from exitwise.cli import main
said = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(words)
        except SystemExit as stop:
            if stop.code:
                sys.exit(f"{words} ends with {stop.code}")
    said.append(out.getvalue())
print(json.dumps(said))
"""


def add(section, package):
    """Write the files of a section into a copy of the package; an entry goes to the end of its list."""
    for file, code in SECTIONS[section]:
        path = package / Path(file).relative_to("src/exitwise")
        if path.exists():
            path.write_text(with_entry(path.read_text(), code))
        else:
            path.write_text(code)


def with_entry(catalogue, code):
    """Return a catalogue's file with entries at the end of its first list, and what else is in ``code`` before that."""
    entries = next(
        node.value
        for node in ast.parse(catalogue).body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and node.value.func.id == "by_name"
    )
    parts = {True: [], False: []}
    for node in ast.parse(code).body:
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        lines = code.splitlines()[first - 1 : node.end_lineno]
        parts[isinstance(node, ast.Expr)].append("\n".join(lines))
    lines = catalogue.splitlines()
    lines[entries.end_lineno - 1 : entries.end_lineno - 1] = [
        f"    {line}" for part in parts[True] for line in part.splitlines()
    ]
    lines[entries.lineno - 1 : entries.lineno - 1] = [
        line for part in parts[False] for line in (*part.splitlines(), "", "")
    ]
    return "\n".join(lines) + "\n"


def copy_package(folder):
    shutil.copytree(ROOT / "src" / "exitwise", folder / "exitwise", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "exitwise"


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Copy:
    """A copy of the package with all the additions, run in processes of its own."""

    def __init__(self, folder):
        self.root, self.folder = folder, folder / "src"
        package = copy_package(self.folder)
        for section in SECTIONS:
            add(section, package)
        shutil.copy(ROOT / "pyproject.toml", folder)

    def python(self, *arguments, cwd=None):
        paths = os.pathsep.join([str(self.folder), str(ROOT / "tests")])
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "160"},
            capture_output=True,
            text=True,
            check=False,
            cwd=cwd or self.folder,
        )

    def code(self, text):
        result = self.python("-c", text)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def exitwise(self, *commands):
        """Return what each command says, all of them run in one process."""
        words = [[str(word) for word in command] for command in commands]
        result = self.python("-c", CALL, json.dumps(words))
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    made = Copy(tmp_path_factory.mktemp("contributed"))
    (where,) = made.code("import exitwise; print(exitwise.__file__)").splitlines()
    assert Path(where).is_relative_to(made.folder)
    return made


def train_words(out, *more):
    return ["train", "--out", out, "--max-iterations", 2, "--epochs", 1, "--device", "cpu", *more]


@pytest.fixture(scope="module")
def run(copy, tmp_path_factory):
    """The model of the guide, trained by its method on digits, a few iterations long."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    chosen = ["--method", "hard-samples", "--sharpness", 2, "--flow", "fading", "--loss", "focal"]
    (said,) = copy.exitwise(train_words(out, "--data", "digits", "--model", "plain_small", *chosen))
    assert "training plain_small on digits with hard-samples" in said
    return out


def test_the_guide_has_a_section_for_each_kind():
    assert sorted(SECTIONS) == KINDS


@pytest.mark.parametrize("section", SECTIONS)
def test_an_addition_is_two_files(section, tmp_path):
    package = copy_package(tmp_path)
    before = contents(package)
    add(section, package)
    after = contents(package)
    changed = sorted(str(path) for path in after if before.get(path) != after[path])
    assert before.keys() <= after.keys()
    assert [f"src/exitwise/{path}" for path in changed] == sorted(file for file, _ in SECTIONS[section])
    assert len(changed) == 2
    assert sum(path.startswith("catalogue/") for path in changed) == 1


def test_additions_are_styled_as_the_rest(copy):
    for words in (["check"], ["format", "--check"]):
        result = copy.python("-m", "ruff", *words, "--no-cache", "src", cwd=copy.root)
        assert result.returncode == 0, result.stdout + result.stderr


def test_additions_keep_to_their_layers(copy):
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports(no_cache=True))"
    result = copy.python("-c", code, cwd=copy.root)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_command_runs_and_is_in_the_help(copy):
    helped, listed = copy.exitwise(["--help"], ["measures"])
    assert re.search(r"^\W*measures\s+List the measures of confidence", helped, re.MULTILINE)
    assert "gap" in listed
    assert "the largest mean probability of the exits so far" in listed


def test_the_model_and_the_method_are_listed(copy):
    models, methods, helped = copy.exitwise(["models"], ["methods"], ["train", "--help"])
    assert re.search(r"plain_small\W+1x8x8\W+0.00653M\W+4.69k 23.3k 42k", models)
    assert re.search(r"hard-samples\W+more weight for what an exit gets wrong\W+sharpness 1.0", methods)
    assert re.search(r"fading\W+exits steer the layers below less and less\W+fades_to 0.1", methods)
    assert "--sharpness" in helped
    assert "--fades-to" in helped


@pytest.mark.slow
def test_the_model_trains_by_the_method(run):
    settings = (run / "config.yaml").read_text()
    assert "model: plain_small\n" in settings
    assert "method: hard-samples\n" in settings
    assert "sharpness: 2.0\n" in settings
    assert "flow: fading\nfades_to: 0.1\nloss: focal\ngamma: 2.0\n" in settings
    assert (run / "metrics.csv").read_text().count("\n") == 2


RESUMED = """
import os, signal, sys
import torch, exitwise as ew
from exitwise.errors import Interrupted
from exitwise.training.trainer import Silent

class Stopped(Silent):
    def on_step(self, iteration, total, meters):
        os.kill(os.getpid(), signal.SIGTERM)

settings = ew.compose("digits", flags={"method": "hard-samples", "max_iterations": 2, "device": "cpu"})
try:
    ew.train(settings, "part", Stopped())
except Interrupted:
    print("interrupted")
part, whole = ew.train(settings, "part"), ew.train(settings, "whole")
same = zip(part.run.model("cpu").parameters(), whole.run.model("cpu").parameters(), strict=True)
print(part.resumed, whole.resumed, all(torch.equal(one, other) for one, other in same))
"""


@pytest.mark.slow
def test_the_method_resumes(copy, tmp_path):
    result = copy.python("-c", RESUMED, cwd=tmp_path)
    assert result.stdout.splitlines() == ["interrupted", "True False True"], result.stderr


@pytest.mark.slow
def test_the_data_source_trains_and_is_evaluated(copy, tmp_path):
    out = tmp_path / "stripes"
    trained, evaluated = copy.exitwise(train_words(out, "--data", "stripes"), ["evaluate", out, "--device", "cpu"])
    assert "on stripes with" in trained
    assert "calibrated" in evaluated
    settings = (out / "config.yaml").read_text()
    assert "model: msdnet_small\n" in settings
    assert "std: [0.29]\n" in settings
    assert (out / "evaluation.json").is_file()


@pytest.mark.slow
def test_the_measures_calibrate_and_bundles_read_by_them(copy, run, tmp_path):
    pytest.importorskip("onnx")
    for brightness in (20, 90, 160):
        slope = np.linspace(0, brightness, 64).reshape(8, 8).astype(np.uint8)
        Image.fromarray(slope).save(tmp_path / f"{brightness}.png")
    images, own = sorted(tmp_path.glob("*.png")), tmp_path / "run"
    shutil.copytree(run, own)
    said = copy.exitwise(
        *(
            words
            for measure in ("gap", "mean-so-far")
            for words in (
                ["calibrate", own, "--budget", 0.5, "--measure", measure, "--device", "cpu"],
                ["predict", own, *images, "--device", "cpu"],
                ["export", own, "--out", tmp_path / measure],
                ["predict", tmp_path / measure, *images],
            )
        ),
        ["evaluate", own, "--device", "cpu"],
    )
    for measure, by_run, by_bundle in zip(("gap", "mean-so-far"), said[1::4], said[3::4], strict=True):
        assert json.loads((tmp_path / measure / "calibration.json").read_text())["measure"] == measure
        assert by_run == by_bundle
        assert by_run.count(".png") == 3
    assert json.loads((own / "calibration.json").read_text())["measure"] == "mean-so-far"
    assert "calibrated" in said[-1]


SIMULATED = """
import sys
import numpy as np, torch
import exitwise as ew
from exitwise.evaluation.outputs import collect_logits

run = ew.Run(sys.argv[1])
images, targets = next(iter(run.splits().calibration.batches(200)))
logits, targets = collect_logits(run.model("cpu"), [(images, targets)])
for name in ("gap", "mean-so-far"):
    outputs = ew.Outputs.from_logits(logits, targets, ew.create_measure(name))
    policy = ew.calibrate_proportions(outputs.confidences, [0.4, 0.3, 0.3]).read_by(ew.create_measure(name))
    expected = outputs.under(policy)
    found = ew.EarlyExitRunner(run.model("cpu"), policy)(images)
    far = np.abs(outputs.confidences[:, :-1] - np.array(policy.thresholds)).min(axis=1) > 1e-5
    assert far.mean() > 0.9 and len(set(expected.exits.tolist())) == 3, name
    np.testing.assert_array_equal(found.exit.numpy()[far], expected.exits[far])
    np.testing.assert_array_equal(found.prediction.numpy()[far], expected.predictions[far])
    print(name)
"""


@pytest.mark.slow
def test_the_runner_leaves_as_the_simulation_does_by_the_measures(copy, run):
    result = copy.python("-c", SIMULATED, run)
    assert result.stdout.split() == ["gap", "mean-so-far"], result.stderr


@pytest.mark.slow
def test_the_format_is_written_and_replaced(copy, run, tmp_path):
    own, out = tmp_path / "run", tmp_path / "weights"
    shutil.copytree(run, own)
    words = ["export", own, "--format", "safetensors", "--out", out]
    helped, said, again = copy.exitwise(["export", "--help"], words, [*words, "--overwrite"])
    assert "safetensors: the weights of each stage" in " ".join(helped.replace("│", " ").split())
    assert "checked against the network" in said
    assert said == again
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["format"] == "exitwise-safetensors"
    assert [entry["file"] for entry in manifest["stages"]] == [f"stage_{k}.safetensors" for k in range(3)]


TABLES = [
    "catalogue",
    "settings/test_options.py",
    "methods/test_every_method.py",
    "methods/test_axes.py",
    "exiting/measures",
]
ALL = ["catalogue", "cli", "exiting", "methods", "models/test_msdnet.py", "settings"]
NAMES = "hard-samples or fading or focal or gap or mean-so-far or stripes or safetensors or plain_small or leads_to"


def try_tables(copy, cwd, tables, *words):
    result = copy.python(
        *("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"),
        *words,
        *(ROOT / "tests" / name for name in tables),
        cwd=cwd,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    return result.stdout


@pytest.mark.slow
def test_tables_over_the_catalogue_try_additions(copy, tmp_path):
    said = try_tables(copy, tmp_path, TABLES, "-k", f"({NAMES}) and not bundle", "-rA")
    for entry in (
        "method hard-samples",
        "flow fading",
        "loss focal",
        "measure gap",
        "measure mean-so-far",
        "source stripes",
        "format safetensors",
    ):
        assert f"test_every_entry_leads_to_its_code[{entry}]" in said
    for test in (
        "test_costs_are_those_counted[plain_small]",
        "test_every_entry_leads_to_its_code[command measures]",
        "test_images_are_as_the_catalogue_says[stripes]",
        "test_writes_what_its_manifest_says_and_replaces_exports_alone[safetensors]",
        "test_trains_saves_resumes_and_runs[hard-samples-sgd]",
        "test_the_meta_gradient_is_that_of_real_updates[meta-weighted-shared-flow-fading]",
        "test_the_meta_gradient_is_that_of_real_updates[meta-weighted-loss-focal]",
        "test_resumes_to_the_bit[hard-samples-flow-fading]",
        "test_the_runner_reads_as_the_simulation_does[mean-so-far]",
    ):
        assert test in said


@pytest.mark.slow
def test_no_test_needs_to_know_of_additions(copy, tmp_path):
    try_tables(copy, tmp_path, ALL)
