"""What is compared: a full network, leaving early, cut at one exit, and others beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from exitwise.data import Preprocessing, Splits
from exitwise.data.splits import Split
from exitwise.deploy.bundle import is_bundle
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.manifest import TEXT
from exitwise.deploy.onnx_runner import OnnxRunner
from exitwise.errors import UserError
from exitwise.evaluation.outputs import EVALUATION_BATCH, collect_logits, collect_outputs
from exitwise.exiting.measures import Measure
from exitwise.exiting.outputs import Outputs, right_alone
from exitwise.exiting.policy import MAX_PROBABILITY, ExitPolicy
from exitwise.exiting.table import Budgeted, budget_table, line_for
from exitwise.kernels.inputs import Inputs, joined, samples_in, varied
from exitwise.models import count_cost, create_model
from exitwise.models.backbones.attach import add_exits
from exitwise.models.cascade import Cascade
from exitwise.models.staged import StagedModel
from exitwise.runs.folder import Run
from exitwise.runs.other_images import calibrated_on
from exitwise.runs.records.bench import Kind, Network

Tested = tuple[NDArray[Any], NDArray[np.int64]]

Pairs = Callable[[], Iterable[tuple[Inputs, Tensor]]]
"""Batches of inputs and targets, anew at each call."""


class Early(NamedTuple):
    """How a network leaves early: by which policy, for which share of the full network's MACs; None: as calibrated."""

    policy: ExitPolicy
    budget: float | None


@dataclass(frozen=True)
class Subject:
    """A network to be timed.

    Attributes:
        model: it, in eval mode on the device to time.
        inputs: test samples, on the CPU.
        alone: which exit (0-based) of the full network, and cut at each exit.
        early: it leaving early, how. The first is the one that counts.
        calibration: of it, if it has one.
        tested: logits (N, K, C) and targets (N) of all test samples; None where the accuracy is not known.
        test: the test samples, for another form of it.
        held_out: samples that it is calibrated on, for eight bits.
        left_out: budgets that are out of reach, and why.
    """

    model: StagedModel
    inputs: Inputs
    alone: Mapping[Network, int]
    early: Mapping[Network, Early] = field(default_factory=dict)
    calibration: Calibration | None = None
    tested: Tested | None = None
    test: Pairs | None = None
    held_out: Pairs | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)

    def right_alone(self, exit: int) -> NDArray[np.bool_] | None:
        """Return on which test samples an exit's own answer is right; None where that is not known."""
        return None if self.tested is None else right_alone(*self.tested, exit)

    def right_early(self, policy: ExitPolicy) -> tuple[NDArray[np.bool_], float]:
        """Return on which test samples a policy is right, and its mean MACs; of one whose accuracy is known."""
        assert self.tested is not None
        return right_early(self.tested, policy, count_cost(self.model).macs)


@dataclass(frozen=True)
class Exported:
    """A bundle to be timed as it is.

    Attributes:
        network: what it is called.
        runner: of it.
        inputs: test samples as it takes them, on the CPU.
        correct: whether it is right on each test sample.
        macs: mean per test sample.
    """

    network: Network
    runner: OnnxRunner
    inputs: Inputs
    correct: NDArray[np.bool_]
    macs: float


def right_early(tested: Tested, policy: ExitPolicy, costs: Sequence[float]) -> tuple[NDArray[np.bool_], float]:
    """Return whether a policy is right, for each sample, and its mean MACs."""
    logits, targets = tested
    left = Outputs.from_logits(logits, targets, policy.measure).under(policy)
    return left.predictions == targets, float(np.array(costs)[left.exits].mean())


def subject_of_run(run: Run, budgets: Sequence[float], samples: int, place: torch.device) -> Subject:
    """Return a run's network, with its calibration if it has one.

    Args:
        run: which.
        budgets: shares of the full network's MACs.
        samples: how many test images are to be timed.
        place: where.
    """
    model, splits, workers = run.model(place), run.splits(), run.settings.workers
    calibration = run.read_calibration(model) if run.is_calibrated or run.name is not None else None
    table = calibration.table if calibration else ()
    measure = calibration.policy.measure if calibration else MAX_PROBABILITY
    if not table:
        held_out = collect_outputs(model, splits.calibration.batches(EVALUATION_BATCH, workers), place, measure)
        table = budget_table(held_out.confidences, held_out.correct, count_cost(model).macs, full_macs=model.full_macs)
    try:
        held = calibrated_on(run, calibration, splits.calibration)
    except UserError:  # they lay elsewhere, and are gone
        held = None
    tested = collect_logits(model, splits.test.batches(EVALUATION_BATCH, workers), place)
    return Subject(
        model,
        _repeated(_test_inputs(splits, samples), samples),
        _alone(model),
        early_of(calibration, table, budgets, measure),
        calibration,
        tested,
        lambda: splits.test.batches(EVALUATION_BATCH, workers),
        None if held is None else lambda: held.batches(EVALUATION_BATCH, workers),
        out_of_reach(table, budgets),
    )


