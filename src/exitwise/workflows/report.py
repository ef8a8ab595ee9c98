"""One HTML file about evaluated runs, about a study, or about what the calls on a network gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from exitwise.errors import UserError
from exitwise.shown import Shown
from exitwise.storage.files import check_output, why_not_written, write_bytes, write_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from exitwise.reporting.content import Report


@dataclass(frozen=True)
class WrittenReport(Shown):
    """A report that was written: its file, and its size in bytes; files of figures."""

    path: Path
    size: int
    figures: tuple[Path, ...] = ()

    def __rich__(self) -> RenderableType:
        page = f"written to {self.path} ({self.size / 2**20:.1f} MiB); open it in any browser"
        return f"{page}\n{len(self.figures)} figures written to {self.figures[0].parent}" if self.figures else page


Source = str | PathLike[str] | Shown


def report(
    runs: Source | Sequence[Source],
    out: str | Path | None = None,
    *,
    calibration: str | None = None,
    monitor: str | Path | None = None,
    figures: str | Path | None = None,
    data: str | Path | None = None,
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
        calibration: of runs, the name of one that they keep.
        monitor: of one run: what deployed inputs looked like (:func:`~exitwise.write_monitored`), to be shown beside
            the calibration.
        figures: folder for PNG and SVG figures of what is shown of runs.
        data: of runs: where their images lie now, if they have moved.
        overwrite: whether that file, and figures in that folder, may be replaced.
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
    folder = None if figures is None else Path(figures)
    if folder is not None:
        _check_folder(folder, overwrite)

    from exitwise.reporting.gather import gather
    from exitwise.reporting.render import render, render_results, render_study
    from exitwise.reporting.results import sort_results
    from exitwise.studying.records import STUDY
    from exitwise.workflows.export import Exported
    from exitwise.workflows.fit import ExitsFitted

    study = len(paths) == 1 and STUDY.exists(paths[0])
    if calibration is not None and (results or study):
        raise UserError(f"a name is for a calibration that a run keeps; got {calibration}")
    if monitor is not None and (results or study or len(paths) > 1):
        raise UserError(f"the record of a monitor is shown beside one run; got {monitor} with something else")
    if folder is not None and (results or study):
        raise UserError(f"figures are drawn of run folders; got {'a study' if study else 'results'}")
    titles: dict[type, str] = {ExitsFitted: "How the exits were fitted", Exported: "What was exported"}
    files: dict[Path, bytes] = {}
    if results:
        page = render_results(sort_results(results, titles))
    elif study:
        page = render_study(STUDY.read(paths[0]))
    else:
        gathered = gather(paths, device, calibration=calibration, monitor=monitor, data=data)
        page = render(gathered)
        if folder is not None:
            files = _figures(gathered, folder)
    page = page.encode(errors="backslashreplace").decode()  # names of files and classes that are not UTF-8
    write_text(file, page)
    for path, content in files.items():
        write_bytes(path, content)
    return WrittenReport(file, len(page.encode()), tuple(files))


def _check_folder(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"expected a folder for figures; {path} is a file")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise UserError(f"expected a new or empty folder for figures; {path} holds files: give --overwrite")
    if why := why_not_written(path):
        raise UserError(f"expected a folder to write figures into; {path} is none: {why}")


def _figures(report: Report, folder: Path) -> dict[Path, bytes]:
    from exitwise.reporting.paper import FORMATS, drawn, paper_figures

    found = paper_figures(report)
    return {folder / f"{name}.{kind}": drawn(figure, kind) for name, figure in found for kind in FORMATS}
