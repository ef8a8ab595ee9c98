"""Compares what two versions of the source tree write and print, command by command, to show that nothing has changed.

    python benchmarks/replay.py revisions main HEAD
    python benchmarks/replay.py record --src src --out before
    python benchmarks/replay.py compare before after

Each training method with each optimizer, in two processes, and after kill -9; every kind of calibration; evaluation,
exports, predictions and a report; on digits, on the CPU with one thread. A record takes some minutes. Both are to be
made on one machine. What training and ONNX export write must be the same to the bit, what is computed of confidences
to 1e-6. `compare` exits 1 where something differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from PIL import Image
from safetensors.numpy import load_file

from exitwise.data.sources.digits import read_digits

RENAMED = {"patience": "skipped_row", "confidence": "probability"}
"""Keys and columns of records: what the earlier version calls them, and what the later one does."""

MAY_BE_NEW = {"schema", "version"}
"""Keys that only the later version may write."""

MAY_BE_GONE = {"exit_weights", "p", "proportions", "p_range", "objective", "gradient", "epsilon", "centering"} | {
    *("meta_interval", "wpn_input", "wpn_hidden", "wpn_layers", "wpn_zero_init", "wpn_lr", "wpn_weight_decay")
}
"""Options of other methods than the run's, which the later version leaves out of config.yaml."""

UNSTABLE = MAY_BE_NEW | {"command", "exitwise", "sha256", "seconds", "exit_seconds"}
"""Keys whose values are not compared: versions, commands, times, and digests of files that are compared themselves."""

BY_LATENCY = {"budget", "thresholds", "proportions", "calibration", "exit_seconds", "reference"}
"""What depends on measured times in a calibration for a latency."""

TOLERANCE = 1e-6
KEPT, LAST = ("calibration.json", "evaluation.json"), "report.html"
"""Files of runs that are compared where they are kept, before they are replaced; the last file of a record."""

DIGITS = ["--recipe", "digits", "--device", "cpu", "--seed", "1", "--epochs", "2"]
LONG, SHORT = ["--batch-size", "32"], ["--batch-size", "64", "--max-iterations", "24"]
METHODS = ("uniform", "meta-weighted", "meta-weighted-shared")
MAIN, WEIGHTED = "uniform-sgd", "meta-weighted-sgd"
TRAININGS = {
    **{f"{method}-sgd": ["--method", method, *(LONG if method == "uniform" else SHORT)] for method in METHODS},
    **{f"{method}-adamw": ["--method", method, *SHORT, "--optimizer", "adamw", "--lr", "0.003"] for method in METHODS},
}
"""Name of a run to its flags; the one calibrated in many ways trains long enough to get better from exit to exit."""

TOGETHER = {f"{method}-2-processes": ["--method", method, *SHORT] for method in METHODS}
"""Those of two processes."""

CALIBRATIONS = {
    "budget": ["--budget", "0.5"],
    "budget-searched": ["--budget", "0.5", "--thresholds", "searched"],
    "macs": ["--macs", "100k"],
    "p": ["--p", "0.75"],
    "proportions": ["--proportions", "0.4,0.3,0.2,0.1"],
    "drop": ["--max-accuracy-drop", "0.02"],
    "drop-searched": ["--max-accuracy-drop", "0.02", "--thresholds", "searched"],
    "drop-guaranteed": ["--max-accuracy-drop", "0.1", "--confidence", "0.9", "--risk", "accuracy-drop"],
    "disagreement": ["--max-accuracy-drop", "0.2", "--confidence", "0.9", "--risk", "disagreement", "--temperature"],
    "margin": ["--budget", "0.5", "--measure", "margin"],
    "entropy": ["--budget", "0.5", "--measure", "entropy"],
    "temperature": ["--budget", "0.5", "--temperature"],
    "patience": ["--budget", "0.5", "--measure", "patience", "--temperature"],
}
USED = {"budget": ("onnx", "pt2"), "patience": ("onnx",)}
"""Calibrations that are also evaluated, predicted with and exported, and the formats."""


