"""Cascades of trained networks: calibrated, guaranteed, run, exported as any network of stages, each network whole."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import v2

import exitwise as ew
from exitwise.benching.timing import measure_exit_seconds
from exitwise.catalogue.measures import MEASURES
from exitwise.data.sources.digits import read_digits
from exitwise.errors import UserError
from exitwise.evaluation.outputs import collect_logits
from exitwise.exiting.outputs import Outputs, operate
from exitwise.models.cost import count_alone
from exitwise.workflows import calibrate as calibrating

IMAGES = torch.from_numpy(read_digits().images).float()[:, None] / 16
LABELS = torch.from_numpy(read_digits().targets)
HALF, OTHER = ew.Preprocessing(8, (0.5,), (0.5,)), ew.Preprocessing(8, (0.3,), (0.4,))


def pairs(first, last, images=IMAGES):
    return [(images[k : k + 50], LABELS[k : k + 50]) for k in range(first, last, 50)]


def plain(width, classes=10, depth=2):
    layers = []
    for number in range(depth):
        layers += [nn.Conv2d(width if number else 1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes)).eval()


def fitted(network, see=lambda images: images, epochs=4):
    """Train a network in a plain loop on what it sees of the images."""
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    network.train()
    for _ in range(epochs):
        for images, labels in pairs(0, 800):
            optimizer.zero_grad()
            F.cross_entropy(network(see(images)), labels).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def networks():
    """A small and a large classifier of digits; the large one sees them otherwise normalised."""
    torch.manual_seed(0)
    return fitted(plain(4)), fitted(plain(16), lambda images: (images - 0.3) / 0.4)


@pytest.fixture(scope="module")
def exited(networks):
    found = [ew.add_exits(copy.deepcopy(each), exits=2, input_shape=(1, 8, 8)).eval() for each in networks]
    for model in found:
        ew.fit_exits(model, pairs(0, 800), epochs=3)
    return found


GREY = (1, 8, 8)
PIXELS = ew.Preprocessing(8, (0.0,), (1.0,))
"""As the loaders here give images."""


def of_two(networks, **options):
    return ew.cascade(*networks, preprocessing=[PIXELS, OTHER], **options)


def of_sizes(networks):
    return ew.cascade(networks[0], sizes=(6, 8), input_shape=GREY)


KINDS = {
    "two networks": lambda networks, exited: of_two(networks),
    "one at two sizes": lambda networks, exited: of_sizes(networks),
    "three": lambda networks, exited: ew.cascade(networks[0], *networks, sizes=(4, 8, 8), preprocessing=[PIXELS] * 3),
    "with exits, by the last": lambda networks, exited: ew.cascade(*exited),
    "with exits, all": lambda networks, exited: ew.cascade(*exited, exits="all"),
    "plain, then with exits": lambda networks, exited: ew.cascade(networks[0], exited[1], exits="all"),
}


SLOW = "with exits, by the last", "plain, then with exits"
"""Kinds whose parts the others have too."""


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KINDS])
def model(request, networks, exited):
    return KINDS[request.param](networks, exited)


WISHES = [
    {"budget": 0.7},
    {"macs": None},
    {"latency": None},
    {"p": 0.8},
    {"proportions": None},
    {"max_accuracy_drop": 0.02},
    {"max_accuracy_drop": 0.1, "guarantee": 0.9},
    {"budget": 0.7, "thresholds": "searched"},
    {"budget": 0.8, "temperature": True},
    *({"budget": 0.9, "measure": measure} for measure in MEASURES),
]


@pytest.mark.parametrize("wish", WISHES, ids=str)
def test_every_wish(networks, wish, monkeypatch):
    model = of_two(networks)
    filled = {"macs": 0.6 * model.full_macs, "proportions": [0.6, 0.4]}
    if "latency" in wish:
        seconds = measure_exit_seconds(model)
        monkeypatch.setattr(calibrating, "measure_exit_seconds", lambda model: seconds)
        filled["latency"] = sum(seconds) / 2
    wish = {name: filled[name] if value is None else value for name, value in wish.items()}
    calibration = ew.calibrate(model, pairs(800, 1300), **wish)
    assert calibration.full_macs == count_alone(model, 1) < calibration.exit_macs[-1]
    spent = calibration.expected["macs"]
    if "budget" in wish:
        assert spent <= wish["budget"] * calibration.full_macs
        assert f"{100 * spent / calibration.full_macs:.1f} % of full" in str(calibration)
    if "guarantee" in wish:
        assert calibration.guarantee["holds"]
    assert calibration.table[-1].budget == pytest.approx(calibration.exit_macs[-1] / calibration.full_macs)
    assert {line.budget for line in calibration.table} >= {0.5, 0.95, 1.0}


def test_runner_simulation_and_bundle_agree(model, tmp_path):
    pytest.importorskip("onnx")
    share = 0.5 * (model.exit_macs[0] + model.exit_macs[-1])
    calibration = ew.calibrate(model, pairs(800, 1300), macs=share, temperature=True)
    policy, images = calibration.policy, IMAGES[1300:]
    logits, targets = collect_logits(model, pairs(1300, 1797))
    outputs = Outputs.from_logits(logits, targets, policy.measure)
    simulated = operate(outputs, policy, model.exit_macs)
    ours = ew.EarlyExitRunner(model, policy)(images)
    assert ours.macs.mean().item() == pytest.approx(simulated.macs)
    assert (ours.prediction == LABELS[1300:]).double().mean().item() == pytest.approx(simulated.accuracy)
    assert len(set(ours.exit.tolist())) > 1
    evaluation = ew.evaluate(model, calibration, pairs(1300, 1797))
    assert evaluation.calibrated == simulated
    assert f"{100 * model.exit_macs[-1] / model.full_macs:.1f} %" in str(evaluation)

    ew.export(model, calibration, tmp_path / "bundle", preprocessing=PIXELS)
    runner = ew.OnnxRunner(tmp_path / "bundle")
    np.testing.assert_allclose(runner.logits(images.numpy()), logits, rtol=0, atol=1e-5)
    assert runner.full_macs == model.full_macs
    near = np.abs(outputs.confidences[:, :-1] - np.array([2 if t is None else t for t in policy.thresholds])) < 1e-5
    theirs, one_by_one = runner(images.numpy()), runner.one_by_one(images.numpy())
    for found in (theirs, one_by_one):
        assert ((found.exit == ours.exit.numpy()) | near.any(1)).all()
        assert ((found.prediction == ours.prediction.numpy()) | near.any(1)).all()
    dial = ew.OnnxRunner(tmp_path / "bundle", budget=1)(images.numpy())
    assert dial.macs.mean() <= 1.1 * model.full_macs


def test_each_network_says_what_it_says_alone(networks, exited):
    small, large = networks
    with torch.no_grad():
        first, second = of_two(networks)(IMAGES[:99])
        assert torch.equal(first, small(IMAGES[:99]))
        torch.testing.assert_close(second, large((IMAGES[:99] - 0.3) / 0.4))
        model = ew.cascade(small, sizes=(6, 12), input_shape=(1, 12, 12))
        given = v2.functional.resize(IMAGES[:99], [12, 12], antialias=True)
        first, second = model(given)
        assert torch.equal(first, small(v2.functional.resize(given, [6, 6], antialias=True)))
        assert torch.equal(second, small(given))
        wanted = [*exited[0](IMAGES[:99]), *exited[1](IMAGES[:99])]
        model = ew.cascade(*exited, exits="all")
        assert all(map(torch.equal, model(IMAGES[:99]), wanted))
        assert all(torch.equal(model.forward_only(IMAGES[:99], exit), wanted[exit]) for exit in range(4))
        assert all(map(torch.equal, ew.cascade(*exited)(IMAGES[:99]), wanted[1::2]))
    assert model.full_macs == count_alone(exited[1], 1)
    assert model.exit_macs[1] == exited[0].exit_macs[1]
    assert model.exit_macs[2] == exited[0].exit_macs[1] + exited[1].exit_macs[0]


def test_exits_are_saved_network_by_network(networks, exited, tmp_path):
    model = ew.cascade(*exited, exits="all")
    with pytest.raises(UserError, match=r"got a Cascade \(of a cascade, save each network's\)"):
        ew.save(model, tmp_path / "both")
    assert not list(tmp_path.iterdir())
    files = tmp_path / "small", tmp_path / "large"
    for each, file in zip(exited, files, strict=True):
        ew.save(each, file)
    again = ew.cascade(*map(ew.load, networks, files), exits="all").eval()
    with torch.no_grad():
        assert all(map(torch.equal, again(IMAGES[:99]), model(IMAGES[:99])))


def test_weights_are_there_once(networks, tmp_path):
    pytest.importorskip("onnx")
    _, large = networks
    model = ew.cascade(large, sizes=(6, 8), input_shape=GREY)
    assert len(model.state_dict()) == len(large.state_dict())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in large.parameters())
    other = ew.cascade(plain(16), sizes=(6, 8), input_shape=GREY)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert all(map(torch.equal, other(IMAGES[:9]), model(IMAGES[:9])))
    calibration = ew.calibrate(model, pairs(800, 1300), p=1)
    ew.export(model, calibration, tmp_path / "bundle")
    stored = sum(path.stat().st_size for path in (tmp_path / "bundle").glob("*.data"))
    assert 9 * 16 * 16 * 4 <= stored < 2 * 9 * 16 * 16 * 4


WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "timm", "scipy", "onnx"):
    sys.modules[name] = None
import numpy as np
from exitwise import OnnxRunner, predict
result = OnnxRunner(sys.argv[1])(np.zeros((5, 1, 8, 8), np.float32))
print(predict(sys.argv[1], np.zeros((20, 20), np.uint8))[0].compute)
"""


