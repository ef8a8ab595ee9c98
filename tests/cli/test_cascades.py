"""Run folders of cascades: every command but `train` works on them, and what does not fit is refused in a line."""

import json
import re
import shutil

import pytest
import timm
import torch
from torchvision.transforms import v2

import exitwise as ew
from exitwise.cli import main
from images import make_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data") / "photos", count=40, size=(40, 40))


def untrained(out, photos, size, exits, mean, classes=3, **flags):
    """A run of a network that nobody has trained."""
    torch.manual_seed(size)
    network = timm.create_model("test_resnet", num_classes=classes).eval()
    model = ew.add_exits(network, exits=exits, input_shape=(3, size, size)).eval()
    said = {"data": str(photos), "model": "timm/test_resnet", "pretrained": "none", "image_size": size, "device": "cpu"}
    settings = ew.compose(None, flags={**said, "workers": 0, "mean": [mean] * 3, "std": [0.25] * 3, **flags})
    return ew.write_run(model, settings, out).path


@pytest.fixture(scope="module")
def runs(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return untrained(folder / "small", photos, 24, 1, 0.5), untrained(folder / "large", photos, 32, 2, 0.4)


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, words)))
    return stop.value.code, *capsys.readouterr()


@pytest.mark.filterwarnings("ignore::exitwise.ExitwiseWarning")
@pytest.mark.parametrize(
    ("options", "exits"),
    [
        pytest.param((), 2, marks=pytest.mark.slow),
        pytest.param(("--exits", "all"), 3, marks=pytest.mark.slow),
        pytest.param(("--sizes", "16,32", "--exits", "all"), 4, marks=pytest.mark.slow),
    ],
)
def test_every_command_works_on_it(runs, photos, tmp_path, capsys, options, exits):
    pytest.importorskip("onnx")
    out = tmp_path / "both"
    code, said, errors = call(capsys, "cascade", *runs[exits == 4 :], *options, "--out", out)
    assert code == 0, errors
    shares = [float(share) for share in re.findall(r"MACs, ([\d.]+) % of the last network alone", said)]
    assert shares[0] < 100 < shares[1]
    assert list(tmp_path.iterdir()) == [out]
    calibrate, export = ("calibrate", out, "--budget", 0.9), ("export", out)
    predict = "predict", out, photos / "dark", "--output", tmp_path / "by_run.json"
    by_bundle = "predict", out / "onnx", photos / "dark", "--output", tmp_path / "by_bundle.json"
    bench = "bench", out, "--forms", "eager", "--batch-sizes", 1, "--seconds", 0.2
    for words in (calibrate, ("evaluate", out), predict, export, by_bundle, bench):
        code, said, errors = call(capsys, *words)
        assert code == 0, errors
        if words == calibrate:
            assert float(re.search(r"\(([\d.]+) % of full\)", said)[1]) <= 90
        if words[0] == "evaluate":
            assert f"{shares[1]} %" in said
        if words == bench:
            assert "last network alone" in said
    rows = [json.loads((tmp_path / name).read_text()) for name in ("by_run.json", "by_bundle.json")]
    for ours, theirs in zip(*rows, strict=True):
        assert ours.pop("confidence") == pytest.approx(theirs.pop("confidence"), abs=1e-4)
        assert ours == theirs
    assert len(ew.Run(out).read_calibration().policy.thresholds) == exits - 1 == ew.Run(out).exits - 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::exitwise.ExitwiseWarning")
def test_it_is_reported(runs, tmp_path):
    run = ew.cascade(*runs, out=tmp_path / "both")
    ew.calibrate(run.path, budget=0.9, device="cpu")
    ew.evaluate(run.path, device="cpu")
    written = ew.report(run.path, device="cpu")
    assert "timm/test_resnet at 24x24, timm/test_resnet at 32x32" in written.path.read_text()


@pytest.mark.slow
def test_it_says_what_its_networks_say(runs, tmp_path):
    small, large = (ew.Run(path).model() for path in runs)
    run = ew.cascade(*runs, out=tmp_path / "both")
    assert (run.settings.image_size, run.settings.mean[0]) == (32, 0.5)
    pixels = torch.rand(5, 3, 32, 32)
    given = (pixels - 0.5) / 0.25
    with torch.no_grad():
        first, second = run.model()(given)
        seen = v2.functional.resize(given, [24, 24], antialias=True)
        torch.testing.assert_close(first, small.forward_last(seen))
        torch.testing.assert_close(second, large.forward_last((pixels - 0.4) / 0.25), rtol=1e-4, atol=1e-4)