class Replay:
    """Runs commands of a source tree in a folder, and keeps what they print in it.

    Raises:
        SystemExit: if the tree's package is not the one that runs.
    """

    def __init__(self, src: Path, out: Path) -> None:
        src = src.resolve()
        self.out = out
        self.environment = os.environ | {
            "PYTHONPATH": str(src),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "120",
        }
        found = self._run(["-c", "import exitwise; print(exitwise.__file__)"]).stdout.strip()
        if not Path(found).is_relative_to(src):
            sys.exit(f"expected the package of {src} to run; got {found}")
        for folder in ("calibrations", "evaluations", "predictions", "printed"):
            (out / folder).mkdir(parents=True)

    def __call__(self, name: str, *words: str, processes: int = 1) -> None:
        """Run a command, which must succeed."""
        start = time.monotonic()
        torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
        done = self._run(["-m", *(torchrun if processes > 1 else []), "exitwise", *words])
        if done.returncode:
            sys.exit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
        (self.out / "printed" / f"{name}.txt").write_text(done.stdout)
        print(f"{time.monotonic() - start:6.1f} s  {name}", flush=True)

    def train(self, name: str, flags: list[str], processes: int = 1) -> None:
        """Train into runs/NAME, and keep the calibration that this ends with."""
        self(f"train {name}", "train", *DIGITS, *flags, "--out", f"runs/{name}", processes=processes)
        self.keep(name, "calibration", f"{name}-trained")

    def kill_and_train(self, name: str, flags: list[str]) -> None:
        """Kill a training once it has saved a checkpoint, and continue it."""
        command = [sys.executable, "-m", "exitwise", "train", *DIGITS, *flags, "--out", f"runs/{name}"]
        process = subprocess.Popen(command, cwd=self.out, env=self.environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list((self.out / "runs" / name / "checkpoints").glob("last-*")):
            time.sleep(0.01)
        process.kill()
        if process.wait() != -signal.SIGKILL:
            sys.exit(f"{name} was to be killed while it trains; it ended by itself with {process.returncode}")
        self.train(name, flags)

    def calibrate_for_latency(self) -> None:
        """Calibrate for the middle of what is within reach, which the refusal of another latency tells."""
        latency = "1us"
        for _ in range(4):  # on a busy machine, what is within reach may change in between
            done = self._run(["-m", "exitwise", "calibrate", f"runs/{MAIN}", "--latency", latency, "--device", "cpu"])
            if done.returncode == 0:
                return self.keep(MAIN, "calibration", "latency")
            within_reach = re.search(r"([\d.]+) to ([\d.]+) ms; got", done.stderr)
            if within_reach is None:
                break
            latency = f"{math.sqrt(float(within_reach[1]) * float(within_reach[2])):.4f}ms"
        sys.exit(f"calibration for a latency ended with {done.returncode}:\n{done.stderr}")

    def use(self, name: str, formats: tuple[str, ...]) -> None:
        """Evaluate the run as it is calibrated now, predict, export, and predict with the bundle."""
        run, bundle = f"runs/{MAIN}", f"bundles/{name}-onnx"
        self(f"evaluate {name}", "evaluate", run, "--device", "cpu")
        self.keep(MAIN, "evaluation", name)
        predictions = [f"predictions/{name}-{suffix}" for suffix in ("run.json", "bundle.csv")]
        self(f"predict {name} run", "predict", run, "images", "--device", "cpu", "--output", predictions[0])
        for format in formats:
            self(f"export {name} {format}", "export", run, "--format", format, "--out", f"bundles/{name}-{format}")
        self(f"predict {name} bundle", "predict", bundle, "images", "--output", predictions[1])
        self(f"predict {name} table", "predict", bundle, "images/00.png")

    def keep(self, run: str, record: str, name: str) -> None:
        """Copy calibration.json or evaluation.json of a run, which the next command may replace."""
        shutil.copy(self.out / "runs" / run / f"{record}.json", self.out / f"{record}s" / f"{name}.json")

    def _run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], cwd=self.out, env=self.environment, capture_output=True, text=True, check=False
        )


