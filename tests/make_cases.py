"""Makes tests/cases with the oracles of reference.py: `python tests/make_cases.py`."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

import reference
from exitwise.models import MSDNet, RANet, count_cost

CASES = Path(__file__).parent / "cases"
MODEL = {
    "num_classes": 3,
    "blocks": 3,
    "step_mode": "lin_grow",
    "channels": 4,
    "growth": 4,
    "growth_factors": (1, 2),
    "bottleneck_factors": (1, 2),
    "head_channels": 4,
    "input_shape": (1, 8, 8),
}
RANET = {
    "num_classes": 3,
    "blocks": 2,
    "block_step": 1,
    "step": 1,
    "channels": 4,
    "growth": 4,
    "growth_factors": (4, 2, 1),
    "bottleneck_factors": (4, 2, 1),
    "scales": (1, 2, 3),
    "compress": 0.25,
    "head_channels": 4,
    "input_shape": (1, 16, 16),
}
RUNS = {
    "loss_exits": {"wpn_input": "loss", "centering": "exits", "epsilon": 0.8, "p": 0.75, "meta_interval": 1},
    "both_samples_interval2": {
        "wpn_input": "both",
        "centering": "samples",
        "epsilon": 0.5,
        "p": 1.2,
        "meta_interval": 2,
    },
}


def training_run(name, options):
    torch.manual_seed(0)
    model = MSDNet(**MODEL)
    exits = model.exits
    wpn = nn.Sequential(
        nn.Linear(exits * (1 + (options["wpn_input"] == "both")), 8), nn.ReLU(), nn.Linear(8, exits), nn.Tanh()
    )
    constants = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4, "wpn_lr": 0.01, "wpn_weight_decay": 1e-4}
    config = {"model": MODEL, "steps": 3, "half_batch": 8, "wpn_hidden": 8, "wpn_layers": 1, **constants, **options}
    config["objective"] = "per-exit"
    x, y = torch.randn(3, 16, 1, 8, 8), torch.randint(3, (3, 16))
    arrays = {"config": repr(config), "x": x, "y": y}
    arrays |= {f"model_init/{k}": v.clone() for k, v in model.state_dict().items()}
    arrays |= {f"wpn_init/layers.{k}": v.clone() for k, v in wpn.state_dict().items()}
    model.double()
    wpn.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    wpn_optimizer = torch.optim.Adam(wpn.parameters(), lr=0.01, weight_decay=1e-4)
    batches = list(zip(x.double(), y, strict=True))
    for i, record in enumerate(reference.train(model, optimizer, wpn, wpn_optimizer, batches, config)):
        grads = record.pop("wpn_grad", {})
        arrays |= {f"step{i}/{k}": v for k, v in record.items()}
        arrays |= {f"step{i}/wpn_grad/layers.{k}": v for k, v in grads.items()}
    arrays |= {f"model_final/{k}": v for k, v in model.state_dict().items()}
    arrays |= {f"wpn_final/layers.{k}": v for k, v in wpn.state_dict().items()}
    save(f"l2w_{name}", arrays)


def forward_pass(name, kind, config):
    torch.manual_seed(1)
    model = kind(**config)
    x = torch.randn(4, *config["input_shape"])
    state = {k: v.clone() for k, v in model.state_dict().items()}
    arrays = {"config": repr(config), "x": x, "state_names": np.array(list(state))}
    arrays |= {f"state/{k}": v for k, v in state.items()}
    with torch.no_grad():
        arrays |= {f"eval_logits/{k}": z for k, z in enumerate(model.eval()(x))}
        arrays |= {f"train_logits/{k}": z for k, z in enumerate(model.train()(x))}
    save(f"{name}_forward_small", arrays)
    cost = count_cost(model)
    costs = {"config": config, "macs_per_exit": cost.macs, "params_total": cost.params[-1]}
    (CASES / f"{name}_costs.json").write_text(json.dumps({"small": costs}, indent=1))


def budgets():
    torch.manual_seed(2)
    exits, n, classes = 5, 120, 4
    split = {}
    for name in ("calibration", "test"):
        targets = torch.randint(classes, (n,))
        signal = torch.nn.functional.one_hot(targets, classes) * torch.linspace(0.5, 2.5, exits)[:, None, None]
        split[f"{name}_probs"] = torch.softmax(torch.randn(exits, n, classes) + signal, dim=-1)
        split[f"{name}_targets"] = targets
    macs = torch.tensor([10.0, 25, 45, 70, 100], dtype=torch.float64)
    rows = []
    for i in range(1, 40):
        confidences = split["calibration_probs"].max(dim=2).values.T
        thresholds = reference.calibrate(confidences, reference.proportions(i / 20, exits))
        row = [i]
        for name in ("calibration", "test"):
            chosen = reference.leave(split[f"{name}_probs"].max(dim=2).values.T, thresholds)
            hits = [split[f"{name}_probs"][k, b].argmax() == split[f"{name}_targets"][b] for b, k in enumerate(chosen)]
            row.append(100 * sum(map(float, hits)) / n)
        row.append(sum(float(macs[k]) for k in chosen) / n)
        rows.append([*row, *[1e8 if t is None else t for t in thresholds], -1e8])
    columns = ["p_index", "calibration_acc", "test_acc", "test_macs", *[f"threshold_{k}" for k in range(1, exits + 1)]]
    save("budgeted_eval", {**split, "macs": macs, "rows": rows, "columns": columns})


def save(name, arrays):
    np.savez_compressed(CASES / f"{name}.npz", **{k: np.asarray(v) for k, v in arrays.items()})


if __name__ == "__main__":
    CASES.mkdir(exist_ok=True)
    for run_name, run_options in RUNS.items():
        training_run(run_name, run_options)
    forward_pass("msdnet", MSDNet, MODEL)
    forward_pass("ranet", RANet, RANET)
    budgets()
