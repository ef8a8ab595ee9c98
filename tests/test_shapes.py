"""Shapes in annotations: checked in the tests, and harmless where jaxtyping is not installed."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

import shape_checks
from exitwise.exiting.calibration import calibrate_accuracy
from exitwise.exiting.rule import exits_taken
from exitwise.models.staged import Stage, StagedModel
from exitwise.weighting.normalize import weighted_loss

WITHOUT = """
import sys
sys.modules["jaxtyping"] = None  # importing it fails
import typing
import numpy as np, torch
from exitwise.exiting import calibration, rule
from exitwise.exiting.arrays import Array
from exitwise.exiting.runner import ExitResult
from exitwise.kernels.inputs import Inputs
from exitwise.models.staged import StagedModel
from exitwise.weighting import normalize, passes

assert typing.get_type_hints(normalize.weighted_loss) == dict.fromkeys(("losses", "weights", "return"), torch.Tensor)
assert typing.get_type_hints(rule.exits_taken)["confidences"] is Array
assert typing.get_type_hints(ExitResult)["macs"] is torch.Tensor
assert typing.get_type_hints(StagedModel.forward)["return"] == list[torch.Tensor]
assert passes.Batch == tuple[Inputs, torch.Tensor] | tuple[Inputs, torch.Tensor, torch.Tensor]
assert normalize.weighted_loss(torch.ones(4, 2), torch.ones(4, 2)) == 2
assert calibration.calibrate_proportions(np.array([[0.9, 0.9], [0.1, 0.9]]), [0.5, 0.5]).thresholds == (0.9,)
"""


def test_a_wrong_shape_is_refused_in_weighting():
    with pytest.raises(TypeCheckError, match=r"(?s)parameter 'weights'.*f32\[4,3\].*batch=4\s+exits=2"):
        weighted_loss(torch.zeros(4, 2), torch.zeros(4, 3))
    with pytest.raises(TypeCheckError, match="parameter 'weights'"):
        weighted_loss(torch.zeros(4, 2), torch.zeros(4, 1))  # which would broadcast


@pytest.mark.parametrize("kind", [torch.zeros, np.zeros])
def test_a_wrong_shape_is_refused_in_exiting(kind):
    with pytest.raises(TypeCheckError, match="parameter 'confidences'"):
        exits_taken(kind(4), (0.5,))
    with pytest.raises(TypeCheckError, match="parameter 'correct'"):
        calibrate_accuracy(kind((4, 2)), kind((4, 3)) > 0, [1.0, 2.0], 0.1)


def test_the_first_calls_in_a_test_are_checked():
    for _ in range(shape_checks.MOST - 1):
        exits_taken(np.zeros((4, 2)), (0.5,))
    with pytest.raises(TypeCheckError, match="parameter 'confidences'"):
        exits_taken(np.zeros(4), (0.5,))


def test_a_wrong_kind_of_number_is_refused_in_exiting():
    with pytest.raises(TypeCheckError, match="parameter 'confidences'"):
        exits_taken(np.zeros((4, 2), dtype=np.int64), (0.5,))


def test_a_wrong_shape_is_refused_in_staged_models():
    model = StagedModel([Stage(nn.Identity(), nn.Flatten())], num_classes=4, input_shape=(1, 2, 2))
    assert model(torch.zeros(3, 1, 2, 2))[0].shape == (3, 4)
    model.stages[0].head = nn.Identity()
    with pytest.raises(TypeCheckError, match="return value"):
        model(torch.zeros(3, 1, 2, 2))


@pytest.mark.slow
def test_compiled_networks_are_traced_without_the_checks():
    model = StagedModel([Stage(nn.Identity(), nn.Flatten())], num_classes=4, input_shape=(1, 2, 2))
    (logits,) = torch.compile(model, backend="eager", fullgraph=True)(torch.ones(3, 1, 2, 2))
    assert logits.shape == (3, 4)


@pytest.mark.slow
def test_without_jaxtyping_an_annotation_is_the_array_type():
    result = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
