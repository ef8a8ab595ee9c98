"""What is advised before training: planted cases, what it is refused for, and that both doors say the same."""

import signal

import numpy as np
import pytest
import torch
from torch import nn

import exitwise as ew
from exitwise.advising import choice, times
from exitwise.advising.advice import Advice, Suggestion, Versus, in_order
from exitwise.advising.belief import Interval
from exitwise.advising.times import Time
from exitwise.catalogue.published import Published
from exitwise.cli import main
from exitwise.errors import DataError, Interrupted, UserError
from exitwise.models.backbones.libraries import create_backbone
from images import make_folder

ROWS = (
    Published("test_byobnet.r160_in1k", 160, 0.46, 0.03e9, 0.001),
    Published("test_efficientnet.r160_in1k", 160, 0.47, 0.06e9, 0.0015),
    Published("test_vit.r160_in1k", 160, 0.41, 0.04e9, 0.0013),
)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Three networks in the table; they are timed as they are, since exports take seconds."""

    def no_onnx(whole, example):
        raise UserError("not here")

    for module in ("advising.choice", "advising.candidates"):
        monkeypatch.setattr(f"exitwise.{module}.published", lambda: ROWS)
    monkeypatch.setattr(times, "_in_onnx", no_onnx)
    monkeypatch.setattr("exitwise.advising.probe.UPDATES", 40)
    monkeypatch.setattr("exitwise.workflows.advise.warn_if_busy", lambda: None)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"), count=60)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "net.pt"
    torch.manual_seed(0)
    torch.save(create_backbone("timm/test_efficientnet").state_dict(), file)
    return {"test_efficientnet": file}


class Heavy(nn.Module):
    """A cheap stem that says all there is to say, and dear blocks that pass it on."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(8)))
        self.fc = nn.Linear(16, 10)
        for block in self.blocks:
            nn.init.kaiming_normal_(block[0].weight)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def coloured(count=200):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(3, (count,), generator=generator)
    images = torch.randn(count, 3, 32, 32, generator=generator) * 0.3
    images[torch.arange(count), targets] += 1
    return list(zip(images.split(50), targets.split(50), strict=True))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Heavy()


def test_exits_win_where_early_ones_say_as_much(network):
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    advice = ew.advise(network, coloured(), macs=50e6, exits=3, tell=lambda text: None)
    by_name = {str(each): each for each in advice.suggestions}
    full, early = by_name["network"], by_name["network with exits"]
    assert early.macs < 0.6 * full.macs
    assert early.accuracy.mean > full.accuracy.mean - 0.02
    assert full.accuracy.mean > 0.7
    assert full.weights
    assert full.image_size == 32
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert advice.images == 200


def test_networks_without_weights_are_told_of_more_widely(network):
    advice = ew.advise(network, coloured(), macs=50e6, exits=2, tell=lambda text: None)
    listed = {each.name: each for each in advice.suggestions if not each.early}
    assert set(listed) == {"network", "test_efficientnet.r160_in1k", "test_byobnet.r160_in1k"}
    widths = {name: each.accuracy.high - each.accuracy.low for name, each in listed.items()}
    assert widths["network"] == min(widths.values())
    assert not listed["test_byobnet.r160_in1k"].weights
    assert "ImageNet 46.0 %" in str(advice)


def test_exits_reach_a_limit_that_the_network_in_full_does_not(network):
    full = ew.count_cost(ew.add_exits(network, exits=1, input_shape=(3, 32, 32))).macs[0]
    advice = ew.advise(network, coloured(), macs=0.7 * full, exits=3, tell=lambda text: None)
    by_name = {str(each): each for each in advice.suggestions}
    assert not by_name["network"].within
    assert by_name["network with exits"].within
    assert by_name["network with exits"].macs <= 0.7 * full * 1.02


def test_a_folder_of_images_with_weights_at_hand(photos, weights, capsys):
    arguments = ["--data", photos, "--latency", "10s", "--image-size", "32", "--exits", "2", "--device", "cpu"]
    arguments += ["--weights", *(f"{name}={file}" for name, file in weights.items())]
    with pytest.raises(SystemExit) as stop:
        main(["advise", *map(str, arguments)])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "probing test_efficientnet" in said
    assert "at most 1e+04 ms an image" in said
    assert "(its weights are not at hand" in said or "try test_efficientnet" in said
    assert "assumptions, not measurements" in said
    assert "On images smaller than those of the tables networks are less accurate" in said


