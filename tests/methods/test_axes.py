"""Every part of every axis, and every pair with weights: trains, resumes to the bit, with an exact meta-gradient.

A part of the catalogue is tried by being there. The oracle is the real update of copies, differentiated by central
differences: it sees what the optimizer made of the gradients as they flowed.
"""

import copy
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

import reference
from exitwise.catalogue.axes import AXES
from exitwise.catalogue.links import LINKS
from exitwise.catalogue.methods import METHODS
from exitwise.catalogue.schedules import SCHEDULES
from exitwise.methods import build_method, create_flow, create_loss, in_schedule
from exitwise.models import MSDNet
from exitwise.models.links import link_heads
from exitwise.models.staged import Stage, StagedModel
from exitwise.training.step import half_batches, half_step

CLASSES, EXITS, BATCHES = 3, 3, 2
SHARES = reference.proportions(0.75, EXITS)


class Body(nn.Module):
    """Hands on two tensors, by name or in a tuple, whatever it gets."""

    def __init__(self, inputs, by_name):
        super().__init__()
        self.linear, self.skipped = nn.Linear(inputs, 8), nn.Linear(inputs, 4)
        self.norm, self.by_name = nn.BatchNorm1d(8), by_name

    def forward(self, state):
        parts = [state] if isinstance(state, torch.Tensor) else list(state.values() if self.named(state) else state)
        x = torch.cat(parts, dim=1)
        new, skipped = self.norm(self.linear(x)).tanh_(), self.skipped(x)
        return {"new": new, "skipped": skipped} if self.by_name else (new, skipped)

    @staticmethod
    def named(state):
        return isinstance(state, dict)


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, CLASSES)

    def forward(self, state):
        return self.linear(torch.cat(list(state.values() if Body.named(state) else state), dim=1))


def tiny():
    bodies = [Body(6, True), Body(12, False), Body(12, True)]
    return StagedModel([Stage(body, Head()) for body in bodies], CLASSES, (6,)), (6,)


def maps():
    sizes = {"channels": 4, "growth": 4, "growth_factors": (1, 2), "bottleneck_factors": (1, 2), "head_channels": 4}
    return MSDNet(CLASSES, blocks=EXITS, input_shape=(1, 8, 8), **sizes), (1, 8, 8)


class Training:
    """A small network in float64 with a choice on each axis."""

    def __init__(
        self, method, flow="plain", loss="labels", regime="joint", handed_on="nothing", network=tiny, mode=None
    ):
        torch.manual_seed(0)
        self.model, self.shape = network()
        if handed_on != "nothing":
            link_heads(self.model, partial(LINKS[handed_on].load(), CLASSES))
        self.model.double().train().flow = create_flow(flow)
        self.loss = create_loss(loss)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
        options = METHODS[method].options
        learns = "wpn_zero_init" in options.__dataclass_fields__
        self.method = build_method(method, options(wpn_zero_init=False, wpn_hidden=8) if learns else options(), EXITS)
        if learns:
            self.method.network.double()
            self.method.mode = mode or self.method.mode
        self.weights = self.method
        timing = SCHEDULES[regime].options
        timing = timing(backbone_epochs=1) if regime == "mixed" else timing()
        self.method = in_schedule(regime, self.method, timing, batches_per_epoch=1)

    def batches(self):
        generator = torch.Generator().manual_seed(1)
        for _ in range(BATCHES):
            x = torch.randn(14, *self.shape, generator=generator, dtype=torch.float64)
            teacher = torch.randn(14, CLASSES, generator=generator, dtype=torch.float64)
            yield x, torch.randint(CLASSES, (14,), generator=generator), teacher

    def steps(self, start=0):
        """Train on the batches from ``start`` on; yields what a step begins with, and then the step."""
        for index, batch in enumerate(self.batches()):
            if index < start:
                continue
            self.method.begin(index, index / BATCHES)
            self.model.flow.progress = index / BATCHES
            for train, meta in half_batches(*batch):
                before = copy.deepcopy((self.model, self.optimizer))
                yield before, train, meta, half_step(*self.parts, train, meta, index, self.loss)

    @property
    def parts(self):
        return self.model, self.optimizer, self.method


