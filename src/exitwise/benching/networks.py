"""What is compared: a run's network in full, leaving early, cut at one exit, and other networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exitwise.data import Splits
from exitwise.errors import UserError
from exitwise.evaluation.collect import collect
from exitwise.evaluation.outputs import Outputs, anytime, operate
from exitwise.exiting.calibration import calibrate_macs
from exitwise.exiting.policy import ExitPolicy
from exitwise.models import count_cost, create_model
from exitwise.models.cost import count_alone
from exitwise.models.staged import StagedModel
from exitwise.runs.folder import Run
from exitwise.runs.records.bench import Network

Call = Callable[[Any], object]
Calls = dict[Network, Call]


def networks_of(
    model: StagedModel, splits: Splits, budgets: Sequence[float], place: torch.device, workers: int
) -> tuple[list[Network], dict[Network, ExitPolicy], int]:
    """Full, early and static, the policies of the early ones, and the exit that the static one is cut at.

    There is no static one where no exit but the last is as accurate by itself.
    """
    costs = count_cost(model).macs
    calibration, test = (collect(model, split, place, workers) for split in (splits.calibration, splits.test))
    reachable = [budget for budget in sorted(budgets) if costs[0] <= budget * costs[-1] <= costs[-1]]
    if not reachable:
        raise UserError(
            f"expected a budget from {costs[0] / costs[-1]:.2f}, the first exit's, to 1; got {list(budgets)}"
        )
    accuracies = anytime(test)
    last = model.exits - 1
    full = Network("without exits", "full", accuracies[-1], count_alone(model, last))
    policies = {}
    for budget in reachable:
        policy, _ = calibrate_macs(calibration.confidences, costs, budget * costs[-1])
        point = operate(test, policy, costs)
        policies[Network(f"early exits, {100 * budget:.0f} %", "early", point.accuracy, point.macs)] = policy
    cut = _as_accurate(calibration, list(policies.values())[len(policies) // 2], costs)
    static = [Network(f"exit {cut + 1} alone", "static", accuracies[cut], count_alone(model, cut))]
    return [full, *policies, *(static if cut < last else [])], policies, cut


def _as_accurate(calibration: Outputs, policy: ExitPolicy, costs: Sequence[int]) -> int:
    """Return the first exit that alone is as accurate on the calibration images as the policy."""
    wanted = operate(calibration, policy, costs).accuracy
    return next((k for k, accuracy in enumerate(anytime(calibration)) if accuracy >= wanted), len(costs) - 1)


def other_network(name: str, run: Run, place: torch.device) -> tuple[Network, Call]:
    """Return a static network to compare with, by run folder or name; it is timed on random images of its own size."""
    if (Path(name) / "config.yaml").is_file():
        other = Run(name)
        if other.classes != run.classes:
            raise UserError(f"expected a run with the classes of {run.path} at {name}; got {len(other.classes)} others")
        model = other.model(place)
        accuracy = anytime(collect(model, other.splits().test, place, other.settings.workers))[-1]
    elif Path(name).is_dir():
        raise UserError(f"expected a run folder with config.yaml at {name}, or a model's name; found neither")
    else:
        model, accuracy = create_model(name, num_classes=len(run.classes)).eval().to(place), None
    network = Network(name, "static", accuracy, count_alone(model, model.exits - 1))
    size = model.input_shape

    def call(images: Tensor) -> object:
        return model.forward_last(images if images.shape[1:] == size else images.new_zeros(len(images), *size))

    return network, call
