"""Every named data set that is here, or can be made here: its images are as the catalogue says."""

import pytest
import torch

from exitwise.catalogue.sources import SOURCES
from exitwise.data.sources import open_source
from exitwise.errors import DataError


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_images_are_as_the_catalogue_says(source, tmp_path):
    try:
        train, calibration, test = open_source(source.name, tmp_path, source.channels, source.side)
    except DataError as error:
        pytest.skip(f"{source.name} is not here: {error}")
    height = 1 if source.signals else source.side
    for part in (train, calibration, test):
        if part is None:
            continue
        assert len(part.targets) == len(part.names) == len(set(part.names)) > 0
        assert set(part.targets.tolist()) == set(range(len(part.classes)))
        for index in (0, len(part.targets) - 1):
            image = part.read(index)
            assert (image.dtype, image.shape) == (torch.uint8, (source.channels, height, source.side))
            assert part.stamp(index) == part.stamp(index)
    again = open_source(source.name, tmp_path, source.channels, source.side).train
    assert torch.equal(again.read(0), train.read(0))
