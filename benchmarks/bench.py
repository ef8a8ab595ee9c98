"""Every benchmark in one sitting, and a table of its figures beside those of last time.

    python benchmarks/bench.py [--only inference training] [--out results]

All but those that train long (finetune, rivals, study, long_tail, cifar10_fast), the sweep, and serving's long load;
peers only where earlyon is installed. Each writes its record to --out, over the last one, when it has ended. What is
worse than last time by a tenth, or short of its bar, is marked.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from common import Bar

HERE = Path(__file__).parent
RUNS: dict[str, list[str]] = {
    "startup": [],
    "inference": [],
    "backbones": [],
    "calibration": [],
    "checkpoint": [],
    "distributed": [],
    "training": [],
    "parts": ["training", "--parts", "--rounds", "9", "--batch-size", "64"],
    "heads": ["heads", "--images", "512", "--rounds", "2"],
    "predict": ["predict", "--images", "4000"],
    "serving_timers": ["serving", "--only", "timers"],
    "peers": [],
}
"""What is run, by the record that it writes: a script of that name without more, or a script and arguments."""

WORSE = 0.1


def loss(now: Bar, last: Bar) -> float:
    """Return by what share a figure is worse than last time; below 0 where it is better."""
    return (now.value / last.value if now.at_most else last.value / now.value) - 1


def figures_of(path: Path) -> dict[str, Bar]:
    """Return the figures of a record by name; none where there is no record."""
    if not path.exists():
        return {}
    found = {}
    for said in json.loads(path.read_text()).get("bars", []):
        parts = re.fullmatch(r"(.*): (\S+?)( [^\d(]+)? \(bar ([<>])= ([\d.e+-]+).*", said)
        if parts:
            name, value, unit, sign, limit = parts.groups()
            found[name] = Bar(name, float(value.rstrip("x%")), float(limit), sign == "<", unit or "")
    return found


def table(name: str, now: dict[str, Bar], last: dict[str, Bar]) -> list[str]:
    """Return a line for each figure."""
    lines = []
    for what, figure in now.items():
        marks = [] if figure.met else ["SHORT OF THE BAR"]
        beside = f"{'':>10}"
        if what in last:
            beside = f"{last[what].value:10.3g}"
            if loss(figure, last[what]) > WORSE:
                marks.append(f"{100 * loss(figure, last[what]):.0f} % WORSE")
        sign = "<=" if figure.at_most else ">="
        bar = f"{sign} {figure.limit:g}{figure.unit}"
        lines.append(f"{name:15}{what:62}{figure.value:10.3g}{beside}  {bar:12}{', '.join(marks)}")
    return lines


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines, failed, begun = [], [], time.perf_counter()
    for name in options.only:
        if name == "peers" and find_spec("earlyon") is None:
            print("peers: earlyon is not installed; left out", flush=True)
            continue
        script, *arguments = RUNS[name] or [name]
        record, start = options.out / f"{name}.json", time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            new = Path(folder) / record.name
            command = [sys.executable, f"{script}.py", *arguments, "--json", str(new)]
            child = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
            if child.returncode or not new.exists():
                failed.append(name)
                print(child.stdout[-1000:], child.stderr[-2000:], sep="\n", flush=True)
                continue
            lines += table(name, figures_of(new), figures_of(record))
            kept = json.loads(new.read_text())
            kept["command"] = [f"{script}.py", *arguments]
            record.write_text(json.dumps(kept, indent=2) + "\n")
    print(f"\n{'':77}{'now':>10}{'last':>10}  bar", *lines, sep="\n")
    print(f"{(time.perf_counter() - begun) / 60:.0f} minutes")
    if failed:
        sys.exit(f"no figures of {', '.join(failed)}")


if __name__ == "__main__":
    main()
