"""What a training step costs: plain, double backward as the authors write it, and ours; peak memory of each.

    python benchmarks/training.py --check --json results/training.json

Loaded batches of random 32x32 images through MSDNet-5, trained on in halves, float32, eager. Steps of all variants are
timed in turn and medians reported; `plain` is `uniform` with the same half batches. Peak memory is that of a
process of its own per variant.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from common import Bar, finish, parser
from torch import Tensor, nn
from torch.func import functional_call

from exitwise import create_method, create_model, exit_proportions
from exitwise.methods import Method, Weighting
from exitwise.timing import interleaved_medians
from exitwise.training.step import half_batches, half_step

EXITS, P = 5, 0.75


class AuthorsWay:
    """The look-ahead on a network built anew, differentiated through by second-order autograd."""

    optimizer = None

    def __init__(self) -> None:
        self.inner = create_method("meta-weighted", proportions=exit_proportions(P, EXITS))

    def takes_tangents(self, index: int) -> bool:
        return False

    def weigh(self, model: nn.Module, optimizer: torch.optim.Optimizer, run, meta, index: int) -> Weighting:
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


VARIANTS = {
    "plain": lambda: create_method("uniform"),
    "double backward, authors' way": AuthorsWay,
    "forward mode": lambda: meta("meta-weighted"),
    "finite difference": lambda: meta("meta-weighted", mode="finite-difference"),
    "shared step": lambda: meta("meta-weighted-shared"),
    "shared step, finite difference": lambda: meta("meta-weighted-shared", mode="finite-difference"),
}


class Training:
    """A network in training with one variant; calling it makes one loaded batch's two half steps."""

    def __init__(self, variant: str, batch_size: int) -> None:
        torch.manual_seed(0)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = create_model("msdnet_cifar_5").to(device).train()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        self.method = VARIANTS[variant]()
        getattr(self.method, "inner", self.method).to(device)
        self.batch = torch.randn(batch_size, 3, 32, 32, device=device), torch.randint(10, (batch_size,), device=device)

    def __call__(self) -> None:
        for halves in half_batches(*self.batch):
            half_step(self.model, self.optimizer, self.method, *halves, 0)


def peak_mebibytes(variant: str, batch_size: int) -> float:
    """Peak memory of two loaded batches, in a process of its own; on a GPU, of its allocator."""
    command = [sys.executable, __file__, "--memory-of", variant, "--batch-size", str(batch_size)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def report_memory(variant: str, batch_size: int) -> None:
    step = Training(variant, batch_size)
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = resident_pages * resource.getpagesize() / 2**20
    step()
    step()
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated() / 2**20)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--batch-size", type=int, default=1024 if torch.cuda.is_available() else 256)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--memory-of", choices=list(VARIANTS), help="only print the peak memory of one variant")
    options = arguments.parse_args()
    if options.memory_of is not None:
        report_memory(options.memory_of, options.batch_size)
        return
    seconds = interleaved_medians({name: Training(name, options.batch_size) for name in VARIANTS}, options.rounds)
    ratio = {name: value / seconds["plain"] for name, value in seconds.items()}
    memory = {name: peak_mebibytes(name, options.batch_size) for name in VARIANTS}
    figures = {
        name: {"images_per_second": options.batch_size / seconds[name], "ratio": ratio[name], "peak_MiB": memory[name]}
        for name in VARIANTS
    }
    print(f"{'':32}{'images/s':>10}{'x plain':>9}{'peak MiB':>10}")
    for name, row in figures.items():
        print(f"{name:32}{row['images_per_second']:10.1f}{row['ratio']:9.2f}{row['peak_MiB']:10.0f}")
    every_100th = (99 + ratio["forward mode"]) / 100
    bars = [
        Bar("forward mode / plain", ratio["forward mode"], 3.5),
        Bar("shared step / plain", ratio["shared step"], 2.7),
        Bar("shared step with finite difference / plain", ratio["shared step, finite difference"], 2.1),
        Bar("meta_interval 100 / plain", every_100th, 1.08),
        Bar("peak memory, forward / double", memory["forward mode"] / memory["double backward, authors' way"], 0.78),
    ]
    finish(options, {"batch_size": options.batch_size, "rounds": options.rounds, "variants": figures}, bars)


if __name__ == "__main__":
    main()
