"""What heads that are handed the answer before answer, beside the formulas; by stages, alone, exported and cut."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import exitwise as ew
from exitwise.errors import UserError
from exitwise.models.links import Boosting, Cascaded, Collaboration, link_heads
from exitwise.settings.schema import resolve

X = torch.randn(5, 1, 8, 8)


def pair(kind):
    """A network, and the same with linked heads."""
    torch.manual_seed(0)
    model = ew.create_model("msdnet_small").eval()
    torch.manual_seed(0)
    linked = ew.create_model("msdnet_small").eval()
    link_heads(linked, partial(kind, 10))
    for name, param in linked.named_parameters():
        if ".link.linear" in name:
            torch.nn.init.normal_(param)
    return model, linked


def formula(stage, logits, before):
    link = stage.body.link
    match link:
        case Boosting():
            return logits + 0.5 * before
        case Collaboration():
            linear, norm, _ = link.seen
            return logits + link.linear(F.relu(norm(linear(before))))
        case Cascaded():
            return logits + link.linear(F.layer_norm(before, (10,), link.norm.weight, link.norm.bias))
    raise AssertionError(link)


@pytest.mark.parametrize("kind", [Boosting, Collaboration, Cascaded])
def test_answers_are_those_of_the_formula(kind):
    model, linked = pair(kind)
    with torch.no_grad():
        found, before = linked(X), None
        for k, (stage, logits) in enumerate(zip(linked.stages, model(X), strict=True)):
            before = logits if k == 0 else formula(stage, logits, before)
            torch.testing.assert_close(found[k], before)
            torch.testing.assert_close(linked.forward_only(X, k), before)
        runner = ew.EarlyExitRunner(linked, ew.calibrate_proportions(torch.rand(20, 4), [0.25] * 4))
        result = runner(X)
    for row, exit in enumerate(result.exit.tolist()):
        torch.testing.assert_close(result.confidence[row], found[exit][row].softmax(0).max())


@pytest.mark.parametrize(("kind", "reaches"), [(Boosting, False), (Collaboration, True), (Cascaded, False)])
def test_whether_a_head_learns_for_the_next(kind, reaches):
    _, linked = pair(kind)
    head = linked.stages[0].body.head.linear.weight
    (gradient,) = torch.autograd.grad(linked.train()(X)[1].square().sum(), head, allow_unused=True)
    assert (gradient is not None) == reaches


def test_flow_is_at_the_feature_and_not_at_the_answer():
    """Below exit 2 of 4 its gradient counts a third, and in its own head all."""
    _, linked = pair(Boosting)
    stage = linked.train().stages[1]
    wanted = [stage.body.head.linear.weight, next(stage.body.body.parameters())]
    plain = torch.autograd.grad(linked(X)[1].square().sum(), wanted)
    linked.flow = ew.create_flow("equilibrium")
    balanced = torch.autograd.grad(linked(X)[1].square().sum(), wanted)
    torch.testing.assert_close(balanced[0], plain[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(balanced[1], plain[1] / 3, rtol=1e-4, atol=1e-5)


def test_its_parameters_are_the_exits():
    _, linked = pair(Collaboration)
    of_heads = {id(param) for stage in linked.stages for param in stage.head_parameters()}
    named = {name for name, param in linked.named_parameters() if id(param) in of_heads}
    assert named == {name for name, _ in linked.named_parameters() if ".body.head." in name or ".link." in name}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"handed_on": "boost"}, "setting handed_on: input should be 'nothing', 'boosting', 'collaboration' or 'casc"),
        ({"handed_on": "collaboration", "boost": 0.3}, "boost is an option of handed_on boosting; handed_on is collab"),
        (
            {"handed_on": "boosting", "model": "timm/resnet10t", "regime": "heads", "pretrained": "hub"},
            "handed_on boosting and regime heads, which fits each head alone, exclude one another",
        ),
        (
            {"handed_on": "cascaded", "model": "timm/resnet10t", "refit_heads": True},
            "handed_on cascaded and refit_heads, which fits each head alone, exclude one another",
        ),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(UserError, match=message):
        resolve(values)
