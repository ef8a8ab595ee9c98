"""What a training step costs: plain, double backward as the authors write it, and ours; peak memory of each.

    python benchmarks/training.py --check --json results/training.json
    python benchmarks/training.py --paths channels-last compile bf16
    python benchmarks/training.py --parts --rounds 9 --batch-size 64 --processor-time --check --json results/parts.json

Loaded batches of random 32x32 images through MSDNet-5, trained on in halves by the trainer, its data and metrics
included. Variants are float32 and eager, then with each fast path. All are timed in turn and medians reported; `plain`
is `uniform` with the same half batches. Peak memory is that of a process of its own per variant. Compiling takes some
minutes, once: torch keeps what it has compiled. With `--parts`, each part of each axis in place of all that, beside
`plain` in the same round: the median of the rounds' ratios. `--processor-time` counts this process's time alone, for a
machine that has other work; give it one thread (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import Bar, finish, parser
from torch import Tensor, nn
from torch.func import functional_call

from exitwise import create_method, create_model, exit_proportions
from exitwise.catalogue.axes import AXES
from exitwise.data import Preprocessing, Split, TrainingBatches
from exitwise.data.sources import ArraySource
from exitwise.kernels.timing import interleaved_medians, interleaved_seconds
from exitwise.methods import Method, Weighting, build_method, create_flow, create_loss, in_schedule
from exitwise.models.links import link_heads
from exitwise.training.compiled import compile_network
from exitwise.training.flags import training_flags
from exitwise.training.meters import Meters, SkippedRow
from exitwise.training.step import half_batches, half_step
from exitwise.training.trainer import Trainer
from exitwise.weighting.guard import all_finite, gradient_norm, restore_unless

EXITS, P = 5, 0.75


class AuthorsWay:
    """The look-ahead on a network built anew, differentiated through by second-order autograd.

    Attributes:
        real_pass_last: let go of the real pass's graph meanwhile and make it again, since the authors' script makes
            that pass last. For memory; it would cost time.
    """

    optimizer = None
    real_pass_last = False

    def __init__(self) -> None:
        self.inner: Any = create_method("meta-weighted", proportions=exit_proportions(P, EXITS))

    def begin(self, index: int, progress: float) -> None:
        pass

    def takes_tangents(self, index: int) -> bool:
        return False

    def weigh(self, model: nn.Module, optimizer: torch.optim.Optimizer, run, meta, index: int) -> Weighting:
        if self.real_pass_last:
            object.__setattr__(run, "logits", run.logits.detach())
            object.__setattr__(run, "losses", run.losses.detach())
        pseudo = create_model("msdnet_cifar_5").to(run.inputs.device)
        pseudo.load_state_dict(model.state_dict())
        pseudo.train()
        losses, confidences = self._losses(pseudo(run.inputs), run.targets)
        weights = self.inner.network(losses, confidences)
        params = dict(pseudo.named_parameters())
        gradients = torch.autograd.grad((weights * losses).mean(0).sum(), list(params.values()), create_graph=True)
        group = optimizer.param_groups[0]
        updated = {}
        for (name, param), gradient, original in zip(params.items(), gradients, model.parameters(), strict=True):
            direction = gradient + group["weight_decay"] * param
            buffer = optimizer.state.get(original, {}).get("momentum_buffer")
            direction = direction if buffer is None else group["momentum"] * buffer + direction
            updated[name] = param - group["lr"] * direction
        meta_losses, meta_confidences = self._losses(functional_call(pseudo, updated, (meta[0],)), meta[1])
        loss = self._meta_loss(meta_losses, meta_confidences)
        self.inner.optimizer.zero_grad()
        loss.backward()
        self.inner.optimizer.step()
        if self.real_pass_last:
            del pseudo, losses, weights, params, gradients, updated, meta_losses
            object.__setattr__(run, "losses", self._losses(model(run.inputs), run.targets)[0])
        with torch.no_grad():
            return Weighting(self.inner.network(run.losses, run.confidences), loss.detach())

    def stepped(self, model: nn.Module, taken: Tensor) -> None:
        pass

    @staticmethod
    def _losses(logits: list[Tensor], targets: Tensor) -> tuple[Tensor, Tensor]:
        losses = torch.stack([F.cross_entropy(z, targets, reduction="none") for z in logits], dim=1)
        confidences = torch.stack([z.detach().softmax(dim=1).amax(dim=1) for z in logits], dim=1)
        return losses, confidences

    @staticmethod
    def _meta_loss(losses: Tensor, confidences: Tensor) -> Tensor:
        from exitwise import allocate, meta_loss

        return meta_loss(losses, allocate(confidences, exit_proportions(P, EXITS)))


def meta(name: str, **options) -> Method:
    return create_method(name, proportions=exit_proportions(P, EXITS), **options)


BETWEEN = "forward mode, between updates"
"""Steps in which the weight network does not learn: all but the first, which is not timed."""

METHODS: dict[str, Callable[[], Any]] = {
    "plain": lambda: create_method("uniform"),
    "double backward, authors' way": AuthorsWay,
    "forward mode": lambda: meta("meta-weighted"),
    BETWEEN: lambda: meta("meta-weighted", meta_interval=10**9),
    "finite difference": lambda: meta("meta-weighted", mode="finite-difference"),
    "shared step": lambda: meta("meta-weighted-shared"),
    "shared step, finite difference": lambda: meta("meta-weighted-shared", mode="finite-difference"),
}
FAST = ("plain", "forward mode", "shared step")
"""What is also timed with the fast paths."""

PATHS = ("channels-last", "compile", "bf16")
"""A fast path each; on a GPU and with compile, channels-last goes with all of them."""

EXACT = ("forward mode", "shared step")
AUTHORS = "double backward, authors' way"


LEARNED = tuple(name for name in AXES["method"].parts if name.startswith("meta-weighted"))
ELSEWHERE = ("joint", "heads", "mixed", "distil-run", *LEARNED)
"""Parts that are `plain` itself, train something else, need another network's answers, or are timed above."""

