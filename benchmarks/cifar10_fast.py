"""How far the recipe ``cifar10_fast`` comes in how long: each exit's accuracy on test images, seconds and updates.

    python benchmarks/cifar10_fast.py --data DIR --json results/cifar10_fast.json --check [--epochs 20]

DIR has folders ``train`` and ``test`` of CIFAR-10's images. Plain training, seed 0, with the recipe's epochs or as many
as are given; test images are seen once, at its end. A record keeps the runs of other numbers of epochs that are in it.
Seconds are those of the whole training: reading the images, evaluations after each epoch and checkpoints are in them.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

from common import Bar, finish, parser

import exitwise as ew
from exitwise.evaluation.outputs import EVALUATION_BATCH
from exitwise.models import count_cost

BARS = ((12, 0.88), (20, 0.90))
"""Minutes, and the accuracy that the last exit of the best training within them has at least."""


def trained(data: Path, epochs: int | None) -> dict:
    """Return what a training comes to, the exits' accuracies on test images among it."""
    flags = {"data": str(data)} | ({} if epochs is None else {"epochs": epochs})
    settings = ew.compose("cifar10_fast", flags=flags)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter(), time.process_time()
        result = ew.train(settings, Path(folder) / "run", resume="never")
        seconds, processor_seconds = time.perf_counter() - start[0], time.process_time() - start[1]
        model, test = result.run.model("cpu"), result.splits.test
    tested = ew.Outputs.from_logits(*ew.collect_logits(model, test.batches(EVALUATION_BATCH), "cpu"))
    told = ("model", "exit_weights", "epochs", "batch_size", "lr", "precision", "channels_last", "compile", "seed")
    return {
        "settings": {name: getattr(settings, name) for name in told},
        "images": len(result.splits.train),
        "updates": result.history[-1]["iteration"],
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "macs": list(count_cost(model).macs),
        "calibration": [row["calibration_accuracy_4"] for row in result.history],
        "test_images": len(test),
        "test": ew.anytime(tested),
    }


def main() -> None:
    arguments = parser(str(__doc__))
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--epochs", type=int)
    options = arguments.parse_args()
    earlier = options.json is not None and options.json.exists()
    runs = json.loads(options.json.read_text())["figures"]["runs"] if earlier else {}
    run = trained(options.data, options.epochs)
    runs[str(run["settings"]["epochs"])] = run
    bars = []
    for minutes, least in BARS:
        within = [each["test"][-1] for each in runs.values() if each["seconds"] <= 60 * minutes]
        bars.append(Bar(f"last exit, {minutes} minutes", max(within, default=0.0), least, at_most=False))
    finish(options, {"runs": runs}, bars)


if __name__ == "__main__":
    main()