def test_a_bundle_needs_no_torch(networks, tmp_path):
    pytest.importorskip("onnx")
    model = of_two(networks)
    calibration = ew.calibrate(model, pairs(800, 1300), proportions=[0, 1])
    ew.export(model, calibration, tmp_path / "bundle", preprocessing=PIXELS)
    code = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "bundle")]
    result = subprocess.run(code, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) == pytest.approx(model.exit_macs[-1] / model.full_macs)


def test_a_budget_may_be_more_than_the_last_network_alone(networks):
    model = of_two(networks)
    most = model.exit_macs[-1] / model.full_macs
    assert most > 1.05
    calibration = ew.calibrate(model, pairs(800, 1300), budget=1.05)
    assert calibration.expected["macs"] <= 1.05 * model.full_macs
    assert calibration.thresholds_for(1.05)
    result = ew.bench(
        model, calibration, pairs(1300, 1500), forms="eager", batch_sizes=[8], budgets=[1.05], seconds=0.1
    )
    assert "early exits, 105 %" in {row.network.name for row in result.rows}
    with pytest.raises(UserError, match=r"to 1\.0\d* of the last network alone\); got .* \(1\.9\)"):
        ew.calibrate(model, pairs(800, 1300), budget=1.9)


def named(network, *names):
    """A network that says what its classes are called, as transformers' do."""
    network = copy.deepcopy(network)
    network.config = SimpleNamespace(id2label=dict(enumerate(names)))
    return network


