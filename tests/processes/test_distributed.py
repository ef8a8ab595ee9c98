"""Two processes against one: the same losses, gradients, parameters, metrics and files. All cases run in one pair."""

import pytest
import torch

import exitwise as ew
from exitwise.cli import main
from exitwise.data.sampling import EpochBatches
from exitwise.errors import PeerError, UserError
from exitwise.processes import distributed
from exitwise.processes.distributed import joined, launched, own_device
from exitwise.processes.ranks import ALONE, Ranks
from exitwise.settings.schema import resolve
from exitwise.workflows.train import _check_same
from two_processes import CASES, CPU, METHODS, SPOILED, fit, free_ports, heads, split, steps

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=[f"{name}-{norm}" + options.get("flow", "") for name, norm, options in CASES]
)
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


def test_two_processes_keep_and_train_heads_as_one(pair):
    rows, targets, history, state = heads(ALONE)
    for result in pair[0]:
        theirs, their_targets, their_history, their_state = result["heads"]
        torch.testing.assert_close(theirs, rows, rtol=1e-12, atol=1e-12)
        assert torch.equal(their_targets, targets)
        for row, other in zip(history, their_history, strict=True):
            assert other == pytest.approx(row, rel=1e-9)
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
    monkeypatch.setattr("exitwise.workflows.train.train", train)
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


@pytest.mark.parametrize("variables", [{"RANK": "5"}, {"RANK": "2"}, {"WORLD_SIZE": "many"}])
def test_ranks_that_cannot_be_are_refused(monkeypatch, variables):
    right = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in {**right, **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="expected RANK, from 0, below WORLD_SIZE as torchrun sets them; got"):
        launched()


def test_one_that_waits_in_vain_says_so(monkeypatch):
    (port,) = free_ports(1)
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**variables, "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PeerError, match="the 2 processes of this job have not met at"), joined(CPU, 2):
        pass


class Other(Ranks):
    """One of two processes, of which the other says the same but for its learning rate."""

    def gather(self, tensor):
        theirs = bytes(tensor.tolist()).replace(b'"lr": 0.1', b'"lr": 0.001')
        return torch.cat([tensor, torch.tensor(list(theirs), dtype=torch.uint8)]), slice(len(tensor))


def test_other_settings_in_another_process_are_refused():
    settings = resolve({"lr": 0.1})
    _check_same(settings, ALONE)
    with pytest.raises(UserError, match=r"the same settings in all processes; got lr 0.1 and 0.001 \(rank 1\)"):
        _check_same(settings, Other())


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
        ({"accumulate": 2, "method": "meta-weighted"}, "accumulate goes with method uniform.*; got meta-weighted"),
        ({"accumulate": 2, "method": "uniform", "sync_batchnorm": True}, "accumulate and sync_batchnorm exclude"),
        ({"process_timeout": 0}, "process_timeout: input should be greater than 0; got 0"),
        ({"allocation": "globl"}, "allocation: input should be 'local' or 'global'; got 'globl'"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        resolve(values)


def test_double_backward_is_for_one_process(monkeypatch, tmp_path):
    monkeypatch.setattr("exitwise.workflows.train.launched", lambda: (0, 2))
    with pytest.raises(UserError, match="double-backward is for one process"):
        ew.train(resolve({"method": "meta-weighted", "gradient": "double-backward", "device": "cpu"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
