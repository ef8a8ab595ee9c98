"""Two processes that train what one process trains alone, in double precision, and what each of them found."""

import os
import socket
from contextlib import nullcontext
from itertools import chain

import pytest
import torch
import torch.multiprocessing
from torch import nn

import exitwise as ew
from exitwise import anytime, create_flow, create_method
from exitwise.data import Preprocessing, Split, TrainingBatches
from exitwise.data.sources import ArraySource
from exitwise.evaluation.collect import collect_together
from exitwise.kernels.synced_norm import SyncedNorm
from exitwise.methods.losses.distil import DistilLast, DistilRun
from exitwise.models.staged import Stage, StagedModel
from exitwise.processes import distributed
from exitwise.processes.distributed import joined
from exitwise.processes.ranks import ALONE
from exitwise.settings.schema import resolve
from exitwise.training.checkpoint_folder import CheckpointFolder
from exitwise.training.kept import keep
from exitwise.training.on_kept import HeadsOnKept, KeptBatches
from exitwise.training.step import accumulated_step, half_batches, half_step
from exitwise.training.trainer import Silent, Trainer
from exitwise.weighting.losses import Loss

CPU = torch.device("cpu")
METHODS = ("uniform", "meta-weighted", "meta-weighted-shared")
CASES = [
    ("uniform", "batch", {}),
    ("uniform", "group", {"accumulate": 2}),
    ("meta-weighted", "batch", {"objective": "per-exit", "centering": "all"}),
    ("meta-weighted", "group", {"objective": "share-weighted", "centering": "samples"}),
    ("meta-weighted-shared", "batch", {"objective": "share-weighted", "centering": "samples"}),
    ("meta-weighted-shared", "group", {"objective": "per-exit", "centering": "all"}),
    ("meta-weighted-shared", "batch", {"objective": "per-exit", "centering": "all", "flow": "partition"}),
    ("exit-simulated", "batch", {"flow": "equilibrium"}),
]
"""Method, kind of normalisation, options of the weighting and a flow. Those with groups have a teacher."""


def stage(channels, norm):
    layer = nn.BatchNorm2d(4) if norm == "batch" else nn.GroupNorm(1, 4)
    body = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), layer, nn.ReLU())
    return Stage(body, nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)))


def build(name, norm="batch", flow="plain", **options):
    torch.manual_seed(0)
    model = StagedModel([stage(channels, norm) for channels in (1, 4, 4)], 3, (1, 8, 8)).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    model.flow = create_flow(flow)
    if not name.startswith("meta-weighted"):
        return model, optimizer, create_method(name)
    shares = {"proportions": [0.5, 0.3, 0.2], "hidden": 8, "zero_init": False, "lr": 0.01}
    method = create_method(name, **shares, **options)
    method.network.double()
    return model, optimizer, method


def batches():
    """Loaded batches, the last one of a size that two processes cannot share evenly."""
    generator = torch.Generator().manual_seed(1)
    for count in (24, 24, 19):
        yield torch.randn(count, 1, 8, 8, generator=generator).double(), torch.randint(3, (count,), generator=generator)


def dealt(batch, ranks):
    """This process's share of a loaded batch, as the sampler deals it."""
    return [torch.cat([half.tensor_split(ranks.size)[ranks.rank] for half in part.chunk(2)]) for part in batch]


def steps(case, ranks):
    """Losses, meta losses, gradients of the weight network and right answers of six half steps; the end state."""
    name, norm, options = case
    model, optimizer, method = build(name, norm, **options)
    rows = []
    for index, batch in enumerate(batches()):
        method.begin(index % 2, index / 3)
        taught = (batch[0][:, 0, 0, :3],) if norm == "group" else ()
        loss = DistilRun(0.3, label_smoothing=0.1) if taught else Loss(label_smoothing=0.1)
        for train, meta in half_batches(*dealt((*batch, *taught), ranks)):
            with SyncedNorm(ranks) if norm == "batch" and ranks.size > 1 else nullcontext():
                if "accumulate" in options and ranks.size > 1:
                    parts = options["accumulate"]
                    step = accumulated_step(model, optimizer, method, train, parts, loss, ranks)
                else:
                    step = half_step(model, optimizer, method, train, meta, index, loss, ranks)
            learned = [param.grad for param in method.network.parameters()] if hasattr(method, "network") else []
            rows.append(
                {
                    "loss": step.loss,
                    "meta_loss": step.meta_loss,
                    "gradient": torch.cat([g.flatten().clone() for g in learned if g is not None] or [torch.zeros(1)]),
                    "correct": step.correct.double(),
                    "images": int(step.images),
                }
            )
    return rows, model.state_dict()


class Doubles(TrainingBatches):
    def __iter__(self):
        return ((images.double(), targets) for images, targets in super().__iter__())


class StopAt(Silent):
    def __init__(self, iteration):
        self.iteration = iteration

    def on_step(self, iteration, total, meters):
        if iteration == self.iteration:
            raise InterruptedError