def record(src: Path, out: Path) -> None:
    """Run everything with a source tree, into a new folder."""
    if out.exists():
        sys.exit(f"expected nothing at {out}; something is there")
    start = time.monotonic()
    make_images(out / "images")
    replay = Replay(src, out)
    for name, flags in TRAININGS.items():
        replay.train(name, flags)
    for name, flags in TOGETHER.items():
        replay.train(name, flags, processes=2)
    flags = ["--method", "meta-weighted-shared", *SHORT, "--augment", "shift", "--checkpoint-every", "2"]
    replay.kill_and_train("meta-weighted-shared-killed", flags)
    replay.calibrate_for_latency()
    for name, flags in CALIBRATIONS.items():
        replay(f"calibrate {name}", "calibrate", f"runs/{MAIN}", *flags, "--device", "cpu")
        replay.keep(MAIN, "calibration", name)
        if name in USED:
            replay.use(name, USED[name])
    replay(f"evaluate {WEIGHTED}", "evaluate", f"runs/{WEIGHTED}", "--device", "cpu")
    replay.keep(WEIGHTED, "evaluation", WEIGHTED)
    runs = [f"runs/{name}" for name in (MAIN, WEIGHTED)]
    replay("report", "report", *runs, "--out", LAST, "--device", "cpu")
    print(f"{time.monotonic() - start:6.1f} s in all, recorded in {out}")


def make_images(folder: Path) -> None:
    """Write some digits as image files, grey and of their size, or else in colour and larger."""
    folder.mkdir(parents=True)
    for number, pixels in enumerate(read_digits().images[:24]):
        image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        if number % 4 == 3:
            image = image.convert("RGB").resize((20, 13))
        image.save(folder / f"{number:02d}.png")


def read(path: Path) -> Any:
    """What is to be compared of a file, as plain values; None if it is only to be there."""
    if path.name == "state.json":
        return read_checkpoint(path)
    if path.name == "latency.json":
        hidden = later_names(BY_LATENCY)
        return {key: None if key in hidden else value for key, value in json.loads(path.read_text()).items()}
    readers = {
        ".csv": lambda: list(csv.DictReader(path.read_text().splitlines())),
        ".html": lambda: read_report(path.read_text()),
        ".json": lambda: json.loads(path.read_text()),
        ".onnx": lambda: read_graph(path),
        ".png": lambda: read_pixels(path),
        ".txt": lambda: without_times(path.read_text()).splitlines(),
        ".yaml": lambda: yaml.safe_load(path.read_text()),
    }
    return readers[path.suffix]() if path.suffix in readers else None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's state, with the tensors beside it in their places."""
    tensors = load_file(path.with_name("tensors.safetensors"))

    def decode(value: dict[str, Any]) -> Any:
        ((kind, content),) = value.items()
        if kind == "tensor":
            tensor = tensors[content]
            return f"{tensor.dtype} {tensor.shape} {hashlib.sha256(tensor.tobytes()).hexdigest()}"
        if kind == "dict":
            return {str(key): decode(item) for key, item in content}
        return [decode(item) for item in content] if kind == "list" else content

    state = json.loads(path.read_text())
    return {**state, "tree": decode(json.loads(state["tree"]))}


def read_graph(path: Path) -> dict[str, Any]:
    """An ONNX model in parts, without what torch notes of modules and source lines, and without its seal."""
    model = onnx.load(path)
    strip_notes(model)
    parts: dict[str, Any] = {
        field.name: [f"{item.name}: {digest(item)}" for item in value]
        for field, value in model.graph.ListFields()
        if field.is_repeated
    }
    model.graph.ClearField("node")
    model.graph.ClearField("initializer")
    return {**parts, "rest": digest(model)}


