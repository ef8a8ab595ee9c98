"""Fast paths give what the plain path gives, within their precision."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from exitwise import create_method, create_model
from exitwise.data import Preprocessing, TrainingBatches, load
from exitwise.errors import UserError
from exitwise.settings.schema import resolve
from exitwise.training.compiled import check_compiler, compile_network
from exitwise.training.flags import training_flags
from exitwise.training.step import half_step
from exitwise.training.trainer import Trainer
from exitwise.weighting.calls import trainable
from exitwise.weighting.passes import train_pass
from exitwise.weighting.tangents import loss_tangents
from images import make_folder

SHARES = [0.4, 0.3, 0.2, 0.1]
METHODS = {
    "uniform": {},
    "meta-weighted": {"proportions": SHARES, "hidden": 8, "lr": 0.01, "zero_init": False},
    "meta-weighted-shared": {"proportions": SHARES, "hidden": 8, "lr": 0.01, "zero_init": False},
}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    root = make_folder(tmp_path_factory.mktemp("data"))
    return load(str(root), Preprocessing(8, (0.5,) * 3, (0.25,) * 3, "crop")).train


def train(split, method, **options):
    torch.manual_seed(3)  # with which no two samples come so near that rounding decides who leaves earlier
    model = create_model("msdnet_small", num_classes=3, input_shape=(3, 8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    learner = create_method(method, **METHODS[method])
    batches = TrainingBatches(split, 12, 0)
    trainer = Trainer(model, optimizer, learner, batches, lambda: [0.0] * 4, epochs=1, **options)
    (row,) = trainer.fit()
    return row, model, learner


@pytest.mark.parametrize("method", METHODS)
def test_channels_last_trains_as_the_plain_path(method, split):
    plain, fast = train(split, method), train(split, method, channels_last=True)
    assert fast[0] == pytest.approx(plain[0], rel=1e-4)
    torch.testing.assert_close(fast[1].state_dict(), plain[1].state_dict(), rtol=1e-3, atol=1e-5)
    convolution = next(m for m in fast[1].modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("method", METHODS)
def test_bf16_trains_near_the_plain_path_and_keeps_float32_where_it_matters(method, split):
    plain, fast = train(split, method), train(split, method, bf16=True)
    assert fast[0]["loss"] == pytest.approx(plain[0]["loss"], rel=0.02)
    assert all(param.dtype == torch.float32 for param in fast[1].parameters())
    if method != "uniform":
        assert all(param.dtype == torch.float32 for param in fast[2].network.parameters())


def test_tangents_do_not_know_of_autocast():
    torch.manual_seed(0)
    model = create_model("msdnet_small").train()
    x, y = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
    params = trainable(model)
    directions = {name: torch.randn_like(param) for name, param in params.items()}
    expected = loss_tangents(model, params, directions, train_pass(model, x, y, keep=True))
    with torch.autocast("cpu", torch.bfloat16):
        run = train_pass(model, x, y, keep=True)
        assert run.kept is None
        assert run.logits.dtype == torch.float32
        torch.testing.assert_close(loss_tangents(model, params, directions, run), expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match="autocast is on"):
            loss_tangents(model, params, directions, run, "finite-difference")


class Two(nn.Module):
    """Two exits, small enough to be compiled in a test."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh())
        self.first, self.last = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        features = self.body(x).mean((2, 3))
        return [self.first(features), self.last(features**2)]


@pytest.fixture
def _twice():
    """A compiled graph may be used twice."""
    with training_flags(compiled=True):
        yield


def test_flags_are_restored():
    before = torch.backends.cudnn.allow_tf32, torch._functorch.config.donated_buffer
    with training_flags(tf32=True, compiled=True):
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
        assert not torch._functorch.config.donated_buffer
    assert (torch.backends.cudnn.allow_tf32, torch._functorch.config.donated_buffer) == before


@pytest.mark.usefixtures("_twice")
@pytest.mark.parametrize("method", METHODS)
def test_a_compiled_network_trains_as_the_plain_one(method):
    torch.manual_seed(0)
    options = METHODS[method] | ({"proportions": [0.6, 0.4]} if METHODS[method] else {})
    x, y = torch.randn(12, 1, 6, 6), torch.randint(3, (12,))
    halves = ((x[:6], y[:6]), (x[6:], y[6:]))
    start = Two()
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model, learner = copy.deepcopy(start), create_method(method, **options)
        if compiled:
            compile_network(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            for train_half, meta_half in (halves, halves[::-1]):
                half_step(model, optimizer, learner, train_half, meta_half, 0)
        results.append([model.state_dict(), learner.state_dict().get("network")])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("_twice")
@pytest.mark.parametrize("between", [nn.Tanh, partial(nn.SiLU, inplace=True)])
def test_forward_mode_uses_what_a_compiled_network_has_computed(between):
    torch.manual_seed(0)
    model = Two()
    model.body.insert(1, between())
    x, y = torch.randn(6, 1, 6, 6), torch.randint(3, (6,))
    params = trainable(model)
    directions = {name: torch.randn_like(param) for name, param in params.items()}
    expected = loss_tangents(model, params, directions, train_pass(model, x, y))
    compile_network(model)
    run = train_pass(model, x, y, keep=True)
    convolution, *logits = (call.unchanged for call in run.kept.calls if call.output is not None)
    torch.testing.assert_close(convolution, model.body[0](x).detach())
    assert len(logits) == 2
    torch.testing.assert_close(loss_tangents(model, params, directions, run), expected)


@pytest.mark.usefixtures("_twice")
def test_what_was_computed_with_a_mask_of_its_own_is_not_used():
    torch.manual_seed(0)
    model = Two()
    model.body.append(nn.Dropout())
    x, y = torch.randn(6, 1, 6, 6), torch.randint(3, (6,))
    assert train_pass(model, x, y, keep=True).kept is not None
    compile_network(model)
    params = trainable(model)
    directions = {name: torch.randn_like(param) for name, param in params.items()}
    run = train_pass(model, x, y, keep=True)
    assert run.kept is None
    found = loss_tangents(model, params, directions, run)  # with the same mask nevertheless
    for loss, tangent in zip(run.losses.flatten(), found.flatten(), strict=True):
        gradients = torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True)
        pairs = zip(gradients, directions.values(), strict=True)
        torch.testing.assert_close(tangent, sum((g * d).sum() for g, d in pairs if g is not None))


def test_compile_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"compile needs a C\+\+ compiler \(no-such-compiler\).*leave compile off"):
        check_compiler(torch.device("cpu"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"precision": "tf32", "gradient": "finite-difference"},
            "tf32 drowns a finite difference .* gradient forward",
        ),
        (
            {"precision": "bf16", "gradient": "finite-difference"},
            "bf16 drowns a finite difference .* gradient forward",
        ),
        (
            {"compile": True, "gradient": "double-backward"},
            "compile cannot be differentiated twice .* forward",
        ),
        ({"channels_last": True, "gradient": "double-backward"}, "channels_last cannot be differentiated twice"),
    ],
)
def test_combinations_that_cannot_be_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        resolve({**values, "method": "meta-weighted"})
    resolve({key: value for key, value in values.items() if key != "gradient"} | {"method": "uniform"})
