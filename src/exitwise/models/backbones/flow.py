"""What flows through a traced network: which values have a row per sample, how long each is needed, and where it can be
cut. Knows nothing of exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
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


def is_size(node: fx.Node) -> bool:
    """Return whether a node is a size, several of them, or another plain value such as the device a tensor lies on."""
    value = value_of(node)
    several = value if isinstance(value, (tuple, list)) else (value,)
    return value is None or isinstance(value, torch.device) or all(type(part) is int for part in several)


class Flow:
    """How values are used.

    Args:
        nodes: of a traced graph, in order.
        macs: multiply-accumulates of each node.
        fixed: whether sizes besides the batch's may be taken for those of the dry run, where they are needed and the
            tensor that has them is not.

    Attributes:
        rows, varying: see :func:`nodes_with_rows` and :func:`varying_nodes`.
        sizes: nodes that are sizes, and known without the tensor that has them; none if they are not ``fixed``.
    """

    def __init__(self, nodes: Sequence[fx.Node], macs: Mapping[fx.Node, int], fixed: bool) -> None:
        self.nodes = list(nodes)
        self.macs = macs
        self.rows, self.varying = nodes_with_rows(nodes), varying_nodes(nodes)
        self.sizes: set[fx.Node] = set()
        self._position = {node: index for index, node in enumerate(self.nodes)}
        self._known: set[fx.Node] = set()  # what can be made anew without any tensor of the inputs
        for node in self.nodes:
            sources = [source for source in node.all_input_nodes if source in self.varying]
            if node in self.varying and sources and self._known.issuperset(sources) and node not in self.rows:
                self._known.add(node)
            elif fixed and node in self.varying and is_size(node):
                self.sizes.add(node)
                self._known.add(node)
        self._last = self._last_uses()

    def _last_uses(self) -> dict[fx.Node, int]:
        """Return where each value is needed last; what one without rows is made from is needed as long as it is."""
        last: dict[fx.Node, int] = {}
        for node in reversed(self.nodes):
            ends = [
                self._position[user] if user in self.rows or user in self._known else last.get(user, 0)
                for user in node.users
            ]
            last[node] = max(self._position[node], *ends) if ends else self._position[node]
        return last

    def cuts(self) -> set[fx.Node]:
        """Return the nodes with rows that all later ones depend on, and on no other earlier one that costs anything.

        What costs nothing, such as a mask that all blocks use, can be carried along.
        """
        free: set[fx.Node] = set()
        alone, reach = set(), -1
        for index, node in enumerate(self.nodes):
            if node not in self.varying or node in self._known:
                continue
            if not self.macs.get(node) and all(
                source in free or source in self._known for source in node.all_input_nodes if source in self.varying
            ):
                free.add(node)
            if node in self.rows and reach <= index < self._last[node]:
                alone.add(node)
            if node not in free:
                reach = max(reach, self._last[node])
        return alone

    def wide_cuts(self) -> set[fx.Node]:
        """Return the nodes with rows where all that is needed later has rows too, or is made of what has at no cost."""
        costly: set[fx.Node] = set()
        found, reach = set(), -1
        for index, node in enumerate(self.nodes):
            if node not in self.varying or node in self._known:
                continue
            if node in self.rows:
                if reach <= index < self._last[node]:
                    found.add(node)
            elif self.macs.get(node) or any(source in costly for source in node.all_input_nodes):
                costly.add(node)
                reach = max(reach, self._last[node])
        return found
