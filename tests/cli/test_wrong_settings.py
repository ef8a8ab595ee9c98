"""Wrong settings, files and flags: exit code 2, one clear line, no traceback, nothing written, and at once.

All but what only a backbone's library knows is found without importing torch, let alone data or a model.
"""

import json
import os
import re
import subprocess
import sys
import time

import pytest
from test_cli import assert_refused, call

from wrong import FILES, FLAGS, words

SECONDS = 3.0


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory, beside a file and a folder to name."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


def refused_at_once(place, capsys, message, *tokens):
    started = time.process_time()  # the cores may be busy with other tests
    code, output, errors = call(capsys, *tokens)
    seconds = time.process_time() - started
    assert_refused(code, errors, message)
    assert output == ""
    assert seconds < SECONDS
    assert list((place / "cwd").iterdir()) == []


@pytest.mark.parametrize("case", FILES)
def test_wrong_files(case, place, capsys):
    content, message, *flags = FILES[case]
    (place / "c.yaml").write_bytes(content.encode("utf-8", "surrogateescape"))
    refused_at_once(place, capsys, message, "train", "--config", place / "c.yaml", *flags)


@pytest.mark.parametrize("case", FLAGS)
def test_wrong_flags(case, place, capsys):
    line, message = FLAGS[case]
    refused_at_once(place, capsys, message, *words(line, place))


def test_an_empty_file_changes_nothing(place, capsys):
    (place / "c.yaml").write_text("")
    answers = [call(capsys, "train", *flags, "--print-config") for flags in ([], ["--config", place / "c.yaml"])]
    assert answers[0] == answers[1]
    assert answers[0][0] == 0


WITHOUT_TORCH = """
import contextlib, io, json, sys
sys.modules["torch"] = None  # importing it fails
from exitwise.cli import main
for tokens in json.load(sys.stdin):
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            main(tokens)
    except SystemExit as stop:
        print(stop.code, errors.getvalue().strip())
"""


def test_no_case_imports_torch(place):
    """All flags in one process; without weights aside, since how a backbone wants its images, its library knows."""
    cases = {case: FLAGS[case] for case in FLAGS if case != "no weights"}
    lines = [words(line, place) for line, _ in cases.values()]
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], input=json.dumps(lines), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for answer, (_, message) in zip(result.stdout.splitlines(), cases.values(), strict=True):
        assert answer.startswith("2 exitwise: "), answer
        assert re.search(message, answer), answer


def children_seconds():
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.parametrize("case", ["negative epochs", "data missing", "no run"])
def test_a_whole_process_is_quick(case, place):
    """In processor time, and the quickest of three, since the cores may be busy with other tests."""
    line, message = FLAGS[case]
    seconds = []
    for _ in range(3):
        started = children_seconds()
        result = subprocess.run(
            [sys.executable, "-m", "exitwise", *line.split()], capture_output=True, text=True, check=False
        )
        seconds.append(children_seconds() - started)
        assert_refused(result.returncode, result.stderr, message)
        if seconds[-1] < SECONDS:
            return
    pytest.fail(f"took {seconds} seconds")
