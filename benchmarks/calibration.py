"""Time to calibrate and evaluate 39 budgets on 60 000 samples x 5 exits x 10 classes.

    python benchmarks/calibration.py --check --json results/calibration.json

50 000 samples calibrate, 10 000 test, as CIFAR's would; softmax outputs are given, random, and clearer at later exits.
"""

from __future__ import annotations

import statistics
import time

import torch
from common import Bar, finish, parser

from exitwise import Outputs, budgeted_curve

CALIBRATION, TEST, EXITS, CLASSES = 50_000, 10_000, 5, 10
MACS = (6.8e6, 14.3e6, 27.5e6, 41.7e6, 58.4e6)


def outputs(samples: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax outputs (N, K, C) and targets (N)."""
    targets = torch.randint(CLASSES, (samples,), generator=generator)
    logits = torch.randn(samples, EXITS, CLASSES, generator=generator)
    logits += 2 * torch.nn.functional.one_hot(targets, CLASSES)[:, None] * torch.linspace(0.5, 1.5, EXITS)[:, None]
    return logits.softmax(dim=-1), targets


def main() -> None:
    options = parser(__doc__).parse_args()
    generator = torch.Generator().manual_seed(0)
    calibration, test = outputs(CALIBRATION, generator), outputs(TEST, generator)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        curve = budgeted_curve(Outputs.from_probabilities(*calibration), Outputs.from_probabilities(*test), MACS)
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    figures = {"seconds": seconds[1:], "median_seconds": median, "budgets": len(curve)}
    finish(options, figures, [Bar(f"{len(curve)} budgets, median of 5", median, 1.0, unit=" s")])


if __name__ == "__main__":
    main()
