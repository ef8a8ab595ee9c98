"""Two processes against one: the same losses, gradients, parameters, metrics and files. All cases run in one pair."""

import os
import socket
from contextlib import nullcontext

import pytest
import torch
import torch.multiprocessing
from torch import nn

from exitwise import anytime, create_method, workflow
from exitwise.cli import main
from exitwise.config import resolve
from exitwise.data import Preprocessing, Split, TrainingBatches
from exitwise.data.sampling import EpochBatches
from exitwise.data.sources import ArraySource
from exitwise.errors import UserError
from exitwise.models.staged import Stage, StagedModel
from exitwise.models.synced_norm import SyncedNorm
from exitwise.ranks import ALONE
from exitwise.training import distributed
from exitwise.training.checkpoint_folder import CheckpointFolder
from exitwise.training.distributed import joined, launched, own_device
from exitwise.training.step import accumulated_step, half_batches, half_step
from exitwise.training.trainer import Silent, Trainer

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
METHODS = ("uniform", "meta-weighted", "meta-weighted-shared")
CASES = [
    ("uniform", "batch", {}),
    ("uniform", "group", {"accumulate": 2}),
    ("meta-weighted", "batch", {"objective": "per-exit", "centering": "all"}),
    ("meta-weighted", "group", {"objective": "share-weighted", "centering": "samples"}),
    ("meta-weighted-shared", "batch", {"objective": "share-weighted", "centering": "samples"}),
    ("meta-weighted-shared", "group", {"objective": "per-exit", "centering": "all"}),
]
"""Method, kind of normalisation, options of the weighting."""


def stage(channels, norm):
    layer = nn.BatchNorm2d(4) if norm == "batch" else nn.GroupNorm(1, 4)
    body = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), layer, nn.ReLU())
    return Stage(body, nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)))


