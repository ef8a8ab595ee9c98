"""Whether there are images enough to train on, to calibrate with and to test on: asked before the first step."""

from __future__ import annotations

from exitwise.data import Splits
from exitwise.data.sampling import SMALLEST_BATCH
from exitwise.deploy.calibrating import check_samples
from exitwise.errors import DataError
from exitwise.settings.schema import Settings


def check_enough(splits: Splits, settings: Settings) -> None:
    """Raise DataError unless every part has as many readable images as will be asked of it after training."""
    training, calibration, test = (split.readable_targets() for split in splits[:3])
    if len(training) < SMALLEST_BATCH:
        raise DataError(f"training needs at least {SMALLEST_BATCH} {settings.noun}; got {len(training)}")
    try:
        check_samples(calibration.numpy(), splits.classes, settings.exit_count, settings.noun)
    except DataError as error:
        held_out = splits.calibration.source is splits.train.source
        more = f", or hold out more (calibration_fraction {settings.calibration_fraction:g})" if held_out else ""
        raise DataError(f"{error}: add {settings.noun}{more}") from error
    if not len(test):
        raise DataError(f"evaluation needs test {settings.noun}; got none")
