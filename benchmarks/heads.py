"""What keeping features saves: heads on a frozen backbone, 10 epochs on kept features against running it in each.

    python benchmarks/heads.py --check --json results/heads.json

Random images in memory through tf_efficientnet_lite0 with 4 exits at 128 pixels, all heads trained by the trainer in
half batches of 128; keeping counts too. Both ways are timed in turn, and end with the same heads. 10 is the most that
10 epochs can save.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from common import Bar, finish, parser

from exitwise import Uniform, add_exits
from exitwise.data import Preprocessing, Split, TrainingBatches
from exitwise.data.sources import ArraySource
from exitwise.models.staged import StagedModel
from exitwise.training.kept import keep
from exitwise.training.on_kept import HeadsOnKept, KeptBatches
from exitwise.training.trainer import Trainer

CLASSES, EXITS, BATCH, EPOCHS = 5, 4, 256, 10
BARS = {"linear": 8.0, "auto": 4.0}


def network(head: str, size: int) -> StagedModel:
    torch.manual_seed(0)
    backbone = timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES)
    model = add_exits(backbone, exits=EXITS, head=head, input_shape=(3, size, size))
    model.freeze_bodies()
    return model


def trained(model: StagedModel, whole: StagedModel, batches: TrainingBatches | KeptBatches) -> None:
    params = [param for param in whole.parameters() if param.requires_grad]
    optimizer = torch.optim.SGD(params, lr=0.01, momentum=0.9)
    Trainer(model, optimizer, Uniform(), batches, lambda: [0.0] * EXITS, epochs=EPOCHS).fit()


def each_time(model: StagedModel, split: Split) -> None:
    trained(model, model, TrainingBatches(split, BATCH, 0))


def kept_once(model: StagedModel, split: Split) -> None:
    kept = keep(model, TrainingBatches(split, BATCH, 0, in_order=True), EXITS)
    trained(HeadsOnKept(model, kept), model, KeptBatches(kept, torch.arange(len(kept))[None], BATCH, 0))


def seconds(way: Callable[[StagedModel, Split], None], head: str, split: Split) -> tuple[float, StagedModel]:
    assert isinstance(split.preprocessing, Preprocessing)
    model = network(head, split.preprocessing.image_size)
    start = time.perf_counter()
    way(model, split)
    return time.perf_counter() - start, model


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=1024)
    arguments.add_argument("--size", type=int, default=128)
    arguments.add_argument("--rounds", type=int, default=3)
    options = arguments.parse_args()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (options.images, 3, options.size, options.size), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (options.images,), generator=generator)
    source = ArraySource(images, labels, [str(label) for label in range(CLASSES)])
    split = Split(source, torch.arange(options.images), Preprocessing(options.size, (0.5,) * 3, (0.25,) * 3))
    figures: dict[str, Any] = {}
    bars = []
    for head, bar in BARS.items():
        rows = []
        for _ in range(options.rounds):
            (kept, ours), (every, theirs) = (seconds(way, head, split) for way in (kept_once, each_time))
            far = max(
                float((a - b).detach().abs().max()) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
            )
            rows.append({"kept": kept, "each_time": every, "ratio": every / kept, "largest_difference": far})
            print(f"{head} heads: {every:.1f} s running the backbone in each epoch, {kept:.1f} s on kept features")
        figures[head] = {"rounds": rows, "ratio": statistics.median(row["ratio"] for row in rows)}
        bars.append(Bar(f"{head} heads, {EPOCHS} epochs: times faster", figures[head]["ratio"], bar, at_most=False))
    settings = {"images": options.images, "size": options.size, "batch": BATCH, "epochs": EPOCHS, "exits": EXITS}
    finish(options, {**figures, "settings": settings}, bars)


if __name__ == "__main__":
    main()
