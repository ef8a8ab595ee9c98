"""A folder of images of all kinds, a backbone by name, and one command."""

import json

import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import exitwise as ew
from exitwise.cli import main
from exitwise.errors import UserError
from exitwise.runs.build import build_model, build_optimizer
from exitwise.settings.compose import compose
from exitwise.training.checkpoint import load_checkpoint
from images import make_folder, save_image

SMALL = {"image_size": 32, "device": "cpu", "workers": 0, "batch_size": 16, "epochs": 2, "pretrained": "none"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three classes, with greyscale, palette, transparent, odd-sized and rotated images among them."""
    root = make_folder(tmp_path_factory.mktemp("photos"), count=20, size=(40, 40))
    save_image(root / "dark" / "grey.png", size=(40, 40), mode="L", level=60)
    save_image(root / "dark" / "palette.png", size=(33, 57), mode="P", level=60)
    save_image(root / "light" / "clear.png", size=(80, 35), mode="RGBA", level=200)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (50, 30), (200, 200, 200)).save(root / "light" / "turned.jpg", exif=exif)
    return root


def flags(**settings):
    return [part for key, value in settings.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def test_one_command(photos, tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(["train", *flags(data=photos, model="timm/resnet10t", exits=3, out=out, **SMALL)])
    output = capsys.readouterr().out
    assert stop.value.code == 0
    assert "adamw" in output
    assert "calibrated to lose at most 1.0 % of accuracy" in output
    assert "of the full network's MACs" in output
    settings = yaml.safe_load((out / "config.yaml").read_text())
    assert settings["interpolation"] == "bicubic"
    assert settings["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert settings["crop"] == pytest.approx(0.875)
    calibration = json.loads((out / "calibration.json").read_text())
    assert calibration["budget"] == {"max_accuracy_drop": 0.01}
    assert len(calibration["thresholds"]) == 2
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(out), str(photos / "light" / "turned.jpg"), str(photos / "light" / "clear.png")])
    assert stop.value.code == 0
    assert "2 images" in capsys.readouterr().out


def trained(photos, out, **options):
    settings = compose(None, flags={"data": str(photos), "model": "timm/resnet10t", "exits": 3, **SMALL, **options})
    return ew.train(settings, out).run


def last_state(run):
    return load_checkpoint(run.checkpoints.latest("last"))


def test_only_the_exits_are_trained_on_a_frozen_backbone(photos, tmp_path):
    torch.manual_seed(5)
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "w.safetensors")
    weights = str(tmp_path / "w.safetensors")
    run = trained(photos, tmp_path / "run", regime="heads", pretrained=weights, epochs=1)
    torch.manual_seed(0)
    start = timm.create_model("resnet10t", num_classes=3)
    from exitwise.storage.tensors import read_weights

    start.load_state_dict(read_weights(weights))
    from exitwise import add_exits

    before = add_exits(start, exits=3, input_shape=(3, 32, 32)).state_dict()
    after = last_state(run)["model"]
    assert all(torch.equal(before[name], value) for name, value in after.items() if ".body." in name)
    assert any(not torch.equal(before[name], value) for name, value in after.items() if ".head." in name)


def test_the_same_network_without_early_exits(photos, tmp_path, capsys):
    """The reference: one stage, nothing to calibrate, one graph."""
    pytest.importorskip("onnxruntime")
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "train",
                "--data",
                str(photos),
                "--out",
                str(out),
                *flags(**{**SMALL, "exits": 1, "epochs": 1, "model": "timm/resnet10t"}),
            ]
        )
    assert stop.value.code == 0
    assert "one exit: there is nothing to calibrate" in capsys.readouterr().err
    evaluation = ew.evaluate(out)
    assert len(evaluation.anytime) == 1
    assert evaluation.calibrated.accuracy == evaluation.anytime[0]
    with pytest.warns(UserWarning, match="nothing to calibrate"):
        calibration = ew.calibrate(out, budget=0.5)
    assert calibration.policy.thresholds == ()
    ew.export(out, tmp_path / "bundle")
    assert sorted(file.name for file in (tmp_path / "bundle").glob("stage_*.onnx")) == ["stage_0.onnx"]
    result = ew.OnnxRunner(tmp_path / "bundle")(torch.randn(3, 3, 32, 32).numpy())
    assert result.exit.tolist() == [0, 0, 0]


@pytest.mark.slow
def test_first_weights_from_another_run(photos, tmp_path):
    first = trained(photos, tmp_path / "first", epochs=1)
    settings = first.settings.model_copy(update={"pretrained": str(first.path)})
    model = build_model(settings, 3, pretrained=True)
    torch.testing.assert_close(model.state_dict(), first.model().state_dict(), rtol=0, atol=0)
    second = trained(photos, tmp_path / "second", epochs=1, pretrained=str(first.path), exits=4)
    assert second.settings.pretrained == str(first.path)
    with pytest.raises(UserError, match=r"it lacks it|there it is"):
        trained(photos, tmp_path / "third", model="timm/resnet14t", pretrained=str(first.path))


@pytest.mark.slow
def test_the_backbone_alone_first(photos, tmp_path):
    run = trained(photos, tmp_path / "run", method="meta-weighted-shared", regime="mixed", backbone_epochs=1, epochs=2)
    rows = (run.path / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    first, second = (dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:])
    assert first["meta_loss"] == ""
    assert float(second["meta_loss"]) > 0
    assert last_state(run)["method"]["done"] == 2 * 2 * 3  # halves of three batches in two epochs


def test_learning_rates_of_backbone_and_exits(photos, tmp_path):
    settings = compose(None, flags={"data": str(photos), "model": "timm/resnet10t", **SMALL, "backbone_lr_factor": 0.1})
    model = build_model(settings, 3)
    optimizer = build_optimizer(settings, model)
    body, heads = optimizer.param_groups
    assert body["lr"] == pytest.approx(0.1 * heads["lr"])
    names = {id(param): name for name, param in model.named_parameters()}
    assert all(".body." in names[id(param)] for param in body["params"])
    assert all(".head." in names[id(param)] for param in heads["params"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "msdnet_small", "exits": "3"}, "exits is for backbones such as timm/resnet18"),
        ({"model": "msdnet_small", "pretrained": "hub"}, "pretrained is for backbones"),
        ({"model": "timm/resnet10t", "exits": "3", "exits_at": "layer1"}, "exits and exits_at exclude one another"),
        ({"model": "msdnet_small", "place_by": "latency"}, "place_by is for backbones such as timm/resnet18"),
        (
            {"model": "timm/resnet10t", "exits_at": "layer1", "place_by": "latency"},
            "place_by chooses places; got latency with exits_at",
        ),
        ({"model": "timm/resnet10t", "exits": "0"}, "exits: input should be greater than or equal to 1"),
        ({"model": "timm/resnet10t", "regime": "mixed"}, "regime mixed needs backbone_epochs"),
        ({"model": "timm/resnet10t", "regime": "heads", "pretrained": "none"}, "needs pretrained weights; got none"),
        ({"model": "msdnet_small", "regime": "heads"}, "regime heads is for backbones such as timm/resnet18"),
        ({"model": "timm/resnet10t", "regime": "mixed", "backbone_epochs": "2"}, "backbone_epochs must be below"),
        ({"model": "timm/resnet10t", "pretrained": "none", "exits_at": "layer9"}, "no exit can go after 'layer9'"),
        ({"model": "timm/resnet19"}, "unknown model 'timm/resnet19'"),
        ({"model": "timm/resnet10t", "pretrained": "nowhere.pth"}, "found nothing at nowhere.pth"),
    ],
)
def test_bad_wishes_are_one_line_and_leave_nothing(photos, tmp_path, capsys, options, message):
    merged = {key: value for key, value in SMALL.items() if key != "pretrained"} | options
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", str(photos), "--out", str(tmp_path / "run"), *flags(**merged)])
    errors = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_where_exits_can_go(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["models", "--exits", "timm/resnet10t", "--image-size", "64"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert "layer2" in output
    assert "exit 4" in output
