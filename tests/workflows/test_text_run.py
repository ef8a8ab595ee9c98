"""A run of texts by every command: what images can do, texts can."""

import json

import numpy as np
import pytest

import exitwise as ew
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


def test_bench_and_report(home):
    timed = ew.bench(home / "run", forms=["eager"], batch_sizes=[1], seconds=0.1)
    assert timed.rows
    ew.evaluate(home / "run")
    assert ew.report(home / "run", home / "report.html").path.is_file()


def test_the_manifest_of_the_bundle_says_texts(home):
    inputs = json.loads((home / "bundle" / "manifest.json").read_text())["inputs"]
    assert [each["preprocessing"] for each in inputs] == [{"kind": "text"}] * 2
