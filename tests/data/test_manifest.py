"""Tables of images and labels: CSV and Parquet, with splits and with groups that stay together."""

import csv

import pytest

import exitwise as ew
from exitwise.data import Preprocessing, load
from exitwise.doctor.data import examine_data
from exitwise.errors import DataError
from exitwise.settings.compose import compose
from images import make_folder

SMALL = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
HEADER = ("image", "label")


def rows_of(root, count=20):
    """Rows of a folder's images: four images of a patient, who has one class."""
    return [
        (f"photos/{name}/{k:02d}.png", name, f"{name[0]}{k // 4}")
        for name in ("dark", "grey", "light")
        for k in range(count)
    ]


def table(path, header, rows, delimiter=","):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("manifest")
    make_folder(root / "photos", count=20)
    return root


def test_a_table_is_divided_as_its_folder_is(root):
    splits = load(str(table(root / "a.csv", HEADER, [row[:2] for row in rows_of(root)])), SMALL)
    folder = load(str(root / "photos"), SMALL)
    assert splits.classes == folder.classes
    for mine, theirs in zip(splits[:3], folder[:3], strict=True):
        assert mine.indices.tolist() == theirs.indices.tolist()
        assert mine.name(0) == f"photos/{theirs.name(0)}"


def test_formats_and_names_of_columns(root):
    rows = [row[:2] for row in rows_of(root)]
    expected = load(str(table(root / "b.csv", HEADER, rows)), SMALL).summary()
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"file": [row[0] for row in rows], "Class": [row[1] for row in rows]}), root / "b.parquet"
    )
    for path in (
        root / "b.parquet",
        table(root / "b.tsv", ("More", "PATH", "target"), [("x", *row) for row in rows], "\t"),
    ):
        assert load(str(path), SMALL).summary() == expected


def test_splits_are_as_given_and_numbers_are_in_their_order(root):
    parts = ["train"] * 12 + ["valid"] * 4 + ["Testing"] * 4
    rows = [
        (f"photos/{c}/{k:02d}.png", n, parts[k])
        for c, n in (("dark", 10), ("grey", 9), ("light", 2))
        for k in range(20)
    ]
    splits = load(str(table(root / "c.csv", (*HEADER, "split"), rows)), SMALL)
    assert splits.classes == ["2", "9", "10"]
    assert [len(split) for split in splits[:3]] == [36, 12, 12]


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_together(seed, root):
    """No patient is on both sides; every class is in every part."""
    path = table(root / "d.csv", (*HEADER, "patient"), rows_of(root))
    splits = load(str(path), SMALL, seed=seed, calibration_fraction=0.2, test_fraction=0.2)
    groups = [set(split.readable_groups()) for split in splits[:3]]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 15
    assert [split.targets.bincount().tolist() for split in splits[:3]] == [[12] * 3, [4] * 3, [4] * 3]
    assert load(str(path), SMALL, seed=seed, calibration_fraction=0.2, test_fraction=0.2).summary() == splits.summary()


def test_a_run_of_a_table_says_its_groups_and_moves(root, tmp_path):
    path = table(root / "e.csv", (*HEADER, "group"), rows_of(root))
    flags = {"recipe": "digits", "method": "uniform", "epochs": 1, "mean": [0.5] * 3, "std": [0.5] * 3, "device": "cpu"}
    settings = compose(None, flags={**flags, "data": str(path), "calibration_fraction": 0.2})
    findings = examine_data(settings)
    assert len(findings.images) == 60
    assert not [each for each in findings.findings if each.level == "problem"]
    run = ew.train(settings, tmp_path / "run").run
    calibration = ew.calibrate(run, budget=0.6, guarantee=None)
    assert "By group" in str(calibration)
    moved = tmp_path / "elsewhere"
    (root / "photos").rename(moved.with_name("photos"))
    path.rename(tmp_path / "e.csv")
    try:
        assert ew.evaluate(run, data=tmp_path / "e.csv").images == 12
        assert len(ew.calibrate(run, data=tmp_path / "e.csv", budget=0.6).policy.thresholds) == 3
    finally:
        (tmp_path / "photos").rename(root / "photos")


FIRST, SECOND = "photos/dark/00.png", "photos/dark/01.png"
BAD = {
    "missing files": (HEADER, [("a.png", "x"), ("b.png", "y")], r"; 2 are missing: a.png \(line 2\), b.png \(line 3"),
    "no label": (("image", "mood"), [("a.png", "x")], "column label or class or .*; got image, mood"),
    "texts": (("text", "label"), [("hello", "x")], "is a table of texts, for `exitwise train --model"),
    "mixed labels": (HEADER, [(FIRST, "1"), (SECOND, "cat")], "one kind .* number 1 .* name 'cat'"),
    "empty": (HEADER, [(FIRST, "")], "expected a value for label in line 2 of .*; it is empty"),
    "twice": (HEADER, [(FIRST, "a"), (FIRST, "b")], "each image once in .*00.png is in lines 2 and 3"),
    "none": (HEADER, [], "expected rows of images and labels"),
    "one label": (HEADER, [(FIRST, "a")], "expected at least two labels in .*; got only 'a'"),
    "too many values": (HEADER, [(FIRST, "a", "b")], "expected 2 values in line 2 of .*; got more"),
    "a split": ((*HEADER, "split"), [(FIRST, "a", "mine")], "expected splits train, .*; got 'mine'"),
    "a group in two": (
        (*HEADER, "split", "group"),
        [(FIRST, "a", "train", "p"), (SECOND, "b", "test", "p")],
        "expected each group in one split of .*; p is in train and test",
    ),
    "groups too few": (
        (*HEADER, "group"),
        [(f"photos/dark/{k:02d}.png", "ab"[k % 2], f"p{k % 2}") for k in range(20)],
        "expected groups enough to divide class .*it is in 1 of 2, and none is left for",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_get_one_line(name, root, tmp_path):
    header, rows, message = BAD[name]
    (tmp_path / "photos").symlink_to(root / "photos")
    with pytest.raises(DataError, match=message) as caught:
        load(str(table(tmp_path / "bad.csv", header, rows)), SMALL)
    assert "\n" not in str(caught.value)


def test_several_labels_of_an_image(root, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"image": [FIRST, SECOND], "label": [["a", "b"], ["a"]]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"one label in line 1 of .*; got several labels of one sample; .*no multi"):
        load(str(tmp_path / "a.parquet"), SMALL)


def test_a_file_that_is_no_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="expected a table in Parquet at"):
        load(str(tmp_path / "a.parquet"), SMALL)
