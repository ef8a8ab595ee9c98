"""What is advised: options in the order to try them, what each number rests on, and what is undecided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exitwise.advising.belief import GAIN, Interval
from exitwise.advising.times import Time
from exitwise.catalogue.published import AS_OF
from exitwise.shown import Shown, macs

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Suggestion:
    """Something to try.

    Attributes:
        name: the network, as timm has it, or ``network`` for one of the caller's.
        early: whether exits are on it, and images leave early.
        image_size: side in pixels; None for inputs that are no images.
        seconds: per image, one by one; with exits on average.
        form: ``onnx`` or ``eager``: what was timed.
        macs: multiply-accumulates per image; with exits on average.
        accuracy: expected after fine-tuning.
        behind: accuracy less that of the first suggestion, a negative number where it is less; None for the first.
        within: whether it meets the limit.
        basis: what the accuracy rests on.
        weights: whether its weights are at hand.
        smaller: whether its images are smaller than those of its published accuracy.
    """

    name: str
    early: bool
    image_size: int | None
    seconds: Time
    form: str
    macs: float
    accuracy: Interval
    behind: Interval | None
    within: bool
    basis: str
    weights: bool
    smaller: bool = False

    def __str__(self) -> str:
        return f"{self.name} with exits" if self.early else self.name


@dataclass(frozen=True)
class Versus:
    """Exits on a larger network beside a smaller network, at the smaller one's cost.

    Attributes:
        larger, smaller: names.
        points: accuracy of the one with exits less that of the smaller; None where its first exit costs more already.
    """

    larger: str
    smaller: str
    points: Interval | None

    @property
    def decision(self) -> str:
        """``better``, ``worse``, ``undecided`` or ``out of reach``."""
        return "out of reach" if self.points is None else decision(self.points)

    def __str__(self) -> str:
        what = f"{self.larger} with exits, at what {self.smaller} takes"
        if self.points is None:
            return f"{what}: its first exit alone takes as long"
        return f"{what}: {points(self.points)} points of accuracy beside it: {self.decision}"


@dataclass(frozen=True)
class Advice(Shown):
    """What :func:`~exitwise.advise` says.

    Attributes:
        suggestions: those within the limit in the order to try them, then those beyond it.
        versus: what exits on larger networks give beside smaller ones.
        left_out: candidates that could not be built or timed, and why.
        limit: what was asked for, in words.
        images: how many were probed on; 0 for none.
    """

    suggestions: list[Suggestion]
    versus: list[Versus]
    left_out: dict[str, str]
    limit: str
    images: int

    @property
    def verdict(self) -> str:
        """What to try first, in a sentence, and what may do as well in less time."""
        first, *others = [each for each in self.suggestions if each.within]
        known = "" if first.weights else " (its weights are not at hand: --weights lets its features be looked at)"
        said = f"try {first} first{known}"
        rivals = [each for each in others if each.behind is not None and decision(each.behind) == "undecided"]
        faster = [each for each in rivals if each.seconds.median < first.seconds.median]
        if faster:
            fastest = min(faster, key=lambda each: each.seconds.median)
            ratio = first.seconds.median / fastest.seconds.median
            said += f"; {fastest} may be as accurate and is {ratio:.2g}x as fast"
        if rivals:
            said += f"; {len(rivals)} of {len(others)} others within the limit are undecided beside it"
        return said

    def __rich__(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.table import Table

        table = Table(title=f"To try, in this order ({self.limit})", box=box.SIMPLE, padding=(0, 0, 0, 1))
        table.add_column("", justify="right", no_wrap=True)
        table.add_column("network", overflow="fold", min_width=16)
        for name, least in (("ms", 11), ("MACs", 5), ("accuracy, %", 10)):
            table.add_column(name, justify="right", min_width=least)
        for name, least in (("rests on", 8), ("beside 1", 9)):
            table.add_column(name, min_width=least)
        for number, each in enumerate(self.suggestions, start=1):
            median, low, high = (f"{1000 * value:.3g}" for value in each.seconds)
            table.add_row(
                str(number) if each.within else "",
                f"{each}, {each.image_size} px" if each.image_size else str(each),
                f"{median} ({low}-{high}){'' if each.form == 'onnx' else ' eager'}",
                macs(each.macs),
                f"{100 * each.accuracy.mean:.0f} ({100 * each.accuracy.low:.0f}-{100 * each.accuracy.high:.0f})",
                each.basis,
                _beside(each),
            )
        lines = [f"{name} was left out: {reason}" for name, reason in self.left_out.items()]
        return Group(table, *lines, *map(str, self.versus), self.verdict, *self.grounds())

    def grounds(self) -> list[str]:
        """Return what the numbers rest on, in words."""
        low, high = (np.exp(-(GAIN[0] + sign * 1.96 * GAIN[1])) for sign in (1, -1))
        lines = [
            "ms: measured here on the CPU, one image at a time, in turn; median (a tenth of calls is below, a tenth "
            "above); with exits by each exit's share of the network's own time. MACs: counted on the network.",
            "accuracy: expected after fine-tuning, with a 95 % interval. Fine-tuning is taken to multiply the odds of "
            f"an error of a probe by {np.exp(-GAIN[0]):.2f} ({low:.2f} to {high:.2f}), and accuracy to follow "
            "ImageNet's more or less: assumptions, not measurements.",
        ]
        if self.images:
            lines.append(
                f"probe: linear heads on the network's features of {self.images} training images, each image answered "
                "by heads that were fitted on others; thresholds of exits likewise."
            )
        lines.append(
            f"ImageNet: accuracy by timm's tables of {AS_OF}, at their size of image, for weights that are not at hand."
        )
        if any(each.smaller for each in self.suggestions):
            lines.append(
                "On images smaller than those of the tables networks are less accurate, some more than others: only a "
                "probe, which sees the images in their size, tells by how much, and intervals are wider."
            )
        return lines


def _beside(suggestion: Suggestion) -> str:
    if not suggestion.within:
        return "over the limit"
    return "" if suggestion.behind is None else decision(suggestion.behind)


def decision(difference: Interval) -> str:
    """Return ``better`` or ``worse`` where an interval leaves out zero, else ``undecided``."""
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "undecided"


def points(difference: Interval) -> str:
    """Return a difference as text: ``+1.2 (-0.4 to +2.8)``."""
    mean, low, high = (f"{100 * value:+.1f}" for value in difference)
    return f"{mean} ({low} to {high})"


def in_order(accuracies: NDArray[np.float64], within: Sequence[bool]) -> list[int]:
    """Return indices of options: those within the limit first, each part by mean accuracy, the best first."""
    means = accuracies.mean(0)
    return sorted(range(len(within)), key=lambda index: (not within[index], -means[index]))
