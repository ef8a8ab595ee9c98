"""What decides who leaves where runs where torch cannot be imported."""

import ast
import subprocess
import sys
from pathlib import Path

import exitwise.exiting

CODE = """
import sys
sys.modules["torch"] = None  # importing it fails
import numpy as np
from exitwise.catalogue.measures import MEASURES
from exitwise.exiting import arrays, calibration, measures, policy, risk, rule, search, temperatures, wish

generator = np.random.default_rng(0)
targets = generator.integers(10, size=600)
sharper = np.array([0.5, 1.5, 3.0])[:, None]
logits = generator.normal(size=(600, 3, 10)) + sharper * np.eye(10)[targets][:, None]
logits, costs = logits.astype(np.float32), (1.0, 2.0, 4.0)
fitted = temperatures.fit_temperatures(logits, targets)
for entry in MEASURES.values():
    measure = measures.create_measure(entry.name, fitted).fit(logits, targets, costs)
    confidences, predictions = measure.read_all(logits)
    correct = predictions == targets[:, None]
    found = {
        "proportions": calibration.calibrate_proportions(confidences, [0.5, 0.3, 0.2]),
        "macs": calibration.calibrate_macs(confidences, costs, 2.0)[0],
        "accuracy": calibration.calibrate_accuracy(confidences, correct, costs, 0.02)[0],
        "guarantee": risk.control_risk(confidences, predictions, targets, 0.1, 0.9).policy,
    }
    searching = search.ThresholdSearch(confidences, correct, costs)
    found["searched"] = searching.best_accuracy(2.0, found["macs"])
    found["searched accuracy"] = searching.least_cost(correct[:, -1].mean() - 0.02, found["accuracy"])
    for name, each in found.items():
        taken = each.read_by(measure).exit_of(confidences)
        assert taken.shape == (600,) and taken.dtype == np.int64, name
        print(entry.name, name, np.bincount(taken, minlength=3).tolist())
"""


def test_every_kind_of_calibration_needs_numpy_alone():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.strip().splitlines()
    assert len(lines) % 6 == 0
    assert len(lines) >= 24
    assert "max-probability proportions [300, 180, 120]" in lines


def test_it_knows_no_network_trainer_setting_or_file():
    """Neither by name nor by what it imports."""
    allowed = {"budgets", "catalogue", "errors", "exiting", "kernels", "shapes", "shown"}
    for path in Path(exitwise.exiting.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top, *rest = name.split(".")
                assert top != "exitwise" or rest[0] in allowed, (path, name)
                assert top != "torch" or path.name == "runner.py", (path, name)
