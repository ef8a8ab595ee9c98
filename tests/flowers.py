"""A small bundle of three exits on grey images of 8x8, with a table of budgets, and images for it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from exitwise import ExitPolicy
from exitwise.data import Preprocessing
from exitwise.deploy.calibration import Calibration
from exitwise.deploy.monitor import Reference
from exitwise.exiting.measures import create_measure
from exitwise.exiting.table import budget_table
from exitwise.models.staged import Stage, StagedModel

CLASSES = ["<b>rose</b>", "tulip", "oak", "fern"]
MACS = (100, 200, 400)


def pngs(count, seed=0):
    """Files of images, each with a bright half somewhere."""
    generator = np.random.default_rng(seed)
    files = []
    for _ in range(count):
        pixels = generator.integers(0, 120, (8, 8))
        pixels[:, : generator.integers(1, 8)] += generator.integers(0, 130)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="session")
def flowers_bundle(tmp_path_factory):
    pytest.importorskip("onnx")
    from exitwise.deploy.formats.onnx import export_onnx

    torch.manual_seed(4)
    bodies = [nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)]
    stages = [Stage(nn.Sequential(body, nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(256, 4))) for body in bodies]
    model = StagedModel(stages, 4, (1, 8, 8)).eval()
    preprocessing = Preprocessing(8, (0.5,), (0.2,))
    images = torch.from_numpy(np.stack([np.array(Image.open(io.BytesIO(file))) for file in pngs(300)])).float()
    with torch.no_grad():
        logits = torch.stack(model((images[:, None] / 255 - 0.5) / 0.2), 1).numpy()
    measure = create_measure()
    confidences, predictions = measure.read_all(logits)
    table = budget_table(confidences, predictions == predictions[:, -1:], MACS)
    policy = ExitPolicy(table[len(table) // 2].thresholds)
    exits = policy.exit_of(confidences)
    taken = np.take_along_axis(confidences, exits[:, None], 1)[:, 0]
    reference = Reference.of(exits, taken, 3, policy.thresholds)
    expected = {"accuracy": 0.9, "macs": float(np.array(MACS)[exits].mean()), "shares": [0.4, 0.3, 0.3]}
    calibration = Calibration(policy, {}, (), MACS, expected, "", reference=reference, table=table)
    folder = tmp_path_factory.mktemp("bundles") / "flowers"
    export_onnx(model, calibration, folder, classes=CLASSES, preprocessing=preprocessing)
    return folder
