"""Early exits and cascades beside everything else that costs less: smaller networks, smaller images, int8.

    python benchmarks/rivals.py train --data DIR --weights DIR --out DIR [--processes 5]
    python benchmarks/rivals.py table --data DIR --out DIR --json results/rivals.json

The first trains what is still missing; DIR of weights holds timm's tf_efficientnet_lite0 and lite2 as safetensors. The
second reads what was trained, gives every fold its int8 networks, chooses every policy by calibration images, measures
times on the first fold's networks, and prints all by the test images.

The plan. 4 317 photos of flowers, 128 pixels, five stratified folds: every photo is tested once; a tenth of the others
is held out for calibration. Every network starts from the same ImageNet weights and trains 3 epochs with the
``finetune`` recipe's settings: ``lite0`` and ``lite2`` at 128 pixels and at 160 (upscaled), with sizes drawn at random
from 96, 128 and 160 for every batch (for cascades over sizes), and with four exits at 128 (heads fitted anew on kept
features, distilled). Static rows: each network at each size it was tuned for, float32 and int8, and the exited networks
cut short at each of their exits. Ours: exited networks; ``lite0`` then ``lite2`` at 128, and at 160; one network at 96
then 160; each with the second answer in place of the first, and with both averaged by cost. The time is the
geometric middle between the fastest float32 forms of ``lite0`` and ``lite2`` at batch 1. Of ours and of the static rows
that are no slower, calibration images choose one each; the test images of all folds compare the two, paired by photo.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from finetune import FOLDS, SOURCES, features_of, splits_of
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from exitwise.data.ledger import ImageLedger
from exitwise.data.sources.folder import FolderSource
from exitwise.data.splits import Split
from exitwise.evaluation.outputs import EVALUATION_BATCH
from exitwise.methods import Uniform
from exitwise.models.staged import StagedModel
from exitwise.processes.ranks import ALONE
from exitwise.runs.build import build
from exitwise.settings.compose import compose
from exitwise.settings.schema import Settings
from exitwise.training.fitting import fit_heads
from exitwise.training.flags import training_flags
from exitwise.training.trainer import Batches, Trainer

SIZES = (96, 128, 160)


class Rival(NamedTuple):
    """How a network is tuned.

    Attributes:
        model: of timm.
        size: of the images that it is tuned on.
        exits: classifiers, the last included.
        sizes: what each batch's images are resized to, one drawn at random; of the same size if none.
    """

    model: str
    size: int
    exits: int = 1
    sizes: tuple[int, ...] = ()


RIVALS = {
    "lite0": Rival("tf_efficientnet_lite0", 128),
    "lite2": Rival("tf_efficientnet_lite2", 128),
    "lite0@160": Rival("tf_efficientnet_lite0", 160),
    "lite2@160": Rival("tf_efficientnet_lite2", 160),
    "lite0, sizes": Rival("tf_efficientnet_lite0", 160, sizes=SIZES),
    "lite2, sizes": Rival("tf_efficientnet_lite2", 160, sizes=SIZES),
    "lite0, exits": Rival("tf_efficientnet_lite0", 128, exits=4),
    "lite2, exits": Rival("tf_efficientnet_lite2", 128, exits=4),
}


def settings_of(rival: Rival, data: Path, weights: Path, fold: int) -> Settings:
    """Return the ``finetune`` recipe's settings for one network."""
    flags = {
        "data": str(data),
        "model": f"timm/{rival.model}",
        "pretrained": str(weights / f"{rival.model}.safetensors"),
    }
    sizes = {"image_size": rival.size, "exits": rival.exits, "epochs": 3}
    return compose(None, None, {**flags, **sizes, "seed": fold, "workers": 0, "device": "auto"})