def updated(before, train, weights, loss):
    """Copies of network and optimizer after a real step with these weights."""
    model, optimizer = copy.deepcopy(before)
    optimizer.zero_grad()
    logits = torch.stack(model(train[0]), dim=1)
    total, extra = reference.weighted(loss.of(logits, *train[1:]), weights), loss.extra(logits, train[1])
    (total if extra is None else total + extra).backward()
    optimizer.step()
    return model


def meta_gradient_at(model, meta, loss):
    """The gradient of the meta loss with respect to the parameters, by a network without flow."""
    model.flow = None
    logits = torch.stack(model(meta[0]), dim=1)
    leaves = reference.take_most_confident(logits.detach().softmax(dim=2).amax(dim=2), SHARES)
    judged = reference.meta_loss(loss.of(logits, *meta[1:]), leaves, "share-weighted")
    return torch.autograd.grad(judged, list(model.parameters()))


def slope(before, train, meta, weights, direction, loss):
    """How the meta loss changes with the weights: its gradient times a difference of really updated parameters."""
    gradient = meta_gradient_at(updated(before, train, weights, loss), meta, loss)
    ahead, behind = (updated(before, train, weights + h * direction, loss).parameters() for h in (1e-3, -1e-3))
    return sum(float((g * (a - b).detach()).sum()) for g, a, b in zip(gradient, ahead, behind, strict=True)) / 2e-3


def slopes(training, monkeypatch):
    """Return pairs of the meta-gradient along a direction, as it was taken, and by differences of real updates."""
    taken, past, found = [], [], []
    monkeypatch.setattr(training.weights, "learn", lambda forward, gradient, ok: taken.append((forward, gradient)))
    for before, train, meta, step in training.steps():
        past.append((before, train, step.weights))
        if not taken:
            continue
        forward, gradient = taken.pop()
        start, half, weights = next(each for each in past if each[1][0].equal(forward.inputs))
        judge = train if half is not train else meta
        direction = torch.randn_like(gradient)
        counted = direction * (weights != 0)  # where an exit has not joined, its weight is 0 whatever the method says
        difference = slope(start, half, judge, weights, counted, training.loss)
        found.append((float((gradient * direction).sum()), difference))
    return found


PAIRS = [
    (method, axis, part)
    for method in METHODS
    for axis, parts in AXES.items()
    if axis != "method"
    for part in parts.parts
]
LEARNED = [pair for pair in PAIRS if pair[0].startswith("meta-weighted")]


def several(method, flow, loss, regime):
    parts = {"flow": flow, "loss": loss, "regime": regime, "handed_on": "boosting"}
    return pytest.param(method, parts, id=f"{method} and more")


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        *(pytest.param(method, {axis: part}, id=f"{method}-{axis}-{part}") for method, axis, part in LEARNED),
        several("meta-weighted", "equilibrium", "distil-last", "deepest-first"),
        several("meta-weighted-shared", "partition", "margin", "deepest-first"),
    ],
)
def test_the_meta_gradient_is_that_of_real_updates(method, parts, monkeypatch):
    found = slopes(Training(method, **parts), monkeypatch)
    assert len(found) >= (1 if parts.get("regime") == "mixed" else 2 * BATCHES - 1)
    for exact, difference in found:
        assert exact == pytest.approx(difference, rel=1e-6, abs=1e-10)
        assert abs(exact) > 1e-7


@pytest.mark.parametrize("flow", ["equilibrium", "partition"])
def test_double_backward_gives_the_same_on_maps(flow):
    gradients = []
    for method, mode in product(["meta-weighted", "meta-weighted-shared"], ["forward", "double-backward"]):
        training = Training(method, flow, network=maps, mode=mode)
        for _ in zip(training.steps(), range(2), strict=False):
            pass
        gradients.append(training.method.network.layers[0].weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-7, atol=1e-13)
    torch.testing.assert_close(gradients[2], gradients[3], rtol=1e-7, atol=1e-13)


@pytest.mark.parametrize(("method", "axis", "name"), PAIRS)
def test_resumes_to_the_bit(method, axis, name):
    whole, part = Training(method, **{axis: name}), Training(method, **{axis: name})
    states = [None]
    for number, _ in enumerate(whole.steps(), start=1):
        if number == 2:
            states = copy.deepcopy([each.state_dict() for each in whole.parts])
    for each, state in zip(part.parts, states, strict=True):
        each.load_state_dict(state)
    for _ in part.steps(start=1):
        pass
    torch.testing.assert_close(part.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