def test_the_order_of_times_is_that_of_the_times(photos, weights, monkeypatch):
    planted = {"test_efficientnet": 0.3, "test_byobnet.r160_in1k": 0.1, "test_vit.r160_in1k": 0.2}

    def times_of(calls, rounds=0):
        return {name: Time(planted[name], planted[name], planted[name]) for name in calls}

    monkeypatch.setattr("exitwise.advising.candidates.times_of", times_of)
    advice = ew.advise(str(photos), latency=0.25, weights=weights, image_size=32, exits=2, tell=lambda text: None)
    assert {each.name: each.seconds.median for each in advice.suggestions if not each.early}.items() <= planted.items()
    assert [each.within for each in advice.suggestions if each.name == "test_efficientnet" and not each.early] == [
        False
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--latency", "10ms", "--macs", "1M"], "expected one limit, latency or macs; got both"),
        ([], "expected one limit, latency or macs; got none"),
        (["--latency", "10"], "expected a time with its unit"),
        (["--macs", "0"], "expected a positive limit, in seconds or multiply-accumulates; got 0"),
        (["--macs", "1k"], "expected a limit that a candidate meets; the nearest, test_byobnet.r160_in1k, takes"),
        (["--macs", "1M", "--weights", "x"], "expected weights as NAME=FILE"),
        (["--macs", "1M", "--weights", "no_such=x"], "unknown model 'timm/no_such'"),
        (
            ["--macs", "1M", "--weights", "test_vit=no_such.pt"],
            "expected weights of test_vit at no_such.pt; there is nothing",
        ),
        (["--macs", "1M", "--exits", "1"], "expected exits of at least 2; got 1"),
        (["--macs", "1M", "--images", "0"], "expected images of at least 1; got 0"),
    ],
)
def test_bad_input_is_one_line(photos, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        main(["advise", "--data", str(photos), *arguments])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_a_signal_promises_nothing_that_only_training_keeps(photos, capsys, monkeypatch):
    def stopped(*args, **kwargs):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr("exitwise.workflows.advise.advise", stopped)
    with pytest.raises(SystemExit) as stop:
        main(["advise", "--data", str(photos), "--macs", "1M"])
    assert stop.value.code == 143
    assert capsys.readouterr().err == "exitwise: stopped by SIGTERM\n"


def test_no_images_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["advise", "--data", str(tmp_path), "--macs", "1M"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "expected a folder per class with images" in line


def test_calls_that_do_not_fit_together(network, photos):
    with pytest.raises(UserError, match="a network is advised on with a loader"):
        ew.advise(network, macs=1e6)
    with pytest.raises(UserError, match="a data set has images of its own; got a loader too"):
        ew.advise(photos, coloured(), macs=1e6)
    for loader in ([], [{"label": torch.zeros(3)}]):
        with pytest.raises(DataError, match="expected batches"):
            ew.advise(network, loader, macs=1e9)


def test_too_few_samples(network):
    with pytest.raises(DataError, match="expected at least 50 samples"):
        ew.advise(network, coloured(40), macs=50e6, tell=lambda text: None)


def suggestion(name, mean, behind, within=True, median=0.01, weights=True):
    interval = Interval(mean, mean - 0.1, mean + 0.1)
    time = Time(median, median, median)
    return Suggestion(name, False, 224, time, "onnx", 1e8, interval, behind, within, "probe", weights)


def test_the_verdict_names_what_is_faster_and_may_be_as_accurate():
    first = suggestion("a", 0.8, None)
    worse = suggestion("b", 0.6, Interval(-0.2, -0.3, -0.1), median=0.001)
    near = suggestion("c", 0.79, Interval(-0.01, -0.05, 0.03), median=0.005)
    said = Advice([first, near, worse], [], {}, "", 100).verdict
    assert said.startswith("try a first; c may be as accurate and is 2x as fast")
    assert said.endswith("1 of 2 others within the limit are undecided beside it")
    assert Advice([first, worse], [], {}, "", 100).verdict == "try a first"
    assert "--weights" in Advice([suggestion("a", 0.8, None, weights=False)], [], {}, "", 0).verdict


def test_what_is_beyond_the_limit_comes_last():
    draws = np.array([[0.7, 0.9, 0.8], [0.7, 0.9, 0.8]])
    assert in_order(draws, [True, False, True]) == [2, 0, 1]


def test_exits_beside_a_smaller_network_are_undecided_where_the_interval_holds_zero():
    assert Versus("l", "s", Interval(0.02, 0.01, 0.03)).decision == "better"
    assert Versus("l", "s", Interval(-0.02, -0.03, -0.01)).decision == "worse"
    assert "+1.0 (-1.0 to +3.0) points" in str(Versus("l", "s", Interval(0.01, -0.01, 0.03)))
    assert Versus("l", "s", Interval(0.01, -0.01, 0.03)).decision == "undecided"
    assert "its first exit alone takes as long" in str(Versus("l", "s", None))


def test_the_small_table_is_in_use():
    assert choice.published() is ROWS
