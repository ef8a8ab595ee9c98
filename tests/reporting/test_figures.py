"""The figure that evaluate writes."""

from exitwise.exiting.point import OperatingPoint
from exitwise.exiting.policy import ExitPolicy
from exitwise.reporting.figures import accuracy_against_macs
from exitwise.runs.records.evaluation import BudgetPoint


def test_curves_run_from_cheap_to_dear_whatever_the_order_of_budgets():
    spent = [30e6, 10e6, 50e6, 20e6]
    budgets = [
        BudgetPoint(0.1 * k, ExitPolicy([0.5]), OperatingPoint(macs / 1e8, macs, (0.5, 0.5)))
        for k, macs in enumerate(spent)
    ]
    figure = accuracy_against_macs({"a": [(budgets, [0.4, 0.6])]}, (10e6, 60e6))
    curve = figure.axes[0].lines[0]
    assert curve.get_xdata().tolist() == sorted(macs / 1e6 for macs in spent)
    assert curve.get_ydata().tolist() == sorted(100 * macs / 1e8 for macs in spent)