def test_it_holds_copies_of_the_weights_once(runs, tmp_path):
    copied = shutil.copytree(runs[1], tmp_path / "large")
    run = ew.cascade(copied, out=tmp_path / "twice", sizes=(16, 32))
    once, twice = (
        sum(file.stat().st_size for file in ew.Run(path).checkpoints.root.rglob("*.safetensors"))
        for path in (copied, run)
    )
    assert twice == pytest.approx(once, rel=0.01)
    shutil.rmtree(copied)
    assert run.model().exits == 2


def refused(capsys, *words):
    code, _, errors = call(capsys, *words)
    assert code == 2
    assert errors.count("\n") == 1
    return errors


def test_what_does_not_fit_is_refused(runs, photos, tmp_path, capsys):
    small, large = runs
    both, out = tmp_path / "both", tmp_path / "out"
    ew.cascade(*runs, out=both)
    others = tmp_path / "others"
    split = untrained(others / "split", photos, 24, 1, 0.5, split_seed=1)
    fewer = shutil.copytree(photos, tmp_path / "fewer")
    shutil.rmtree(fewer / "dark")
    classes = untrained(others / "classes", fewer, 24, 1, 0.5, classes=2)
    order = shutil.copytree(small, others / "order")
    record = json.loads((order / "data.json").read_text())
    (order / "data.json").write_text(json.dumps({**record, "classes": record["classes"][::-1]}))
    begun = shutil.copytree(small, others / "begun")
    shutil.rmtree(begun / "checkpoints")
    for words, message in (
        ((large, small), "expected networks from cheap to dear; network 1 costs"),
        ((small, small), "network 2 is network 1 again"),
        ((small,), "expected two or more networks, or one at several sizes; got 1"),
        ((split, large), "expected runs of the same images, split in the same way; split and large differ"),
        ((small, classes), "expected runs of the same classes; small has 3, classes has others (2)"),
        ((small, order), "expected runs of the same classes; small has 3, order has them in another order"),
        ((both, large), "expected runs of one network each; both is a cascade"),
        ((begun, large), "it has no checkpoint yet"),
        ((small, photos), "expected a run folder with config.yaml at"),
        ((small, large, "--sizes", "16"), "expected 2 sizes, one per network; got 1"),
        ((small, large, "--sizes", "16,1e9"), "expected sizes as sides in pixels, from 1 to 8192; got 1000000000"),
        ((small, large, "--sizes", "16,inf"), "expected sizes as sides in pixels; got inf"),
        ((small, large, "--sizes", "16,x"), "expected numbers for sizes"),
    ):
        assert message in refused(capsys, "cascade", *words, "--out", out), words
        assert not out.exists()
    there = refused(capsys, "cascade", *runs, "--out", both)
    assert f"{both} holds a run, and this one is written anew: choose another folder" in there
    assert "outside the images' folder" in refused(capsys, "cascade", *runs, "--out", photos / "run")
    trained = refused(capsys, "train", "--data", photos, "--image-size", 16, "--out", both)
    assert "holds a cascade, whose networks are trained before" in trained
    again = ("--model", "timm/test_resnet", "--pretrained", both, "--out", out, "--device", "cpu", "--epochs", 1)
    assert "expected a run of one network" in refused(capsys, "train", "--data", photos, *again)
    with pytest.raises(ew.UserError, match="runs know their preprocessing"):
        ew.cascade(*runs, out=out, input_shape=(3, 8, 8))
    with pytest.raises(ew.UserError, match="expected networks, or run folders with out; got a PosixPath"):
        ew.cascade(*runs)
    for change, message in (
        ({"exits": "none"}, "exits 'none'"),
        ({"stages": [{"network": 7, "size": [8, 8], "mean": [0], "std": [1]}] * 2}, "the networks of a cascade"),
        ({"networks": [{"epochz": 3}]}, "unknown setting 'epochz'"),
    ):
        damaged = shutil.copytree(both, tmp_path / f"damaged {next(iter(change))}")
        content = json.loads((damaged / "cascade.json").read_text())
        (damaged / "cascade.json").write_text(json.dumps({**content, **change}))
        assert message in refused(capsys, "evaluate", damaged)
    assert not out.exists()
