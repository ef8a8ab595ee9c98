import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from exitwise.data import Preprocessing, Split
from exitwise.data.sources import ArraySource
from exitwise.exiting.outputs import Left
from exitwise.reporting.gather import MOST_PICTURES, PER_CLASS, pictures_per_class
from exitwise.reporting.pictures import class_figures, thumbnail


def decoded(uri):
    kind, content = uri.removeprefix("data:image/").split(";base64,")
    return kind, Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.fixture
def split():
    """Seven images of classes a, b and c, in a source that holds others too."""
    images = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 1, 8, 8).contiguous()
    targets = torch.tensor([0, 0, 0, 1, 0, 0, 1, 0, 2, 0])
    source = ArraySource(images, targets, ["a", "b", "c"], [f"{i}.png" for i in range(10)])
    return Split(source, torch.tensor([1, 2, 3, 4, 5, 7, 9]), Preprocessing(8, (0.5,), (0.5,), "none"))


def test_the_first_and_the_last_to_leave_are_shown(split):
    exits = np.array([1, 0, 2, 0, 1, 2, 1])
    confidences = np.array([0.7, 0.8, 0.6, 0.9, 0.5, 0.4, 0.95])
    left = Left(np.array([0, 0, 0, 0, 1, 0, 0]), exits, confidences)
    standard = np.array([0, 0, 1, 2, 0, 0, 1])
    b, c, a = class_figures(split, left, standard, (10, 20, 30), [2, 2, 2])
    assert [shot.name for shot in a.easiest] == ["4.png", "2.png"]
    assert [shot.name for shot in a.hardest] == ["7.png", "5.png"]
    assert [(shot.exit, shot.prediction, shot.correct) for shot in a.hardest] == [(3, "a", True), (2, "b", False)]
    assert a.hardest[1].confidence == pytest.approx(0.5)
    assert (a.size, a.accuracy, a.shares) == (6, pytest.approx(5 / 6), pytest.approx((2 / 6, 3 / 6, 1 / 6)))
    assert (a.full, a.paired, a.macs) == (pytest.approx(4 / 6), (2, 1, 6), pytest.approx(10 * 2 / 6 + 10 + 30 / 6))
    assert (b.full, b.paired) == (1, (0, 1, 1))
    assert (c.full, c.paired) == (None, None)
    assert (b.size, b.accuracy, [shot.name for shot in b.easiest], b.hardest) == (1, 0, ["3.png"], [])
    assert (c.size, c.accuracy, c.shares, c.easiest) == (0, None, (0, 0, 0), [])
    assert decoded(a.easiest[0].uri)[1].getpixel((0, 0)) == 4


def test_no_image_is_shown_twice(split):
    left = Left(np.zeros(7, np.int64), np.zeros(7, np.int64), np.random.default_rng(0).random(7))
    (a,) = (each for each in class_figures(split, left, left.predictions, (1, 2, 3), [4, 0, 0]) if each.name == "a")
    assert (len(a.easiest), len(a.hardest)) == (3, 3)
    assert len({shot.name for shot in a.easiest + a.hardest}) == 6


@pytest.mark.parametrize(
    ("shape", "kind", "size"),
    [((1, 8, 8), "png", (8, 8)), ((3, 32, 20), "png", (20, 32)), ((3, 300, 600), "jpeg", (64, 32))],
)
def test_thumbnails_are_small(shape, kind, size):
    got, image = decoded(thumbnail(torch.randint(256, shape, dtype=torch.uint8)))
    assert (got, image.size) == (kind, size)


def test_a_report_of_100_classes_stays_below_10_megabytes():
    noise = len(thumbnail(torch.randint(256, (3, 224, 224), dtype=torch.uint8)))  # compresses worst
    assert 2 * sum(pictures_per_class(100, 1)) * (noise + 500) < 5e6  # beside 4.8 MB of plotly.js


@pytest.mark.parametrize(("classes", "runs"), [(2, 1), (100, 1), (100, 5), (1000, 1), (1000, 4)])
def test_the_number_of_pictures_is_bounded(classes, runs):
    each = pictures_per_class(classes, runs)
    assert len(each) == classes
    assert max(each) <= PER_CLASS
    assert 0 < 2 * runs * sum(each) <= MOST_PICTURES
