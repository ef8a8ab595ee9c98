"""The exit rule as ONNX nodes decides as the rule does, on ONNX Runtime."""

import numpy as np
import pytest

from exitwise.exiting.rule import exits_taken, leaves

onnx = pytest.importorskip("onnx")

from exitwise.deploy.formats.onnx_rule import THRESHOLDS as INPUT  # noqa: E402
from exitwise.deploy.formats.onnx_rule import Part, decide  # noqa: E402
from exitwise.deploy.sessions import open_session  # noqa: E402

TYPES = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE}
THRESHOLDS = {
    "exact": (0.5, 0.25, 0.75),
    "float64": (0.7, 0.3, 0.1),
    "float32": tuple(float(np.float32(t)) for t in (0.7, 0.3, 0.1)),
    "none at first": (None, 0.7, 0.3),
    "none between": (0.7, None, 0.3),
    "none at last": (0.7, 0.3, None),
    "none at all": (None, None, None),
}


ANSWER = ("number", "exit", "confidence")


def graph(exits, kind):
    """A graph from thresholds and confidences of all exits, (1) each, to the exit taken and the confidence there."""
    helper, types = onnx.helper, (onnx.TensorProto.INT64, onnx.TensorProto.INT64, kind)
    infos = [helper.make_tensor_value_info(name, each, [1]) for name, each in zip(ANSWER, types, strict=True)]

    def answer(exit):
        names = [f"at{exit}/{name}" for name in ANSWER]
        number = helper.make_tensor("number", onnx.TensorProto.INT64, [1], [exit])
        nodes = [helper.make_node("Constant", [], [name], value=number) for name in names[:2]]
        return Part([*nodes, helper.make_node("Identity", [f"c{exit}"], [names[2]])], names, [])

    whole = answer(exits - 1)
    for exit in reversed(range(exits - 1)):
        whole = decide(onnx, exit, f"c{exit}", answer(exit), whole, infos)
    ends = [helper.make_node("Identity", [name], [last]) for name, last in zip(whole.answer, ANSWER, strict=True)]
    inputs = [helper.make_tensor_value_info(f"c{exit}", kind, [1]) for exit in range(exits)]
    inputs.append(helper.make_tensor_value_info(INPUT, kind, [exits - 1]))
    body = helper.make_graph([*whole.nodes, *ends], "rule", inputs, infos)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return open_session(model.SerializeToString(), threads=1)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", THRESHOLDS)
def test_the_nodes_decide_as_the_rule(name, dtype):
    thresholds = THRESHOLDS[name]
    confidences = np.random.default_rng(0).random((60, 4)).round(1).astype(dtype)  # ties with the thresholds too
    levels = np.array([0.5 if t is None else t for t in thresholds]).astype(dtype)
    confidences[0, :3] = levels
    confidences[1, :3] = np.nextafter(levels, np.array(0, dtype))
    confidences[2, :3] = np.nextafter(levels, np.array(1, dtype))
    confidences[3] = np.nan
    confidences[4, 0] = np.nan
    session = graph(4, TYPES[dtype])
    given = {INPUT: np.array([np.inf if t is None else t for t in thresholds], dtype)}
    found = [session.run(None, {**given, **{f"c{k}": row[k : k + 1] for k in range(4)}}) for row in confidences]
    exits = np.concatenate([exit for _, exit, _ in found])
    np.testing.assert_array_equal(exits, exits_taken(confidences, thresholds))
    np.testing.assert_array_equal(
        np.concatenate([confidence for *_, confidence in found]), confidences[np.arange(60), exits]
    )
    assert bool(leaves(confidences[:1, 0], 0, thresholds)) == (thresholds[0] is not None)  # a tie leaves
    assert exits[0] == next((k for k, threshold in enumerate(thresholds) if threshold is not None), 3)
    assert exits[3] == 3
