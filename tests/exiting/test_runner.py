import numpy as np
import pytest
import torch

import exitwise as ew
from decisions import assert_decides_as_simulated
from exitwise.evaluation.outputs import collect_outputs
from exitwise.exiting.calibration import calibrate_proportions
from exitwise.exiting.outputs import Outputs, anytime, operate
from exitwise.exiting.policy import ExitPolicy
from exitwise.exiting.runner import EarlyExitRunner
from exitwise.models import create_model
from exitwise.settings.compose import compose


@pytest.fixture
def model():
    model = create_model("msdnet_small", num_classes=4)
    with torch.no_grad():  # fresh heads are so unsure that all confidences agree
        for stage in model.stages:
            stage.head.linear.weight *= 20
    model(torch.randn(64, 1, 8, 8))  # move the BatchNorm statistics away from their start
    return model


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """A network after one epoch on digits, with its calibration and test splits."""
    settings = compose("digits", flags={"method": "uniform", "epochs": 1, "device": "cpu"})
    run = ew.train(settings, tmp_path_factory.mktemp("runs") / "digits").run
    return run.model(), run.splits()


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_runner_decides_as_simulated_on_the_whole_test_split(digits_run, batch_size):
    model, splits = digits_run
    ((images, _),) = splits.test.batches(1000)
    calibration, test = (collect_outputs(model, split.batches(256)) for split in (splits.calibration, splits.test))
    policy = calibrate_proportions(calibration.confidences, [0.4, 0.3, 0.2, 0.1])
    assert_decides_as_simulated(model, images, test, policy, batch_size)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
@pytest.mark.parametrize("shares", [(0.4, 0.3, 0.2, 0.1), (0.0, 0.5, 0.0, 0.5), (1.0, 0.0, 0.0, 0.0), (0, 0, 0, 1.0)])
def test_runner_decides_as_simulated(model, shares, batch_size):
    images, targets = torch.randn(90, 1, 8, 8), torch.randint(4, (90,))
    outputs = collect_outputs(model, [(images, targets)])
    policy = calibrate_proportions(outputs.confidences, shares)
    assert_decides_as_simulated(model, images, outputs, policy, batch_size)


def test_runner_computes_later_stages_only_for_samples_inside(model):
    sizes = []
    for stage in model.stages:
        stage.head.register_forward_hook(lambda head, args, output: sizes.append(len(output)))
    images = torch.randn(40, 1, 8, 8)
    confidences = collect_outputs(model, [(images, torch.zeros(40, dtype=torch.int64))]).confidences
    sizes.clear()
    EarlyExitRunner(model, calibrate_proportions(confidences, [0.5, 0.25, 0.25, 0]), (1, 2, 3, 4))(images)
    assert sizes == [40, 20, 10]  # nobody is left for the last stage


def test_runner_leaves_modes_and_statistics_alone(model):
    model.train()
    model.stages[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    EarlyExitRunner(model, ExitPolicy([0.5, None, 0.5]))(torch.randn(8, 1, 8, 8))
    assert model.training
    assert not model.stages[1].training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_runner_refuses_another_networks_policy(model):
    with pytest.raises(ValueError, match="policy for 4 exits; got one for 3"):
        EarlyExitRunner(model, ExitPolicy([0.5, 0.5]))


def test_operating_point_equals_the_loop():
    outputs = Outputs.from_logits(torch.randn(50, 3, 4), torch.randint(4, (50,)))
    policy, costs = ExitPolicy([0.6, 0.5]), (1.0, 3.0, 7.0)
    hits, spent, counts = 0, 0.0, [0, 0, 0]
    for n in range(50):
        k = next((k for k in (0, 1) if outputs.confidences[n, k] >= np.float32(policy.thresholds[k])), 2)
        hits += int(outputs.predictions[n, k] == outputs.targets[n])
        spent += costs[k]
        counts[k] += 1
    point = operate(outputs, policy, costs)
    assert point.accuracy == pytest.approx(hits / 50)
    assert point.macs == pytest.approx(spent / 50)
    assert point.shares == pytest.approx([c / 50 for c in counts])
    assert anytime(outputs)[1] == pytest.approx((outputs.predictions[:, 1] == outputs.targets).mean())


def test_a_call_keeps_the_policy_it_began_with():
    model = create_model("msdnet_small").eval()
    runner = EarlyExitRunner(model, ExitPolicy([2.0] * 3))
    body, head = runner._parts[1]

    def turn(state):
        runner.policy = ExitPolicy([0.0] * 3)
        return body(state)

    runner._parts[1] = (turn, head)
    images = torch.randn(5, 1, 8, 8)
    assert runner(images).exit.tolist() == [3] * 5
    assert runner(images).exit.tolist() == [0] * 5
    with pytest.raises(ValueError, match="expected a policy for 4 exits; got one for 3"):
        runner.policy = ExitPolicy([0.5] * 2)


@pytest.mark.parametrize(
    "images",
    [
        *(torch.zeros(shape) for shape in [(1, 8, 8), (2, 3, 8, 8), (0, 1, 8, 8), (2, 64), (2, 1, 9, 9)]),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        [1, 2],
    ],
)
def test_what_is_no_batch_of_images_is_refused(model, images):
    with pytest.raises(ValueError, match=r"expected inputs floating-point \(B, 1, 8, 8\), at least one; got"):
        EarlyExitRunner(model, ExitPolicy([None] * 3))(images)


def test_costs_of_another_number_of_exits_are_refused(model):
    with pytest.raises(ValueError, match="expected exit_macs of 4 exits; got 2"):
        EarlyExitRunner(model, ExitPolicy([None] * 3), (1, 2))
