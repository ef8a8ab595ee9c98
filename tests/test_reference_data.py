"""Our training step, networks and budgets against recorded data: the authors' where given, else our own cases."""

import ast
import json

import numpy as np
import pytest
import torch

from exitwise.budgets import exit_proportions
from exitwise.exiting.outputs import Outputs, budgeted_curve
from exitwise.methods import MetaWeighted
from exitwise.models import MSDNet, RANet, count_cost
from exitwise.models.authors import load_authors_state, msdnet_from_authors, our_name, ranet_from_authors
from exitwise.training.step import half_batches, half_step
from exitwise.weighting.allocation import allocate
from exitwise.weighting.gradient import meta_gradient
from exitwise.weighting.network import WeightNetwork
from recordings import reference_files

CENTERING = {"row": "samples", "col": "exits", "mat": "all"}
WPN_LAYERS = {"first_hidden_layer.fc": "layers.0", "output_layer": "layers.2"}


def relative(ours, theirs):
    ours, theirs = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300))


def section(arrays, prefix, rename=lambda name: name):
    return {
        rename(name[len(prefix) :]): torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith(prefix)
    }


def wpn_name(name):
    layer, kind = name.rsplit(".", 1)
    return f"{WPN_LAYERS.get(layer, layer)}.{kind}"


def network(config):
    if "nBlocks" not in config:
        config = {**config, "input_shape": tuple(config["input_shape"])}  # a list in JSON
        return RANet(**config) if "compress" in config else MSDNet(**config)
    return ranet_from_authors(config) if "scale_list" in config else msdnet_from_authors(config)


class Replay:
    """Network, weight network and method as a reference run had them at its start."""

    def __init__(self, path, mode):
        self.arrays = np.load(path)
        self.config = config = ast.literal_eval(str(self.arrays["config"]))
        self.model = network(config["model"])
        load_authors_state(self.model, section(self.arrays, "model_init/"))
        self.model.double()
        centering = config.get("centering") or CENTERING[config["constraint"]]
        self.wpn = WeightNetwork(
            self.model.exits,
            config["wpn_hidden"],
            config["wpn_layers"],
            config["wpn_input"],
            config["epsilon"],
            centering,
        )
        self.wpn.load_state_dict(section(self.arrays, "wpn_init/", wpn_name))
        self.wpn.double()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            config["lr"],
            momentum=config["momentum"],
            weight_decay=config["weight_decay"],
        )
        self.method = MetaWeighted(
            self.wpn,
            torch.optim.Adam(self.wpn.parameters(), config["wpn_lr"], weight_decay=config["wpn_weight_decay"]),
            exit_proportions(config["p"], self.model.exits),
            objective="per-exit",
            mode=mode,
            meta_interval=config["meta_interval"],
        )

    def half_steps(self):
        for index in range(self.config["steps"]):
            batch = torch.from_numpy(self.arrays["x"][index]).double(), torch.from_numpy(self.arrays["y"][index])
            for train, meta in half_batches(*batch):
                yield half_step(self.model, self.optimizer, self.method, train, meta, index)

    def wpn_gradient_error(self, half):
        grads = {name: param.grad for name, param in self.wpn.named_parameters()}
        recorded = section(self.arrays, f"step{half}/wpn_grad/", wpn_name)
        return max(relative(grads[name], grad) for name, grad in recorded.items())


