"""Does weighting pay? Trains methods side by side over several seeds, and compares them at equal compute.

    python benchmarks/study.py --data DIR --runs runs/study --json results/study.json --minutes 30
    python benchmarks/study.py --runs runs/study --json results/study.json --figure results/study.png

The first command trains what is still missing, as far as the time allows, and can be repeated: every run continues
where it stopped, and what the JSON file holds is not trained again, so that the study can be spread over machines. The
second draws what there is. With one seed, all methods start from the same network and see the
same images in the same order, with the same number of updates and the same schedule. Gains are differences from
`uniform` with the same seed, in points of accuracy, averaged over 50 amounts of compute evenly spaced between the
dearest first and the cheapest last point of the curves; intervals are Student's over seeds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine
from matplotlib.figure import Figure

import exitwise as ew
from exitwise.evaluation.outputs import accuracy_at, common_grid, mean_and_half_width
from exitwise.reporting.figures import COLOURS
from exitwise.runs.build import load_splits
from exitwise.settings.compose import compose
from exitwise.storage.files import read_json, write_json

AUTHORS = {"method": "meta-weighted", "objective": "per-exit", "wpn_zero_init": False, "wpn_lr": 1e-4}
SHARED = {"method": "meta-weighted-shared"}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "uniform": {"method": "uniform"},
    "authors": AUTHORS,
    "authors, zero start": {**AUTHORS, "wpn_zero_init": True},
    "authors, zero start, wpn lr 1e-3": {**AUTHORS, "wpn_zero_init": True, "wpn_lr": 1e-3},
    "share-weighted": {"method": "meta-weighted"},
    "share-weighted, shared step": SHARED,
    "share-weighted, shared step, p drawn": {**SHARED, "p_range": [0.3, 1.2]},
}
"""From the authors' settings to ours, one change at a time; all seeds."""

FIRST = ("uniform", "authors", "share-weighted", "share-weighted, shared step")
"""Trained before the others."""

SENSITIVITY: Mapping[str, Mapping[str, Any]] = {
    "p 0.5": {**SHARED, "p": 0.5},
    "p 1": {**SHARED, "p": 1.0},
    "epsilon 0.3": {**SHARED, "epsilon": 0.3},
    "centring samples": {**SHARED, "centering": "samples"},
    "centring all": {**SHARED, "centering": "all"},
    "input conf": {**SHARED, "wpn_input": "conf"},
    "input both": {**SHARED, "wpn_input": "both"},
}
"""Changes to the shared step (p 0.75, epsilon 0.8, centring exits, input loss); first seed only."""

CHECKPOINT_EVERY = 100
Task = tuple[str, int, str, str, str, int]
"""Variant, seed, recipe, data, folder of runs, threads."""


def tasks(options: argparse.Namespace) -> list[Task]:
    """What is to be trained: the variants seed by seed, then the sensitivities."""
    parts = [FIRST, [variant for variant in VARIANTS if variant not in FIRST]]
    pairs = [(variant, seed) for part in parts for seed in range(options.seeds) for variant in part]
    pairs += [(variant, 0) for variant in SENSITIVITY]
    return [(*pair, options.recipe, options.data, str(options.runs), options.threads) for pair in pairs]


def result_path(task: Task) -> Path:
    variant, seed, *_ = task
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in variant)
    return Path(task[4]) / f"{name}-{seed}" / "result.json"


_splits: dict[str, Any] = {}


def run(task: Task) -> str:
    """Train and evaluate one variant with one seed; continues an interrupted training."""
    variant, seed, recipe, data, _, threads = task
    torch.set_num_threads(threads)
    changes = {**VARIANTS, **SENSITIVITY}[variant]
    settings = compose(recipe, None, {"data": data, "seed": seed, "checkpoint_every": CHECKPOINT_EVERY, **changes})
    if data not in _splits:
        _splits[data] = load_splits(settings)
    path = result_path(task)
    began = time.monotonic()
    training = ew.train(settings, path.parent, splits=_splits[data])
    seconds = time.monotonic() - began
    evaluation = ew.evaluate(path.parent, splits=_splits[data])
    result = {
        "variant": variant,
        "seed": seed,
        "settings": settings.model_dump(exclude={"data", "data_root"}),
        "seconds": None if training.resumed else round(seconds, 1),
        "exit_macs": list(evaluation.exit_macs),
        "exit_accuracy": evaluation.anytime,
        "calibration_exit_accuracy": list_of(training.history[-1], "calibration_accuracy_"),
        "curve": {
            part: [[point.p, (at := getattr(point, part)).macs, at.accuracy] for point in evaluation.curve]
            for part in ("calibration", "test")
        },
        "machine": machine(),
    }
    write_json(path, result)
    return f"{variant}, seed {seed}: {seconds:.0f} s"


def list_of(row: Mapping[str, float], prefix: str) -> list[float]:
    return [value for key, value in row.items() if key.startswith(prefix)]


def train_missing(options: argparse.Namespace) -> None:
    """Train what has no result yet until the time is up."""
    done = {(result["variant"], result["seed"]) for result in recorded(options)}
    missing = [task for task in tasks(options) if task[:2] not in done]
    deadline = time.monotonic() + 60 * options.minutes
    print(f"{len(missing)} runs to go", flush=True)
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        lines = pool.imap_unordered(run, missing)
        for _ in missing:
            try:
                print(lines.next(max(0.0, deadline - time.monotonic())), flush=True)
            except multiprocessing.TimeoutError:
                print("time is up; the same command continues", flush=True)
                return


