"""The exit rule (:mod:`exitwise.exiting.rule`) as ONNX nodes, for a batch of one: what follows an exit is a branch.

Thresholds are an input of the graph. An exit at which nobody can leave has a threshold that no confidence reaches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

THRESHOLDS = "thresholds"
"""The graph's input, one number per exit but the last."""


class Part(NamedTuple):
    """Nodes of a graph up to an answer, which is the names of some outputs, such as the exit taken; and the tensors
    that only they need."""

    nodes: list[Any]
    answer: list[str]
    constants: list[Any]


def decide(onnx: Any, exit: int, confidence: str, here: Part, after: Part, infos: list[Any]) -> Part:
    """Return the part that answers as ``here`` if an exit's confidence reaches its threshold, else as ``after``.

    Args:
        onnx: the library.
        exit: 0-based, not the last.
        confidence: name of the exit's confidence, of shape [1] and the thresholds' type.
        here: the exit's answer.
        after: that of the exits behind it.
        infos: names, types and shapes of an answer (ValueInfoProto).
    """
    helper = onnx.helper
    place, threshold, leaves = (f"rule{exit}/{name}" for name in ("place", THRESHOLDS, "leaves"))
    branches = {}
    for branch, name, part in (("then", "leave", here), ("else", "stay", after)):
        outputs = [_renamed(onnx, info, name) for info, name in zip(infos, part.answer, strict=True)]
        branches[f"{branch}_branch"] = helper.make_graph(part.nodes, f"{name}{exit}", [], outputs, part.constants)
    chosen = [f"if{exit}/{info.name}" for info in infos]
    value = helper.make_tensor(place, onnx.TensorProto.INT64, [1], [exit])
    nodes = [
        helper.make_node("Constant", [], [place], value=value),
        helper.make_node("Gather", [THRESHOLDS, place], [threshold]),
        helper.make_node("GreaterOrEqual", [confidence, threshold], [leaves]),
        helper.make_node("If", [leaves], chosen, **branches),
    ]
    return Part(nodes, chosen, [])


def _renamed(onnx: Any, info: Any, name: str) -> Any:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(info)
    copy.name = name
    return copy
