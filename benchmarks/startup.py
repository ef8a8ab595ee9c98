"""What users wait for before anything happens, and whether training on a folder keeps up with a bare loop.

    python benchmarks/startup.py --check --json results/startup.json

Whole processes, from start to end: the help, the list of models, a prediction from a bundle of ResNet-18 at 224 pixels.
Training on digits: to the end of its first epoch, of one step. Medians of some runs each. Fine-tuning: images a second
of the trainer on a folder of photos, decoded, cropped and flipped by it, against forward, backward and update over
tensors that lie ready, in the same half batches; in turn.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from common import Bar, finish, parser
from PIL import Image
from torchvision.models import resnet18

import exitwise as ew
from exitwise.data import Preprocessing, Split, TrainingBatches
from exitwise.data.ledger import ImageLedger
from exitwise.data.sources.files import kept_or_read
from exitwise.data.sources.folder import FolderSource
from exitwise.training.trainer import Trainer

LIMITS = {"help": 0.4, "models": 1.0, "first prediction": 1.0, "first step on digits": 4.0}
LEAST_OF_BARE = 0.9
CLASSES, EXITS, IMAGES, SIZE, BATCH = 5, 4, 256, 128, 64


def until(words: Sequence[str], line: str | None = None) -> float:
    """Return seconds until a command prints a line that begins so, or ends."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "exitwise", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        said = []
        for each in process.stdout or ():
            said.append(each)
            if line is not None and each.startswith(line):
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    if line is not None or process.returncode:
        sys.exit(f"expected {line or 'an end'} of {words}; got {process.returncode}, {''.join(said)}")
    return time.perf_counter() - start


def bundle(out: Path) -> None:
    torch.manual_seed(0)
    model = ew.add_exits(resnet18(num_classes=CLASSES).eval(), exits=EXITS, input_shape=(3, 224, 224))
    calibration = ew.Calibration.of(ew.ExitPolicy([0.5] * (EXITS - 1)), model.exit_macs)
    ew.export(model, calibration, out, preprocessing=Preprocessing(224, (0.5,) * 3, (0.25,) * 3))


def photos(folder: Path) -> Path:
    """Write noise as JPEG files, a class a folder."""
    dice = np.random.default_rng(0)
    for number in range(IMAGES):
        path = folder / str(number % CLASSES) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    return folder


def network() -> tuple[ew.StagedModel, torch.optim.Optimizer]:
    torch.manual_seed(0)
    backbone = timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES)
    model = ew.add_exits(backbone, exits=EXITS, input_shape=(3, SIZE, SIZE))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def trained(split: Split) -> None:
    model, optimizer = network()
    batches = TrainingBatches(split, BATCH, 0)
    Trainer(model, optimizer, ew.Uniform(), batches, lambda: [0.0] * EXITS, epochs=1).fit()


def bare(images: torch.Tensor, targets: torch.Tensor) -> None:
    model, optimizer = network()
    model.train()
    for part, labels in zip(images.split(BATCH // 2), targets.split(BATCH // 2), strict=True):
        loss = torch.stack([F.cross_entropy(logits, labels) for logits in model(part)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Print the seconds, and the ratio."""
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    ew.keep_memory()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle(folder / "bundle")
        data = photos(folder / "photos")
        photo = str(next(data.rglob("*.jpg")))
        digits = ("train", "--recipe", "digits", "--max-iterations", "1", "--out")
        ways = {
            "help": lambda: until(["--help"]),
            "models": lambda: until(["models"]),
            "first prediction": lambda: until(["predict", str(folder / "bundle"), photo]),
            "first step on digits": lambda: until([*digits, tempfile.mkdtemp(dir=folder)], "epoch"),
        }
        for what, way in ways.items():
            figures[what] = statistics.median(way() for _ in range(given.rounds))
        source = kept_or_read(FolderSource(data, 3, SIZE, None, ImageLedger()), SIZE)
        split = Split(source, torch.arange(IMAGES), Preprocessing(SIZE, (0.5,) * 3, (0.25,) * 3, augment="crop"))
        images = torch.cat([part for part, _ in split.batches(BATCH)])
        pairs = [(seconds(lambda: trained(split)), seconds(lambda: bare(images, split.targets))) for _ in range(4)][1:]
        figures["images a second, of a bare loop's"] = statistics.median(theirs / ours for ours, theirs in pairs)
    bars = [Bar(what, figures[what], limit, unit=" s") for what, limit in LIMITS.items()]
    last = "images a second, of a bare loop's"
    finish(given, figures, [*bars, Bar(last, figures[last], LEAST_OF_BARE, at_most=False)])


if __name__ == "__main__":
    main()
