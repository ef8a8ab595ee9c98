"""Sessions of ONNX Runtime: how many threads, one pool if wished, which provider, and from which version on."""

import json
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import exitwise as ew
from exitwise import OnnxRunner

onnxruntime = pytest.importorskip("onnxruntime")

CASES = Path(__file__).parents[1] / "cases"
BUNDLE = CASES / "bundle_v1_plain"
IMAGES = np.random.default_rng(0).standard_normal((6, 1, 8, 8)).astype(np.float32)
POOL = """
import os, sys
import numpy as np
import exitwise as ew
def count():
    return len(os.listdir("/proc/self/task"))
before = count()
if sys.argv[2] != "own":
    ew.share_threads(3)
    try:
        ew.share_threads(2)
    except ValueError as error:
        print(error)
runners = [ew.OnnxRunner(sys.argv[1], None if sys.argv[2] != "own" else 3) for _ in range(3)]
images = np.ones((3, 1, 8, 8), np.float32)
for runner in runners:
    runner(images), runner(images[:1])
print(count() - before)
"""


def threads_of(how):
    command = [sys.executable, "-c", POOL, str(BUNDLE), how]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads by Linux's /proc")
def test_one_pool_serves_all_sessions():
    refused, shared = threads_of("shared")
    (own,) = threads_of("own")
    assert int(shared) <= 3
    assert int(own) >= 3 * 4 * 2
    assert "expected no pool of threads yet" in refused


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="allows cores by Linux's call")
def test_threads_follow_the_allowed_cores(monkeypatch):
    made = []
    options = onnxruntime.SessionOptions

    def noted():
        made.append(options())
        return made[-1]

    monkeypatch.setattr(onnxruntime, "SessionOptions", noted)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        OnnxRunner(BUNDLE)
    finally:
        os.sched_setaffinity(0, allowed)
    assert {each.intra_op_num_threads for each in made} == {1}
    made.clear()
    OnnxRunner(BUNDLE, threads=3)
    assert {each.intra_op_num_threads for each in made} == {3}
    with pytest.raises(ValueError, match="expected at least one thread; got 0"):
        OnnxRunner(BUNDLE, threads=0)


def test_a_provider_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a provider of this ONNX Runtime, cpu.*; got coreml"):
        OnnxRunner(BUNDLE, provider="coreml")
    with pytest.raises(ValueError, match="unknown provider 'cudo'; did you mean 'cuda'"):
        OnnxRunner(BUNDLE, provider="cudo")
    with pytest.raises(ValueError, match="got openvino"):
        ew.predict(BUNDLE, np.zeros((8, 8), np.uint8), "openvino")


def test_a_provider_that_falls_back_is_refused(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(ValueError, match=r"ONNX Runtime has cuda, and cannot use it here|cannot load it"):
        OnnxRunner(BUNDLE, provider="cuda")


def test_an_old_version_is_refused(monkeypatch):
    monkeypatch.setattr(onnxruntime, "__version__", "1.9.1")
    with pytest.raises(ValueError, match=r"expected ONNX Runtime 1\.20 or newer; got 1\.9\.1"):
        OnnxRunner(BUNDLE)


def test_images_are_paths_bytes_files_and_arrays(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (12, 9), np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    forms = [path, str(path), path.read_bytes(), BytesIO(path.read_bytes()), pixels]
    runner = OnnxRunner(BUNDLE)
    wanted = runner.read_image(path)
    for form in forms:
        np.testing.assert_array_equal(runner.read_image(form), wanted)
    forms[3].seek(0)
    with path.open("rb") as file:
        answers = ew.predict(BUNDLE, [*forms, file])
    assert len({(each.prediction, each.confidence) for each in answers}) == 1
    assert [each.file for each in answers] == [str(path), str(path), "image 3", "image 4", "image 5", str(path)]
    assert len(ew.predict(BUNDLE, pixels)) == len(ew.predict(BUNDLE, path.read_bytes())) == 1
    for wrong, message in (
        (b"", "the file is empty"),
        (b"no image", "not an image"),
        (pixels.astype(np.float32), r"expected pixels as uint8 \(height, width\) or .*; got float32 \(12, 9\)"),
        (pixels[None, None], r"got uint8 \(1, 1, 12, 9\)"),
    ):
        with pytest.raises(ew.DataError, match=message):
            runner.read_image(wrong)


LOCALE = """
import pathlib, sys
from exitwise.deploy.manifest import read_manifest
path = pathlib.Path(sys.argv[1])
print(ascii(read_manifest(path, path).content["classes"][0]))
"""


def test_a_bundle_is_read_in_any_locale(tmp_path):
    content = json.loads((BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    content["classes"][0] = "näher"
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", LOCALE, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.stdout.strip() == ascii("näher"), result.stderr