PARTS = {
    f"{axis} {name}": (axis, name)
    for axis, choices in AXES.items()
    for name in choices.parts
    if name != choices.usual and name not in ELSEWHERE
}
CHEAP = ("method exit-simulated", "method capability-gated", "flow equilibrium", "flow partition", "loss distil-last")
"""What is to cost next to nothing."""


def variants(paths: list[str]) -> list[str]:
    return [*METHODS, *(f"{method}, {path}" for path in paths for method in FAST)]


class Training:
    """A network in training with one variant; calling it trains on one loaded batch."""

    def __init__(self, variant: str, batch_size: int) -> None:
        torch.manual_seed(0)
        path = next((path for path in PATHS if variant.endswith(f", {path}")), None)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = create_model("msdnet_cifar_5").to(device)
        self.compiled = path == "compile"
        if self.compiled:
            compile_network(model)
        axis, part = PARTS.get(variant, ("method", "uniform"))
        if variant in METHODS or path:
            method = METHODS[variant.removesuffix(f", {path}")]()
        else:
            name = part if axis == "method" else "uniform"
            method = build_method(name, AXES["method"].parts[name].options(), EXITS)
        if axis == "regime":
            method = in_schedule(part, method, AXES["regime"].parts[part].options(), 1)
        if axis == "flow":
            model.flow = create_flow(part)
        if axis == "handed_on":
            link_heads(model, partial(AXES[axis].parts[part].load(), model.num_classes))
        getattr(method, "inner", method).to(device)
        images = torch.empty(64 * batch_size, 3, 32, 32, dtype=torch.uint8).random_(0, 256)
        source = ArraySource(images, torch.randint(10, (len(images),)), [str(k) for k in range(10)])
        split = Split(source, torch.arange(len(images)), Preprocessing(32, (0.5,) * 3, (0.25,) * 3, "crop"))
        self.trainer = Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4),
            method,
            TrainingBatches(split, batch_size, 0, device),
            list,
            epochs=1,
            loss=create_loss(part) if axis == "loss" else None,
            channels_last=path in ("channels-last", "compile") or (path is not None and device.type == "cuda"),
            bf16=path == "bf16",
        )
        model.train()
        self.batches = iter(self.trainer.batches)

    def __call__(self) -> None:
        with training_flags(compiled=self.compiled):
            self.trainer.train_on(*next(self.batches))


def seconds_outside(training: Training) -> float:
    """What a loaded batch spends on data, metrics and bookkeeping, piece by piece."""
    trainer = training.trainer
    inputs, targets = next(training.batches)
    halves = list(half_batches(inputs, targets))
    step = half_step(trainer.model, trainer.optimizer, trainer.method, *halves[0], 0)
    meters, row = Meters(EXITS, trainer.device), SkippedRow(trainer.device)
    buffers = list(trainer.model.buffers())
    copies = [buffer.clone() for buffer in buffers]

    def stepped(schedule: Any) -> None:
        schedule.step_update(1)

    per_batch = [
        lambda: next(training.batches),
        lambda: list(half_batches(inputs, targets)),
        lambda: deque(map(stepped, trainer.schedules)),
    ]
    per_half = [
        lambda: [buffer.clone() for buffer in buffers],
        lambda: restore_unless(step.taken, buffers, copies),
        lambda: (step.forward.logits.detach().argmax(dim=-1) == step.forward.targets[:, None]).sum(dim=0),
        lambda: (step.weights - 1).abs().mean(),
        lambda: trainer.samples.add(step),
        lambda: all_finite(step.loss, gradient_norm(trainer.model.parameters())),
        lambda: meters.add(step),
        lambda: row.add(step),
        lambda: row.at_end,
    ]
    return sum(map(median_seconds, per_batch)) + 2 * sum(map(median_seconds, per_half))


