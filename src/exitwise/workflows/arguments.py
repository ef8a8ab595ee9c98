"""What calls on a run and on a network take, which is not the same."""

from __future__ import annotations

from typing import Any

from exitwise.deploy.calibration import Calibration
from exitwise.errors import UserError
from exitwise.models.staged import check_staged


def check_network_call(network: Any, calibration: Any, rest: Any, done: str) -> None:
    """Raise UserError unless a call on a network has all it needs.

    Args:
        network, calibration, rest: as they were given; None where they were not.
        done: what is done by which call, such as ``timed by bench(network, calibration, test)``.
    """
    check_staged(network)
    if not isinstance(calibration, Calibration) or rest is None:
        raise UserError(f"a network is {done}; got other arguments")


def check_run_call(run: Any, calibration: Any, test: Any) -> None:
    """Raise UserError if a call on a run was given what it has itself; a name of a calibration is none of that."""
    if not (calibration is None or isinstance(calibration, str)) or test is not None:
        raise UserError(f"a run has a calibration and test samples of its own; got others too, with {run}")


def check_no_place(data: Any) -> None:
    """Raise UserError if a call on a network was told where images lie."""
    if data is not None:
        raise UserError(f"data says where a run's samples lie now; got {data} with a network")
