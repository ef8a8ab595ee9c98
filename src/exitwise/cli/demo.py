"""``exitwise demo``: both methods on the bundled digits, from training to measured speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from exitwise.cli.progress import RichReporter, plain_console

if TYPE_CHECKING:
    from exitwise.runs.folder import Run
    from exitwise.runs.records.evaluation import Evaluation

BUDGETS = (0.3, 0.5, 0.7)
"""Shares of the full network's MACs."""


def demo(*, out: Path = Path("runs/demo")) -> None:
    """Train `uniform` and `meta-weighted` on bundled digits, calibrate both, and compare them: under 3 minutes.

    Example:

        exitwise demo

    Parameters
    ----------
    out
        Folder for the two runs and the figure.
    """
    import exitwise as ew
    from exitwise.kernels.timing import warn_if_busy
    from exitwise.reporting.figures import accuracy_against_macs
    from exitwise.settings.compose import compose

    warn_if_busy()
    console = plain_console()
    table = Table()
    for column in ("", "accuracy", "MACs", "leaving at exits", "faster", "at once"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    results: dict[str, Evaluation] = {}
    for method in ("uniform", "meta-weighted"):
        console.print(f"training with {method}")
        with RichReporter(console) as reporter:
            run = ew.train(compose("digits", flags={"method": method}), out / method, reporter).run
        ew.calibrate(run.path, budget=0.5)
        results[method] = ew.evaluate(run.path)
        _add_rows(table, run, results[method])
        table.title = f"Digits, {run.data['sizes']['test']} test images, one seed"
    curves = {name: [(result.budgets, result.anytime)] for name, result in results.items()}
    figure = accuracy_against_macs(curves, results["uniform"].exit_macs)
    figure.savefig(out / "accuracy_against_macs.png", dpi=150)
    console.print(table)
    console.print("faster: wall clock of the network without early exits / that of the early-exit runner,")
    console.print(
        "        image by image and all at once (medians); networks as small as this save less than their MACs"
    )
    console.print(f"figure: {out / 'accuracy_against_macs.png'}")


def _add_rows(table: Table, run: Run, evaluation: Evaluation) -> None:
    """A row per exit used alone, and one per budget with its measured speed-up."""
    from exitwise.benching.timing import measure_speedups
    from exitwise.evaluation.collect import collect
    from exitwise.exiting.calibration import calibrate_macs
    from exitwise.exiting.outputs import operate
    from exitwise.runs.build import pick_device
    from exitwise.shown import macs, percent, shares

    costs, full = evaluation.exit_macs, evaluation.exit_macs[-1]
    table.add_row(run.settings.method, style="bold")
    for number, (accuracy, cost) in enumerate(zip(evaluation.anytime, costs, strict=True), start=1):
        table.add_row(f"  exit {number} alone", percent(accuracy), macs(cost), "", "", "")
    device = pick_device("auto")
    model, splits = run.model(device), run.splits()
    calibration, test = collect(model, splits.calibration, device), collect(model, splits.test, device)
    policies = {budget: calibrate_macs(calibration.confidences, costs, budget * full)[0] for budget in BUDGETS}
    (images, _), *_ = splits.test.batches(len(splits.test))
    images = images.to(device)
    one_by_one = measure_speedups(model, policies, images[:100], batch_size=1, rounds=3)
    in_one_batch = measure_speedups(model, policies, images, batch_size=len(images), rounds=9)
    for budget, policy in policies.items():
        point = operate(test, policy, costs)
        speeds = (f"{one_by_one[budget]:.2f}x", f"{in_one_batch[budget]:.2f}x")
        figures = (percent(point.accuracy), macs(point.macs), shares(point.shares))
        table.add_row(f"  {100 * budget:.0f} % budget", *figures, *speeds)
    table.add_section()
