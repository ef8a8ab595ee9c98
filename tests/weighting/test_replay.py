"""Networks whose training pass reads what it updates, or draws random numbers from elsewhere."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from exitwise.weighting.calls import trainable
from exitwise.weighting.gradient import meta_gradient
from exitwise.weighting.passes import train_pass
from exitwise.weighting.replay import (
    RandomState,
    numpy_state,
    python_state,
    set_numpy_state,
    set_python_state,
)
from exitwise.weighting.tangents import loss_tangents


class Renorm(nn.Module):
    """Normalises by a running scale that it updates in the same pass."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        scale = 0.5 * self.scale + 0.5 * x.detach().std()
        if self.in_place:
            self.scale.copy_(scale)
        else:
            self.scale = scale
        return x / scale


class Codebook(nn.Module):
    """Adds the nearest of some vectors, which move towards what they are near to."""

    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.randn(5, 16))

    def forward(self, x):
        nearest = torch.cdist(x.detach(), self.codes).argmin(1)
        result = x + self.codes[nearest]
        self.codes.index_copy_(0, nearest, x.detach() * 0.3 + self.codes[nearest] * 0.7)
        return result


class Scaled(nn.Module):
    """Multiplies by a drawn number."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x * (0.5 + self.draw())


class Holds(nn.Module):
    """Draws from a generator of its own."""

    def __init__(self, generator, draw):
        super().__init__()
        self.generator, self.draw = generator, draw

    def forward(self, x):
        return x * (0.5 + self.draw(self.generator))


class Network(nn.Module):
    def __init__(self, odd):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
        self.odd = odd
        self.second = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
        self.heads = nn.ModuleList([nn.Linear(16, 3), nn.Linear(16, 3)])

    def forward(self, x):
        x = self.odd(self.first(x))
        return [self.heads[0](x), self.heads[1](self.second(x))]


ODD = {
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16)),
    "spectral norm, old": lambda: nn.utils.spectral_norm(nn.Linear(16, 16)),
    "a running scale, written in place": lambda: Renorm(True),
    "a running scale, replaced": lambda: Renorm(False),
    "codebook": Codebook,
    "NumPy's random numbers": lambda: Scaled(np.random.rand),
    "an own generator": lambda: Holds(torch.Generator(), lambda own: torch.rand((), generator=own)),
    "an own generator of Python": lambda: Holds(random.Random(1), lambda own: own.random()),
    "an own generator of NumPy": lambda: Holds(np.random.default_rng(1), lambda own: own.random()),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_a_pass_reads_and_draws_comes_again(odd):
    model = Network(odd()).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = train_pass(model, torch.randn(8, 6).double(), torch.randint(3, (8,)), keep=True)
    meta = (torch.randn(8, 6).double(), torch.randint(3, (8,)))
    weights = torch.rand_like(run.losses)
    before = copy.deepcopy(model.state_dict())
    found = []
    for mode in ("double-backward", "forward", "finite-difference"):
        with RandomState.capture(torch.device("cpu"), model).replayed():  # the meta pass draws the same each time
            found.append(meta_gradient(model, optimizer, run, weights, meta, [0.6, 0.4], mode=mode).weights)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(found[1], found[0], rtol=1e-7, atol=1e-12)
    # Differences see what the network computes without gradients, too.
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=0.1 * float(found[0].abs().max()))


class Annealed(nn.Module):
    """Counts its passes where nobody can see it."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return x / (1 + self.passes)


@pytest.mark.parametrize("mode", ["forward", "finite-difference", "double-backward"])
@pytest.mark.parametrize("keep", [True, False])
def test_what_cannot_be_replayed_is_refused_by_name(mode, keep):
    model = Network(Annealed())
    run = train_pass(model, torch.randn(8, 6), torch.randint(3, (8,)), keep=keep)
    params = trainable(model)
    tangents = {name: torch.randn_like(param) for name, param in params.items()}
    with pytest.raises(ValueError, match=r"the same losses when a training pass is run again, .* odd \(Annealed\)"):
        loss_tangents(model, params, tangents, run, mode)


def test_global_generators_draw_again_and_go_on():
    def draw():
        return random.random(), np.random.rand(), float(torch.rand(()))

    state = RandomState.capture(torch.device("cpu"))
    set_python_state(state.python)  # the shape checks of the tests draw from it
    drawn = draw()
    after = python_state(), numpy_state(), torch.get_rng_state()
    with state.replayed():
        set_python_state(state.python)
        assert draw() == drawn
    assert all(map(torch.equal, (numpy_state(), torch.get_rng_state()), after[1:]))


def test_states_of_global_generators_come_back_to_the_bit():
    random.gauss(0, 1)
    np.random.randn()
    python, numpy = python_state(), numpy_state()
    expected = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()]
    random.seed(5)
    np.random.seed(5)
    set_python_state(python)
    set_numpy_state(numpy)
    assert [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn()] == expected
