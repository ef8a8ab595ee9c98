"""What checkpoints cost: seconds to save the CIFAR recipe's training, and their share of its time on this machine.

    python benchmarks/checkpoint.py --check --json results/checkpoint.json

MSDNet-5 with meta-weighted on random 32x32 images; saves flush to disk, in --folder. By default one is made every 5
minutes, and after each epoch of 45 000 images one to resume from and, where it improved, one of the best epoch.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import Bar, finish, parser

from exitwise import create_method, create_model, exit_proportions
from exitwise.data import Preprocessing, Split, TrainingBatches
from exitwise.data.sources import ArraySource
from exitwise.training.checkpoint_folder import CheckpointFolder
from exitwise.training.trainer import CHECKPOINT_SECONDS, Trainer

EPOCH, BATCH, SAVES = 45_000, 64, 5


def build(folder: Path, device: str) -> Trainer:
    """The recipe's training, at a smaller batch."""
    images = torch.randint(256, (2 * BATCH, 3, 32, 32), dtype=torch.uint8)
    source = ArraySource(images, torch.randint(10, (2 * BATCH,)), [str(name) for name in range(10)])
    split = Split(source, torch.arange(2 * BATCH), Preprocessing(32, (0.5,) * 3, (0.25,) * 3, "crop"))
    model = create_model("msdnet_cifar_5").to(device)
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        create_method("meta-weighted", proportions=exit_proportions(0.75, model.exits)).to(torch.device(device)),
        TrainingBatches(split, BATCH, 0, device),
        list,
        epochs=1,
        checkpoints=CheckpointFolder(folder),
    )


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--folder", type=Path, help="where to save; by default the system's temporary folder")
    arguments.add_argument("--device", default="cpu")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        trainer = build(Path(folder), options.device)
        step = min(seconds(partial(trainer.train_on, *batch)) for batch in trainer.batches)
        times: dict[str, list[float]] = {"last": [], "best": []}
        for number in range(SAVES):
            trainer.progress.iteration = number
            for kind in times:
                times[kind].append(seconds(partial(trainer._save, kind)))
        saved = trainer.checkpoints and trainer.checkpoints.latest("last")
        size = sum(path.stat().st_size for path in saved.iterdir()) if saved else 0
    last, best = (statistics.median(values) for values in times.values())
    epoch = step * EPOCH / BATCH
    share = 100 * (last * (epoch / CHECKPOINT_SECONDS + 1) + best) / epoch
    print(f"a checkpoint: {size / 2**20:.1f} MiB, {last:.3f} s; of the best epoch: {best:.3f} s")
    print(f"an epoch: {epoch:.0f} s here; at most 2 % where one takes {50 * (last + best):.0f} s or longer")
    figures = {"seconds": times, "bytes": size, "step_seconds": step, "epoch_seconds": epoch, "share_percent": share}
    finish(options, figures, [Bar("share of training time spent on checkpoints", share, 2.0, unit=" %")])


if __name__ == "__main__":
    main()
