import pytest

from exitwise.cli import main

PARTS = ("classes", "exits", "reliability", "learning")


def call(capsys, *tokens):
    with pytest.raises(SystemExit) as stop:
        main(["report", *map(str, tokens)])
    output, errors = capsys.readouterr()
    return stop.value.code, output, errors


def test_one_run_is_shown_in_its_folder(copied, capsys, monkeypatch):
    monkeypatch.setattr("exitwise.reporting.paper.drawn", lambda figure, kind: b"drawn")  # drawing takes seconds
    folder = copied / "figures" / "paper"
    code, output, _ = call(capsys, copied, "--device", "cpu", "--figures", folder)
    assert code == 0
    assert f"12 figures written to {folder}" in output
    names = {path.stem for path in folder.iterdir()}
    assert names == {"accuracy_against_macs", "accuracy_against_time", *(f"copy-{part}" for part in PARTS)}
    assert f"written to {copied / 'report.html'} (" in output
    assert (copied / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    before = (copied / "report.html").read_bytes()
    code, _, errors = call(capsys, copied)
    assert (code, (copied / "report.html").read_bytes()) == (2, before)
    assert errors == f"exitwise: {copied / 'report.html'} exists; give --overwrite to replace it\n"
    assert call(capsys, copied, "--overwrite", "--device", "cpu")[0] == 0
    assert (copied / "report.html").read_bytes() != before  # its own nonce


def test_several_runs_are_shown_here(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, runs.uniform, runs.weighted, "--device", "cpu")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_bad_input_writes_nothing(runs, copied, tmp_path, capsys):
    (copied / "calibration.json").unlink()
    out = tmp_path / "report.html"
    for tokens, message in (
        ([], "--runs requires an argument"),
        ([tmp_path / "nothing"], "expected a run folder with config.yaml"),
        ([runs.uniform, copied], f"run `exitwise calibrate {copied} --budget 0.5` first"),
        ([runs.weighted, "--device", "abacus"], "expected a device of this machine"),
    ):
        code, _, errors = call(capsys, *tokens, "--out", out)
        assert code == 2
        assert message in errors
        assert len(errors.strip().splitlines()) == 1
    assert not out.exists()
    for folder, message in ((copied, "expected a new or empty folder"), (copied / "data.json", "expected a folder")):
        code, _, errors = call(capsys, runs.weighted, "--out", out, "--figures", folder)
        assert (code, errors.startswith(f"exitwise: {message} for figures; {folder} ")) == (2, True)
    assert not out.exists()
    code, _, errors = call(capsys, runs.weighted, "--out", tmp_path)
    assert (code, errors) == (2, f"exitwise: expected a file to write; {tmp_path} is a folder\n")
