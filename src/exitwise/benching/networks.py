"""What is compared: a network in full, leaving early, cut at one exit, and other networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from exitwise.data import Splits
from exitwise.deploy.calibration import Calibration
from exitwise.errors import UserError
from exitwise.evaluation.collect import collect
from exitwise.evaluation.outputs import EVALUATION_BATCH, Outputs, anytime, collect_logits, collect_outputs, operate
from exitwise.exiting.policy import MAX_PROBABILITY, ExitPolicy
from exitwise.exiting.table import Budgeted, budget_table, line_for
from exitwise.kernels.inputs import Inputs, joined, samples_in
from exitwise.models import count_cost, create_model
from exitwise.models.cost import count_alone
from exitwise.models.staged import StagedModel
from exitwise.runs.folder import Run
from exitwise.runs.records.bench import Network

Call = Callable[[Any], object]
Calls = dict[Network, Call]


class Subject(NamedTuple):
    """A network to be timed.

    Attributes:
        model: it, in eval mode on the device to time.
        alone: the network in full and cut at each exit: which exit (0-based).
        early: it leaving early: by which policy. The first is the one that counts.
        inputs: test samples, on the CPU.
    """

    model: StagedModel
    alone: Mapping[Network, int]
    early: Mapping[Network, ExitPolicy]
    inputs: Inputs


def subject_of_run(run: Run, budgets: Sequence[float], samples: int, place: torch.device) -> Subject:
    """Return a run's network, with its calibration if it has one.

    Args:
        run: which.
        budgets: shares of the full network's MACs.
        samples: how many test images are to be timed.
        place: where.
    """
    model, splits, workers = run.model(place), run.splits(), run.settings.workers
    if run.is_calibrated:
        calibration: Calibration | None = run.read_calibration()
        assert calibration is not None
        table, measure = calibration.table, calibration.policy.measure
    else:
        calibration, table, measure = None, (), MAX_PROBABILITY
    if not table:
        held_out = collect_outputs(model, splits.calibration.batches(EVALUATION_BATCH, workers), place, measure)
        table = budget_table(held_out.confidences, held_out.correct, count_cost(model).macs)
    tested = collect_logits(model, splits.test.batches(EVALUATION_BATCH, workers), place)
    policies = _policies(calibration, table, budgets, measure)
    return _subject(model, policies, tested, _repeated(_test_images(splits, samples), samples))


def subject_of_network(
    model: StagedModel,
    calibration: Calibration,
    test: Iterable[tuple[Inputs, Tensor]],
    budgets: Sequence[float],
    samples: int,
) -> Subject:
    """Return a network that was calibrated; ``test`` gives inputs and targets.

    Raises:
        UserError: for the calibration of another network.
    """
    calibration.check_costs(count_cost(model).macs)
    first: list[Inputs] = []

    def remembered() -> Iterable[tuple[Inputs, Tensor]]:
        for inputs, targets in test:
            if sum(map(samples_in, first)) < samples:
                first.append(tree_map(Tensor.cpu, inputs))
            yield inputs, targets

    tested = collect_logits(model, remembered(), next(model.parameters()).device)
    policies = _policies(calibration, calibration.table, budgets, calibration.policy.measure)
    together = joined(first)
    return _subject(model, policies, tested, _repeated(together, samples))


def _policies(
    calibration: Calibration | None, table: Sequence[Budgeted], budgets: Sequence[float], measure: Any
) -> dict[str, ExitPolicy]:
    """Return the calibrated policy, and one for each budget within reach, the middle one first if there is no other."""
    least = table[0].budget if table else 1.0
    reachable = [budget for budget in sorted(budgets) if least <= budget <= 1]
    if not reachable and calibration is None:
        raise UserError(f"expected a budget from {least:.2f}, the first exit's, to 1; got {list(budgets)}")
    early = {
        f"early exits, {100 * budget:.0f} %": ExitPolicy(line_for(table, budget).thresholds, measure)
        for budget in reachable
    }
    if calibration is not None:
        return {"early exits, as calibrated": calibration.policy, **early}
    middle = list(early)[len(early) // 2]
    return {middle: early[middle], **early}


def _subject(
    model: StagedModel,
    policies: Mapping[str, ExitPolicy],
    tested: tuple[NDArray[Any], NDArray[Any]],
    inputs: Inputs,
) -> Subject:
    costs, accuracies = count_cost(model).macs, anytime(Outputs.from_logits(*tested))
    last = model.exits - 1
    alone = {Network("without exits", "full", accuracies[last], count_alone(model, last)): last}
    for k in range(last):
        alone[Network(f"exit {k + 1} alone", "static", accuracies[k], count_alone(model, k))] = k
    early = {}
    for name, policy in policies.items():
        point = operate(Outputs.from_logits(*tested, policy.measure), policy, costs)
        early[Network(name, "early", point.accuracy, point.macs)] = policy
    return Subject(model, alone, early, inputs)


def _test_images(splits: Splits, count: int) -> Tensor:
    """Return test images in random order."""
    order = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(0))[:count]
    split = type(splits.test)(splits.test.source, splits.test.indices[order], splits.test.preprocessing)
    return torch.cat([images for images, _ in split.batches(EVALUATION_BATCH)])


def _repeated(inputs: Inputs, count: int) -> Inputs:
    """Return so many rows, again from the start if there are too few."""
    return rows_of(inputs, torch.arange(count) % samples_in(inputs))


def rows_of(inputs: Inputs, index: Tensor) -> Inputs:
    """Return some rows of inputs."""
    rows: Inputs = tree_map(lambda part: part[index], inputs)
    return rows


def other_network(name: str, classes: Sequence[str], place: torch.device) -> tuple[Network, Call]:
    """Return a static network to compare with, by run folder or name; it is timed on random images of its own size."""
    if (Path(name) / "config.yaml").is_file():
        other = Run(name)
        if other.classes != list(classes):
            raise UserError(f"expected a run with the classes of this one at {name}; got {len(other.classes)} others")
        model = other.model(place)
        accuracy = anytime(collect(model, other.splits().test, place, other.settings.workers))[-1]
    elif Path(name).is_dir():
        raise UserError(f"expected a run folder with config.yaml at {name}, or a model's name; found neither")
    else:
        model, accuracy = create_model(name, num_classes=len(classes)).eval().to(place), None
    network = Network(name, "static", accuracy, count_alone(model, model.exits - 1))
    size = model.input_shape

    def call(images: Tensor) -> object:
        return model.forward_last(images if images.shape[1:] == size else images.new_zeros(len(images), *size))

    return network, call
