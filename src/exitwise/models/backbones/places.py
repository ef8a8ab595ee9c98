"""Where exits can go on a network, and which of these places to take.

Knows torch.fx graphs and feature shapes; neither where a backbone comes from nor how it will be trained.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from exitwise.errors import ExitwiseWarning, UserError, near_match
from exitwise.kernels.inputs import MASK, Inputs, batch_of, is_tokens, named
from exitwise.models.backbones.flow import Flow
from exitwise.models.backbones.tracing import Traced, is_layer, value_of
from exitwise.models.heads import Feature


class ExitPoint(NamedTuple):
    """A place where an exit can go.

    Attributes:
        name: the submodule whose output the exit sees.
        share: share of the backbone's multiply-accumulates that are spent up to there, in [0, 1].
        feature: what is there.
    """

    name: str
    share: float
    feature: Feature


class Place(NamedTuple):
    point: ExitPoint
    node: Any
    block: bool
    """Whether a submodule that ends here is one of a row of blocks."""
    wide: bool = False
    """Whether other tensors that cost something are needed later, too."""


def find_places(traced: Traced, backbone: nn.Module, example: Inputs) -> dict[str, Place]:
    """Return name to place, for all nodes that everything later depends on alone; where several submodules end at
    one, the outermost names it."""
    blocks = block_names(backbone)
    block_ends = {node for name, node in traced.outputs.items() if name in blocks}
    nodes = list(traced.module.graph.nodes)
    spent = dict(zip(nodes, accumulate(traced.macs.get(node, 0) for node in nodes), strict=True))
    flow = Flow(nodes, traced.macs, traced.fixed)
    alone = flow.cuts()
    possible = alone | (flow.wide_cuts() & block_ends)
    outermost: dict[fx.Node, str] = {}
    for name, node in traced.outputs.items():
        if name and node in possible and (node not in outermost or len(name) < len(outermost[node])):
            outermost[node] = name
    places = {}
    for node in nodes:
        if node not in outermost or not 0 < spent[node] < spent[nodes[-1]]:
            continue
        name = outermost[node]
        feature = feature_at(backbone, name, value_of(node).shape, example)
        if feature is not None and not _is_overwritten(traced.module, node):
            point = ExitPoint(name, spent[node] / spent[nodes[-1]], feature)
            places[name] = Place(point, node, node in block_ends, node not in alone)
    outer: dict[float, int] = {}
    for name, place in places.items():
        outer[place.point.share] = min(name.count("."), outer.get(place.point.share, name.count(".")))
    return {  # of wide places at the same cost, the outermost, where the least is handed on
        name: place for name, place in places.items() if not place.wide or name.count(".") == outer[place.point.share]
    }


def _is_overwritten(module: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether what comes next writes to a node's result in place, so that an exit could not be
    differentiated there."""
    for user in node.users:
        if user.op == "call_module" and getattr(module.get_submodule(str(user.target)), "inplace", False):
            return True
        if user.op == "call_method" and str(user.target).endswith("_") and not str(user.target).endswith("__"):
            return True
        if user.kwargs.get("inplace") is True or getattr(user.target, "__name__", "").startswith("__i"):
            return True
        if user.op == "call_function" and getattr(user.target, "__name__", "") in _IN_PLACE:
            return True
    return False


_IN_PLACE = frozenset({"iadd", "isub", "imul", "itruediv", "relu_", "add_", "mul_"})


def block_names(backbone: nn.Module) -> set[str]:
    """Return names of submodules that are built of others, layers aside, and have a sibling of their class."""
    names = set()
    for path, parent in backbone.named_modules():
        kinds = Counter(type(child) for child in parent.children())
        for name, child in parent.named_children():
            if kinds[type(child)] > 1 and any(child.children()) and not is_layer(child):
                names.add(f"{path}.{name}".removeprefix("."))
    return names


def feature_at(backbone: nn.Module, name: str, shape: Sequence[int], example: Inputs) -> Feature | None:
    """Return the kind of feature that a submodule gives as a tensor of this shape (batch first); None if it is none."""
    if len(shape) < 2:
        return None
    return _known_feature(backbone, name, shape, example) or Feature("unknown", 0, tuple(shape[1:]))


def _known_feature(backbone: nn.Module, name: str, shape: Sequence[int], example: Inputs) -> Feature | None:
    inputs = named(example)
    images = [tensor for tensor in inputs.values() if tensor.dim() == 4]
    if len(images) == 1:
        return Feature.of(shape, _prefix_tokens(backbone), (images[0].shape[2], images[0].shape[3]))
    if len(shape) != 3:
        return Feature("vector", shape[1], ()) if len(shape) == 2 else None
    if any(is_tokens(tensor) and tensor.shape[1] == shape[1] for tensor in inputs.values()):
        return Feature("tokens", shape[2], (shape[1],), prefix=1, masked=MASK in inputs)
    first = _channels_first(backbone.get_submodule(name))
    if first is None:
        return None
    return Feature("row", shape[1], (shape[2],)) if first else Feature("tokens", shape[2], (shape[1],))


