"""``exitwise cascade``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from exitwise.budgets import parse_numbers
from exitwise.cli.progress import plain_console
from exitwise.errors import UserError
from exitwise.settings.checks import check_run_folder


def cascade(
    *runs: Path,
    out: Path,
    sizes: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    exits: Literal["last", "all"] = "last",
) -> None:
    """Make one run of several trained ones, cheap to dear: what the first is sure of, the next never sees.

    Every command but `train` works on it.

    Examples:

        exitwise cascade runs/small runs/large --out runs/both
        exitwise cascade runs/large --sizes 96,160 --out runs/twice

    Parameters
    ----------
    runs
        Run folders of the same images, split in the same way; or one, with several sizes.
    out
        Run folder to write.
    sizes
        Side in pixels of each network's images; by default as it was trained.
    exits
        Of networks with exits: last: each counts by its last exit; all: all exits, under one rule.
    """
    for run in runs:
        check_run_folder(run)
    sides = None if sizes is None else [_whole(number) for number in parse_numbers(sizes, "sizes", "96,160")]

    import exitwise as ew
    from exitwise.models.cascade import Cascade
    from exitwise.shown import macs, pasteable, percent

    made = ew.cascade(*runs, out=out, sizes=sides, exits=exits)
    model, members, console = made.model(), made.cascade, plain_console()
    assert isinstance(model, Cascade)
    assert members is not None
    ends = [*(start - 1 for start in model.starts[1:]), model.exits - 1]
    costs = model.exit_macs
    for name, end in zip(members.names, ends, strict=True):
        share = percent(costs[end] / model.full_macs)
        console.print(
            f"{name}: leaving at exit {end + 1} costs {macs(costs[end])} MACs, {share} of the last network alone"
        )
    following = pasteable("exitwise", "calibrate", out, "--max-accuracy-drop", 0.01)
    console.print(f"written to {out}; next: {following}")


def _whole(number: float) -> int:
    if not number.is_integer():
        raise UserError(f"expected sizes as sides in pixels; got {number:g}")
    return int(number)
