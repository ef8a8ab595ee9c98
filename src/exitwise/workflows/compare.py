"""Which measure of confidence suits a network: all of them beside one another on held-out samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exitwise.data import Splits
from exitwise.deploy.calibrating import warn_if_few
from exitwise.errors import UserError
from exitwise.exiting.comparison import Gain, MeasureGain, best_measure, measure_gains
from exitwise.models import count_cost
from exitwise.models.staged import StagedModel
from exitwise.shown import Shown, percent
from exitwise.workflows.held_out import exits_of, held_out_of

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class MeasuresCompared(Shown):
    """All measures on held-out samples.

    Attributes:
        gains: of each measure over the usual one, which comes first.
        samples: how many there are.
    """

    gains: list[MeasureGain]
    samples: int

    @property
    def best(self) -> str:
        """Return the measure to take: the usual one, unless another's interval lies above zero by a sample."""
        return best_measure(self.gains, self.samples).measure

    @property
    def advice(self) -> str:
        """Return which to take, and why, in a sentence."""
        usual, best = self.gains[0], best_measure(self.gains, self.samples)
        if best is usual:
            return f"keep {usual.measure}: no other measure's interval along the curve lies above zero by a sample"
        gain = best.whole
        return (
            f"take {best.measure}: {100 * gain.mean:.1f} points above {usual.measure} along the curve "
            f"(95 % interval {100 * gain.low:.1f} to {100 * gain.high:.1f})"
        )

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table

        usual = self.gains[0].measure
        table = Table(title=f"Measures on {self.samples} held-out samples: points of accuracy above {usual}")
        table.add_column("measure", no_wrap=True)
        for name in ("accuracy", "along the curve", "cheapest quarter", "dearest quarter"):
            table.add_column(name, justify="right")
        for each in self.gains:
            gains = (each.whole, each.cheapest, each.dearest) if each.measure != usual else ()
            table.add_row(each.measure, percent(each.accuracy), *map(_points, gains))
        return Group(table, self.advice)


def _points(gain: Gain) -> str:
    return f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def compare_measures(
    run: str | Path | StagedModel,
    held_out: Iterable[Any] | None = None,
    *,
    temperature: bool = False,
    device: str = "auto",
    splits: Splits | None = None,
) -> MeasuresCompared:
    """Compare all measures on held-out samples, each along the curve of accuracy against MACs.

    Each sample is read by measures that were fitted on others, and leaves by thresholds that were found on others, for
    budgets spaced evenly between the cheapest exit's MACs and the dearest's. Intervals are paired ones of 95 %, by
    drawing samples anew.

    Args:
        run: a run folder, whose calibration split is used; or a network.
        held_out: of a network, batches as :func:`~exitwise.calibrate` takes them.
        temperature: whether measures that fit no temperatures themselves get one per exit.
        device: where to run a run's network; a network itself is used where it lies.
        splits: the run's data, where it is loaded already.

    Raises:
        UserError: for a network without early exits or held-out samples, or a run with; or unsuitable samples.
    """
    if exits_of(run) < 2:
        raise UserError("expected a network with early exits to compare measures on; got one with 1 exit")
    found = held_out_of(run, held_out, device, splits)
    warn_if_few(len(found.targets), found.recorded.noun)
    costs = count_cost(found.model).macs
    gains = measure_gains(found.logits, found.targets, costs, temperature=temperature, seed=found.seed)
    return MeasuresCompared(gains, len(found.targets))
