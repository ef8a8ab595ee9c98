"""How good a trained run is: accuracy of each exit, and the curve of accuracy against MACs, on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from exitwise.data import Splits
from exitwise.evaluation.outputs import EVALUATION_BATCH, collect_logits
from exitwise.exiting.fitting import folds
from exitwise.exiting.measures import create_measure
from exitwise.exiting.outputs import Outputs, anytime, budgeted_curve
from exitwise.exiting.temperatures import fit_temperatures
from exitwise.models import count_cost
from exitwise.runs.build import pick_device
from exitwise.runs.folder import Run
from exitwise.studying.plan import Stage

Logits = tuple[NDArray[Any], NDArray[np.int64]]
"""Of all exits, (N, K, C), and targets (N)."""

CurveLine = tuple[float, float, float]
"""A budget's parameter p, mean MACs, and accuracy."""


class Judged(NamedTuple):
    """A run on held-out images.

    Attributes:
        exit_macs: cost of leaving at each exit.
        exits: accuracy of each exit on all of the images.
        curve: by max-probability with temperatures.
        plain_curve: by max-probability as it is, which is what ``exitwise calibrate`` does by default.
    """

    exit_macs: tuple[int, ...]
    exits: list[float]
    curve: list[CurveLine]
    plain_curve: list[CurveLine]


def judge(run: Run, splits: Splits, stage: Stage, device: str = "auto") -> Judged:
    """Judge a run; in stage ``select`` nothing looks at its test images.

    Temperatures and thresholds never come from the images that they are judged on. To confirm, they come from the
    calibration images, and the test images judge. To select, they come from four fifths of the calibration images in
    turn, and the last fifth judges.
    """
    place = pick_device(device)
    model = run.model(place)

    def logits_of(split: Any) -> Logits:
        return collect_logits(model, split.batches(EVALUATION_BATCH, run.settings.workers), place)

    costs = count_cost(model).macs
    calibration = logits_of(splits.calibration)
    if stage == "confirm":
        test = logits_of(splits.test)
        pairs, judged = [(calibration, test)], test
    else:
        pairs, judged = list(_parts(calibration)), calibration
    curves = [_curve(pairs, costs, fitted) for fitted in (True, False)]
    return Judged(costs, anytime(Outputs.from_logits(*judged)), *curves)


def _parts(held_out: Logits) -> list[tuple[Logits, Logits]]:
    """Return the samples as those that are fitted on and those that judge, in turn."""
    logits, targets = held_out
    return [
        ((np.delete(logits, part, axis=0), np.delete(targets, part)), (logits[part], targets[part]))
        for part in folds(len(targets), seed=0)
    ]


def _curve(pairs: Sequence[tuple[Logits, Logits]], costs: Sequence[float], fitted: bool) -> list[CurveLine]:
    """Return the mean of the curves on all judging samples."""
    sizes = [len(judging[1]) for _, judging in pairs]
    curves = []
    for fitting, judging in pairs:
        measure = create_measure(temperatures=fit_temperatures(*fitting) if fitted else None)
        found = Outputs.from_logits(*fitting, measure), Outputs.from_logits(*judging, measure)
        curves.append(budgeted_curve(*found, costs))
    return [
        (
            lines[0].p,
            float(np.average([line.test.macs for line in lines], weights=sizes)),
            float(np.average([line.test.accuracy for line in lines], weights=sizes)),
        )
        for lines in zip(*curves, strict=True)
    ]