def build(name, norm="batch", **options):
    torch.manual_seed(0)
    model = StagedModel([stage(channels, norm) for channels in (1, 4, 4)], 3, (1, 8, 8)).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    if name == "uniform":
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
        for train, meta in half_batches(*dealt(batch, ranks)):
            with SyncedNorm(ranks) if norm == "batch" and ranks.size > 1 else nullcontext():
                if "accumulate" in options and ranks.size > 1:
                    step = accumulated_step(model, optimizer, method, train, options["accumulate"], 0.1, ranks)
                else:
                    step = half_step(model, optimizer, method, train, meta, index, 0.1, ranks)
            learned = [] if name == "uniform" else [param.grad for param in method.network.parameters()]
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
        accuracies = anytime(workflow.collect_together(model, data, CPU, 0, ranks))
        model.double()
        return accuracies

    return Trainer(
        model,
        optimizer,
        method,
        Doubles(data, 12, 0, rank=ranks.rank, ranks=ranks.size),
        evaluate,
        epochs=2,
        checkpoints=folder and CheckpointFolder(folder),
        checkpoint_every=1,
        reporter=stop and StopAt(stop),
        ranks=ranks,
        sync_batchnorm=True,
    )


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
            "spoiled": [spoil_one_rank(name, ranks, where) for name, where in SPOILED],
            "gathered": ranks.gather(torch.arange(3 - rank) + 10 * rank)[0],
            "agree": [bool(ranks.agree(torch.tensor(ok))) for ok in (True, rank == 0)],
            "most": ranks.most(3 + rank),
            "calls": ranks.clock.calls,
        }
        fit("meta-weighted-shared", ranks, folder / "one-two-one", stop=5, resume=True)
        fit("meta-weighted-shared", ranks, folder / "two", stop=2)
        results["resumed"] = fit("meta-weighted-shared", ranks, folder / "two", resume=True)
    os.environ["MASTER_PORT"] = str(ports[1])
    results["run"] = workflow.train(SETTINGS, folder / "run").history
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


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{name}-{norm}" for name, norm, _ in CASES])
def test_two_processes_step_as_one(pair, number):
    rows, state = steps(CASES[number], ALONE)
    for result in pair[0]:
        theirs, their_state = result["steps"][number]
        torch.testing.assert_close(theirs, rows, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(their_state, state, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_train_and_evaluate_as_one(pair, name):
    history, state = fit(name, ALONE)
    for result in pair[0]:
        theirs, their_state = result["fit"][name]
        assert [row.keys() for row in theirs] == [row.keys() for row in history]
        for row, their_row in zip(history, theirs, strict=True):
            assert their_row == pytest.approx(row, rel=1e-9)
        torch.testing.assert_close(their_state, state, rtol=1e-9, atol=1e-12)


def test_two_processes_resume_bit_for_bit(pair):
    for result in pair[0]:
        history, state = result["fit"]["meta-weighted-shared"]
        again, again_state = result["resumed"]
        assert again == history
        torch.testing.assert_close(again_state, state, rtol=0, atol=0)


def test_from_one_process_to_two_and_back_is_as_one(pair):
    """Stopped after loaded batches 2 and 5, each time within an epoch and with a half waiting to be judged."""
    folder = pair[1] / "one-two-one"
    history, state = fit("meta-weighted-shared", ALONE)
    again, again_state = fit("meta-weighted-shared", ALONE, folder, resume=True)
    for row, other in zip(history, again, strict=True):
        assert other == pytest.approx(row, rel=1e-9)
    torch.testing.assert_close(again_state, state, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("number", range(len(SPOILED)), ids=[f"{name}-{where}" for name, where in SPOILED])
def test_what_is_not_finite_on_one_is_skipped_by_both(pair, number):
    for result in pair[0]:
        assert result["spoiled"][number] == {"taken": False, "same": True, "next": True, "finite": True}


def test_what_processes_tell_one_another(pair):
    for result in pair[0]:
        assert result["gathered"].tolist() == [0, 1, 2, 10, 11]
        assert result["agree"] == [True, False]
        assert result["most"] == 4
        assert result["calls"] > 100


def test_the_first_process_writes_the_run(pair):
    (one, two), folder = pair
    assert one["run"] == two["run"]
    assert (folder / "run" / "metrics.csv").is_file()
    names = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir())
    assert [name for name in names if not name.startswith(".")] == ["best-00000002", "last-00000002"]


@pytest.mark.parametrize(("size", "batch", "ranks"), [(100, 16, 2), (101, 24, 3), (103, 16, 4), (37, 16, 2)])
def test_processes_are_dealt_the_halves_that_one_would_train_on(size, batch, ranks):
    whole = EpochBatches(size, batch, 0)
    shares = [EpochBatches(size, batch, 0, rank, ranks) for rank in range(ranks)]
    assert all(len(share) == len(whole) for share in shares)
    for number, positions in enumerate(whole.positions()):
        parts = [share.positions()[number] for share in shares]
        if shares[0].dealt(number):
            halves = [[part.chunk(2)[half] for part in parts] for half in (0, 1)]
            assert [torch.cat(half).tolist() for half in halves] == [half.tolist() for half in positions.chunk(2)]
            assert max(map(len, parts)) - min(map(len, parts)) <= 2
        else:
            assert len(positions) < 4 * ranks
            assert all(torch.equal(part, positions) for part in parts)


def test_a_batch_too_small_for_the_processes_is_refused():
    with pytest.raises(ValueError, match=r"batch_size must be at least 12, .* in halves by 3 processes; got 11"):
        EpochBatches(100, 11, 0, 0, 3)


def test_shares_of_a_split_make_it_up():
    shares = [split().share(rank, 4) for rank in range(4)]
    assert torch.cat([share.indices for share in shares]).tolist() == list(range(31))


def test_one_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert launched() == (0, 1)
    with joined(CPU, 1) as ranks:
        assert ranks is ALONE


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_a_mistake_that_all_make_is_told_by_the_first(monkeypatch, capsys, rank, lines):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--lr", "-1"])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == lines


def test_what_goes_wrong_in_one_process_is_told_by_that_one(monkeypatch, capsys):
    error = UserError("broken")
    error.add_note("rank 1 of 2")

    def train(*args, **options):
        raise error

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(workflow, "train", train)
    with pytest.raises(SystemExit):
        main(["train"])
    assert capsys.readouterr().err == "exitwise: broken (rank 1 of 2)\n"


def test_half_an_environment_is_refused(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(UserError, match="as torchrun sets them; MASTER_PORT is missing"):
        launched()


def test_a_gpu_for_each_process(monkeypatch):
    monkeypatch.setattr(distributed, "launched", lambda: (1, 2))
    monkeypatch.setenv("LOCAL_RANK", "9999")
    assert own_device(CPU) == CPU
    with pytest.raises(UserError, match="expected device cuda or auto; got cuda:1"):
        own_device(torch.device("cuda:1"))
    with pytest.raises(UserError, match="expected a GPU for each process of this machine; found"):
        own_device(torch.device("cuda"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sync_batchnorm": True, "compile": True}, "sync_batchnorm cannot be compiled"),
        ({"accumulate": 2}, "accumulate goes with method uniform; got meta-weighted"),
        ({"accumulate": 2, "method": "uniform", "sync_batchnorm": True}, "accumulate and sync_batchnorm exclude"),
        ({"process_timeout": 0}, "process_timeout: input should be greater than 0; got 0"),
        ({"allocation": "globl"}, "allocation: input should be 'local' or 'global'; got 'globl'"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        resolve(values)


def test_double_backward_is_for_one_process(monkeypatch, tmp_path):
    monkeypatch.setattr(workflow, "launched", lambda: (0, 2))
    with pytest.raises(UserError, match="double-backward is for one process"):
        workflow.train(resolve({"gradient": "double-backward", "device": "cpu"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
