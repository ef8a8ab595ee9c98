"""Split in two places: the answers of the whole, and states of another bundle refused."""

import json
import struct

import numpy as np
import pytest

import exitwise as ew
from exitwise.deploy.states import packed
from exitwise.errors import DataError, UserError
from flowers import pngs


@pytest.fixture(scope="module")
def images(flowers_bundle):
    runner = ew.OnnxRunner(flowers_bundle, 1)
    return np.stack([runner.read_image(file) for file in pngs(80, seed=21)])


def together(device, rest, server):
    """The fates of all samples, from those of the two halves."""
    found = [np.array(each) for each in device[:3]]
    if len(rest.places):
        for mine, theirs in zip(found, server[:3], strict=True):
            mine[rest.places] = theirs
    return found


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_the_halves_answer_as_the_whole(after, precision, flowers_bundle, images):
    whole = ew.OnnxRunner(flowers_bundle, 1).by_stages(images)
    halves = ew.split(flowers_bundle, after, precision, threads=1)
    result, rest = halves.device(images)
    assert rest.places.tolist() == np.flatnonzero(whole.exit >= after).tolist() != []
    assert (result.exit[rest.places] == -1).all()
    prediction, exit, confidence = together(result, rest, halves.server(rest.message))
    if precision == "float32":
        np.testing.assert_array_equal(prediction, whole.prediction)
        np.testing.assert_array_equal(exit, whole.exit)
        np.testing.assert_allclose(confidence, whole.confidence, atol=1e-6)
    else:
        assert (prediction == whole.prediction).mean() > 0.95
        np.testing.assert_allclose(confidence, whole.confidence, atol=0.1 if precision == "int8" else 0.01)
    numbers = {"float32": 4, "float16": 2, "int8": 1}[precision] * 4 * 8 * 8
    assert numbers < halves.device.state_bytes < numbers + 500


def test_none_goes_on_where_all_leave(flowers_bundle, images):
    halves = ew.split(flowers_bundle, 1, threads=1)
    halves.device.runner.thresholds = (0.0, 0.0)
    result, rest = halves.device(images)
    assert (result.exit == 0).all()
    assert (rest.message, len(rest.places)) == (b"", 0)


def altered(message, **changes):
    (length,) = struct.unpack_from("<Q", message)
    head = json.loads(message[8 : 8 + length])
    arrays = changes.pop("arrays", None)
    head |= changes
    if arrays:
        head["arrays"][0] |= arrays
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + message[8 + length :]


WRONG = {
    "nothing": lambda message: b"",
    "noise": lambda message: bytes(range(256)) * 9,
    "cut": lambda message: message[:-1],
    "longer": lambda message: message + b"x",
    "a huge header": lambda message: struct.pack("<Q", 2**62) + message[8:],
    "a header that is none": lambda message: message[:8] + b"[" * 1000 + message[8:],
    "another bundle": lambda message: altered(message, bundle="0" * 64),
    "a stage that is none": lambda message: altered(message, stage=3),
    "the first stage": lambda message: altered(message, stage=0),
    "a stage with another state": lambda message: altered(message, stage="1"),
    "other thresholds": lambda message: altered(message, thresholds=[0.5]),
    "thresholds that are none": lambda message: altered(message, thresholds=["a", {}]),
    "an object": lambda message: altered(message, arrays={"type": "object"}),
    "another type": lambda message: altered(message, arrays={"type": "int64"}),
    "a huge array": lambda message: altered(message, arrays={"shape": [2**40, 4, 8, 8]}),
    "another shape": lambda message: altered(message, arrays={"shape": [1, 4, 64]}),
    "a negative shape": lambda message: altered(message, arrays={"shape": [-1, 4, 8, 8]}),
    "another name": lambda message: altered(message, arrays={"name": "x"}),
    "no sample": lambda message: altered(message, arrays={"shape": [0, 4, 8, 8]}),
}


@pytest.mark.parametrize("case", WRONG)
def test_states_that_are_none_are_refused(case, flowers_bundle, images):
    halves = ew.split(flowers_bundle, 1, threads=1)
    _, rest = halves.device(images[:3])
    with pytest.raises(DataError, match="expected"):
        halves.server(WRONG[case](rest.message))


def test_states_that_are_not_finite_are_refused(flowers_bundle, images):
    halves = ew.split(flowers_bundle, 1, threads=1)
    _, rest = halves.device(images[:3])
    next(iter(rest.inside.arrays.values()))[0] = np.nan
    with pytest.raises(DataError, match="finite"):
        halves.server(packed(rest.inside, 1, (0.5, 0.5), halves.device.digest))


def test_what_cannot_be_split(flowers_bundle):
    for after in (0, 3):
        with pytest.raises(UserError, match=f"expected to split after an exit from 1 to 2; got {after}"):
            ew.split(flowers_bundle, after)
    with pytest.raises(UserError, match="expected precision as float32, float16, int8; got 'int4'"):
        ew.split(flowers_bundle, 1, "int4")
    with pytest.raises(UserError, match="expected the URL of a server"):
        ew.SplitClient(flowers_bundle, 1, "file:///etc/passwd")