@pytest.mark.parametrize("mode", ["forward", "double-backward"])
@pytest.mark.parametrize("path", reference_files("l2w_*.npz"), ids=lambda path: path.stem)
def test_training_reproduces_the_whole_trajectory(path, mode, monkeypatch):
    replay = Replay(path, mode)
    recorded = replay.arrays
    allocations = []

    def spy(*args):
        allocations.append(allocate(*args))
        return allocations[-1]

    monkeypatch.setattr("exitwise.weighting.gradient.allocate", spy)
    for half, step in enumerate(replay.half_steps()):
        assert relative(step.forward.losses.detach(), recorded[f"step{half}/losses"]) < 1e-6
        assert relative(step.forward.confidences, recorded[f"step{half}/confidences"]) < 1e-6
        assert relative(step.weights, recorded[f"step{half}/weights"]) < 1e-6
        assert relative(step.loss, recorded[f"step{half}/loss"]) < 1e-6
        assert (step.meta_loss is not None) == (f"step{half}/meta_loss" in recorded)
        if step.meta_loss is not None:
            assert allocations.pop().tolist() == recorded[f"step{half}/allocation"].tolist()
            assert relative(step.meta_loss, recorded[f"step{half}/meta_loss"]) < 1e-6
            assert replay.wpn_gradient_error(half) < (1e-9 if half == 0 else 1e-6)
        assert not allocations
    state = replay.model.state_dict()
    finals = section(recorded, "model_final/", our_name)
    assert set(finals) == set(state)
    assert max(relative(state[name], tensor) for name, tensor in finals.items()) < 1e-6
    wpn_state = replay.wpn.state_dict()
    assert max(relative(wpn_state[k], v) for k, v in section(recorded, "wpn_final/", wpn_name).items()) < 1e-6


@pytest.mark.parametrize("path", reference_files("l2w_*.npz"), ids=lambda path: path.stem)
def test_first_look_ahead_sees_the_recorded_weights(path):
    replay = Replay(path, "forward")
    seen = []
    original = meta_gradient

    def spy(model, optimizer, run, weights, *args, **kwargs):
        seen.append(weights.detach().clone())
        return original(model, optimizer, run, weights, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exitwise.methods.weights.meta_weighted.meta_gradient", spy)
        next(replay.half_steps())
    assert relative(seen[0], replay.arrays["step0/pseudo_weights"]) < 1e-9


@pytest.mark.parametrize("path", reference_files("*net_forward_*.npz"), ids=lambda path: path.stem)
def test_logits(path):
    arrays = np.load(path)
    model = network(ast.literal_eval(str(arrays["config"])))
    load_authors_state(model, {str(name): torch.from_numpy(arrays[f"state/{name}"]) for name in arrays["state_names"]})
    for mode in ("eval", "train"):
        model.train(mode == "train")
        with torch.no_grad():
            logits = model(torch.from_numpy(arrays["x"]))
        for k, ours in enumerate(logits):
            assert relative(ours, arrays[f"{mode}_logits/{k}"]) < 1e-5


COSTS = {
    f"{path.stem.removesuffix('_costs')} {name}": recorded
    for path in reference_files("*net_costs.json")
    for name, recorded in json.loads(path.read_text()).items()
}


@pytest.mark.parametrize("name", COSTS)
def test_costs(name):
    recorded = COSTS[name]
    cost = count_cost(network(recorded["config"]))
    assert cost.params[-1] == recorded["params_total"]
    assert len(cost.macs) == len(recorded["macs_per_exit"])
    for ours, theirs in zip(cost.macs, recorded["macs_per_exit"], strict=True):
        assert ours == pytest.approx(theirs, rel=0.03)


def test_the_39_budgets():
    arrays = np.load(reference_files("budgeted_eval.npz")[0])
    calibration, test = (
        Outputs.from_probabilities(
            torch.from_numpy(arrays[f"{split}_probs"]).transpose(0, 1),
            torch.from_numpy(arrays[f"{split}_targets"]),
        )
        for split in ("calibration", "test")
    )
    columns = [str(column) for column in arrays["columns"]]
    points = budgeted_curve(calibration, test, arrays["macs"].tolist())
    assert len(points) == len(arrays["rows"]) == 39
    for point, row in zip(points, arrays["rows"], strict=True):
        recorded = dict(zip(columns, row, strict=True))
        assert point.p == pytest.approx(recorded["p_index"] / 20)
        assert 100 * point.calibration.accuracy == pytest.approx(recorded["calibration_acc"], abs=1e-4)
        assert 100 * point.test.accuracy == pytest.approx(recorded["test_acc"], abs=1e-4)
        assert point.test.macs == pytest.approx(recorded["test_macs"], rel=1e-6)
        for k, threshold in enumerate(point.policy.thresholds, start=1):
            expected = recorded[f"threshold_{k}"]
            assert threshold is None if expected == 1e8 else threshold == pytest.approx(expected, abs=1e-6)