class Resized:
    """Batches whose images are resized to a size drawn at random for each batch."""

    def __init__(self, batches: Batches, sizes: tuple[int, ...]) -> None:
        self.batches, self.sizes = batches, sizes
        self.draws = torch.Generator().manual_seed(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self.batches:
            yield resized(images, self.sizes[int(torch.randint(len(self.sizes), (), generator=self.draws))]), targets


def resized(images: Tensor, size: int) -> Tensor:
    """Return square images of another size."""
    if images.shape[-1] == size:
        return images
    return interpolate(images, (size, size), mode="bilinear", antialias=True)


def logits_of(model: StagedModel, split: Split, size: int, device: torch.device) -> np.ndarray:
    """Return logits (N, K, C) of a split's images at a size, resized from what the split gives."""
    model.eval()
    with torch.no_grad():
        batches = split.batches(EVALUATION_BATCH)
        found = [torch.stack(model(resized(images.to(device), size)), 1).float().cpu() for images, _ in batches]
    return torch.cat(found).numpy()


def train_one(name: str, fold: int, data: Path, weights: Path, out: Path) -> float:
    """Tune a network on a fold; write its weights, rounded to half precision, and its logits with these weights."""
    rival, start = RIVALS[name], time.perf_counter()
    settings = settings_of(rival, data, weights, fold)
    splits = splits_of("flowers", SOURCES, settings, fold)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, method, optimizer, batches = build(settings, splits, device, ALONE)
    loader = cast("Batches", Resized(batches, rival.sizes)) if rival.sizes else batches
    trainer = Trainer(
        model,
        optimizer,
        method,
        loader,
        lambda: [0.0] * model.exits,
        epochs=settings.epochs,
        label_smoothing=settings.label_smoothing,
    )
    with training_flags(tf32=False, compiled=False):
        trainer.fit()
    if rival.exits > 1:
        kept = features_of(model, splits, batches, 3, device)
        fit_heads(model, kept, Uniform(), epochs=20, distil=0.5, device=device)
    state = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    found: dict[str, np.ndarray] = {}
    for part, split in (("calibration", splits.calibration), ("test", splits.test)):
        found[f"{part}/targets"] = np.asarray(split.targets)
        for size in rival.sizes or (rival.size,):
            found[f"{part}/{size}"] = logits_of(model, split, size, device)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{name.replace(', ', '-')}-{fold}"
    save_file({key: value.cpu().contiguous() for key, value in state.items()}, f"{stem}.safetensors")
    with Path(f"{stem}.npz").open("wb") as file:  # the last to be written: what is there is whole
        np.savez(file, **found)  # type: ignore[arg-type]
    return time.perf_counter() - start


def _job(job: tuple, deadline: float, threads: int) -> tuple[str, int, str]:
    name, fold, *_ = job
    torch.set_num_threads(threads)
    if time.time() > deadline:
        return name, fold, "out of time"
    try:
        return name, fold, f"{train_one(*job):.0f} s"
    except Exception:
        return name, fold, traceback.format_exc()


def train(options: argparse.Namespace) -> None:
    """Train what is missing, fold by fold."""
    torch.set_num_threads(1)  # a pool of threads in this process would be missing, and waited for, in the forked ones
    SOURCES.append(FolderSource(options.data, 3, 128, None, ImageLedger()).in_memory())
    names = options.rivals or list(RIVALS)
    jobs = [
        (name, fold, options.data, options.weights, options.out)
        for fold in range(FOLDS)
        for name in names
        if not (options.out / f"{name.replace(', ', '-')}-{fold}.npz").exists()
    ]
    print(f"{len(jobs)} to train, {options.processes} at a time", flush=True)
    work = partial(_job, deadline=time.time() + 60 * options.minutes, threads=options.threads)
    with multiprocessing.get_context("fork").Pool(options.processes) as pool:
        for name, fold, said in pool.imap_unordered(work, jobs):
            print(f"{name}, fold {fold}: {said}", flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["train"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rivals", nargs="*")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    train(options)


if __name__ == "__main__":
    main()