def split():
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (31, 1, 8, 8), generator=generator, dtype=torch.uint8)
    source = ArraySource(images, torch.randint(3, (31,), generator=generator), ["a", "b", "c"])
    return Split(source, torch.arange(31), Preprocessing(8, (0.5,), (0.25,), "shift"))


def trainer(name, ranks, folder=None, stop=None):
    """Two epochs of 12, 12 and 7 images, of which the last are too few to be dealt to two processes."""
    model, optimizer, method = build(name, **({} if name == "uniform" else {"centering": "all"}))
    data = split()

    def evaluate():
        model.float()
        accuracies = anytime(collect_together(model, data, CPU, 0, ranks))
        model.double()
        return accuracies

    return Trainer(
        model,
        optimizer,
        method,
        Doubles(data, 12, 0, rank=ranks.rank, ranks=ranks.size),
        evaluate,
        loss=(DistilRun if name == "meta-weighted-shared" else DistilLast)(0.3),
        teacher=(lambda images: images[:, 0, 0, :3]) if name == "meta-weighted-shared" else None,
        epochs=2,
        checkpoints=folder and CheckpointFolder(folder),
        checkpoint_every=1,
        reporter=stop and StopAt(stop),
        ranks=ranks,
        sync_batchnorm=True,
    )


def heads(ranks):
    """What is kept of a frozen network, and the heads that three epochs on it make, of two passes in turn."""
    model, optimizer, method = build("meta-weighted", "group")
    batches = Doubles(split(), 12, 0, rank=ranks.rank, ranks=ranks.size, in_order=True)
    model.freeze_bodies()
    both = chain(batches, batches)
    kept = keep(model, both, 3, ranks=ranks)
    alone, rows = HeadsOnKept(model, kept), torch.arange(62).view(2, 31)
    training = KeptBatches(kept, rows, 12, 0, rank=ranks.rank, ranks=ranks.size)
    history = Trainer(alone, optimizer, method, training, lambda: [0.0] * 3, epochs=3, ranks=ranks).fit()
    return kept.rows, kept.targets, history, model.state_dict()


def fit(name, ranks, folder=None, stop=None, resume=False):
    training = trainer(name, ranks, folder, stop)
    assert training.resume() == resume
    if stop:
        with pytest.raises(InterruptedError):
            training.fit()
        return None
    return training.fit(), training.model.state_dict()


def spoil_one_rank(name, ranks, where):
    """Whether the step was taken, whether anything changed, and whether the next step was taken."""
    model, optimizer, method = build(name)
    first, second, third = (next(half_batches(*dealt(batch, ranks))) for batch in batches())
    half_step(model, optimizer, method, *first, 0, ranks=ranks)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if ranks.rank == 1:
        second[where][0][2] = torch.nan
    taken = bool(half_step(model, optimizer, method, *second, 0, ranks=ranks).taken)
    same = all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    after = bool(half_step(model, optimizer, method, *third, 0, ranks=ranks).taken)
    return {"taken": taken, "same": same, "next": after, "finite": all(map(finite, model.state_dict().values()))}


def finite(tensor):
    return bool(tensor.isfinite().all())


SPOILED = [*((name, 0) for name in METHODS), ("meta-weighted", 1)]
"""Method, and which half has the spoiled image: the one trained on, or the meta half."""

SETTINGS = resolve({"method": "uniform", "epochs": 1, "max_iterations": 2, "device": "cpu"})


def worker(rank, ports, folder):
    torch.set_num_threads(1)
    distributed.BUCKET_BYTES = 1000  # several buckets of a small network
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(ports[0])
    with joined(CPU, 60, together=True) as ranks:
        results = {
            "steps": [steps(case, ranks) for case in CASES],
            "fit": {name: fit(name, ranks) for name in METHODS},
            "heads": heads(ranks),
            "spoiled": [spoil_one_rank(name, ranks, where) for name, where in SPOILED],
            "gathered": ranks.gather(torch.arange(3 - rank) + 10 * rank)[0],
            "agree": [bool(ranks.all_true(torch.tensor(ok))) for ok in (True, rank == 0)],
            "most": ranks.max_over(3 + rank),
            "calls": ranks.clock.calls,
        }
        fit("meta-weighted-shared", ranks, folder / "one-two-one", stop=5, resume=True)
        fit("meta-weighted-shared", ranks, folder / "two", stop=2)
        results["resumed"] = fit("meta-weighted-shared", ranks, folder / "two", resume=True)
    os.environ["MASTER_PORT"] = str(ports[1])
    results["run"] = ew.train(SETTINGS, folder / "run").history
    torch.save(results, folder / f"{rank}.pt")


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each of two processes found, and the folder that they worked in."""
    folder = tmp_path_factory.mktemp("pair")
    fit("meta-weighted-shared", ALONE, folder / "one-two-one", stop=2)
    torch.multiprocessing.start_processes(worker, (free_ports(2), folder), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)], folder
