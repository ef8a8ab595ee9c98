"""Turns SIGTERM and SIGINT into a request to stop where nothing is lost. Knows nothing of training."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from exitwise.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Notes the first SIGTERM or SIGINT while it is entered; a second one does what it would have done before.

    A signal that is ignored stays ignored. Only the main thread can listen; elsewhere signals act as ever. Once one has
    come, the death of a child process is no longer an error: it may have got the same signal.

    Attributes:
        signal: the one that came; None so far.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._raising = False

    def __enter__(self) -> Self:
        self.signal = None
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._former = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block without anything to finish: a signal raises :class:`Interrupted` in it, also one that came before."""
        self._raising = True
        try:
            if self.signal is not None:
                raise Interrupted(self.signal)
            yield
        finally:
            self._raising = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        self._former = {signal.SIGCHLD: signal.signal(signal.SIGCHLD, signal.SIG_DFL)}
        if self._raising:
            raise Interrupted(self.signal)

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not installed by Python
        self._former = {}
