"""Steps that are not finite leave everything as it was."""

import copy

import pytest
import torch

from exitwise import create_method, create_model
from exitwise.training.meters import Meters, SkippedRow
from exitwise.training.step import half_batches, half_step
from exitwise.weighting.guard import restore_unless

SHARES = [0.4, 0.3, 0.2, 0.1]
METHODS = {
    "uniform": lambda: create_method("uniform"),
    "meta-weighted": lambda: create_method("meta-weighted", proportions=SHARES, hidden=8, lr=0.01),
    "meta-weighted-shared": lambda: create_method("meta-weighted-shared", proportions=SHARES, hidden=8, lr=0.01),
}
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "fused sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, fused=True),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3),
    "fused adamw": lambda params: torch.optim.AdamW(params, lr=1e-3, fused=True),
}


def halves(seed, spoil=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 1, 8, 8, generator=generator)
    y = torch.randint(10, (12,), generator=generator)
    train, meta = next(half_batches(x, y))
    if spoil:
        train[0][3] = torch.nan
    return train, meta


def state(model, optimizer, method):
    return copy.deepcopy([model.state_dict(), optimizer.state_dict(), method.state_dict()])


def without_pending(state):
    """The shared step may note what it waits for; what it has learned must stay."""
    return [{key: value for key, value in part.items() if key != "pending"} for part in state]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_spoiled_first_half_leaves_nothing_behind(optimizer):
    def train(*spoiled):
        torch.manual_seed(0)
        model = create_model("msdnet_small").train()
        training = model, OPTIMIZERS[optimizer](model.parameters()), METHODS["uniform"]()
        for spoil in (*spoiled, False, False):
            half_step(*training, *halves(1, spoil), 0)
        return model.state_dict()

    torch.testing.assert_close(train(True), train(), rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", METHODS)
def test_a_spoiled_half_changes_nothing_and_training_goes_on(name, optimizer):
    torch.manual_seed(0)
    model = create_model("msdnet_small").train()
    training = model, OPTIMIZERS[optimizer](model.parameters()), METHODS[name]()
    for seed in range(2):
        assert half_step(*training, *halves(seed), 0).taken
    before = state(*training)
    assert not half_step(*training, *halves(2, spoil=True), 0).taken
    torch.testing.assert_close(without_pending(state(*training)), without_pending(before), rtol=0, atol=0)
    for seed in (3, 4):
        assert half_step(*training, *halves(seed), 0).taken
    after = state(*training)
    assert all(tensor.isfinite().all() for part in after[:1] for tensor in part.values())
    if name != "uniform":
        learned = after[2]["network"]
        assert all(tensor.isfinite().all() for tensor in learned.values())
        assert any(not torch.equal(tensor, before[2]["network"][key]) for key, tensor in learned.items())


def test_a_spoiled_meta_half_skips_the_step_too():
    torch.manual_seed(0)
    model = create_model("msdnet_small").train()
    training = model, torch.optim.SGD(model.parameters(), lr=0.05), METHODS["meta-weighted"]()
    train, meta = halves(0)
    before = state(*training)
    assert not half_step(*training, train, (torch.full_like(meta[0], torch.inf), meta[1]), 0).taken
    torch.testing.assert_close(state(*training), before, rtol=0, atol=0)


def test_a_gradient_that_overflows_skips_the_step_too():
    class Root(torch.nn.Module):
        """Finite values, infinite slope."""

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1, 3))

        def forward(self, x):
            return [x[:, :1] + self.weight.sqrt()]

    model = Root()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(4, 1), torch.zeros(4, dtype=torch.int64)
    assert not half_step(model, optimizer, METHODS["uniform"](), batch, batch, 0).taken
    assert torch.equal(model.weight.detach(), torch.zeros(1, 3))


@pytest.mark.parametrize("updates", [0, 2])
@pytest.mark.parametrize("name", ["meta-weighted", "meta-weighted-shared"])
def test_where_a_gradient_alone_overflows_the_weight_network_unlearns(name, updates, monkeypatch):
    torch.manual_seed(0)
    model = create_model("msdnet_small").train()
    method = METHODS[name]()
    training = model, torch.optim.SGD(model.parameters(), lr=0.05), method
    if name == "meta-weighted-shared":
        half_step(*training, *halves(9), 0)  # of which it learns a half step later
    for seed in range(updates):
        half_step(*training, *halves(seed), 0)
    before = state(*training)
    steps = []
    method.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    monkeypatch.setattr("exitwise.training.step.gradient_norm", lambda params: torch.tensor(torch.inf))
    assert not half_step(*training, *halves(5), 0).taken
    assert len(steps) == 1
    after = state(*training)
    torch.testing.assert_close(after[:2], before[:2], rtol=0, atol=0)
    torch.testing.assert_close(after[2]["network"], before[2]["network"], rtol=0, atol=0)
    for index, entry in after[2]["optimizer"]["state"].items():
        fresh = {key: torch.zeros_like(value) for key, value in entry.items()}
        torch.testing.assert_close(entry, before[2]["optimizer"]["state"].get(index, fresh), rtol=0, atol=0)


def test_the_shared_step_learns_nothing_from_a_step_that_was_skipped():
    """As if the spoiled half had not been in the chain, except that the half before it goes unjudged."""
    torch.manual_seed(0)
    model = create_model("msdnet_small").train()
    training = model, torch.optim.SGD(model.parameters(), lr=0.05), METHODS["meta-weighted-shared"]()
    half_step(*training, *halves(0), 0)
    half_step(*training, *halves(1, spoil=True), 0)
    learned = copy.deepcopy(training[2].network.state_dict())
    assert half_step(*training, *halves(2), 0).taken
    torch.testing.assert_close(training[2].network.state_dict(), learned, rtol=0, atol=0)


def test_meters_count_skipped_steps_apart():
    torch.manual_seed(0)
    model = create_model("msdnet_small").train()
    training = model, torch.optim.SGD(model.parameters(), lr=0.05), METHODS["meta-weighted"]()
    meters, alone = Meters(4, torch.device("cpu")), Meters(4, torch.device("cpu"))
    step = half_step(*training, *halves(0), 0)
    meters.add(step)
    alone.add(step)
    meters.add(half_step(*training, *halves(1, spoil=True), 0))
    assert meters.means() == {**alone.means(), "skipped_steps": 1}


@pytest.mark.parametrize("pattern", ["0" * 9 + "1" + "0" * 9, "0" * 10, "1" + "0" * 10 + "1"])
def test_ten_in_a_row_end_it(pattern):
    class Step:
        def __init__(self, taken):
            self.taken = torch.tensor(taken == "1")

    row = SkippedRow(torch.device("cpu"))
    for taken in pattern:
        row.add(Step(taken))
    assert row.at_end == ("0" * 10 in pattern)


@pytest.mark.parametrize("ok", [True, False])
def test_buffers_come_back_unless_ok(ok):
    tensors = [torch.zeros(2), torch.tensor(3)]
    restore_unless(torch.tensor(ok), tensors, [torch.ones(2), torch.tensor(4)])
    assert [tensor.tolist() for tensor in tensors] == ([[0, 0], 3] if ok else [[1, 1], 4])
