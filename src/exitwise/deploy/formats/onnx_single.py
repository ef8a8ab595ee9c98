"""All stages in one ONNX graph for single samples, made from the graphs of the stages and of what the measure reads;
it skips what follows an exit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from exitwise.deploy.formats.onnx_rule import THRESHOLDS, Part, decide
from exitwise.deploy.names import LOGITS, PROBABILITIES, STATE, source_of

LARGEST = 2**30
"""Bytes of weights that may lie in branches; they are loaded as a part of the graph, whose size has a limit."""

ANSWER = ("prediction", "exit", "confidence")
"""What the graph gives: class, exit taken (0-based), confidence there, of shape [1] each; and logits there, or
probabilities where the reading has them."""


def reading_names(exits: int, mixed: bool) -> tuple[list[str], list[str]]:
    """Return names of inputs and outputs of the graph that reads all exits: logits; confidence, prediction of each, and
    probabilities where the answer is ``mixed``, of several exits."""
    read = (*_READ, PROBABILITIES) if mixed else _READ
    return [f"{LOGITS}{k}" for k in range(exits)], [f"{name}{k}" for k in range(exits) for name in read]


_READ = ("confidence", "prediction")


def _last(reading: Any) -> str:
    """Return what the graph gives beside :data:`ANSWER`."""
    return PROBABILITIES if any(info.name == f"{PROBABILITIES}0" for info in reading.graph.output) else LOGITS


def single_graph(onnx: Any, stages: Sequence[Any], reading: Any) -> Any:
    """Return the ONNX model of all stages for a batch of one, which takes thresholds too.

    The weights of a stage lie in the branch that it is in: ONNX Runtime neither lays out anew nor packs, and hardly
    fuses, what takes its weights from around its branch. All lie in the main graph where they are too large to be
    loaded otherwise.

    Args:
        onnx: the library.
        stages: ONNX models.
        reading: the ONNX model that reads all exits (:func:`reading_names`).
    """
    helper, types = onnx.helper, onnx.TensorProto
    exits = len(stages)
    parts = [onnx.compose.add_prefix_graph(stage.graph, f"s{k}/") for k, stage in enumerate(stages)]
    reads = onnx.compose.add_prefix_graph(reading.graph, "read/")
    last = _last(reading)
    read_nodes = _by_exit(reads, exits)
    classes = [dim.dim_value for dim in reading.graph.input[0].type.tensor_type.shape.dim]
    infos = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in zip(
            (*ANSWER, last), (types.INT64, types.INT64, types.FLOAT, types.FLOAT), ([1], [1], [1], classes), strict=True
        )
    ]
    inputs = {info.name: info for stage in stages for info in stage.graph.input if not info.name.startswith(STATE)}
    outside = _size([tensor for part in parts for tensor in part.initializer]) > LARGEST
    whole: Part | None = None
    for k in reversed(range(exits)):
        joins = [_joined(onnx, stages[k].graph.input, k), _read_from(onnx, k)]
        nodes = [*joins[0], *parts[k].node, *joins[1], *read_nodes[k]]
        here = _answer(onnx, k, last)
        rest = here if whole is None else decide(onnx, k, f"read/confidence{k}", here, whole, infos)
        own = [] if outside else [*parts[k].initializer]
        whole = Part([*nodes, *rest.nodes], rest.answer, [*own, *rest.constants])
    assert whole is not None
    ends = [
        helper.make_node("Identity", [name], [end]) for name, end in zip(whole.answer, (*ANSWER, last), strict=True)
    ]
    takes = [
        *(_one_of(onnx, info) for info in inputs.values()),
        helper.make_tensor_value_info(THRESHOLDS, types.FLOAT, [exits - 1]),
    ]
    shared = [*(parts if outside else []), reads]
    constants = [*whole.constants, *(tensor for part in shared for tensor in part.initializer)]
    graph = helper.make_graph([*whole.nodes, *ends], "early_exit", takes, infos, constants)
    opsets = {entry.domain: entry.version for model in [*stages, reading] for entry in model.opset_import}
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=stages[0].ir_version)


def _size(tensors: Iterable[Any]) -> int:
    """Return how many bytes of tensors lie in other files."""
    entries = (entry for tensor in tensors for entry in tensor.external_data)
    return sum(int(entry.value) for entry in entries if entry.key == "length")


def _joined(onnx: Any, inputs: Iterable[Any], k: int) -> list[Any]:
    """Return the nodes that feed the inputs of stage k: from the graph's own, and from the stage before."""
    sources = {
        info.name: f"s{k - 1}/{source_of(info.name)}" if info.name.startswith(STATE) else info.name for info in inputs
    }
    return [onnx.helper.make_node("Identity", [source], [f"s{k}/{name}"]) for name, source in sources.items()]


def _read_from(onnx: Any, k: int) -> list[Any]:
    """Return the node that hands the logits of exit k to what reads them, as float32."""
    cast = onnx.helper.make_node("Cast", [f"s{k}/{LOGITS}"], [f"read/{LOGITS}{k}"], to=onnx.TensorProto.FLOAT)
    return [cast]


def _by_exit(graph: Any, exits: int) -> list[list[Any]]:
    """Return the nodes of the reading graph, each with the first exit that needs it."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output}
    done: set[int] = set()
    found = []
    for k in range(exits):
        needed: set[int] = set()
        names = [f"read/{name}{k}" for name in (*_READ, PROBABILITIES)]
        while names:
            place = makers.get(names.pop())
            if place is not None and place not in done and place not in needed:
                needed.add(place)
                names += graph.node[place].input
        done |= needed
        found.append([graph.node[place] for place in sorted(needed)])
    return found


def _one_of(onnx: Any, info: Any) -> Any:
    """Return an input with a batch of one."""
    one = onnx.ValueInfoProto()
    one.CopyFrom(info)
    batch = one.type.tensor_type.shape.dim[0]
    batch.Clear()
    batch.dim_value = 1
    return one


def _answer(onnx: Any, k: int, last: str) -> Part:
    """Return the answer of exit k; ``last``: what of it beside :data:`ANSWER`."""
    helper = onnx.helper
    names = [f"at{k}/{name}" for name in (*ANSWER, last)]
    sources = [f"read/prediction{k}", None, f"read/confidence{k}", f"read/{last}{k}"]
    number = helper.make_tensor(names[1], onnx.TensorProto.INT64, [1], [k])
    nodes = [
        helper.make_node("Constant", [], [name], value=number)
        if source is None
        else helper.make_node("Identity", [source], [name])
        for name, source in zip(names, sources, strict=True)
    ]
    return Part(nodes, names, [])
