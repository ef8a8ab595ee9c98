"""What several processes cost: 2 processes with 1 thread each against 1 process with 2 threads, on the same batches.

    python benchmarks/distributed.py --check --json results/distributed.json

Loaded batches of random 32x32 images through MSDNet-5, dealt to the processes, which gloo connects. The two are timed
in turn, several times, and medians reported. Communication is what a process spends in it, waiting for the other
included; a sum of all gradients by itself is timed too.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from common import Bar, finish, parser

from exitwise import create_method, create_model, exit_proportions
from exitwise.data import Preprocessing, Split, TrainingBatches
from exitwise.data.sources import ArraySource
from exitwise.processes.distributed import joined
from exitwise.processes.ranks import Ranks
from exitwise.training.trainer import Trainer

EXITS, CORES = 5, 2
SHARES = exit_proportions(0.75, EXITS)
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("uniform", {}, {}),
    "forward mode": ("meta-weighted", {"proportions": SHARES}, {}),
    "shared step": ("meta-weighted-shared", {"proportions": SHARES}, {}),
    "plain, synchronised BatchNorm": ("uniform", {}, {"sync_batchnorm": True}),
}
"""Name to training method, its options, and those of the trainer."""

LIMIT = 1.15
"""Bar: seconds per image of 2 x 1 over those of 1 x 2."""


def build(variant: str, batch_size: int, ranks: Ranks) -> Trainer:
    torch.manual_seed(0)
    method, options, more = VARIANTS[variant]
    model = create_model("msdnet_cifar_5").train()
    images = torch.empty(16 * batch_size, 3, 32, 32, dtype=torch.uint8).random_(0, 256)
    source = ArraySource(images, torch.randint(10, (len(images),)), [str(k) for k in range(10)])
    split = Split(source, torch.arange(len(images)), Preprocessing(32, (0.5,) * 3, (0.25,) * 3, "crop"))
    return Trainer(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4),
        create_method(method, **options),
        TrainingBatches(split, batch_size, 0, rank=ranks.rank, ranks=ranks.size),
        list,
        epochs=1,
        ranks=ranks,
        **more,
    )


def measure(rank: int, size: int, variant: str, batch_size: int, batches: int, port: int, file: Path) -> None:
    """Time loaded batches in one of some processes, after one that does not count; rank 0 writes the figures."""
    torch.set_num_threads(CORES // size)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with joined(torch.device("cpu"), timeout=300) as ranks:
        trainer = build(variant, batch_size, ranks)
        loaded = iter(trainer.batches)
        trainer.train_on(*next(loaded))
        seconds, communication, calls = [], [], []
        for _ in range(batches):
            ranks.barrier()
            before, calls_before = spent(ranks)
            start = time.perf_counter()
            trainer.train_on(*next(loaded))
            seconds.append(time.perf_counter() - start)
            communication.append(spent(ranks)[0] - before)
            calls.append(spent(ranks)[1] - calls_before)
        gradients = [torch.zeros_like(param) for param in trainer.model.parameters()]
        alone = [timed_sum(ranks, gradients) for _ in range(9)]
    if rank == 0:
        torch.save([seconds, communication, calls, alone], file)


def spent(ranks: Ranks) -> tuple[float, int]:
    clock = getattr(ranks, "clock", None)
    return (clock.seconds, clock.calls) if clock else (0.0, 0)


def timed_sum(ranks: Ranks, tensors: list[torch.Tensor]) -> float:
    ranks.barrier()
    start = time.perf_counter()
    ranks.sum_all(tensors)
    return time.perf_counter() - start


def run(size: int, variant: str, batch_size: int, batches: int) -> list[list[float]]:
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        file = Path(folder) / "figures.pt"
        arguments = (size, variant, batch_size, batches, port, file)
        torch.multiprocessing.start_processes(measure, arguments, nprocs=size, start_method="spawn")
        return torch.load(file, weights_only=True)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--batch-size", type=int, default=128)
    arguments.add_argument("--rounds", type=int, default=3, help="times that each of the two is started")
    arguments.add_argument("--batches", type=int, default=2, help="loaded batches timed at each start")
    arguments.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    options = arguments.parse_args()
    figures = {}
    print(f"{'':30}{'1 x 2':>8}{'2 x 1':>8}{'ratio':>8}{'communication':>15}{'calls':>7}{'sum alone':>11}")
    for variant in options.variants:
        rounds = [
            [run(size, variant, options.batch_size, options.batches) for size in (1, 2)] for _ in range(options.rounds)
        ]
        one = statistics.median(seconds for single, _ in rounds for seconds in single[0])
        two, communication, calls, alone = (
            statistics.median(value for _, pair in rounds for value in pair[index]) for index in range(4)
        )
        row = {
            "one_process_ms_per_image": 1000 * one / options.batch_size,
            "two_processes_ms_per_image": 1000 * two / options.batch_size,
            "ratio": two / one,
            "communication_share": communication / two,
            "collectives_per_batch": calls,
            "gradient_sum_alone_ms": 1000 * alone,
        }
        figures[variant] = row
        times = f"{row['one_process_ms_per_image']:8.2f}{row['two_processes_ms_per_image']:8.2f}{row['ratio']:8.2f}"
        share = f"{100 * row['communication_share']:13.1f} %"
        print(f"{variant:30}{times}{share}{calls:7.0f}{row['gradient_sum_alone_ms']:8.1f} ms", flush=True)
    print("ms per image, all processes together")
    settings = {"batch_size": options.batch_size, "rounds": options.rounds, "batches": options.batches}
    bars = [Bar(f"{name}, 2 x 1 / 1 x 2", row["ratio"], LIMIT) for name, row in figures.items() if "Batch" not in name]
    finish(options, {**settings, "variants": figures}, bars)


if __name__ == "__main__":
    main()
