"""What an update costs with each variant, measured side by side: they take turns, an update each.

A machine that is busy now and then is so for all of them alike, and what is compared are times of the same round.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

Train = Callable[[Any, Path, Any], Any]
"""Trains by settings, into a folder, with a reporter."""

ROUNDS, FIRST = 24, 3
"""Rounds that count, and rounds before them that do not."""


def timed_updates(interval: int) -> int:
    """Return the length of a training that is timed: a whole one in little, so that what costs more or less at another
    time of it counts by its share.

    Args:
        interval: updates in a turn; of a method that learns every so many batches, so many (``meta_interval``).
    """
    return (FIRST + ROUNDS) * interval


def seconds_per_update(settings: Mapping[str, Any], train: Train, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Return the seconds of an update with each variant, one figure per round.

    Each variant trains in a thread of its own, of which one runs at a time.

    Args:
        settings: of a run of :func:`timed_updates`, by the variant's name. A turn takes ``meta_interval`` updates, and
            the figure is their mean.
        train: trains by them.
        rounds: how many to count.
    """
    turns = _Turns(list(settings), [each.meta_interval for each in settings.values()], FIRST + rounds)
    with TemporaryDirectory(prefix="exitwise-study-") as folder:
        threads = [
            threading.Thread(target=turns.run, args=(name, train, each, Path(folder) / str(number)))
            for number, (name, each) in enumerate(settings.items())
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if turns.error is not None:
        raise turns.error
    return {name: times[FIRST:] for name, times in turns.seconds.items()}


def ratio(mine: Sequence[float], baseline: Sequence[float]) -> float:
    """Return how many of the baseline's updates one costs: the mean over rounds, but for the largest and smallest."""
    return fmean(sorted(a / b for a, b in zip(mine, baseline, strict=True))[1:-1])


class _EnoughError(Exception):
    """All rounds are over."""


class _Turns:
    """Whose turn it is, and how long each has taken."""

    def __init__(self, names: Sequence[str], updates: Sequence[int], rounds: int) -> None:
        self.names = list(names)
        self.updates = dict(zip(names, updates, strict=True))
        self.rounds = rounds
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.error: BaseException | None = None
        self._current = 0
        self._changed = threading.Condition()

    def run(self, name: str, train: Train, settings: Any, folder: Path) -> None:
        """Train in this thread, as long as there are rounds."""
        try:
            self.wait(name)
            train(settings, folder, _Reporter(self, name))
        except _EnoughError:
            pass
        except BaseException as error:
            self.error = self.error or error
        finally:
            self.leave(name)

    def wait(self, name: str) -> None:
        """Return when it is the variant's turn."""
        with self._changed:
            self._changed.wait_for(lambda: self.error is not None or self.names[self._current] == name)
        if self.error is not None:
            raise _EnoughError

    def hand_on(self) -> None:
        """Let the next one have its turn."""
        with self._changed:
            self._current = (self._current + 1) % len(self.names)
            self._changed.notify_all()

    def leave(self, name: str) -> None:
        """Take no more turns."""
        with self._changed:
            place = self.names.index(name)
            self.names.remove(name)
            if place < self._current:
                self._current -= 1
            self._current %= max(len(self.names), 1)
            self._changed.notify_all()


class _Reporter:
    """Hands the turn on after each turn's updates."""

    def __init__(self, turns: _Turns, name: str) -> None:
        self.turns, self.name = turns, name
        self.began = self.last = 0.0
        self.done = 0

    def on_start(self, data: str) -> None:
        self._rest()

    def on_keep(self, done: int, total: int) -> None:
        pass

    def on_step(self, iteration: int, total: int, meters: Any) -> None:
        self.done += 1
        self.last = time.perf_counter()
        if self.done < self.turns.updates[self.name]:
            return
        seconds = self.turns.seconds[self.name]
        seconds.append((self.last - self.began) / self.done)
        if len(seconds) == self.turns.rounds:
            raise _EnoughError
        self._rest()

    def on_epoch(self, history: list[dict[str, float]]) -> None:
        self.began += time.perf_counter() - self.last  # the evaluation is no part of an update

    def _rest(self) -> None:
        self.turns.hand_on()
        self.turns.wait(self.name)
        self.began = self.last = time.perf_counter()
        self.done = 0
