"""A run of texts by every command: what images can do, texts can."""

import csv
import json
import re
import shutil
import warnings

import numpy as np
import pytest

import exitwise as ew
from exitwise.cli import main
from exitwise.errors import UserError
from exitwise.settings.compose import compose
from tiny_texts import table, texts_of, tiny_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("texts")
    tiny_network(home / "network")
    table(home / "mails.csv", texts_of(300))
    flags = {"data": str(home / "mails.csv"), "model": f"hf/{home / 'network'}", "pretrained": "hub", "tokens": 12}
    flags |= {"exits": 2, "epochs": 4, "batch_size": 32, "lr": 0.01, "device": "cpu", "calibration_fraction": 0.3}
    ew.train(compose(None, flags=flags), home / "run")
    ew.calibrate(home / "run", budget=0.85, guarantee=None)
    ew.export(home / "run", home / "bundle")
    return home


def test_it_learns_and_a_bundle_answers_as_the_run_does(home):
    evaluation = ew.evaluate(home / "run")
    assert evaluation.anytime[-1] > 0.8
    texts = [text for text, _ in texts_of(40, seed=9)]
    by_run, by_bundle = ew.predict(home / "run", texts), ew.predict(home / "bundle", texts)
    assert [each.prediction for each in by_run] == [each.prediction for each in by_bundle]
    assert [each.exit for each in by_run] == [each.exit for each in by_bundle]
    assert len({each.exit for each in by_run}) == 2
    labels = [label for _, label in texts_of(40, seed=9)]
    assert np.mean([each.prediction == label for each, label in zip(by_run, labels, strict=True)]) > 0.7


def test_texts_come_from_tables_and_files_of_lines_and_empty_ones_are_listed(home, tmp_path):
    some = table(tmp_path / "some.csv", [("win a prize", 1), ("", 2), ("lunch on monday", 3)], ("text", "number"))
    (tmp_path / "some.txt").write_text("win a prize\n\nlunch on monday\n")
    found = ew.predict(home / "run", [str(some), tmp_path / "some.txt", "win a prize"])
    assert [each.file for each in found] == [
        f"{some}:2",
        f"{some}:4",
        *(f"{tmp_path}/some.txt:{k}" for k in (1, 3)),
        "text 6",
    ]
    assert len({each.prediction for each in (found[0], found[2], found[4])}) == 1
    assert [(each.file, each.reason) for each in found.broken] == [(f"{some}:3", "it is empty")]
    for given, message in (
        (["inbox.csv"], "expected a file of texts at inbox.csv; found nothing"),
        ([table(tmp_path / "no.csv", [("a", "b")], ("x", "y"))], "expected a column text or .*; got x, y"),
        ([], "expected texts to classify; got none"),
        ([3], "expected texts, or files of them; got int"),
    ):
        with pytest.raises(UserError, match=message):
            ew.predict(home / "run", given)


def test_other_texts_calibrate_and_changed_ones_are_named(home, tmp_path):
    other = table(tmp_path / "other.csv", texts_of(80, seed=21))
    with pytest.warns(ew.ExitwiseWarning):
        assert ew.calibrate(home / "run", budget=0.85, data=other, name="other", guarantee=None).policy.exits == 2
    with pytest.raises(UserError, match="it was trained on"):
        ew.calibrate(home / "run", budget=0.85, data=table(tmp_path / "same.csv", texts_of(200)), name="same")
    changed = table(tmp_path / "changed.csv", [("win now", "cheap"), *texts_of(300)[1:]])
    with pytest.raises(UserError, match="have changed: 1 with other content \\(line 2\\)"):
        ew.evaluate(home / "run", data=changed)


def test_a_bundle_is_calibrated_on_a_table_as_the_run_is(home, tmp_path):
    bundle = shutil.copytree(home / "bundle", tmp_path / "bundle")
    other = table(tmp_path / "other.csv", texts_of(120, seed=21))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ew.ExitwiseWarning)
        by_run = ew.calibrate(home / "run", budget=0.85, data=other, name="for-bundle", guarantee=None)
        by_bundle = ew.calibrate_bundle(bundle, other, budget=0.85)
    assert by_bundle.policy.thresholds == pytest.approx(by_run.policy.thresholds, abs=1e-4)
    assert "held-out texts" in str(by_bundle)
    header = ("text", "label")
    for name, rows, message in (
        (
            "unknown",
            [*texts_of(20), ("a", "neither")],
            "expected the classes of the bundle in .*; got the unknown 'neither'",
        ),
        ("empty", [*texts_of(20), ("", "kind")], "expected a text and a label in line 22 of .*; it has no text"),
        ("columns", [("a", "kind")], "expected a column text or .*; got x, y"),
        ("one class", texts_of(20)[::2], "calibration needs texts of every class; there is none of 'kind'"),
    ):
        path = table(tmp_path / f"{name}.csv", rows, ("x", "y") if name == "columns" else header)
        with pytest.raises(UserError, match=message):
            ew.calibrate_bundle(bundle, path, budget=0.85)


