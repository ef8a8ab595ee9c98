"""All stages in one ONNX graph for single images, made from the graphs of the stages; it skips what follows an exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exitwise.deploy.formats.onnx_rule import ANSWER, Part, answer_infos, decide
from exitwise.deploy.names import source_of
from exitwise.exiting.rule import Thresholds


def single_graph(onnx: Any, graphs: Sequence[Any], thresholds: Thresholds) -> Any:
    """Return the ONNX model of all stages for a batch of one.

    Args:
        onnx: the library.
        graphs: of the stages, ONNX models.
        thresholds: one per exit but the last.
    """
    helper = onnx.helper
    whole = _from_stage(onnx, graphs, thresholds, 0)
    renamed = [helper.make_node("Identity", [name], [last]) for name, last in zip(whole.answer, ANSWER, strict=True)]
    image = onnx.compose.add_prefix_graph(graphs[0].graph, "s0/").input[0]
    image.type.tensor_type.shape.dim[0].Clear()
    image.type.tensor_type.shape.dim[0].dim_value = 1
    outputs = answer_infos(onnx, list(ANSWER))
    graph = helper.make_graph([*whole.nodes, *renamed], "early_exit", [image], outputs, whole.constants)
    opsets = {entry.domain: entry.version for model in graphs for entry in model.opset_import}
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=graphs[0].ir_version)


def _from_stage(onnx: Any, graphs: Sequence[Any], thresholds: Thresholds, k: int) -> Part:
    """Return stage k and all that follows."""
    stage = onnx.compose.add_prefix_graph(graphs[k].graph, f"s{k}/")
    joins = [] if k == 0 else [_join(onnx, info.name, k) for info in stage.input]
    nodes, constants = [*joins, *stage.node], list(stage.initializer)
    here = _answer(onnx, k)
    if k == len(graphs) - 1:
        return Part([*nodes, *here.nodes], constants, here.answer)
    after = _from_stage(onnx, graphs, thresholds, k + 1)
    rest = decide(onnx, k, thresholds, f"s{k}/confidence", here, after)
    return Part([*nodes, *rest.nodes], [*constants, *rest.constants], rest.answer)


def _join(onnx: Any, name: str, k: int) -> Any:
    """Return the node that feeds an input of stage k from the stage before."""
    source = source_of(name.removeprefix(f"s{k}/"))
    return onnx.helper.make_node("Identity", [f"s{k - 1}/{source}"], [name])


def _answer(onnx: Any, k: int) -> Part:
    """Return the answer of exit k."""
    helper = onnx.helper
    prediction, exit, confidence = names = [f"at{k}/{name}" for name in ANSWER]
    nodes = [
        helper.make_node("Identity", [f"s{k}/prediction"], [prediction]),
        helper.make_node("Constant", [], [exit], value=helper.make_tensor(exit, onnx.TensorProto.INT64, [1], [k])),
        helper.make_node("Identity", [f"s{k}/confidence"], [confidence]),
    ]
    return Part(nodes, [], names)
