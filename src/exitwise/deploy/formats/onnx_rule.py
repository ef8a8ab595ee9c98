"""The exit rule (:mod:`exitwise.exiting.rule`) as ONNX nodes, for a batch of one: what follows an exit is a branch.

Generated from the same thresholds, and tested against it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from exitwise.exiting.rule import Thresholds, can_leave

ANSWER = ("prediction", "exit", "confidence")


class Part(NamedTuple):
    """A part of a graph, up to an answer.

    Attributes:
        nodes, constants: nodes, and the initializers that they need.
        answer: names of prediction, exit and confidence, each of shape [1].
    """

    nodes: list[Any]
    constants: list[Any]
    answer: list[str]


def decide(
    onnx: Any, exit: int, thresholds: Thresholds, confidence: str, here: Part, after: Part, kind: int | None = None
) -> Part:
    """Return the part that answers as ``here`` if an exit's confidence reaches its threshold, else as ``after``.

    Args:
        onnx: the library.
        exit: 0-based, not the last.
        thresholds: of all exits but the last.
        confidence: name of the exit's confidence, of shape [1].
        here: the exit's answer.
        after: that of the exits behind it.
        kind: type of confidences, to which thresholds are rounded, as TensorProto counts types; FLOAT if None.
    """
    if not can_leave(exit, thresholds):
        return after
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT if kind is None else kind
    threshold, leaves = f"s{exit}/threshold", f"s{exit}/leaves"
    value = helper.make_tensor(threshold, kind, [1], [thresholds[exit]])
    chosen = [f"if{exit}/{name}" for name in ANSWER]
    branches = {
        f"{branch}_branch": helper.make_graph(
            part.nodes, f"{name}{exit}", [], answer_infos(onnx, part.answer, kind), part.constants
        )
        for branch, name, part in (("then", "leave", here), ("else", "stay", after))
    }
    nodes = [
        helper.make_node("Constant", [], [threshold], value=value),
        helper.make_node("GreaterOrEqual", [confidence, threshold], [leaves]),
        helper.make_node("If", [leaves], chosen, **branches),
    ]
    return Part(nodes, [], chosen)


def answer_infos(onnx: Any, names: list[str], kind: int | None = None) -> list[Any]:
    """Return names, types and shapes of an answer in a batch of one, as a graph has them."""
    types = onnx.TensorProto
    kinds = [types.INT64, types.INT64, types.FLOAT if kind is None else kind]
    return [onnx.helper.make_tensor_value_info(name, each, [1]) for name, each in zip(names, kinds, strict=True)]