def median_seconds(function: Callable[[], object]) -> float:
    return statistics.median(_once(function) for _ in range(9))


def _once(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mebibytes(variant: str, batch_size: int) -> float:
    """Peak memory of two loaded batches, in a process of its own; on a GPU, of its allocator."""
    command = [sys.executable, __file__, "--memory-of", variant, "--batch-size", str(batch_size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def report_memory(variant: str, batch_size: int) -> None:
    step = Training(variant, batch_size)
    if isinstance(step.trainer.method, AuthorsWay):
        step.trainer.method.real_pass_last = True
    before = resident_mebibytes("VmRSS")
    step()
    step()
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(resident_mebibytes("VmHWM") - before)


def resident_mebibytes(field: str) -> float:
    """VmRSS is what the process holds, VmHWM the most it held (getrusage's would be inherited from the parent)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def time_parts(options: argparse.Namespace) -> None:
    """Each part beside plain."""
    names = ["plain", *PARTS]
    clock = time.process_time if options.processor_time else time.perf_counter
    seconds = interleaved_seconds({name: Training(name, options.batch_size) for name in names}, options.rounds, clock)
    ratios = {name: [own / plain for own, plain in zip(seconds[name], seconds["plain"], strict=True)] for name in PARTS}
    for name, found in ratios.items():
        print(f"{name:34}{statistics.median(found):6.3f} x plain ({min(found):.3f} to {max(found):.3f})")
    bars = [Bar(f"{name} / plain", statistics.median(ratios[name]), 1.1) for name in CHEAP]
    figures = {"batch_size": options.batch_size, "rounds": options.rounds, "seconds": seconds, "ratios": ratios}
    finish(options, figures, bars)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--batch-size", type=int, default=1024 if torch.cuda.is_available() else 256)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--paths", nargs="*", choices=PATHS, default=["channels-last"], help="fast paths to time")
    arguments.add_argument("--parts", action="store_true", help="time the parts of the axes, and nothing else")
    arguments.add_argument("--processor-time", action="store_true", help="of parts: this process's time alone")
    arguments.add_argument("--memory-of", metavar="VARIANT", help="only print the peak memory of one variant")
    options = arguments.parse_args()
    if options.memory_of is not None:
        report_memory(options.memory_of, options.batch_size)
        return
    if options.parts:
        time_parts(options)
        return
    names = variants(options.paths)
    trainings = {name: Training(name, options.batch_size) for name in names}
    seconds = interleaved_medians(trainings, options.rounds)
    outside = seconds_outside(trainings["plain"]) / seconds["plain"]
    del trainings
    memory = {name: peak_mebibytes(name, options.batch_size) for name in METHODS}
    figures = {
        name: {
            "images_per_second": options.batch_size / seconds[name],
            "ratio_to_plain": seconds[name] / seconds["plain"],
            "times_the_authors_way": seconds[AUTHORS] / seconds[name],
            "peak_MiB": memory.get(name),
        }
        for name in names
    }
    print(f"{'':34}{'images/s':>9}{'x plain':>9}{'authors / it':>14}{'peak MiB':>10}")
    for name, row in figures.items():
        peak = "" if row["peak_MiB"] is None else f"{row['peak_MiB']:.0f}"
        speeds = f"{row['images_per_second']:9.1f}{row['ratio_to_plain']:9.2f}{row['times_the_authors_way']:14.2f}"
        print(f"{name:34}{speeds}{peak:>10}")

    def ratio(name: str) -> float:
        return seconds[name] / seconds["plain"]

    others = ("finite", "bf16", "between")
    exact = [name for name in names if name.split(", ")[0] in EXACT and not any(other in name for other in others)]
    best = min(exact, key=seconds.__getitem__)
    bars = [
        Bar("forward mode / plain", ratio("forward mode"), 3.5),
        Bar("shared step / plain", ratio("shared step"), 2.7),
        Bar("shared step with finite difference / plain", ratio("shared step, finite difference"), 2.1),
        Bar("peak memory, forward / double", memory["forward mode"] / memory[AUTHORS], 0.78),
        Bar(f"authors' way / {best}", seconds[AUTHORS] / seconds[best], 3.5, at_most=False),
        Bar("outside model, weighting, optimizer", 100 * outside, 5, unit=" %"),
        Bar("meta_interval 100 / plain", (99 * ratio(BETWEEN) + ratio("forward mode")) / 100, 1.08),
    ]
    finish(options, {"batch_size": options.batch_size, "rounds": options.rounds, "variants": figures}, bars)


if __name__ == "__main__":
    main()