def test_what_does_not_fit_is_refused(networks, exited):
    small, large = networks
    cats, dogs = named(small, "cat", "dog"), named(large, "dog", "cat")
    for call, message in (
        (lambda: ew.cascade(small), "expected two or more networks, or one at several sizes; got 1"),
        (
            lambda: ew.cascade(small, plain(16, 7), input_shape=GREY),
            "of the same classes; network 1 has 10, network 2 7",
        ),
        (lambda: ew.cascade(small, small, input_shape=GREY), "network 2 is network 1 again, as it sees it"),
        (lambda: ew.cascade(small, sizes=(6, 8, 8), input_shape=GREY), "network 3 is network 2 again, as it sees it"),
        (lambda: of_two([large, small]), r"from cheap to dear; network 1 costs .*M MACs, network 2 .*M"),
        (lambda: ew.cascade(small, sizes=(8, 6), input_shape=GREY), "from cheap to dear"),
        (lambda: ew.cascade(small, large, sizes=(8,)), "expected 2 sizes, one per network; got 1"),
        (lambda: ew.cascade(small, sizes=(8, 0)), "expected sizes as sides in pixels, from 1 to 8192; got 0"),
        (lambda: ew.cascade(small, sizes=(8, 9.5)), "expected sizes as sides in pixels"),
        (lambda: ew.cascade(cats, dogs), "class 0 is 'cat' of network 1, 'dog' of network 2"),
        (lambda: ew.cascade(small, "large"), "expected networks, or run folders with out; got a str"),
        (lambda: ew.cascade(small, large, exits="first"), "expected exits as last or all; got 'first'"),
        (
            lambda: ew.cascade(small, large, preprocessing=[PIXELS]),
            "preprocessing of 2 networks, in their order; got 1",
        ),
        (lambda: ew.cascade(small, large, preprocessing=[8, 9]), "expected a Preprocessing, .*; got int"),
        (
            lambda: ew.cascade(small, large, input_shape=(3, 8, 8)),
            r"inputs that Sequential takes; it fails on .*3, 8, 8",
        ),
        (
            lambda: ew.cascade(small, copy.deepcopy(large).double(), input_shape=GREY),
            "of one type on one device; got torch.float32 on cpu, ",
        ),
        (lambda: ew.fit_exits(ew.cascade(*exited), pairs(0, 100)), "expected a network whose exits are to be fitted"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    model, one = of_two(networks), exited[1]
    calibrations = [ew.calibrate(each, pairs(800, 1300), p=1) for each in (one, of_sizes(networks))]
    for calibration in calibrations:
        with pytest.raises(UserError, match="expected the calibration of this network"):
            ew.evaluate(model, calibration, pairs(1300, 1797))
    with pytest.raises(UserError, match="expected the calibration of this network"):
        ew.evaluate(one, ew.calibrate(model, pairs(800, 1300), p=1), pairs(1300, 1797))
    with pytest.raises(
        ValueError, match=r"first exit's cost and the last exit's.*\(0\.\d+ to 1\.\d+ of the last network alone\)"
    ):
        ew.calibrate(model, pairs(800, 1300), macs=2 * model.full_macs)
    for one_network in (one, exited[0]):
        with pytest.raises(UserError, match=r"full network's, above 0 and at most 1; got 1\.01"):
            ew.calibrate(one_network, pairs(800, 1300), budget=1.01)
    with pytest.raises(ew.DataError, match="that nothing was fitted on"):
        ew.calibrate(ew.cascade(*exited), pairs(0, 800), p=1)
