"""Exits on a network that someone has, from its loaders to a bundle: nothing of the network changes."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import exitwise as ew
from exitwise.data.sampling import EpochBatches
from exitwise.data.sources.digits import read_digits
from exitwise.errors import DataError, UserError
from exitwise.training.fitting import fit_heads
from exitwise.training.kept import keep
from exitwise.training.on_kept import HeadsOnKept

IMAGES = torch.from_numpy(read_digits().images).float()[:, None] / 16
LABELS = torch.from_numpy(read_digits().targets)
PREPROCESSING = ew.Preprocessing(8, (0.0,), (1.0,))


def block(channels_in, channels_out, stride=1):
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


@pytest.fixture(scope="module")
def network():
    """A plain classifier of digits, trained in a plain loop."""
    torch.manual_seed(0)
    body = [block(1, 16), block(16, 16), block(16, 32, 2), block(32, 32)]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(12):
        for images, labels in loader(0, 1000, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model.eval()


def loader(first, last, shuffle=False):
    return DataLoader(TensorDataset(IMAGES[first:last], LABELS[first:last]), 50, shuffle=shuffle)


def with_exits(network, **options):
    torch.manual_seed(1)
    return ew.add_exits(copy.deepcopy(network), exits=3, input_shape=(1, 8, 8), **options).eval()


def flat(feature, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(feature.channels * feature.size[0] * feature.size[1], classes))


def test_six_calls(network, tmp_path):
    pytest.importorskip("onnxruntime")
    model = with_exits(network)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fitted = ew.fit_exits(model, loader(0, 1000))
    assert fitted.samples == 1000
    assert min(fitted.accuracies) > 0.6
    assert "held-out tenth" in str(fitted)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("stages.0.head.", "stages.1.head.")) for name in changed)
    with torch.no_grad():
        assert torch.equal(model(IMAGES[:64])[-1], network(IMAGES[:64]))

    calibration = ew.calibrate(model, loader(1000, 1400), max_accuracy_drop=0.01)
    evaluation = ew.evaluate(model, calibration, loader(1400, 1797))
    assert evaluation.images == 397
    assert evaluation.calibrated.accuracy > evaluation.anytime[-1] - 0.04
    assert evaluation.calibrated.macs < evaluation.exit_macs[-1]
    assert "as calibrated" in str(evaluation)

    exported = ew.export(model, calibration, tmp_path / "my.bundle", preprocessing=PREPROCESSING)
    assert "checked against the network" in str(exported)
    ours = ew.EarlyExitRunner(model, calibration.policy, calibration.exit_macs)(IMAGES[1400:])
    theirs = ew.OnnxRunner(tmp_path / "my.bundle")(IMAGES[1400:].numpy())
    assert np.mean(ours.exit.numpy() == theirs.exit) > 0.99
    assert np.mean(ours.prediction.numpy() == theirs.prediction) > 0.99


@pytest.mark.parametrize("head", ["auto", "linear", flat])
def test_what_is_kept_is_what_the_heads_see(network, head):
    model = with_exits(network, head=head)
    kept = keep(model, loader(0, 100), 2)
    with torch.no_grad():
        logits = model(IMAGES[:100])
        for ours, wanted in zip(HeadsOnKept(model, kept)(kept.rows), logits, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def seen(model, images, exit):
    """What the head of an exit sees of images."""
    for stage in list(model.stages)[: exit + 1]:
        images = stage.body(images)
    return images


def test_heads_on_kept_features_are_those_of_running_the_network_each_time(network):
    """The oracle runs the whole network over the loader for every half batch, with the order and schedule of
    fit_heads."""
    ours, oracle = with_exits(network), with_exits(network)
    kept = keep(ours, loader(0, 300), 2)
    fit_heads(ours, kept, ew.Uniform(), epochs=3, batch_size=64, lr=3e-3, seed=5, label_smoothing=0.1)
    heads = [stage.head for stage in oracle.stages][:2]
    optimizer = torch.optim.AdamW([p for head in heads for p in head.parameters()], 3e-3, weight_decay=0.05)
    held_out, train = torch.randperm(300, generator=torch.Generator().manual_seed(5)).tensor_split([30])
    sampler, best = EpochBatches(270, 64, 5), [(float("inf"), {})] * 2
    for epoch in range(3):
        sampler.epoch = epoch
        for number, positions in enumerate(sampler.positions()):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * 0.5 * (1 + np.cos(np.pi * (epoch * 5 + number) / (3 * 5)))
            for index in train[positions].chunk(2):
                for head in heads:
                    head.train()
                logits = [
                    head(torch.cat([seen(oracle, images, k) for images, _ in loader(0, 300)])[index])
                    for k, head in enumerate(heads)
                ]
                optimizer.zero_grad()
                losses = torch.stack(
                    [F.cross_entropy(z, LABELS[index], reduction="none", label_smoothing=0.1) for z in logits]
                )
                losses.mean(1).sum().backward()
                optimizer.step()
        oracle.eval()
        with torch.no_grad():
            losses = [F.cross_entropy(z, LABELS[held_out]).item() for z in oracle(IMAGES[held_out])[:2]]
        found = [(loss, copy.deepcopy(head.state_dict())) for loss, head in zip(losses, heads, strict=True)]
        best = [min(pair, key=lambda each: each[0]) for pair in zip(best, found, strict=True)]
    for stage, (_, state) in zip(ours.stages, best, strict=False):
        torch.testing.assert_close(stage.head.state_dict(), state, rtol=1e-5, atol=1e-6)


def test_mappings_and_several_passes(network):
    batches = [{"pixel_values": images, "labels": labels} for images, labels in loader(0, 200)]
    fitted = ew.fit_exits(with_exits(network), batches, augmented_passes=2, epochs=2)
    assert fitted.samples == 400


@pytest.mark.parametrize("method", ["meta-weighted", "meta-weighted-shared", ew.Uniform([2, 1, 0])])
def test_methods_on_kept_features(network, method):
    model = with_exits(network, head="linear")
    before = copy.deepcopy(model.state_dict())
    batches = list(loader(0, 500))
    state = torch.get_rng_state()
    fitted = ew.fit_exits(model, batches, method=method, distil=0.5, epochs=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert fitted.accuracies[1] > 0.7
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert {name.split(".")[1] for name in changed} == {"0", "1"}


def test_what_is_kept_beyond_the_limit_lies_in_a_file_that_is_gone_afterwards(network, tmp_path):
    model, other = with_exits(network), with_exits(network)
    ours = ew.fit_exits(model, loader(0, 300), epochs=2, memory_limit=10_000, keep_in=tmp_path)
    theirs = ew.fit_exits(other, loader(0, 300), epochs=2)
    assert ours.accuracies == theirs.accuracies
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=0, atol=0)
    assert list(tmp_path.iterdir()) == []
    kept = keep(model, loader(0, 300), 2, memory_limit=10_000, keep_in=tmp_path)
    assert kept.on_disk
    assert "on disk" in str(kept)
    assert torch.equal(kept.rows, keep(model, loader(0, 300), 2).rows)


def test_half_precision_needs_half(network):
    model, half = with_exits(network), with_exits(network)
    whole = ew.fit_exits(model, loader(0, 300), epochs=2)
    less = ew.fit_exits(half, loader(0, 300), epochs=2, dtype=torch.float16)
    assert less.kept_bytes == whole.kept_bytes / 2
    assert less.accuracies == pytest.approx(whole.accuracies, abs=0.1)


def test_a_full_disk_is_one_line_and_leaves_nothing(network, tmp_path):
    resource = pytest.importorskip("resource")
    model = with_exits(network)
    before = copy.deepcopy(model.state_dict())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"expected room in .* for what exits need .* MiB so far; File too large"):
            ew.fit_exits(model, loader(0, 1000), memory_limit=100_000, keep_in=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(UserError, match=r"expected a folder as keep_in; there is none at .*nowhere"):
        ew.fit_exits(model, loader(0, 100), keep_in=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (
            iter(()),
            r"expected at least one batch in the training loader; it ended at once \(a generator can be read once",
        ),
        ([], "expected at least one batch in the training loader; it ended at once$"),
        (7, "expected batches, in a loader or a list, as training loader; got int"),
        ([(IMAGES[:0], LABELS[:0])], "expected at least one sample in batch 0 of the training loader; it is empty"),
        ([(IMAGES[:4], LABELS[:4] - 1)], "expected targets from 0 to 9 in the training loader; got -1 to "),
        ([(IMAGES[:4], LABELS[:4] + 10)], "expected targets from 0 to 9 in the training loader; got 1"),
        ([(IMAGES[:4], LABELS[:3])], "expected 4 class indices in batch 0"),
        ([(IMAGES[:4], LABELS[:4].float())], "expected 4 class indices in batch 0 .*float32"),
        (
            [(IMAGES[:4], LABELS[:4]), (IMAGES[:4, :, 2:], LABELS[:4])],
            r"expected inputs torch.float32 \(B, 1, 8, 8\) in batch 1 .*; got torch.float32 \(4, 1, 6, 8\)",
        ),
        ([(IMAGES[:4].double(), LABELS[:4])], "got torch.float64"),
        ([(IMAGES[:4] * float("nan"), LABELS[:4])], "expected finite numbers as what exit 1 sees"),
        ([(IMAGES[:4], LABELS[:4])], "expected at least 10 samples to fit exits on; got 4"),
        ([IMAGES[:4]], "expected tensors .* in batch 0 of the training loader; got Tensor"),
        ([{"picture": IMAGES[:4]}], "got a mapping of picture"),
    ],
)
def test_loaders_that_will_not_do(network, batches, message):
    model = with_exits(network)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match=message):
        ew.fit_exits(model, batches)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_fit_that_fails_leaves_fitted_heads_as_they_were(network):
    model = with_exits(network)
    ew.fit_exits(model, loader(0, 300), epochs=2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=r"a lower lr may help, or the data's mean and std are wrong$"):
        ew.fit_exits(model, loader(0, 300), epochs=20, lr=1e30)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_calls_that_will_not_do(network, digits_run, tmp_path):
    model = with_exits(network)
    with pytest.raises(UserError, match="calibrated on held-out samples; got none"):
        ew.calibrate(model, budget=0.5)
    with pytest.raises(UserError, match="a run has calibration samples of its own"):
        ew.calibrate(digits_run.run.path, loader(0, 10), budget=0.5)
    calibration = ew.calibrate(model, loader(1000, 1400), budget=0.8)
    with pytest.raises(UserError, match=r"evaluated by evaluate\(network, calibration, test\)"):
        ew.evaluate(model, calibration)
    with pytest.raises(UserError, match=r"exported by export\(network, calibration, out\)"):
        ew.export(model, tmp_path / "my.bundle")
    for options, message in (
        ({"distil": 2}, "distil as a share"),
        ({"batch_size": 3}, "batch_size of at least 4; got 3"),
        ({"lr": 0}, "a positive number as lr; got 0"),
        ({"augmented_passes": 0}, "augmented_passes of at least 1; got 0"),
        ({"dtype": torch.int8}, "dtype as a type of floats, such as torch.float16; got torch.int8"),
        ({"seed": "x"}, "a whole number as seed, at least 0; got 'x'"),
        ({"epochs": 2.5}, "a whole number as epochs, at least 1; got 2.5"),
        ({"method": ew.Uniform([3, 2])}, r"expected 3 exit_weights, one per exit; got 2: \[3, 2\]"),
        (
            {"method": ew.create_method("meta-weighted", proportions=[0.5, 0.5])},
            "expected 3 proportions, one per exit; g",
        ),
    ):
        with pytest.raises(UserError, match=message):
            ew.fit_exits(model, loader(0, 10), **options)
    for call in (
        lambda: ew.fit_exits(network, loader(0, 10)),
        lambda: ew.calibrate(network, loader(0, 10), budget=0.5),
        lambda: ew.evaluate(network, calibration, loader(0, 10)),
        lambda: ew.export(network, calibration, tmp_path / "my.bundle"),
    ):
        with pytest.raises(UserError, match="expected a network with exits, such as add_exits makes; got a Sequential"):
            call()
    with pytest.raises(UserError, match="expected the calibration of this network"):
        ew.evaluate(with_exits(network, head="linear"), calibration, loader(0, 10))
    with pytest.raises(UserError, match="thresholds must be geometric, same or searched; got 'serched'"):
        ew.calibrate(model, loader(0, 100), budget=0.8, thresholds="serched")
    with pytest.raises(UserError, match=r"expected preprocessing for inputs of \(1, 8, 8\)"):
        ew.export(model, calibration, tmp_path / "my.bundle", preprocessing=ew.Preprocessing(9, (0.0,), (1.0,)))
    with pytest.raises(UserError, match="expected 10 different names of classes"):
        ew.export(model, calibration, tmp_path / "my.bundle", preprocessing=PREPROCESSING, classes=["one"] * 10)
    with pytest.raises(UserError, match="expected a tensor as what exit 1 sees"):
        ew.fit_exits(ew.create_model("msdnet_small"), loader(0, 50))
    assert not (tmp_path / "my.bundle").exists()


def test_calibrating_exits_that_nothing_has_trained_is_told(network):
    def told(model):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            ew.calibrate(model, loader(1000, 1400), budget=0.8)
        return [str(each.message) for each in caught if "that were trained" in str(each.message)]

    model = with_exits(network)
    assert told(model) == [
        "expected exits that were trained; got exit 1, 2 as add_exits made it: fit_exits comes first"
    ]
    with torch.no_grad():
        next(model.stages[0].head.parameters()).mul_(2)  # a loop of one's own
    assert "got exit 2 as" in told(model)[0]
    ew.fit_exits(model, loader(0, 100), epochs=1)
    assert told(model) == []
    assert told(with_exits(network, head=flat)) == []  # which may be trained as it is


def test_a_generator_is_read_once(network):
    model = with_exits(network)
    once = (batch for batch in list(loader(0, 100)))
    with pytest.raises(DataError, match=r"ended at once \(a generator can be read once: give a loader or a list\)"):
        ew.fit_exits(model, once, augmented_passes=2, epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exits": 2.5}, "expected a whole number as exits .*, at least 1; got 2.5"),
        ({"exits": 0}, r"expected exits \(the network's own is one\) of at least 1; got 0"),
        ({"head": lambda feature, classes: None}, "expected a module from the head function; got NoneType"),
        ({"head": lambda feature, classes: nn.Flatten()}, r"logits \(2, 10\) of 2 samples .* exit 1; got \(2, 1024\)"),
        ({"head": lambda feature, classes: nn.Linear(3, classes)}, "exit 1; it fails by RuntimeError: .*mat1 and mat2"),
    ],
)
def test_exits_that_will_not_do(network, options, message):
    with pytest.raises(UserError, match=message):
        ew.add_exits(network, **{"exits": 3, "input_shape": (1, 8, 8), **options})


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"budget": 0.8, "p": 1.0},
        {"budget": 0.01},
        {"budget": 2},
        {"macs": 1.0},
        {"latency": 1e9},
        {"p": -1.0},
        {"proportions": [0.5, 0.5]},
        {"proportions": [0.5, 0.5, 0.5]},
        {"proportions": [2.0, -1.0, 0.0]},
        {"max_accuracy_drop": 1.5},
        {"max_accuracy_drop": 0.1, "guarantee": 2.0},
        {"max_accuracy_drop": 0.1, "guarantee": 0.9, "risk": "other"},
        {"budget": 0.8, "measure": "other"},
    ],
)
def test_a_wish_that_cannot_be_met_is_a_user_error(network, wish):
    with pytest.raises(UserError) as refusal:
        ew.calibrate(with_exits(network), loader(1000, 1400), **wish)
    assert "\n" not in str(refusal.value)


def test_what_judges_a_network_is_not_what_made_it(network):
    model = with_exits(network)
    ew.fit_exits(model, loader(0, 400, shuffle=True), epochs=1)
    message = "expected samples in the held-out loader that nothing was fitted on; 400 of 600 were: hold some out"
    with pytest.raises(DataError, match=message):
        ew.calibrate(copy.deepcopy(model), loader(0, 600), budget=0.8)
    calibration = ew.calibrate(model, loader(400, 800), budget=0.8)
    other = ew.calibrate(model, loader(800, 1200), budget=0.8)
    for first, what in ((0, "fitted"), (400, "calibrated")):
        with pytest.raises(DataError, match=f"samples in the test loader that nothing was {what} on; 400 of 400 were"):
            ew.evaluate(model, calibration, loader(first, first + 400))
    assert ew.evaluate(model, other, loader(400, 800)).images == 400
    with pytest.warns(ew.ExitwiseWarning, match=r"10 of 400 were \(the same samples twice\?\)"):
        ew.evaluate(model, calibration, loader(790, 1190))


def test_what_was_is_restored_also_after_an_error(network, monkeypatch):
    model = with_exits(network)
    model.stages[0].head.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    needed = {name: param.requires_grad for name, param in model.named_parameters()}
    monkeypatch.setattr("exitwise.training.trainer.half_step", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ew.fit_exits(model, loader(0, 50))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: param.requires_grad for name, param in model.named_parameters()} == needed
    assert all(param.grad is None for param in model.parameters())


def test_a_network_left_whole(network):
    model = with_exits(network, skip=False)
    with torch.no_grad():
        before = model(IMAGES[:50])[-1]
        fitted = ew.fit_exits(model, loader(0, 500), epochs=10)
        assert torch.equal(model(IMAGES[:50])[-1], before)
    assert fitted.accuracies[-1] > 0.9


def test_both_doors_take_a_path_a_run_and_a_bundle(digits_run, tmp_path):
    pytest.importorskip("onnxruntime")
    from PIL import Image

    picture = str(tmp_path / "grey.png")
    Image.new("L", (8, 8), 90).save(picture)
    run = digits_run.run
    ew.calibrate(run, budget=0.5)
    ew.export(run, tmp_path / "bundle")
    (ours,), (theirs,) = ew.predict(run, picture), ew.predict(tmp_path / "bundle", picture)
    assert (ours.prediction, ours.exit) == (theirs.prediction, theirs.exit)
    assert repr(run) == f"Run({str(run.path)!r})"
