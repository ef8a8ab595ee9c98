"""Which training serves classes with many, medium and few images? CIFAR-10 with an exponential imbalance of 0.01.

    python benchmarks/long_tail.py --data DIR --runs runs/long_tail --json results/long_tail.json [--minutes 30]
    python benchmarks/long_tail.py --show results/long_tail.json

The first trains what is still missing, as far as the time allows, and can be repeated; DIR has folders ``train`` and
``test`` of CIFAR-10's images. The plan: recipe ``cifar10_fast``, images of the last class 0.01 of the first's, held-out
images from the same long tail, balanced test images; seeds 0 to 2; plain training, learned weights
(``meta-weighted-shared``), distillation from the last exit, and logit adjustment, all with the recipe's updates. Each
is calibrated for three budgets on its held-out images. Shown are accuracies on test images, means over seeds, of all
classes and of thirds of the classes by their training images.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from common import machine

import exitwise as ew
from exitwise.evaluation.outputs import EVALUATION_BATCH
from exitwise.models import count_cost
from exitwise.workflows.evaluate import by_frequency

VARIANTS: dict[str, dict[str, object]] = {
    "uniform": {},
    "meta-weighted-shared": {"method": "meta-weighted-shared"},
    "distil-last": {"loss": "distil-last"},
    "logit-adjusted": {"loss": "logit-adjusted"},
}
SEEDS = (0, 1, 2)
BUDGETS = (0.4, 0.6, 1.0)
GROUPS = ("all", "many", "medium", "few")


def accuracies(folder: Path) -> dict[str, dict[str, float]]:
    """Return the accuracy of each group of classes on test images, at each budget."""
    run = ew.Run(folder)
    model, splits = run.model("cpu"), run.splits()
    costs = count_cost(model).macs
    held, tested = (
        ew.Outputs.from_logits(*ew.collect_logits(model, split.batches(EVALUATION_BATCH), "cpu"))
        for split in (splits.calibration, splits.test)
    )
    groups = np.array(by_frequency(splits.train.targets.numpy(), tested.targets))
    found = {}
    for budget in BUDGETS:
        policy, _ = ew.calibrate_macs(held.confidences, costs, budget * costs[-1])
        right = tested.under(policy).predictions == tested.targets
        members = {"all": slice(None), **{name: groups == name for name in GROUPS[1:]}}
        found[str(budget)] = {name: float(right[each].mean()) for name, each in members.items()}
    return found


def show(rows: list[dict]) -> None:
    """Print the means over seeds."""
    print(f"{'':<22}{'':<8}" + "".join(f"{name:>8}" for name in GROUPS))
    for variant in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == variant]
        for budget in map(str, BUDGETS):
            means = [100 * np.mean([row["accuracy"][budget][name] for row in mine]) for name in GROUPS]
            print(f"{variant:<22}{budget:<8}" + "".join(f"{mean:>8.1f}" for mean in means) + f"  n = {len(mine)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/long_tail"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing new after that time")
    parser.add_argument("--show", type=Path)
    options = parser.parse_args()
    if options.show is not None:
        show(json.loads(options.show.read_text())["runs"])
        return
    end = time.monotonic() + 60 * options.minutes
    rows = json.loads(options.json.read_text())["runs"] if options.json.exists() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    for seed in SEEDS:
        for variant, flags in VARIANTS.items():
            if (variant, seed) in done or time.monotonic() > end:
                continue
            folder = options.runs / f"{variant}-{seed}"
            data = {"data": str(options.data), "imbalance": 0.01, "seed": seed}
            start = time.process_time()
            ew.train(ew.compose("cifar10_fast", flags={**data, **flags}), folder)
            seconds = time.process_time() - start
            rows.append({"variant": variant, "seed": seed, "seconds": seconds, "accuracy": accuracies(folder)})
            options.json.write_text(json.dumps({"runs": rows, "machine": machine()}, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
