"""A traced network cut into stages: each a function of the tensor that the one before it hands on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from exitwise.kernels.inputs import Inputs
from exitwise.models.backbones.exited import ExitedModel
from exitwise.models.backbones.places import ExitPoint, Place, cut_nodes, varying_nodes
from exitwise.models.backbones.tracing import Traced, value_of
from exitwise.models.heads import HeadFactory, suited_head
from exitwise.models.staged import Stage


def staged(
    traced: Traced,
    places: dict[str, Place],
    points: Sequence[ExitPoint],
    num_classes: int,
    head: str | HeadFactory,
    example: Inputs,
) -> ExitedModel:
    cuts = [places[point.name].node for point in points]
    classifier = _before_classifier(traced, cuts, num_classes)
    parts = split(traced.module, cuts if classifier is None else [*cuts, classifier])
    stages = [
        Stage(body, suited_head(point.feature, num_classes, head)) for body, point in zip(parts, points, strict=False)
    ]
    rest = parts[len(points) :]
    stages.append(Stage(rest[0], rest[1] if len(rest) > 1 else nn.Identity()))
    return ExitedModel(stages, num_classes, example, points, skips=True)


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
    alone = cut_nodes(nodes)
    after = max((nodes.index(cut) for cut in cuts), default=-1)
    between = [node for node in nodes[after + 1 : scoring[0]] if node in alone]
    return between[-1] if between else None


def split(module: fx.GraphModule, cuts: Sequence[fx.Node]) -> list[nn.Module]:
    """Return the parts of a network between cuts, each a function of the last one's result; they share its
    submodules."""
    graph = module.graph
    nodes = list(graph.nodes)
    varying = varying_nodes(nodes)
    part: dict[fx.Node, int] = {}
    current, ends = 0, set(cuts)
    for node in nodes:
        if node in varying:
            part[node] = current
        current += node in ends
    _give_each_part_its_constants(graph, nodes, varying, part)
    graph.lint()
    module.recompile()
    split = split_module(module, module, lambda node: part[node], keep_original_order=True)
    parts = [child for name, child in split.named_children() if name.startswith("submod_")]
    for child in cast("list[fx.GraphModule]", parts):
        for node in child.graph.nodes:
            node.meta.clear()  # of the dry run
    return parts


def _give_each_part_its_constants(
    graph: fx.Graph, nodes: Sequence[fx.Node], varying: set[fx.Node], part: dict[fx.Node, int]
) -> None:
    """Copy what does not depend on the images into every part that uses it, so that only one tensor flows on."""
    for node in reversed(nodes):
        if node in varying or node.op == "output":
            continue
        users: dict[int, list[fx.Node]] = {}
        for user in node.users:
            users.setdefault(part.get(user, max(part.values())), []).append(user)
        for index, own in enumerate(sorted(users)):
            if index == 0:
                part[node] = own
                continue
            with graph.inserting_after(node):
                copy = graph.node_copy(node, lambda argument: argument)
            part[copy] = own
            for user in users[own]:
                user.replace_input_with(node, copy)