def recorded(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Finished runs, from their folders and from the JSON file, in the order of the study."""
    known = read_json(options.json)["runs"] if options.json is not None and options.json.exists() else []
    found = known + [read_json(path) for path in sorted(options.runs.glob("*/result.json"))]
    order = list({**VARIANTS, **SENSITIVITY})
    unique = {(result["variant"], result["seed"]): result for result in found}
    return sorted(unique.values(), key=lambda result: (order.index(result["variant"]), result["seed"]))


def curve_on(result: Mapping[str, Any], part: str, grid: np.ndarray) -> np.ndarray:
    """Accuracy in percent at amounts of compute, between the points of a curve."""
    _, macs, accuracy = zip(*result["curve"][part], strict=True)
    return 100 * accuracy_at(macs, accuracy, grid)


def grid_of(results: Sequence[Mapping[str, Any]], part: str) -> np.ndarray:
    """Amounts of compute that all curves span."""
    return common_grid([point[1] for point in result["curve"][part]] for result in results)


def mean_and_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean and half width of the 95 % interval; None for the latter with a single value."""
    mean, half = mean_and_half_width(values)
    return {"mean": float(mean), "interval": None if half is None else float(half), "n": len(values)}


def compare(results: Sequence[Mapping[str, Any]], part: str) -> dict[str, dict[str, Any]]:
    """Gains of each variant over uniform with the same seed, in points, on one split."""
    base = {result["seed"]: result for result in results if result["variant"] == "uniform"}
    grid = grid_of(results, part)
    exits = "exit_accuracy" if part == "test" else "calibration_exit_accuracy"
    table: dict[str, dict[str, Any]] = {}
    for variant in dict.fromkeys(result["variant"] for result in results):
        gains = [
            (
                curve_on(result, part, grid) - curve_on(base[result["seed"]], part, grid),
                100 * (np.array(result[exits]) - np.array(base[result["seed"]][exits])),
            )
            for result in results
            if result["variant"] == variant and result["seed"] in base
        ]
        if gains:
            table[variant] = {
                "curve": mean_and_interval([float(curve.mean()) for curve, _ in gains]),
                "cheapest_quarter": mean_and_interval([float(curve[:13].mean()) for curve, _ in gains]),
                "dearest_quarter": mean_and_interval([float(curve[-13:].mean()) for curve, _ in gains]),
                "exits": [mean_and_interval([float(exit[k]) for _, exit in gains]) for k in range(len(gains[0][1]))],
            }
    return table


def draw(results: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy against compute, and gain over uniform, with mean and 95 % interval per variant of the main study."""
    grid = grid_of(results, "test")
    curves = {
        variant: {r["seed"]: curve_on(r, "test", grid) for r in results if r["variant"] == variant}
        for variant in VARIANTS
    }
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for variant, colour in zip(VARIANTS, ("0.2", *COLOURS), strict=True):
        seeds = curves[variant]
        if not seeds:
            continue
        label = f"{variant} (n = {len(seeds)})"
        left.plot(grid / 1e6, np.mean(list(seeds.values()), axis=0), color=colour, label=label)
        gains = [curve - curves["uniform"][seed] for seed, curve in seeds.items() if seed in curves["uniform"]]
        if variant == "uniform" or not gains:
            continue
        mean, half = mean_and_half_width(gains)
        right.plot(grid / 1e6, mean, color=colour)
        if half is not None and len(gains) > 2:  # an interval of two seeds would fill the figure
            right.fill_between(grid / 1e6, mean - half, mean + half, color=colour, alpha=0.1, linewidth=0)
    right.axhline(0, color="0.2", linewidth=1)
    left.set_ylabel("test accuracy (%)")
    right.set_ylabel("gain over uniform (points), mean and 95 % interval")
    for axes in (left, right):
        axes.set_xlabel("mean compute per image (million MACs)")
        axes.grid(alpha=0.25)
    left.legend(frameon=False, fontsize=8)
    return figure


def show(value: Mapping[str, Any]) -> str:
    half = "       " if value["interval"] is None else f" ±{value['interval']:5.2f}"
    return f"{value['mean']:+6.2f}{half}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar10_narrow")
    parser.add_argument("--data", help="folder or name of the data set; without it, nothing is trained")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=1, help="of each training")
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--figure", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.data is not None:
        train_missing(options)
    results = recorded(options)
    if not any(result["variant"] == "uniform" for result in results):
        sys.exit(f"expected finished runs of uniform in {options.runs}; found none (give --data to train)")
    comparison = {part: compare(results, part) for part in ("calibration", "test")}
    heading = f"{'whole curve':16}{'cheapest quarter':18}{'dearest quarter':17}exit 1"
    print(f"\n{'test, points over uniform':38}{'n':>2}  {heading}")
    for variant, row in comparison["test"].items():
        cells = [show(row[key]) for key in ("curve", "cheapest_quarter", "dearest_quarter")] + [show(row["exits"][0])]
        print(f"{variant:38}{row['curve']['n']:2}  " + "   ".join(cells))
    if options.json is not None:
        options.json.write_text(json.dumps({"gain": comparison, "runs": results, "command": sys.argv}, indent=1) + "\n")
    if options.figure is not None:
        draw(results).savefig(options.figure, dpi=150)


if __name__ == "__main__":
    main()
