"""What the calls on a network gave, sorted for a page about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from exitwise.deploy.calibration import Calibration
from exitwise.errors import UserError
from exitwise.exiting.point import OperatingPoint
from exitwise.reporting.made import machine, now
from exitwise.runs.records.bench import Bench
from exitwise.runs.records.evaluation import Evaluation
from exitwise.shown import Shown
from exitwise.version import __version__

Kind = TypeVar("Kind", bound=Shown)


@dataclass(frozen=True)
class Results:
    """What the calls on one network gave.

    Attributes:
        evaluation, calibration: of it.
        calibrated: what the calibration does on the test samples.
        bench: measured times, if there are.
        others: what else is shown as it is printed, by its title.
        machine: where the page was made, and with what.
        made: when, in UTC.
        version: of exitwise.
    """

    evaluation: Evaluation
    calibration: Calibration
    calibrated: OperatingPoint
    bench: Bench | None
    others: dict[str, str]
    machine: dict[str, Any]
    made: str
    version: str


def sort_results(results: Sequence[Shown], titles: Mapping[type, str]) -> Results:
    """Sort what the calls on one network gave, in any order.

    Args:
        results: an evaluation and its calibration, and more.
        titles: of kinds of results that are shown as they are printed.

    Raises:
        UserError: if the evaluation or the calibration is missing, for two results of one kind, one of another kind, or
            those of different networks.
    """
    kinds = [type(result).__name__ for result in results]
    known = {Calibration, Evaluation, Bench, *titles}
    if any(type(result) not in known for result in results):
        names = ", ".join(sorted(kind.__name__ for kind in known))
        raise UserError(f"expected results among {names}, or run folders alone; got {', '.join(kinds)}")
    if len(set(kinds)) < len(kinds):
        raise UserError(f"expected one result of each kind, of one network; got {', '.join(kinds)}")
    evaluation, calibration = _only(Evaluation, results), _only(Calibration, results)
    if evaluation is None or evaluation.calibrated is None or calibration is None:
        raise UserError(
            "expected the results of evaluate(network, calibration, test) and that calibration, and others if wished; "
            f"got {', '.join(kinds)}"
        )
    calibration.check_costs(evaluation.exit_macs)
    tested = [(line.budget, line.policy.thresholds) for line in evaluation.budgets]
    if tested != [(line.budget, line.thresholds) for line in calibration.table]:
        raise UserError("expected the calibration that was evaluated; got another of the same network")
    return Results(
        evaluation,
        calibration,
        evaluation.calibrated,
        _only(Bench, results),
        {title: str(result) for kind, title in titles.items() for result in results if type(result) is kind},
        machine(),
        now(),
        __version__,
    )


def _only(kind: type[Kind], results: Sequence[Shown]) -> Kind | None:
    return next((result for result in results if isinstance(result, kind)), None)
