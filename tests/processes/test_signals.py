import os
import signal
import threading

import pytest

from exitwise.errors import Interrupted
from exitwise.processes.signals import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_acts_as_before(number):
    heard = []
    former = signal.signal(number, lambda *args: heard.append("former"))
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), number)
            assert (stop.signal, heard) == (number, [])
            os.kill(os.getpid(), number)
            assert heard == ["former"]
        os.kill(os.getpid(), number)
        assert heard == ["former", "former"]
    finally:
        signal.signal(number, former)


def test_handlers_come_back():
    former = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    try:
        with StopRequest() as stop:
            assert all(signal.getsignal(number) == stop._receive for number in SIGNALS)
        assert all(signal.getsignal(number) == signal.SIG_DFL for number in SIGNALS)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("early", [True, False])
def test_a_block_with_nothing_to_finish_is_left_at_once(early):
    reached = []

    def work(stop):
        if early:
            os.kill(os.getpid(), signal.SIGTERM)
        with stop.at_once():
            reached.append("inside")
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("after")

    with StopRequest() as stop, pytest.raises(Interrupted, match="stopped by SIGTERM") as stopped:
        work(stop)
    assert stopped.value.number == 15
    assert reached == ([] if early else ["inside"])


def test_an_ignored_signal_stays_ignored():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGINT, former)


def test_another_thread_cannot_listen_and_does_not_try():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter():
        with StopRequest():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