def subject_of_network(
    model: StagedModel,
    calibration: Calibration,
    test: Pairs,
    held_out: Pairs | None,
    budgets: Sequence[float],
    samples: int,
) -> Subject:
    """Return a network that was calibrated.

    Raises:
        UserError: for the calibration of another network.
    """
    calibration.check_network(model)
    first: list[Inputs] = []

    def remembered() -> Iterator[tuple[Inputs, Tensor]]:
        for inputs, targets in test():
            if sum(map(samples_in, first)) < samples:
                first.append(tree_map(Tensor.cpu, inputs))
            yield inputs, targets

    tested = collect_logits(model, remembered(), next(model.parameters()).device)
    early = early_of(calibration, calibration.table, budgets, calibration.policy.measure)
    inputs = _repeated(joined(first), samples)
    missing = out_of_reach(calibration.table, budgets)
    return Subject(model, inputs, _alone(model), early, calibration, tested, test, held_out, missing)


def early_of(
    calibration: Calibration | None, table: Sequence[Budgeted], budgets: Sequence[float], measure: Measure
) -> dict[Network, Early]:
    """Return the calibrated policy, and one for each budget within reach, the middle one first if there is no other."""
    least, most = (table[0].budget, table[-1].budget) if table else (1.0, 1.0)
    reachable = [budget for budget in sorted(budgets) if least <= budget <= most]
    if not reachable and calibration is None:
        raise UserError(f"expected a budget from {least:.2f}, the first exit's, to {most:.2f}; got {list(budgets)}")
    early = {
        Network(f"early exits, {100 * budget:.0f} %", "early"): Early(
            ExitPolicy(line_for(table, budget).thresholds, measure), budget
        )
        for budget in reachable
    }
    if calibration is not None:
        return {Network("early exits, as calibrated", "early"): Early(calibration.policy, None), **early}
    middle = list(early)[len(early) // 2]
    return {middle: early[middle], **early}


def out_of_reach(table: Sequence[Budgeted], budgets: Sequence[float]) -> dict[str, str]:
    """Return the budgets that a table does not reach, and why."""
    if not table:
        return {}
    least, most = table[0].budget, table[-1].budget
    why = {True: f"below the first exit's {100 * least:.0f} %", False: f"above the last exit's {100 * most:.0f} %"}
    return {
        f"budget {100 * budget:g} %": why[budget < least] for budget in sorted(budgets) if not least <= budget <= most
    }


def _alone(model: StagedModel) -> dict[Network, int]:
    last = model.exits - 1
    cut = {Network(f"exit {k + 1} alone", "static"): k for k in range(last)}
    whole = "last network alone" if isinstance(model, Cascade) else "full network"
    return {Network(whole, "full"): last, **cut}


def beside_run(
    source: str, run: Run, samples: int, place: torch.device, data: str | Path | None = None
) -> Subject | Exported:
    """Return what stands beside a run: another run, a bundle, or a network of which only the time is known.

    Args:
        source: a run folder, a bundle, or a name for :func:`create_model`.
        run: the one that is compared with it.
        samples: how many test images are to be timed.
        place: where.
        data: where another run's images lie now, if they have moved.

    Raises:
        UserError: for another run or bundle with other classes or test images, or an unknown name.
    """
    path = Path(source)
    if (path / "config.yaml").is_file():
        other = Run(path).at(data)
        _check_same(other.classes, run.classes, source)
        if other.splits().test.fingerprint() != run.splits().test.fingerprint():
            raise UserError(
                f"expected a run with the test {run.settings.noun} of this one at {source}; got one with others"
            )
        subject = subject_of_run(other, [1.0], samples, place)
        counted = {network: early for network, early in subject.early.items() if early.budget is None}
        full = next(network for network in subject.alone if network.kind == "full")
        return replace(
            subject,
            alone={Network(source, "static"): subject.alone[full]},
            early={Network(f"{source}, as calibrated", "early"): early for early in counted.values()},
        )
    if is_bundle(path):
        runner = OnnxRunner(path)
        _check_same(runner.classes, run.classes, source)
        test = run.splits().test
        if run.settings.tokens is None:
            test = replace(test, preprocessing=_preprocessing_of(runner, source))
        elif runner.inputs[0].preprocessing != TEXT:
            raise UserError(f"expected a bundle that takes texts at {source}; got one that takes others")
        return exported(source, runner, lambda: test.batches(EVALUATION_BATCH), samples)
    if path.is_dir():
        raise UserError(f"expected a run folder with config.yaml, a bundle, or a model's name; got {source}")
    texts = {} if run.settings.tokens is None else {"tokens": run.settings.tokens}
    model = create_model(source, num_classes=len(run.classes), **texts).eval().to(place)
    inputs = varied(model.example, samples, next(model.parameters()).cpu())
    return Subject(model, inputs, {Network(source, "static"): model.exits - 1})


def beside_network(name: str, source: Any, subject: Subject, classes: int, samples: int) -> Subject | Exported:
    """Return what stands beside a network: another one, trained for the same samples, or a bundle.

    Args:
        name: what it is called.
        source: a module that gives logits, with or without exits; a pair of one with exits and its calibration; or the
            path of a bundle.
        subject: what it is compared with.
        classes: how many it must tell apart.
        samples: how many are to be timed.

    Raises:
        UserError: for anything else, or another number of classes.
    """
    assert subject.test is not None
    if isinstance(source, (str, Path)):
        runner = OnnxRunner(source)
        if len(runner.classes) != classes:
            raise UserError(f"expected {classes} classes of {name}; got {len(runner.classes)}")
        return exported(name, runner, subject.test, samples)
    network, calibration = source if isinstance(source, tuple) and len(source) == 2 else (source, None)
    if not isinstance(network, nn.Module):
        raise UserError(f"expected a network, a network and its calibration, or a bundle for {name}; got {source!r}")
    device = next(subject.model.parameters()).device
    if not isinstance(network, StagedModel):
        network = add_exits(network, exits=1, example=subject.model.example).eval().to(device)
    if network.num_classes != classes:
        raise UserError(f"expected {classes} classes of {name}; got {network.num_classes}")
    tested = collect_logits(network, subject.test(), device)
    early: dict[Network, Early] = {}
    if calibration is not None:
        calibration.check_network(network)
        early[Network(f"{name}, as calibrated", "early")] = Early(calibration.policy, None)
    alone = {Network(name, "static"): network.exits - 1}
    return replace(subject, model=network, alone=alone, early=early, calibration=calibration, tested=tested)


def exported(name: str, runner: OnnxRunner, test: Pairs, samples: int) -> Exported:
    """Return a bundle and how it answers test samples."""
    names = [each.name for each in runner.inputs]
    correct, macs = [], []
    first: list[Inputs] = []
    for inputs, targets in test():
        parts = list(inputs.values()) if isinstance(inputs, Mapping) else [inputs]
        result = runner({name: part.cpu().numpy() for name, part in zip(names, parts, strict=True)})
        correct.append(result.prediction == targets.cpu().numpy())
        macs.append(runner.exit_macs[result.exit])
        if sum(map(samples_in, first)) < samples:
            first.append(tree_map(Tensor.cpu, inputs))
    kind: Kind = "early" if len(runner.exit_macs) > 1 else "static"
    inputs = _repeated(joined(first), samples)
    return Exported(Network(name, kind), runner, inputs, np.concatenate(correct), float(np.concatenate(macs).mean()))


def _preprocessing_of(runner: OnnxRunner, source: str) -> Preprocessing:
    """Return how a bundle wants images.

    Raises:
        UserError: if it does not say, or takes something else.
    """
    wish = runner.inputs[0].preprocessing
    if len(runner.inputs) > 1 or wish is None or wish["kind"] != "image":
        raise UserError(f"expected a bundle that says how it wants images at {source}; got one that takes tensors")
    size = wish["image_size"]
    of_images = {"augment": "resize", "interpolation": wish["interpolation"], "crop": size / wish["shorter_side"]}
    return Preprocessing(size, tuple(wish["mean"]), tuple(wish["std"]), **of_images)


def _check_same(classes: Sequence[str], wanted: Sequence[str], source: str) -> None:
    if list(classes) != list(wanted):
        what = f"{len(classes)} others" if set(classes) != set(wanted) else "the same in another order"
        raise UserError(f"expected the classes of this run, {', '.join(wanted[:3])}, ..., at {source}; got {what}")


def _test_inputs(splits: Splits, count: int) -> Inputs:
    """Return test samples in random order."""
    order = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(0))[:count]
    split = Split(splits.test.source, splits.test.indices[order], splits.test.preprocessing)
    return joined([inputs for inputs, _ in split.batches(EVALUATION_BATCH)])


def _repeated(inputs: Inputs, count: int) -> Inputs:
    """Return so many rows, again from the start if there are too few."""
    return rows_of(inputs, torch.arange(count) % samples_in(inputs))


def rows_of(inputs: Inputs, index: Tensor | slice) -> Inputs:
    """Return some rows of inputs."""
    rows: Inputs = tree_map(lambda part: part[index], inputs)
    return rows
