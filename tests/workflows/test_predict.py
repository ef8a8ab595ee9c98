"""Very many images: broken ones are listed, rows come as they are made, and what was stopped goes on."""

import csv
import io
import json
import os
import re
import tarfile

import pytest

import exitwise as ew
from exitwise.cli import main
from exitwise.errors import UserError
from exitwise.storage.listing import listed
from exitwise.workflows import predict as workflow
from flowers import pngs


@pytest.fixture(scope="module")
def inbox(tmp_path_factory):
    """150 images, of which three are broken."""
    folder = tmp_path_factory.mktemp("in") / ("inbox" + 60 * "x")
    folder.mkdir()
    for i, file in enumerate(pngs(150, seed=5)):
        (folder / f"{i:03}.png").write_bytes(b"" if i in (7, 70) else file[:60] if i == 149 else file)
    return folder


@pytest.fixture(scope="module")
def table(flowers_bundle, inbox, tmp_path_factory):
    """The rows of an uninterrupted call."""
    path = tmp_path_factory.mktemp("out") / "labels.jsonl"
    written = ew.predict_to(path, flowers_bundle, inbox, threads=1)
    assert (written.tally.answered, written.tally.unread) == (147, 3)
    return path.read_text()


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([*map(str, words)])
    return stop.value.code, *capsys.readouterr()


def test_broken_images_are_listed_and_the_others_answered(flowers_bundle, inbox, capsys):
    code, output, _ = call(capsys, "predict", flowers_bundle, inbox)
    assert code == 0
    assert "147 images, " in output
    assert "3 could not be read and have no answer:" in output
    assert f"{inbox}/007.png: the file is empty" in output
    assert f"{inbox}/000.png" in output  # not folded in a pipe
    code, _, errors = call(capsys, "predict", flowers_bundle, inbox, "--strict")
    assert (code, "007.png; could not read it: the file is empty" in errors) == (2, True)
    code, _, errors = call(capsys, "predict", flowers_bundle, inbox / "007.png", inbox / "070.png")
    assert (code, "and the other 1 are broken too" in errors) == (2, True)


