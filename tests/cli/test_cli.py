import csv
import json
import re
import subprocess
import sys

import pytest
import torchvision
import yaml

import exitwise as ew
from exitwise.budgets import parse_macs
from exitwise.cli import main
from images import make_folder, save_image

TINY = ["--mean", "0.5,0.5,0.5", "--std", "0.3,0.3,0.3", "--batch-size", "10"]
TINY += ["--method", "meta-weighted", "--lr", "0.05", "--wpn-hidden", "16", "--device", "cpu"]
TINY_RUN = ["--recipe", "digits", "--epochs", "2", *TINY]


def call(capsys, *tokens):
    """Exit code, standard output and standard error of one command."""
    with pytest.raises(SystemExit) as stop:
        main([str(token) for token in tokens])
    output, errors = capsys.readouterr()
    return stop.value.code, output, errors


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"), count=20)


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", str(photos), "--out", str(run), *TINY_RUN])
    assert stop.value.code == 0
    return run


def test_from_images_to_predictions(photos, trained, tmp_path, capsys):
    assert {path.name for path in trained.iterdir()} >= {"config.yaml", "data.json", "environment.json", "metrics.csv"}
    rows = list(csv.DictReader((trained / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert {"loss", "meta_loss", "train_accuracy_1", "calibration_accuracy_4"} <= set(rows[0])

    code, output, _ = call(capsys, "calibrate", trained, "--budget", 0.6)
    assert code == 0
    assert "thresholds of exits 1 to 3" in output
    calibration = json.loads((trained / "calibration.json").read_text())
    assert calibration["budget"] == {"budget": 0.6}

    code, output, _ = call(capsys, "evaluate", trained)
    assert code == 0
    assert "exit 4" in output
    assert "as calibrated" in output
    evaluation = json.loads((trained / "evaluation.json").read_text())
    assert [line["thresholds"] for line in evaluation["budgets"]] == [
        line["thresholds"] for line in calibration["table"]
    ]
    assert (trained / "figures" / "accuracy_against_macs.png").stat().st_size > 5000

    code, output, _ = call(capsys, "predict", trained, photos / "dark" / "00.png", photos / "light")
    assert code == 0
    assert "21 images" in output

    for suffix, read in (
        (".json", lambda p: json.loads(p.read_text())),
        (".csv", lambda p: list(csv.DictReader(p.open()))),
    ):
        target = tmp_path / f"labels{suffix}"
        assert call(capsys, "predict", trained, photos / "dark", "--output", target)[0] == 0
        rows = read(target)
        assert len(rows) == 20
        assert rows[0]["file"].endswith("00.png")
        assert rows[0]["prediction"] in ("dark", "grey", "light")
        assert 1 <= int(rows[0]["exit"]) <= 4
        assert 0 < float(rows[0]["compute"]) <= 1
        before = target.read_bytes()
        code, _, errors = call(capsys, "predict", trained, photos / "light", "--output", target)
        assert (code, target.read_bytes()) == (2, before)
        assert "exists; give --overwrite" in errors
        assert call(capsys, "predict", trained, photos / "light", "--output", target, "--overwrite")[0] == 0


def test_predict_takes_images_of_any_size(photos, trained, tmp_path, capsys):
    call(capsys, "calibrate", trained, "--p", 1)
    save_image(tmp_path / "wide.jpg", size=(300, 100), mode="L")
    code, output, _ = call(capsys, "predict", trained, tmp_path / "wide.jpg")
    assert code == 0
    assert "1 image" in output


def test_the_same_command_finds_the_run_finished(photos, trained, capsys):
    before = snapshot(trained / "checkpoints")
    code, output, _ = call(capsys, "train", "--data", photos, "--out", trained, *TINY_RUN)
    assert code == 0
    assert "Last epoch" in output
    assert snapshot(trained / "checkpoints") == before


def test_print_config_is_yaml_that_reproduces_itself(capsys, tmp_path):
    code, output, _ = call(capsys, "train", "--recipe", "cifar10_msdnet5", "--epochs", 7, "--print-config")
    assert code == 0
    assert yaml.safe_load(output)["epochs"] == 7
    (tmp_path / "c.yaml").write_text(output)
    assert call(capsys, "train", "--config", tmp_path / "c.yaml", "--print-config")[1] == output


def test_models_and_recipes(capsys):
    code, output, _ = call(capsys, "recipes")
    assert code == 0
    assert "cifar10_msdnet5_authors" in output
    code, output, _ = call(capsys, "recipes", "imagenet_msdnet_step4_authors")
    assert yaml.safe_load(output)["meta_interval"] == 100
    code, output, _ = call(capsys, "models")
    assert code == 0
    assert "msdnet_imagenet_step7" in output


BAD_TRAINING = {
    "data missing": (["--data", "nowhere/at/all"], "there is no nowhere/at/all"),
    "model": (["--model", "msdnet_cifar5"], "unknown model 'msdnet_cifar5'; did you mean 'msdnet_cifar_5'"),
    "recipe": (["--recipe", "digit"], "unknown recipe 'digit'; did you mean 'digits'"),
    "flag": (["--epoch", "3"], "--epoch.*Did you mean.*--epochs"),
    "type": (["--epochs", "many"], "setting epochs: .*valid integer.*; got 'many'"),
    "range": (["--lr", "0"], "setting lr: input should be greater than 0; got '?0"),
    "config missing": (["--config", "none.yaml"], "expected a YAML file of settings; found none at none.yaml"),
    "proportions sum": (
        ["--method", "meta-weighted", "--proportions", "0.5,0.2,0.2,0.2"],
        "proportions must sum to 1; .* sum to 1.1",
    ),
    "proportions count": (
        ["--method", "meta-weighted", "--proportions", "0.5,0.5"],
        "expected 4 exit proportions, one per exit; got 2",
    ),
    "exit weights": (
        ["--method", "uniform", "--exit-weights", "1", "2"],
        "expected 4 exit_weights, one per exit; got 2",
    ),
    "batch of one": (["--batch-size", "1"], "setting batch_size: .*greater than or equal to 4; got '?1"),
    "device": (["--device", "gpu"], "expected a device of this machine, such as cpu or cuda; 'gpu' is not available"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_training_input(case, tmp_path, capsys):
    flags, message = BAD_TRAINING[case]
    out = tmp_path / "run"
    code, _, errors = call(capsys, "train", "--out", out, *flags)
    assert_refused(code, errors, message)
    assert not out.exists()


def test_bad_yaml_key(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("learning_rate: 0.1\nepochz: 3\n")
    code, _, errors = call(capsys, "train", "--config", tmp_path / "c.yaml", "--out", tmp_path / "run")
    assert_refused(code, errors, "c.yaml: unknown setting 'learning_rate'")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_not_overwritten(photos, trained, tmp_path, capsys):
    before = snapshot(trained)
    code, _, errors = call(
        capsys, "train", "--data", photos, "--out", trained, *TINY, "--recipe", "digits", "--epochs", "9"
    )
    assert_refused(
        code,
        errors,
        r"holds a run with other settings: epochs 2 \(now 9\) \(more epochs: --extend-to\); choose another --out",
    )
    assert snapshot(trained) == before
    (tmp_path / "thesis.txt").write_text("precious")
    code, _, errors = call(capsys, "train", "--data", photos, "--out", tmp_path, *TINY_RUN)
    assert_refused(code, errors, "expected a run folder, an empty folder or nothing at .*; it holds something else")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_changed_data_is_noticed(tmp_path, capsys):
    data, run = make_folder(tmp_path / "data"), tmp_path / "run"
    assert call(capsys, "train", "--data", data, "--out", run, *TINY_RUN)[0] == 0
    save_image(data / "dark" / "new.png")
    for command in (["calibrate", run, "--p", 1], ["evaluate", run]):
        code, _, errors = call(capsys, *command)
        assert_refused(code, errors, "expected the data that .* was trained on; the images have changed")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected exactly one of budget, macs, latency, p, proportions, max_accuracy_drop; got none"),
        (["--p", "1", "--budget", "0.5"], "expected exactly one of .*; got budget, p"),
        (["--budget", "0.01"], "a budget must lie between the first exit's cost and the full network's"),
        (["--budget", "1.5"], "a budget must lie between the first exit's cost and the full network's"),
        (["--macs", "1G"], "a budget must lie between .* got 1e"),
        (["--macs", "lots"], "expected MACs as a number with k, M or G, such as 20M; got 'lots'"),
        (["--p", "-1"], "the budget parameter p must be a positive number; got -1"),
        (["--proportions", "0.5,0.5"], "expected 4 exit proportions, one per exit; got 2"),
        (["--proportions", "0.5", "0.3", "0.1", "0.2"], "must sum to 1"),
        (["--proportions", "a,b"], "expected numbers for proportions, such as 0.5,0.3,0.2; got 'a,b'"),
    ],
)
def test_bad_budgets(trained, flags, message, capsys):
    before = snapshot(trained)
    code, _, errors = call(capsys, "calibrate", trained, *flags)
    assert_refused(code, errors, message)
    assert snapshot(trained) == before


def test_a_folder_without_run_checkpoint_or_calibration(photos, trained, tmp_path, capsys):
    for command in (["calibrate", tmp_path, "--p", 1], ["evaluate", tmp_path], ["predict", tmp_path, photos]):
        code, _, errors = call(capsys, *command)
        assert_refused(code, errors, "expected a run folder with config.yaml at .*; found none")
    for name in ("config.yaml", "data.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    for command in (["calibrate", tmp_path, "--p", 1], ["predict", tmp_path, photos]):
        code, _, errors = call(capsys, *command)
        assert_refused(code, errors, "expected a trained run at .*; it has no checkpoint yet")


def test_a_checkpoint_of_another_model(trained, tmp_path, capsys):
    for path in snapshot(trained):
        target = tmp_path / path.relative_to(trained)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("msdnet_small", "msdnet_cifar_5"))
    code, _, errors = call(capsys, "calibrate", tmp_path, "--p", 1)
    assert_refused(code, errors, "is a checkpoint of another model than msdnet_cifar_5: ")


def test_bad_predictions(trained, tmp_path, capsys):
    call(capsys, "calibrate", trained, "--p", 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    for files, message in (
        ([tmp_path / "none.png"], "expected an image or a folder at .*none.png; found nothing"),
        ([tmp_path / "empty"], "expected images in .*empty; found none"),
        ([tmp_path / "broken.png"], "expected an image in .*broken.png; could not read it"),
    ):
        target = tmp_path / "labels.csv"
        code, _, errors = call(capsys, "predict", trained, *files, "--output", target)
        assert_refused(code, errors, message)
        assert not target.exists()
    code, _, errors = call(capsys, "predict", trained, tmp_path, "--output", tmp_path / "labels.xml")
    assert_refused(
        code, errors, "expected an output file that ends in .csv or .json or .jsonl or .parquet; got .*labels.xml"
    )


def test_unknown_command(capsys):
    code, _, errors = call(capsys, "trian")
    assert_refused(code, errors, 'Did you mean "train"')


def test_a_worker_s_error_is_one_line(tmp_path, capsys):
    data = make_folder(tmp_path / "data")
    for path in (data / "grey").iterdir():
        path.write_bytes(path.read_bytes()[:-40])  # the header is whole
    flags = [*TINY_RUN, "--augment", "resize", "--workers", "1"]
    code, _, errors = call(capsys, "train", "--data", data, "--out", tmp_path / "run", *flags)
    assert_refused(code, errors, "expected readable training images of class 'grey'; all of them are broken, such as")


def test_module_runs_as_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "exitwise", "recipes", "digits"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0
    assert yaml.safe_load(result.stdout)["data"] == "digits"
    result = subprocess.run(
        [sys.executable, "-m", "exitwise", "train", "--recipe", "x"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "value"), [("20M", 2e7), ("1.5G", 1.5e9), ("300k", 3e5), ("1e6", 1e6), ("20M MACs", 2e7)]
)
def test_amounts_of_macs(text, value):
    assert parse_macs(text) == pytest.approx(value)


def assert_refused(code, errors, message):
    assert code == 2
    assert re.search(message, errors), errors
    assert errors.count("\n") == 1, errors
    assert "Traceback" not in errors


def test_a_bundle_in_place_of_a_run_is_told_without_torch_too(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text("{}")
    told = (
        f"exitwise: expected a run folder with config.yaml at {tmp_path}; found a bundle: give the run it was exported "
        "from\n"
    )
    assert call(capsys, "evaluate", tmp_path) == (2, "", told)
    bare = "import sys; sys.modules['torch'] = None; from exitwise.cli import main; main()"
    command = [sys.executable, "-c", bare, "calibrate", tmp_path, "--budget", "0.5"]
    ended = subprocess.run(command, capture_output=True, text=True)
    needed = "exitwise: a bundle is calibrated on samples that are given: --data FOLDER or TABLE; got none with"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", f"{needed} {tmp_path}\n")
    (tmp_path / "config.yaml").write_text("{}")
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "exitwise: exitwise.calibrate needs torch: pip install 'exitwise[train]'\n"


def test_where_exits_can_go(capsys, monkeypatch):
    """The places and the chosen ones are those that add_exits knows, with their costs."""
    with pytest.raises(SystemExit) as stop:
        main(["models", "--exits", "torchvision/resnet18", "--image-size", "64"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    network = torchvision.models.resnet18()
    points = ew.exit_points(network, (3, 64, 64))
    model = ew.add_exits(network, exits=4, input_shape=(3, 64, 64))
    lines = [line for line in shown.splitlines() if line.startswith("│")]
    assert len(lines) == len(points) + 1
    for point, line in zip(points, lines, strict=False):
        cells = [cell.strip() for cell in line.split("│")[1:-1]]
        assert cells[0] == point.name
        assert cells[2] == f"{100 * point.share:.1f} %"
        chosen = [k for k, each in enumerate(model.points, start=1) if each.name == point.name]
        assert cells[3] == (f"exit {chosen[0]}" if chosen else "")
    assert "exit 4" in lines[-1]
    monkeypatch.setattr(
        "exitwise.models.backbones.latency.interleaved_medians", lambda calls, _: dict.fromkeys(calls, 1)
    )
    monkeypatch.setattr("exitwise.benching.timing.measure_exit_seconds", lambda model: (0.001, 0.002, 0.003, 0.004))
    with pytest.raises(SystemExit) as stop:
        main(["models", "--exits", "torchvision/resnet18", "--image-size", "64", "--place-by", "latency"])
    assert stop.value.code == 0
    last = [line.split("│")[-2].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [cell for cell in last if cell] == ["1 ms", "2 ms", "3 ms", "4 ms"]
    with pytest.raises(SystemExit) as stop:
        main(["models", "--place-by", "latency"])
    assert stop.value.code == 2
    assert "place_by chooses where exits of a backbone go (--exits NAME)" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["models", "--exits", "torchvision/resnet18", "--image-size", "0"])
    assert (stop.value.code, capsys.readouterr().err) == (
        2,
        "exitwise: expected image_size as a number of pixels; got 0\n",
    )
