import errno
import subprocess
import sys

import pytest

from exitwise.errors import ExitwiseWarning, UserError
from exitwise.storage.lock import LOCK, check_unlocked, locked

HOLD = """
import sys, time
from pathlib import Path
from exitwise.storage.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path):
    """A folder whose lock another process holds, and that process."""
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.communicate()


def test_a_second_process_is_refused_until_the_first_is_dead(held):
    folder, process = held
    for refused in (check_unlocked, lambda folder: locked(folder).__enter__()):
        with pytest.raises(UserError, match=rf"run is being written by process {process.pid} on .*: wait for it"):
            refused(folder)
    process.kill()
    process.wait()
    check_unlocked(folder)
    with locked(folder):
        pass


def test_looking_leaves_no_trace(tmp_path):
    check_unlocked(tmp_path)
    check_unlocked(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch):
    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    with pytest.warns(ExitwiseWarning, match="cannot be locked .*No locks available"), locked(tmp_path):
        assert (tmp_path / LOCK).is_file()
