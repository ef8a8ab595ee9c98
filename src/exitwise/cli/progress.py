"""Shows training as it goes: a bar in a terminal, elsewhere a line per epoch and at least one a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

if TYPE_CHECKING:
    from exitwise.training.meters import Meters

REFRESH_SECONDS, LINE_SECONDS = 0.5, 60.0


def plain_console(quiet: bool = False, **options: Any) -> Console:
    """Return a console that prints names of files and classes as they are, without reading markup in them; or
    nothing."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=quiet, **options)


@contextmanager
def counting(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how far a count is; call what it gives with the numbers done and in all."""
    bar = _bar(console)
    task = bar.add_task("", total=None, note=what)
    shown = time.monotonic()

    def count(done: int, total: int) -> None:
        nonlocal shown
        if console.is_terminal:
            bar.update(task, completed=done, total=total)
        elif time.monotonic() - shown > LINE_SECONDS:
            shown = time.monotonic()
            console.print(f"{done} of {total} {what}")

    with bar:
        yield count


def _bar(console: Console) -> Progress:
    """Return a bar in a terminal, nothing elsewhere; each task has a note."""
    note = TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=1, no_wrap=True))
    columns = (BarColumn(10), MofNCompleteColumn(), TimeRemainingColumn(compact=True), note)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal, expand=True)


class RichReporter:
    """A reporter for :class:`~exitwise.training.trainer.Trainer` that draws with rich.

    Args:
        console: to draw on.
        header: lines to print first, once nothing stands against the training any more.
    """

    def __init__(self, console: Console, header: Sequence[str] = ()) -> None:
        self.console = console
        self.header = header
        self.progress = _bar(console)
        self.task = self.progress.add_task("", total=None, note="")
        self.shown = time.monotonic()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def on_start(self, data: str) -> None:
        for line in (*self.header, data):
            self.console.print(line)

    def on_keep(self, done: int, total: int) -> None:
        if self._is_due():
            self._show(done, total, "batches through the backbone, to keep features")

    def on_step(self, iteration: int, total: int, meters: Meters) -> None:
        if self._is_due():
            self._show(iteration, total, describe(meters.means(), "train"))

    def on_epoch(self, history: list[dict[str, float]]) -> None:
        row = history[-1]
        self.console.print(f"epoch {row['epoch']:>3}  {describe(row, 'calibration')}")

    def _is_due(self) -> bool:
        pause = REFRESH_SECONDS if self.console.is_terminal else LINE_SECONDS
        return time.monotonic() - self.shown >= pause

    def _show(self, done: int, total: int, note: str) -> None:
        self.shown = time.monotonic()
        if self.console.is_terminal:
            self.progress.update(self.task, completed=done, total=total, note=note)
        else:
            self.console.print(f"step {done} of {total}  {note}")


def describe(row: dict[str, float], split: str) -> str:
    """Loss, meta loss if any, accuracy of each exit on a split in percent, and skipped steps if any."""
    accuracies = [value for key, value in row.items() if key.startswith(f"{split}_accuracy_")]
    meta = f" meta {row['meta_loss']:.3f}" if "meta_loss" in row else ""
    skipped = f"  skipped {row['skipped_steps']:.0f} steps" if "skipped_steps" in row else ""
    percent = " ".join(f"{100 * a:.1f}" for a in accuracies)
    return f"loss {row['loss']:.3f}{meta}  {split} {percent} %{skipped}"