def test_each_image_has_a_row_in_its_order(flowers_bundle, inbox, table):
    rows = [json.loads(line) for line in table.splitlines()]
    assert [row["file"] for row in rows] == [str(inbox / f"{i:03}.png") for i in range(150)]
    assert [i for i, row in enumerate(rows) if row.get("error")] == [7, 70, 149]
    answers = iter(ew.predict(flowers_bundle, inbox, threads=1))
    for row in rows:
        if row.get("error") is None:
            each = next(answers)
            assert (row["prediction"], row["exit"], row["compute"]) == (each.prediction, each.exit, each.compute)


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_the_formats_hold_the_same(suffix, flowers_bundle, inbox, table, tmp_path):
    path = tmp_path / f"labels{suffix}"
    if suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    ew.predict_to(path, flowers_bundle, inbox, threads=1)
    rows = [json.loads(line) for line in table.splitlines()]
    if suffix == ".csv":
        found = list(csv.DictReader(path.open()))
        assert [row["file"] for row in found] == [row["file"] for row in rows]
        assert [row["exit"] for row in found] == [str(row.get("exit", "")) for row in rows]
        assert [float(row["confidence"] or -1) for row in found] == [row.get("confidence", -1) for row in rows]
    elif suffix == ".parquet":
        found = parquet.read_table(path).to_pylist()
        assert [(row["file"], row["prediction"], row["exit"]) for row in found] == [
            (row["file"], row.get("prediction"), row.get("exit")) for row in rows
        ]
        assert found[0]["confidence"] == pytest.approx(rows[0]["confidence"])
    else:
        text = path.read_text()
        assert (json.loads(text) if suffix == ".json" else list(map(json.loads, text.splitlines()))) == rows
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("cut", [0, 5])
def test_what_was_stopped_goes_on_without_a_row_lost_or_doubled(
    cut, flowers_bundle, inbox, table, tmp_path, monkeypatch
):
    path = tmp_path / "labels.jsonl"
    answered = workflow._answered
    calls = []

    def stopping(*given):
        calls.append(len(given[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answered(*given)

    monkeypatch.setattr(workflow, "_answered", stopping)
    with pytest.raises(KeyboardInterrupt):
        ew.predict_to(path, flowers_bundle, inbox, threads=1)
    partial = tmp_path / "labels.jsonl.partial"
    assert not path.exists()
    if cut:  # as a machine that stops may leave it
        os.truncate(partial, partial.stat().st_size - cut)
    ew.predict_to(path, flowers_bundle, inbox, threads=1)
    assert sum(calls) == 64 + 64 + 86 + (1 if cut else 0)
    assert path.read_text() == table
    assert not partial.exists()


def test_rows_of_something_else_do_not_go_on(flowers_bundle, inbox, table, tmp_path):
    path = tmp_path / "labels.csv"
    partial = tmp_path / "labels.csv.partial"
    for content in ("not rows\n", table):
        partial.write_text(content)
        with pytest.raises(UserError, match="holds rows of another bundle, other files or other options"):
            ew.predict_to(path, flowers_bundle, inbox, threads=1)
        assert partial.read_text() == content
    ew.predict_to(path, flowers_bundle, inbox, threads=1, overwrite=True)
    assert len(path.read_text().splitlines()) == 151


def test_standard_output_takes_csv(flowers_bundle, inbox, table, capsys):
    code, output, errors = call(capsys, "predict", flowers_bundle, inbox, "--output", "-", "--top", "2")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(output)))
    assert [row["prediction"] for row in rows] == [
        json.loads(line).get("prediction", "") for line in table.splitlines()
    ]
    first = rows[0]
    assert first["class_1"] == first["prediction"]
    assert 1 >= float(first["probability_1"]) >= float(first["probability_2"]) > 0
    assert "147 images, " in errors


def test_lists_and_shards(flowers_bundle, inbox, table, tmp_path):
    names = ["003.png", "001.png", "no.png"]
    (tmp_path / "list.txt").write_text("\n".join(f"{inbox}/{name}" for name in names))
    (tmp_path / "list.csv").write_text("label,file\n" + "".join(f"x,{inbox}/{name}\n" for name in names))
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in names[:2]:
            shard.add(inbox / name, f"../../etc/{name}")
        shard.add(tmp_path / "list.txt", "list.txt")
    rows = {row["file"]: row["prediction"] for row in map(json.loads, table.splitlines()) if not row.get("error")}
    wanted = [rows[str(inbox / name)] for name in names[:2]]
    for source in ("list.txt", "list.csv", "shard.tar"):
        found = ew.predict(flowers_bundle, tmp_path / source, threads=1)
        assert [each.prediction for each in found] == wanted
        assert [each.reason for each in found.broken] == (
            [] if source == "shard.tar" else ["No such file or directory"]
        )
    assert found[0].file == f"{tmp_path}/shard.tar/../../etc/003.png"
    assert not (tmp_path.parent / "etc").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "label,size\nx,1\n", "expected a column file or path or image or filename in .*; got label, size"),
        ("a.txt", "\n", "expected images in .*a.txt; found none"),
        ("a.tar", "no tar", "expected a tar file without compression"),
    ],
)
def test_lists_that_are_none(name, content, said, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        listed(tmp_path / name)


def test_names_steer_no_terminal_and_no_spreadsheet(flowers_bundle, inbox, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=1+1.png", "x\x1b[31mred.png", "caf\udce9.png"]
    for name in names:
        (tmp_path / name).write_bytes((inbox / "000.png").read_bytes())
    code, output, _ = call(capsys, "predict", flowers_bundle, *names)
    assert code == 0
    assert "\x1b" not in output
    assert r"x\x1b[31mred.png" in output
    assert r"caf\udce9.png" in output
    assert call(capsys, "predict", flowers_bundle, *names, "--output", "labels.csv")[0] == 0
    written = (tmp_path / "labels.csv").read_bytes()
    assert re.search(rb"^\./=1\+1\.png,", written, re.MULTILINE)
    assert b"caf\xe9.png" in written


def test_classes_that_there_are_not(flowers_bundle, inbox, tmp_path, capsys):
    code, _, errors = call(capsys, "predict", flowers_bundle, inbox, "--top", 9)
    assert (code, "expected at most 4 classes for top; got 9" in errors) == (2, True)
    code, _, errors = call(capsys, "predict", flowers_bundle, inbox, "--top", -1)
    assert (code, "expected top from 0; got -1" in errors) == (2, True)