def looking_back(points: Sequence[ExitPoint], body: nn.Module, example: Inputs, like: Tensor) -> list[ExitPoint]:
    """Return the points, of tokens that see only those before them with features that say so.

    Told by what ``body``, the network up to the first point, makes of the first token when the second one changes.
    """
    tokens = {name: tensor for name, tensor in named(example).items() if is_tokens(tensor) and name != MASK}
    if not points or points[0].feature.kind != "tokens" or not tokens:
        return list(points)
    inputs = named(batch_of(example, 1, like))
    name, ids = next((pair for pair in tokens.items() if int(pair[1].max()) > 1), next(iter(tokens.items())))
    if ids.shape[1] < 2:
        return list(points)
    changed = inputs[name].clone()
    changed[:, 1] = changed[:, 0] if int(changed[0, 1]) != int(changed[0, 0]) else int(ids.max()) - int(changed[0, 1])
    pair = [inputs, {**inputs, name: changed}]
    with torch.no_grad():
        states = [body(each if isinstance(example, dict) else each[""]) for each in pair]
    before, after = (state if isinstance(state, Tensor) else state[0] for state in states)
    if not torch.equal(before[:, 0], after[:, 0]):
        return list(points)
    return [
        point._replace(feature=point.feature._replace(prefix=0, causal=True))
        if point.feature.kind == "tokens"
        else point
        for point in points
    ]


def _prefix_tokens(backbone: nn.Module) -> int | None:
    """Return how many tokens stand for no part of the image, where the backbone says so (timm's do)."""
    prefix = getattr(backbone, "num_prefix_tokens", None)
    return prefix if isinstance(prefix, int) else None


_FIRST = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.GroupNorm, nn.InstanceNorm1d)
_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)


def _channels_first(module: nn.Module) -> bool | None:
    """Return whether what a module gives has its channels before its length, as its last layer has; None if no layer
    tells."""
    for part in reversed(list(module.modules())):
        if isinstance(part, (*_FIRST, *_LAST)):
            return isinstance(part, _FIRST)
    return None


def choose(places: dict[str, Place], exits: int, at: Sequence[str] | None, hint: str) -> list[ExitPoint]:
    if at is not None:
        unknown = [name for name in at if name not in places]
        if unknown:
            raise UserError(
                f"no exit can go after {unknown[0]!r}; {near_match(unknown[0], places)} "
                f"(exits can go after {', '.join(places)})"
            )
        points = [places[name].point for name in at]
        if any(a.share > b.share for a, b in pairwise(points)) or len(set(at)) < len(at):
            raise UserError(f"expected exits in the order of the network, each once; got {', '.join(at)}")
        return points
    known = [place for place in places.values() if place.point.feature.kind != "unknown"]
    useful = [place for place in known if CHEAPEST <= place.point.share <= DEAREST]
    if len(useful) < exits - 1:
        raise UserError(
            f"expected at most {len(useful) + 1} exits, for that many places between {100 * CHEAPEST:.0f} and "
            f"{100 * DEAREST:.0f} % of the cost; got {exits}{hint} (skip=False evaluates all exits together, without "
            "skipping)"
        )
    targets = [k / exits for k in range(1, exits)]

    def choices(wide: bool) -> list[list[ExitPoint]]:
        """Of the ends of blocks, and of all places; of all that go on with several tensors only if ``wide``."""
        found = [place for place in useful if wide or not place.wide]
        sets = [[place.point for place in found if place.block], [place.point for place in found]]
        return [_nearest(candidates, targets) for candidates in sets if len(candidates) >= exits - 1]

    possible = choices(wide=False)
    if not any(_saves(points) for points in possible):
        possible = [*possible, *choices(wide=True)]
    best = next((points for points in possible if not _useless(points, targets)), None)
    if best is None:
        best = min(possible, key=lambda points: _distance(points, targets))
        warnings.warn(_useless(best, targets), ExitwiseWarning, stacklevel=3)
    return best


def _saves(points: Sequence[ExitPoint]) -> bool:
    """Return whether there is nothing to ask of these places, or one of them is apart from its neighbours."""
    shares = [0.0, *(point.share for point in points), 1.0]
    return not points or any(
        min(share - before, after - share) >= APART
        for before, share, after in zip(shares, shares[1:], shares[2:], strict=False)
    )


def _distance(points: Sequence[ExitPoint], targets: Sequence[float]) -> float:
    return sum((point.share - target) ** 2 for point, target in zip(points, targets, strict=True))


APART = 0.08
"""Share of the cost that two exits should be apart, where there are few of them."""


def _useless(points: Sequence[ExitPoint], targets: Sequence[float]) -> str:
    """Return what is wrong with these places for exits near these shares of the cost; nothing if nothing is."""
    spacing = 1 / (len(targets) + 1)
    for point, target in zip(points, targets, strict=True):
        if abs(point.share - target) > spacing / 2:
            return (
                f"the exit after {point.name} lies at {100 * point.share:.0f} % of the cost, for want of places near "
                f"{100 * target:.0f} %"
            )
    for before, after in pairwise(points):
        if after.share - before.share < min(APART, spacing / 2):
            return (
                f"the exits after {before.name} and {after.name} lie at {100 * before.share:.0f} and "
                f"{100 * after.share:.0f} % of the cost: one of them will save little"
            )
    return ""


CHEAPEST, DEAREST = 0.04, 0.96
"""Shares of the cost between which exits are put where their places are not given."""


def _nearest(candidates: Sequence[ExitPoint], targets: Sequence[float]) -> list[ExitPoint]:
    """Return one candidate per target share, in order, each once: those of least total squared distance."""
    best: list[tuple[float, list[ExitPoint]]] = [(float("inf"), []) for _ in range(len(targets) + 1)]
    best[0] = (0.0, [])
    for point in candidates:
        for chosen in range(len(targets), 0, -1):
            cost, points = best[chosen - 1]
            cost += (point.share - targets[chosen - 1]) ** 2
            if cost < best[chosen][0]:
                best[chosen] = (cost, [*points, point])
    return best[-1][1]