def test_ray_writes_what_one_process_does(home, tmp_path):
    pytest.importorskip("ray")
    given = [*(text for text, _ in texts_of(70, seed=9)), " ", "win at https://prize.example"]
    local = ew.predict(home / "bundle", given, top=2)
    ew.predict_to(tmp_path / "labels.csv", home / "bundle", given, engine="ray", top=2)
    rows = [row for part in sorted((tmp_path / "labels.csv").iterdir()) for row in csv.DictReader(part.open())]
    assert [row["error"] for row in rows if row["error"]] == ["it is empty"]
    found = [row for row in rows if not row["error"]]
    assert [row["file"] for row in found] == [each.file for each in local]
    assert [(row["prediction"], int(row["exit"])) for row in found] == [(each.prediction, each.exit) for each in local]
    with pytest.raises(UserError, match="expected a text at text 1; could not read it: it is empty"):
        ew.predict_to(tmp_path / "none.csv", home / "bundle", ["  "], engine="ray")


def test_bench_and_report(home):
    timed = ew.bench(home / "run", forms=["eager"], batch_sizes=[1], seconds=0.1)
    assert timed.rows
    ew.evaluate(home / "run")
    assert ew.report(home / "run", home / "report.html").path.is_file()


def test_the_manifest_of_the_bundle_says_texts(home):
    inputs = json.loads((home / "bundle" / "manifest.json").read_text())["inputs"]
    assert [each["preprocessing"] for each in inputs] == [{"kind": "text"}] * 2


def test_every_command_calls_texts_what_they_are(home, tmp_path, capsys, monkeypatch):
    """Of a run and a bundle of texts; in what is printed, and in what a report shows."""
    inbox = tmp_path / "inbox.txt"
    table(tmp_path / "other.csv", texts_of(120, seed=21))
    inbox.write_text("win a prize\nlunch on monday\n")
    shutil.copytree(home / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    data = f"--data {home / 'mails.csv'} --model hf/{home / 'network'} --tokens 12 --exits 2 --device cpu"
    done = (
        f"doctor {data}",
        f"train {data} --epochs 1 --batch-size 32 --calibration-fraction 0.3 --out again",
        "calibrate run --max-accuracy-drop 0.05 --guarantee 0.9",
        "calibrate run --budget 0.85 --abstain-below 0.6",
        "calibrate run --compare",
        "calibrate run --budget 0.85 --data other.csv --name other",
        "calibrate run --budget 0.85",
        "evaluate run",
        "predict run inbox.txt",
        "export run --out bundle",
        "predict bundle inbox.txt --top 2 --output answers.csv",
        "calibrate bundle --budget 0.9 --data other.csv",
        "bench run --forms eager --batch-sizes 1 --seconds 0.05",
        "report run --figures figures",
    )
    refused = (
        "calibrate run --max-accuracy-drop 0.001 --guarantee 0.99",
        "calibrate run --budget 0.5 --data nowhere.csv",
        "calibrate bundle --budget 0.9",
        "calibrate bundle --budget 0.9 --data nowhere.csv",
        "train --data other.csv --out run",
        "evaluate run --data other.csv",
        "evaluate run --data nowhere.csv",
        "predict bundle nowhere.csv",
    )
    for line in (*done, *refused):
        with pytest.raises(SystemExit) as ended:
            main(line.split())
        said = "".join(capsys.readouterr())
        assert (ended.value.code or 0) == (2 if line in refused else 0), f"{line}\n{said}"
        assert not re.search("image", said, re.IGNORECASE), f"{line}\n{said}"
    page = (tmp_path / "run" / "report.html").read_text()
    body = re.sub(r"<script.*?</script>|<[^>]+>", " ", page[page.index("<body") :], flags=re.DOTALL)
    assert "test texts" in body
    assert re.findall(r"\bimages?\b", body) == []
