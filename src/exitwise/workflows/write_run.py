"""A run folder of a network that was trained elsewhere, on which every command works."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from exitwise.data.fingerprints import unused
from exitwise.deploy.calibration import Calibration
from exitwise.errors import UserError
from exitwise.evaluation.outputs import EVALUATION_BATCH
from exitwise.models.backbones.exited import ExitedModel
from exitwise.runs import build
from exitwise.runs.folder import Run, check_new
from exitwise.settings.schema import Settings
from exitwise.storage.lock import locked


def write_run(
    model: ExitedModel, settings: Settings, out: str | Path, *, calibration: Calibration | None = None
) -> Run:
    """Write a run folder of a network with exits that was trained elsewhere: ``exitwise calibrate``, ``evaluate``,
    ``predict``, ``export``, ``bench`` and ``report`` work on it.

    Args:
        model: from :func:`~exitwise.add_exits`, on a backbone that the settings can name.
        settings: from :func:`~exitwise.compose`: the backbone (``timm/...``), its image size and preprocessing, and the
            images, whose training part must be what the network was trained on.
        out: an empty folder, or none.
        calibration: of this network.

    Raises:
        UserError: if something is at ``out``, or the settings are of another network or number of classes.
        DataError: if exits were fitted on images that the run calibrates or tests on.
    """
    out = Path(out)
    if not isinstance(model, ExitedModel):
        raise UserError(f"expected a network that add_exits made; got a {type(model).__name__}")
    check_new(out, settings)
    splits = build.load_splits(settings)
    places = [point.name for point in model.points]
    kind = {
        "exits": None,
        "exits_at": places,
        "place_by": "macs",
        "skip": model.skips,
        "head": "linear" if model.head == "linear" else "auto",
    }
    built = build.build_model(settings.model_copy(update=kind), len(splits.classes))
    theirs, ours = ({name: tuple(t.shape) for name, t in each.state_dict().items()} for each in (built, model))
    if theirs != ours:
        raise UserError(
            f"expected the network that the settings name, {settings.model} with exits at {', '.join(places)} for "
            f"{len(splits.classes)} classes; got another"
        )
    if calibration is not None:
        calibration.check_network(model)
    for split, name in ((splits.calibration, "calibration images of the run"), (splits.test, "test images of the run")):
        for _ in unused(split.batches(EVALUATION_BATCH, settings.workers), {"fitted on": model.fitted_on}, name):
            pass
    with locked(out):
        run = Run.create(out, settings.model_copy(update=kind), splits, sys.argv, "never")
        run.checkpoints.save("best", 0, {"model": model.state_dict()})
        if calibration is not None:
            run.write_calibration(replace(calibration, checkpoint=run.best().name))
    return run
