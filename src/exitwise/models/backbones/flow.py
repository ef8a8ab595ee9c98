"""What flows through a traced network: which values have a row per sample, how long each is needed, and where it can be
cut. Knows nothing of exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, fx

from exitwise.models.backbones.tracing import DRY_RUN_BATCH, value_of


def varying_nodes(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes that depend on the inputs."""
    varying: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(source in varying for source in node.all_input_nodes):
            varying.add(node)
    return varying


def nodes_with_rows(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes that are tensors with a row per sample.

    What depends on the inputs and has none, such as sizes, positions and causal masks, is made anew where it is needed,
    as constants are.
    """
    varying = varying_nodes(nodes)

    def has_rows(value: object) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == DRY_RUN_BATCH

    return {node for node in nodes if node in varying and has_rows(value_of(node))}


def cut_nodes(nodes: Sequence[fx.Node], macs: Mapping[fx.Node, int]) -> set[fx.Node]:
    """Return the nodes with rows that all later ones depend on, and on no other earlier one that costs anything.

    What costs nothing, such as a mask that all blocks use, can be carried along.
    """
    varying, rows = varying_nodes(nodes), nodes_with_rows(nodes)
    position = {node: index for index, node in enumerate(nodes)}
    last: dict[fx.Node, int] = {}
    for node in reversed(nodes):  # what a value without rows is made from is needed as long as it is
        ends = [position[user] if user in rows else last.get(user, position[user]) for user in node.users]
        last[node] = max(ends, default=position[node])
    free: set[fx.Node] = set()
    alone, reach = set(), -1
    for index, node in enumerate(nodes):
        if node not in varying:
            continue
        if not macs.get(node) and all(source in free for source in node.all_input_nodes if source in varying):
            free.add(node)
        if node in rows and reach <= index < last[node]:
            alone.add(node)
        if node not in free:
            reach = max(reach, last[node])
    return alone
