"""A traced network cut into stages: each a function of what the one before it hands on."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, fx, nn

from exitwise.kernels.inputs import MASK, Inputs
from exitwise.models.backbones.exited import ExitedModel
from exitwise.models.backbones.flow import cut_nodes, nodes_with_rows, varying_nodes
from exitwise.models.backbones.places import ExitPoint, Place, looking_back
from exitwise.models.backbones.tracing import Traced, value_of
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
    parts = split(traced.module, cuts if classifier is None else [*cuts, classifier], mask)
    points = looking_back(points, parts[0].body, example, like)
    stages = []
    for part, point in zip(parts, points, strict=False):
        own = suited_head(point.feature, num_classes, head)
        masked = mask is not None and point.feature.masked
        stages.append(Stage(part.body, OnState(own, 1 if masked else None) if part.hands_on > 1 else own))
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
    alone = cut_nodes(nodes, traced.macs)
    after = max((nodes.index(cut) for cut in cuts), default=-1)
    between = [node for node in nodes[after + 1 : scoring[0]] if node in alone]
    return between[-1] if between else None


class Part(NamedTuple):
    """A part of a network: a function of what the one before hands on, and how many tensors it hands on itself.

    One is handed on as it is; several as a tuple that begins with what the part ends at.
    """

    body: nn.Module
    hands_on: int


def split(module: fx.GraphModule, cuts: Sequence[fx.Node], kept: fx.Node | None = None) -> list[Part]:
    """Return the parts of a network between cuts; they share its submodules.

    What has a row per sample and is needed later is handed on; the rest is made anew in each part that needs it.

    Args:
        module: the network.
        cuts: nodes that parts end at, in order.
        kept: a node to hand on, next after those, whether it is needed or not.
    """
    nodes = list(module.graph.nodes)
    rows, varying = nodes_with_rows(nodes), varying_nodes(nodes)
    part: dict[fx.Node, int] = {}
    current, ends = 0, set(cuts)
    for node in nodes:
        if node in rows or node.op in ("placeholder", "output") or (node in varying and not node.users):
            part[node] = current
        current += node in ends
    needed = _needed(nodes, part, len(cuts) + 1)
    carried: list[list[fx.Node]] = []
    for index, cut in enumerate(cuts):
        later = set().union(*needed[index + 1 :])
        others = [node for node in nodes if node in later and part[node] <= index and node not in (cut, kept)]
        carried.append([cut, *([] if kept is None else [kept]), *others])
    parts = []
    for index in range(len(cuts) + 1):
        own = [node for node in nodes if part.get(node) == index]
        given = carried[index - 1] if index else []
        graph = _graph(own, given, carried[index] if index < len(cuts) else [])
        body = fx.GraphModule(module, graph, type(module).__name__)
        parts.append(Part(body, len(carried[index]) if index < len(cuts) else 0))
    return parts


def _needed(nodes: Sequence[fx.Node], part: dict[fx.Node, int], parts: int) -> list[set[fx.Node]]:
    """Return what each part needs of others: nodes that belong to a part, straight or by way of those that do not."""
    sources: dict[fx.Node, frozenset[fx.Node]] = {}
    needed: list[set[fx.Node]] = [set() for _ in range(parts)]
    for node in nodes:
        straight = {source for source in node.all_input_nodes if source in part}
        by_way = (sources[source] for source in node.all_input_nodes if source not in part)
        sources[node] = frozenset(straight.union(*by_way))
        if node in part:
            needed[part[node]] |= {source for source in sources[node] if part[source] < part[node]}
    return needed


def _graph(own: Sequence[fx.Node], given: Sequence[fx.Node], handed_on: Sequence[fx.Node]) -> fx.Graph:
    """Return the graph of a part: its own nodes, and what they need that belongs to none."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    if given:
        state = graph.placeholder("state")
        several = len(given) > 1
        for index, node in enumerate(given):
            copies[node] = graph.call_function(operator.getitem, (state, index)) if several else state

    def put(node: fx.Node) -> fx.Node:
        if node not in copies:
            for source in node.all_input_nodes:
                put(source)
            copies[node] = graph.node_copy(node, lambda source: copies[source])
            copies[node].meta.clear()  # of the dry run
        return copies[node]

    for node in own:
        put(node)
    if handed_on:
        results = tuple(put(node) for node in handed_on)
        graph.output(results if len(results) > 1 else results[0])
    graph.lint()
    return graph
