import errno
import subprocess
import sys
from threading import Timer

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


def test_a_holder_that_has_not_written_its_name_yet_is_waited_for(held):
    """What is there meanwhile is nothing, or the name of a process that was killed."""
    folder, process = held
    name = (folder / LOCK).read_text()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    for before in ("", name.replace(str(process.pid), gone.stdout.strip())):
        (folder / LOCK).write_text(before)
        Timer(0.2, (folder / LOCK).write_text, [name]).start()
        with pytest.raises(UserError, match=f"is being written by process {process.pid} on"):
            check_unlocked(folder)
