"""One HTML file about evaluated runs, about a study, or about what the calls on a network gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from exitwise.errors import UserError
from exitwise.shown import Shown
from exitwise.storage.files import check_output, write_text

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class WrittenReport(Shown):
    """A report that was written: its file, and its size in bytes."""

    path: Path
    size: int

    def __rich__(self) -> RenderableType:
        return f"written to {self.path} ({self.size / 2**20:.1f} MiB); open it in any browser"


Source = str | PathLike[str] | Shown


def report(
    runs: Source | Sequence[Source],
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
    device: str = "auto",
) -> WrittenReport:
    """Write a report on runs: what budgets give, which images leave where, and more; or on a network of one's own.

    Args:
        runs: a calibrated and evaluated run folder, or several of the same data; or the folder of a study; or what the
            calls on one network gave, in any order: the result of ``evaluate`` and its calibration, and, if wished,
            those of ``fit_exits``, ``export`` and ``bench``.
        out: file to write; by default RUN/report.html, of several runs, or of results, report.html in the current
            folder.
        overwrite: whether that file may be replaced.
        device: where to run the networks of runs and measure their times.

    Raises:
        UserError: for runs that cannot be compared, results that are not of one network, or a file that is there
            already.
    """
    given = [runs] if isinstance(runs, (str, PathLike, Shown)) else list(runs)
    wrong = next((each for each in given if not isinstance(each, (str, PathLike, Shown))), None)
    if wrong is not None:
        raise UserError(f"expected results of one network, or run folders; got {type(wrong).__name__}")
    results = [each for each in given if isinstance(each, Shown)]
    paths = [Path(each) for each in given if not isinstance(each, Shown)]
    if results and paths:
        raise UserError(f"expected results of one network, or run folders; got both, {paths[0]} among them")
    file = Path(out) if out else (paths[0] / "report.html" if len(paths) == 1 else Path("report.html"))
    check_output(file, overwrite)

    from exitwise.reporting.gather import gather
    from exitwise.reporting.render import render, render_results, render_study
    from exitwise.reporting.results import sort_results
    from exitwise.studying.records import STUDY
    from exitwise.workflows.export import Exported
    from exitwise.workflows.fit import ExitsFitted

    titles: dict[type, str] = {ExitsFitted: "How the exits were fitted", Exported: "What was exported"}
    if results:
        page = render_results(sort_results(results, titles))
    elif len(paths) == 1 and STUDY.exists(paths[0]):
        page = render_study(STUDY.read(paths[0]))
    else:
        page = render(gather(paths, device))
    write_text(file, page)
    return WrittenReport(file, len(page.encode()))
