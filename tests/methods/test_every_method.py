"""Every training method trains, saves, resumes and runs: those of the catalogue as they are, and with other options."""

from functools import partial

import pytest
import torch

from exitwise import EarlyExitRunner, calibrate_proportions, collect_outputs, create_method, create_model
from exitwise.catalogue.methods import METHODS
from exitwise.methods import build_method
from exitwise.training.checkpoint import load_checkpoint, save_checkpoint
from exitwise.training.step import half_batches, half_step

VARIANTS = {
    "capability-gated, soft": lambda: create_method("capability-gated", gate="soft"),
    "uniform, exit weights": lambda: create_method("uniform", exit_weights=[2.0, 1.0, 1.0, 0.5]),
    "meta-weighted-shared, interval 2": lambda: create_method(
        "meta-weighted-shared", proportions=[0.4, 0.3, 0.2, 0.1], hidden=8, meta_interval=2
    ),
    "meta-weighted, p drawn": lambda: create_method(
        "meta-weighted", proportions=[0.4, 0.3, 0.2, 0.1], p_range=(0.3, 1.2)
    ),
    "meta-weighted-shared, p drawn": lambda: create_method(
        "meta-weighted-shared", proportions=[0.4, 0.3, 0.2, 0.1], p_range=(0.3, 1.2)
    ),
    "meta-weighted, as the paper": lambda: create_method(
        "meta-weighted", proportions=[0.4, 0.3, 0.2, 0.1], zero_init=False, lr=1e-4, objective="per-exit"
    ),
}
USUAL = {part.name: partial(build_method, part.name, part.options(), 4) for part in METHODS.values()}
MAKE = USUAL | VARIANTS
OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=1e-3),
}


def batches(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(12, 1, 8, 8, generator=generator), torch.randint(10, (12,), generator=generator)


def train(model, optimizer, method, data, done=0):
    for index, batch in enumerate(data, start=done):
        method.begin(index, index / 3)
        for halves in half_batches(*batch):
            half_step(model, optimizer, method, *halves, index)


@pytest.mark.parametrize(
    ("name", "optimizer"), [*((name, "sgd") for name in USUAL), *((name, "adamw") for name in VARIANTS)]
)
def test_trains_saves_resumes_and_runs(name, optimizer, tmp_path):
    def fresh():
        torch.manual_seed(0)
        model = create_model("msdnet_small").train()
        return model, OPTIMIZERS[optimizer](model.parameters()), MAKE[name]()

    data = list(batches(3))
    whole = fresh()
    start = {key: value.clone() for key, value in whole[0].state_dict().items()}
    train(*whole, data)
    assert all(not torch.equal(start[key], value) for key, value in whole[0].named_parameters() if "weight" in key)

    parts = fresh()
    train(*parts, data[:2])
    save_checkpoint(tmp_path / "c", [part.state_dict() for part in parts])
    resumed = fresh()
    for part, state in zip(resumed, load_checkpoint(tmp_path / "c"), strict=True):
        part.load_state_dict(state)
    train(*resumed, data[2:], done=2)
    torch.testing.assert_close(resumed[0].state_dict(), whole[0].state_dict(), rtol=0, atol=0)

    outputs = collect_outputs(whole[0], data)
    runner = EarlyExitRunner(whole[0], calibrate_proportions(outputs.confidences, [0.25] * 4))
    assert set(runner(data[0][0]).exit.tolist()) <= {0, 1, 2, 3}
