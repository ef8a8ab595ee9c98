"""Beside another tool for early exits, in one process: torchvision's ResNet-18, exits after layer2 and layer3.

    pip install --target peers 'earlyon==0.3.0' click fvcore
    PYTHONPATH=peers python benchmarks/peers.py --check --json results/peers.json

224x224 images, random weights, each tool's own heads. Half of the images leave at the first exit, by a threshold at the
median of its confidences there; the others go to the end. earlyon (https://pypi.org/project/earlyon, MIT licence)
runs a batch as one: it leaves when all of its images may. What is timed in turn is the same stream of images, of which
exactly half leave early by either tool, one by one and in batches; medians. The process keeps the memory that it frees,
as exitwise's commands do and ``ew.keep_memory`` does for a program: without it the system clears pages for either tool,
some quarter of the time of a batch of 32.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import Bar, finish, parser
from torch import Tensor
from torchvision.models import resnet18

import exitwise as ew
from exitwise.deploy.calibration import Calibration
from exitwise.kernels.timing import interleaved_medians, load

IMAGES = 64
EAGER = {1: 1.03, 32: 0.90}
FASTEST = 0.7


def ours(images: Tensor) -> tuple[ew.EarlyExitRunner, ew.OnnxRunner]:
    """Return our runners, eager and by ONNX Runtime."""
    torch.manual_seed(0)
    model = ew.add_exits(resnet18().eval(), at=["layer2", "layer3"]).eval()
    for exit in range(2):
        torch.nn.init.normal_(model.get_parameter(f"stages.{exit}.head.linear.weight"))  # confidences that differ
    with torch.inference_mode():
        confidences = model(images)[0].softmax(1).amax(1)
    policy = ew.ExitPolicy([confidences.quantile(0.5).item(), None])
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        ew.export(model, Calibration.of(policy, model.exit_macs), out)
        return ew.EarlyExitRunner(model, policy), ew.OnnxRunner(out)


def theirs(images: Tensor) -> Callable[[Tensor], object]:
    """Return earlyon's way to run a batch."""
    try:
        from earlyon.models import resnet18_ee  # type: ignore[import-not-found]
    except ImportError as error:
        sys.exit(f"expected earlyon on the path: see the first lines of this file ({error})")
    torch.manual_seed(0)
    model = resnet18_ee(num_classes=1000, pretrained=False).eval()
    with torch.inference_mode():
        for head in model.exit_heads.values():
            for module in head.modules():
                if isinstance(module, torch.nn.Linear):
                    torch.nn.init.normal_(module.weight)
        confidences = model(images, mode="training")[0].softmax(1).amax(1)
    model.config.confidence_thresholds[0] = confidences.quantile(0.5).item()
    model.config.enabled_exits[1] = False
    return lambda batch: model(batch) if len(batch) == 1 else model.forward_inference_batched(batch)


def main() -> None:
    """Print ours / theirs at each batch size."""
    options = parser(__doc__ or "")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--give-back", action="store_true", help="let freed memory go back to the system")
    given = options.parse_args()
    if not given.give_back:
        ew.keep_memory()
    images = torch.randn(IMAGES, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    eager, onnx = ours(images)
    peer = theirs(images)
    figures: dict[str, float | str] = {"load": load()}
    bars = []
    for size, bar in EAGER.items():
        batches = images.split(size)
        arrays = [batch.numpy() for batch in batches]

        def each(function: Callable, batches: list | tuple) -> Callable[[], object]:
            return lambda: [function(batch) for batch in batches]

        with torch.inference_mode():
            taken = interleaved_medians(
                {"eager": each(eager, batches), "onnx": each(onnx, arrays), "peer": each(peer, batches)}, given.rounds
            )
        for name in ("eager", "onnx"):
            figures[f"{name} / peer, batch {size}"] = taken[name] / taken["peer"]
        bars.append(Bar(f"eager / peer, batch {size}", taken["eager"] / taken["peer"], bar))
        bars.append(Bar(f"ONNX / peer, batch {size}", taken["onnx"] / taken["peer"], FASTEST))
    finish(given, figures, bars)


if __name__ == "__main__":
    main()