def strip_notes(message: Any) -> None:
    """Clear metadata_props and doc_string of a protobuf message and all within."""
    for name in ("metadata_props", "doc_string"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                strip_notes(each)


def digest(message: Any) -> str:
    return hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()


def read_pixels(path: Path) -> str:
    with Image.open(path) as image:
        return f"{image.size} {image.mode} {hashlib.sha256(image.tobytes()).hexdigest()}"


def read_report(page: str) -> dict[str, Any]:
    """The data and the lines of a report, without times, the date, the version, the nonce and Plotly."""
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    nonce = re.search(r"'nonce-([^']+)'", page)
    assert nonce is not None
    page = page.replace(data[1], "").replace(nonce[1], "NONCE")
    scripts = re.findall(r"<script nonce.*?</script>", page, re.DOTALL)
    page = page.replace(max(scripts, key=len), "")
    page = re.sub(r"Made .{16} UTC with exitwise \S+", "", page)
    overview, rest = without_times(page).split('id="cost"', 1)
    overview = re.sub(r'# ms</td><td class="n">[^<]*', "", overview)
    return {"data": json.loads(data[1]), "overview": overview.splitlines(), "rest": rest.splitlines()}


def without_times(text: str) -> str:
    """A text without times in milliseconds and sizes of files."""
    return re.sub(r"\s*\b[\d.e+-]+ (ms|MiB)", r" # \1", text)


def later_names(keys: set[str]) -> set[str]:
    """Keys, and what the later version calls them."""
    return keys | {RENAMED.get(key, key) for key in keys}


class Comparison:
    """Where two values differ by more than a tolerance, and otherwise by how much at most."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.exact = True
        self.largest = 0.0
        self.differing: list[str] = []

    def add(self, where: str, before: Any, after: Any) -> None:
        """Compare two plain values and all within; ``where`` they stand."""
        if isinstance(before, dict) and isinstance(after, dict):
            before = {key if key in after else RENAMED.get(key, key): value for key, value in before.items()}
            for key in before | after:
                if key in before and key in after:
                    if key not in later_names(UNSTABLE):
                        self.add(f"{where}/{key}", before[key], after[key])
                elif key not in (MAY_BE_GONE if key in before and "config.yaml" in where else MAY_BE_NEW):
                    self.differing.append(f"{where}/{key}: only {'before' if key in before else 'after'}")
        elif isinstance(before, list) and isinstance(after, list):
            if len(before) != len(after):
                self.differing.append(f"{where}: {len(before)} entries before, {len(after)} after")
            for index, (one, other) in enumerate(zip(before, after, strict=False)):
                self.add(f"{where}/{index}", one, other)
        elif repr(before) != repr(after):
            self._add_unequal(where, before, after)

    def _add_unequal(self, where: str, before: Any, after: Any) -> None:
        distances = [math.inf]
        if isinstance(before, str) and isinstance(after, str):
            (words, numbers), (other_words, other_numbers) = split_numbers(before), split_numbers(after)
            if words == other_words:
                distances = list(map(distance, numbers, other_numbers))
        elif is_number(before) and is_number(after):
            distances = [distance(before, after)]
        if self.tolerance and all(each <= self.tolerance for each in distances):
            self.exact = False
            self.largest = max(self.largest, *distances)
        else:
            self.differing.append(f"{where}: {excerpt(before)}, then {excerpt(after)}")

    def __str__(self) -> str:
        if self.differing:
            more = f" (and {len(self.differing) - 1} more)" if len(self.differing) > 1 else ""
            return f"DIFFERENT in {self.differing[0]}{more}"
        return "same to the bit" if self.exact else f"same to {TOLERANCE:g}, at most {self.largest:.1e} apart"


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def distance(before: float, after: float) -> float:
    """How far two numbers are apart, in shares of the larger one if that is above 1."""
    return abs(before - after) / max(1.0, abs(before), abs(after))


def split_numbers(text: str) -> tuple[list[str], list[float]]:
    """What stands between the numbers of a text, and the numbers."""
    parts = re.split(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return parts[::2], list(map(float, parts[1::2]))


def excerpt(value: Any) -> str:
    text = str(value).strip()
    return text if len(text) <= 60 else f"{text[:57]}..."


def items(folder: Path) -> dict[tuple[str, str], set[Path]]:
    """The files of a record, by the item that they belong to and what is compared of it."""
    if not (folder / LAST).is_file():
        sys.exit(f"expected a complete record at {folder}; there is no {LAST}")
    found: dict[tuple[str, str], set[Path]] = defaultdict(set)
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and not (inside.parts[0] == "runs" and path.name in KEPT):
            found[item_of(inside)].add(inside)
    return found


def item_of(path: Path) -> tuple[str, str]:
    """The item that a file belongs to, and what is compared of it."""
    top, name = path.parts[0], "/".join(path.parts[:2])
    if path.suffix in (".onnx", ".pt2"):
        return name, "graphs" if path.suffix == ".onnx" else "that programs are there"
    if path.name == "latency.json":
        return name, "what depends on no time"
    whats = {
        "bundles": "manifest",
        "images": "pixels",
        "predictions": "all values",
        "printed": "what commands print, times aside",
        "report.html": "data and text, times aside",
        "runs": "settings, data, metrics, weights, checkpoints, figures",
    }
    return top if top in ("images", "predictions", "printed") else name, whats.get(top, "all values")


def compare(before: Path, after: Path) -> bool:
    """Print how two records compare, item by item; whether they are the same."""
    earlier, later = items(before), items(after)
    rows = []
    for item in sorted(earlier.keys() | later.keys()):
        comparisons = [
            compare_file(path, before, after) for path in sorted(earlier.get(item, set()) | later.get(item, set()))
        ]
        whole = Comparison(TOLERANCE)
        whole.exact = all(each.exact for each in comparisons)
        whole.largest = max(each.largest for each in comparisons)
        whole.differing = [text for each in comparisons for text in each.differing]
        rows.append((*item, whole))
    names, kinds = (max(len(str(row[column])) for row in rows) for column in (0, 1))
    for name, kind, result in rows:
        print(f"{name:{names}}  {kind:{kinds}}  {result}")
    different = sum(bool(result.differing) for *_, result in rows)
    print(f"{len(rows)} items, {different} different")
    return not different


def compare_file(path: Path, before: Path, after: Path) -> Comparison:
    """Compare a file of two records."""
    to_the_bit = path.parts[0] == "runs" or path.suffix in (".onnx", ".png")
    result = Comparison(0.0 if to_the_bit else TOLERANCE)
    there = [(folder / path).is_file() for folder in (before, after)]
    if all(there):
        result.add(str(path), read(before / path), read(after / path))
    else:
        result.differing.append(f"{path}: only {'before' if there[0] else 'after'}")
    return result


def compare_revisions(before: str, after: str, out: Path) -> bool:
    """Record two revisions of this repository, in two new folders within one, and compare them."""
    for when, revision in (("before", before), ("after", after)):
        command = ["git", "-C", str(Path(__file__).parent.parent), "archive", revision, "src"]
        archive = subprocess.run(command, check=True, capture_output=True).stdout
        with tempfile.TemporaryDirectory() as tree, tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(tree, filter="data")
            record(Path(tree) / "src", out / when)
    return compare(out / "before", out / "after")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = arguments.add_subparsers(dest="command", required=True)
    recorder = commands.add_parser("record", help="run everything with a source tree")
    recorder.add_argument("--src", type=Path, required=True, help="folder that holds the package")
    recorder.add_argument("--out", type=Path, required=True, help="folder to write")
    comparer = commands.add_parser("compare", help="compare two records")
    comparer.add_argument("before", type=Path)
    comparer.add_argument("after", type=Path)
    both = commands.add_parser("revisions", help="record two revisions and compare them")
    both.add_argument("before")
    both.add_argument("after")
    both.add_argument("--out", type=Path, help="folder to keep the records in, for `compare`")
    options = arguments.parse_args()
    if options.command == "record":
        record(options.src, options.out)
    elif options.command == "compare":
        sys.exit(not compare(options.before, options.after))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            sys.exit(not compare_revisions(options.before, options.after, options.out or Path(temporary)))


if __name__ == "__main__":
    main()
