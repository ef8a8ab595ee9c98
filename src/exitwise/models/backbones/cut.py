"""A traced network cut into stages: each a function of what the one before it hands on."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from exitwise.kernels.inputs import MASK, Inputs
from exitwise.models.backbones.exited import AsTraced, ExitedModel
from exitwise.models.backbones.flow import Flow
from exitwise.models.backbones.places import ExitPoint, Place, looking_back
from exitwise.models.backbones.tracing import DRY_RUN_BATCH, Traced, value_of
from exitwise.models.heads import HeadFactory, OnState, suited_head
from exitwise.models.staged import Stage


def staged(
    traced: Traced,
    places: dict[str, Place],
    points: Sequence[ExitPoint],
    num_classes: int,
    head: str | HeadFactory,
    example: Inputs,
    like: Tensor,
) -> ExitedModel:
    """Return the network in stages; ``like`` has the device and the type that its inputs are to have."""
    cuts = [places[point.name].node for point in points]
    mask = _mask(traced) if any(point.feature.masked for point in points) else None
    classifier = _before_classifier(traced, cuts, num_classes)
    parts = split(traced, cuts if classifier is None else [*cuts, classifier], mask)
    points = looking_back(points, parts[0].body, example, like)
    stages = []
    for part, point in zip(parts, points, strict=False):
        own = suited_head(point.feature, num_classes, head).to(value_of(places[point.name].node).dtype)
        masked = mask is not None and point.feature.masked
        head_on = OnState(own, 1 if masked else None) if part.hands_on > 1 else own
        stages.append(Stage(part.body, head_on, point.feature.dimension))
    parts[0].body.register_forward_pre_hook(AsTraced(traced.read))
    rest = [part.body for part in parts[len(points) :]]
    stages.append(Stage(rest[0], rest[1] if len(rest) > 1 else nn.Identity()))
    return ExitedModel(stages, num_classes, example, points, skips=True)


def _mask(traced: Traced) -> fx.Node | None:
    """Return the input that says which tokens are there, if the network has it."""
    reads = (node for node in traced.module.graph.nodes if node.target is operator.getitem)
    return next((node for node in reads if node.args[0].op == "placeholder" and node.args[1] == MASK), None)


def _before_classifier(traced: Traced, cuts: Sequence[fx.Node], num_classes: int) -> fx.Node | None:
    """Return the last place before the layers that make class scores, if there is one behind the last exit."""
    nodes = list(traced.module.graph.nodes)
    scoring = [
        index
        for index, node in enumerate(nodes)
        if node.op == "call_module"
        and isinstance(value := value_of(node), Tensor)
        and tuple(value.shape[1:]) == (num_classes,)
        and any(True for _ in traced.module.get_submodule(str(node.target)).parameters())
    ]
    if not scoring:
        return None
    alone = Flow(nodes, traced.macs, traced.fixed).cuts()
    after = max((nodes.index(cut) for cut in cuts), default=-1)
    between = [node for node in nodes[after + 1 : scoring[0]] if node in alone]
    return between[-1] if between else None


class Part(NamedTuple):
    """A part of a network: a function of what the one before hands on, and how many tensors it hands on itself.

    One is handed on as it is; several as a tuple that begins with what the part ends at.
    """

    body: nn.Module
    hands_on: int


def split(traced: Traced, cuts: Sequence[fx.Node], kept: fx.Node | None = None) -> list[Part]:
    """Return the parts of a network between cuts; they share its submodules.

    What has a row per sample and is needed later is handed on; the rest is made anew in each part that needs it.

    Args:
        traced: the network.
        cuts: nodes that parts end at, in order.
        kept: a node to hand on, next after those, whether it is needed or not.
    """
    module = traced.module
    nodes = list(module.graph.nodes)
    flow = Flow(nodes, traced.macs, traced.fixed)
    part: dict[fx.Node, int] = {}
    current, ends = 0, set(cuts)
    for node in nodes:
        if node in flow.rows or node.op in ("placeholder", "output") or (node in flow.varying and not node.users):
            part[node] = current
        current += node in ends
    needed = _needed(nodes, part, len(cuts) + 1, flow.sizes)
    carried: list[list[fx.Node]] = []
    for index, cut in enumerate(cuts):
        later = set().union(*needed[index + 1 :])
        others = [node for node in nodes if node in later and part[node] <= index and node not in (cut, kept)]
        carried.append([cut, *([] if kept is None else [kept]), *others])
    parts = []
    for index in range(len(cuts) + 1):
        own = [node for node in nodes if part.get(node) == index]
        given = carried[index - 1] if index else []
        graph = _graph(own, given, carried[index] if index < len(cuts) else [], flow.sizes)
        body = fx.GraphModule(module, graph, type(module).__name__)
        parts.append(Part(body, len(carried[index]) if index < len(cuts) else 0))
    return parts


def _needed(nodes: Sequence[fx.Node], part: dict[fx.Node, int], parts: int, sizes: set[fx.Node]) -> list[set[fx.Node]]:
    """Return what each part needs of others: nodes that belong to a part, straight or by way of those that do not."""
    sources: dict[fx.Node, frozenset[fx.Node]] = {}
    needed: list[set[fx.Node]] = [set() for _ in range(parts)]
    for node in nodes:
        straight = {source for source in node.all_input_nodes if source in part}
        by_way = (sources[source] for source in node.all_input_nodes if source not in part)
        sources[node] = frozenset() if node in sizes else frozenset(straight.union(*by_way))
        if node in part:
            needed[part[node]] |= {source for source in sources[node] if part[source] < part[node]}
    return needed


def _graph(
    own: Sequence[fx.Node], given: Sequence[fx.Node], handed_on: Sequence[fx.Node], sizes: set[fx.Node]
) -> fx.Graph:
    """Return the graph of a part: its own nodes, and what they need that belongs to none.

    Of ``sizes`` of a tensor that is not there, the batch's and the device are those of what is given, others are as in
    the dry run.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    if given:
        state = graph.placeholder("state")
        several = len(given) > 1
        for index, node in enumerate(given):
            copies[node] = graph.call_function(operator.getitem, (state, index)) if several else state

    def size(value: int, dimension: int) -> Any:
        if dimension or value % DRY_RUN_BATCH:
            return value
        batch = graph.call_method("size", (copies[given[0]], 0))
        return batch if value == DRY_RUN_BATCH else graph.call_function(operator.mul, (batch, value // DRY_RUN_BATCH))

    def sized(node: fx.Node) -> Any:
        value = value_of(node)
        if isinstance(value, torch.device):
            return graph.call_function(getattr, (copies[given[0]], "device"))
        if not any(isinstance(value_of(source), Tensor) for source in node.all_input_nodes):
            return value
        if isinstance(value, tuple):
            return tuple(size(part, dimension) for dimension, part in enumerate(value))
        return size(value, next((part for part in node.args[1:] if isinstance(part, int)), 1))

    def put(node: fx.Node) -> Any:
        if node in sizes and given and not all(source in copies for source in node.all_input_nodes):
            copies[node] = sized(node)
        if node not in copies:
            for source in node.all_input_nodes:
                put(source)
            copies[node] = _copy(graph, node, copies)
        return copies[node]

    for node in own:
        put(node)
    if handed_on:
        results = tuple(put(node) for node in handed_on)
        graph.output(results if len(results) > 1 else results[0])
    graph.lint()
    return graph


def _copy(graph: fx.Graph, node: fx.Node, copies: Mapping[fx.Node, Any]) -> fx.Node:
    """Return a copy of a node on copies of its sources, which may be plain values."""
    args: Any = fx.node.map_arg(node.args, lambda source: copies[source])
    kwargs: Any = fx.node.map_arg(node.kwargs, lambda source: copies[source])
    return graph.create_node(node.op, node.target, args, kwargs, node.name, node.type)
