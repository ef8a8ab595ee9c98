"""What is answered to which request, in one process: bodies, budgets, limits, tokens, reloads."""

import base64
import io
import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from exitwise import OnnxRunner
from exitwise.errors import UserError
from flowers import CLASSES, pngs

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from exitwise.serving.access import Access
from exitwise.serving.app import create_app
from exitwise.serving.limits import BODIES, Limits
from exitwise.serving.service import Service

LOCAL = {"base_url": "http://127.0.0.1:8000", "client": ("127.0.0.1", 5000)}
RAW = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def service(flowers_bundle):
    service = Service(flowers_bundle, threads=1, provider="cpu", max_inside=64)
    yield service
    service.close(1)


@pytest.fixture
def client(service):
    service.set_budget(None)
    return TestClient(create_app(service, limits=Limits(100_000, 1.0)), **LOCAL)


@pytest.fixture(scope="module")
def runner(flowers_bundle):
    return OnnxRunner(flowers_bundle, 1)


def expected(runner, files, budget=None):
    runner.thresholds = runner.calibration.policy.thresholds if budget is None else runner.thresholds_for(budget)
    result = runner.by_stages(np.stack([runner.read_image(file) for file in files]))
    return [
        (CLASSES[label], exit + 1, list(runner.thresholds), pytest.approx(confidence, abs=1e-5))
        for label, exit, confidence in zip(*(each.tolist() for each in result[:3]), strict=True)
    ]


def answers(response):
    assert response.status_code == 200, response.text
    return [
        (each["class"], each["exit"], each["thresholds"], each["confidence"]) for each in response.json()["answers"]
    ]


def as_json(files):
    return [base64.b64encode(file).decode() for file in files]


def test_images_come_in_any_kind_of_body(client, runner):
    files = pngs(9, seed=1)
    wanted = expected(runner, files)
    assert len({exit for _, exit, *_ in wanted}) > 1
    assert [answers(client.post("/predict", content=file, headers=RAW))[0] for file in files] == wanted
    assert answers(client.post("/predict", content=files[0], headers={"content-type": "image/png"})) == wanted[:1]
    assert answers(client.post("/predict", json={"images": as_json(files)})) == wanted
    assert answers(client.post("/predict", json={"image": f"data:image/png;base64,{as_json(files)[0]}"})) == wanted[:1]
    form = [("file", (f"../../{i}.png", file, "image/png")) for i, file in enumerate(files)]
    assert answers(client.post("/predict", files=form)) == wanted


def test_an_answer_says_what_it_cost_and_how_sure_it_is(client, runner):
    (file,) = pngs(1, seed=2)
    (said,) = client.post("/predict?top=3", content=file, headers=RAW).json()["answers"]
    result = runner.by_stages(runner.read_image(file)[None])
    classes, probabilities = result.top(3)
    assert [each["class"] for each in said["top"]] == [CLASSES[k] for k in classes[0]]
    assert [each["probability"] for each in said["top"]] == pytest.approx(probabilities[0].tolist(), abs=1e-5)
    assert said["probability"] == said["top"][0]["probability"]
    assert said["macs"] == result.macs[0]
    assert said["compute"] == said["macs"] / 400
    assert (said["exits"], said["index"], said["in_time"]) == (3, classes[0, 0], True)
    assert said["answered"] is True


def test_what_is_not_sure_is_not_answered(client, service, monkeypatch):
    (file,) = pngs(1, seed=2)
    (before,) = client.post("/predict", content=file, headers=RAW).json()["answers"]
    runner = service.live.runner
    policy = runner.calibration.policy.abstaining(before["confidence"] + 1e-4)
    monkeypatch.setattr(runner, "calibration", replace(runner.calibration, policy=policy))
    (said,) = client.post("/predict", content=file, headers=RAW).json()["answers"]
    assert said == {**before, "class": None, "answered": False}


def test_the_dial_and_a_request_choose_budgets_of_the_table(client, runner):
    files = pngs(6, seed=3)
    budgets = [line["budget"] for line in client.get("/budget").json()["budgets"]]
    assert budgets == [line.budget for line in runner.calibration.table]
    assert client.put("/budget", json={"budget": budgets[0]}).json()["budget"] == budgets[0]
    assert answers(client.post("/predict", json={"images": as_json(files)})) == expected(runner, files, budgets[0])
    most = budgets[-1]
    assert answers(client.post("/predict", json={"images": as_json(files), "budget": most})) == expected(
        runner, files, most
    )
    for wrong in (0.01, -1, "x", 1e300):
        assert client.put("/budget", json={"budget": wrong}).status_code == 400
        assert client.post(f"/predict?budget={wrong}", content=files[0], headers=RAW).status_code == 400
    assert client.get("/budget").json()["budget"] == budgets[0]
    assert client.put("/budget", json={"budget": None}).json()["budget"] is None


def image(mode="L", size=(8, 8), format="PNG"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, format)
    return file.getvalue()


LARGE = base64.b64encode(image(size=(500, 200))).decode()
BROKEN = {
    "nothing": ({"content": b"", "headers": RAW}, 400, "empty"),
    "no image": ({"content": b"hello", "headers": RAW}, 400, "not an image"),
    "a cut image": ({"content": pngs(1)[0][:60], "headers": RAW}, 400, "expected an image"),
    "numbers that are not finite": ({"content": image("F", format="TIFF"), "headers": RAW}, 400, "no agreed range"),
    "too many pixels": ({"content": image(size=(5000, 200)), "headers": RAW}, 413, "at most 500000 pixels"),
    "too many pixels together": ({"json": {"images": [LARGE] * 6}}, 413, "a request together; got 600000"),
    "too long": ({"content": b"x" * 100_001, "headers": RAW}, 413, "at most 100000 bytes"),
    "too many": ({"json": {"images": ["aGk="] * 65}}, 413, "at most 64 samples"),
    "a type": ({"content": b"<a/>", "headers": {"content-type": "text/xml"}}, 415, "text/xml"),
    "no type": ({"content": b"hello"}, 415, "no content type"),
    "no JSON": ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "JSON"),
    "deep JSON": ({"content": b"[" * 90_000, "headers": {"content-type": "application/json"}}, 400, "JSON"),
    "a list": ({"json": []}, 400, "expected"),
    "unknown wishes": ({"json": {"image": "aGk=", "buget": 0.5}}, 400, "buget"),
    "two kinds": ({"json": {"image": "aGk=", "text": "hi"}}, 400, "image, text"),
    "no base64": ({"json": {"image": "***"}}, 400, "base64"),
    "a text": ({"json": {"text": "hi"}}, 400, "expected images; got texts"),
    "arrays of another shape": ({"json": {"inputs": {"images": [[1, 2]]}}}, 400, "expected float32 images"),
    "ragged arrays": ({"json": {"inputs": {"images": [[1], [1, 2]]}}}, 400, "equal lengths"),
    "no form": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "form"),
    "a form without files": ({"data": {"budget": "1"}, "files": {"x": (None, "y")}}, 400, "at least one file"),
    "a deadline": ({"json": {"image": "aGk=", "deadline_ms": -1}}, 400, "deadline_ms"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_is_said_in_a_line(case, flowers_bundle, service, client):
    request, status, said = BROKEN[case]
    service.live.max_pixels = 500_000
    response = client.post("/predict", **request)
    assert (response.status_code, said in response.json()["error"]) == (status, True), response.text
    assert "\n" not in response.json()["error"]
    assert service.live.scheduler.inside == 0


def test_arrays_that_are_not_finite_are_refused(client):
    pixels = np.zeros((1, 1, 8, 8)).tolist()
    pixels[0][0][0][0] = float("nan")
    body = json.dumps({"inputs": {"images": pixels}})
    for text in (body, body.replace("NaN", '"nan"'), body.replace("NaN", "1e999")):
        response = client.post("/predict", content=text, headers={"content-type": "application/json"})
        assert response.status_code == 400
    fine = client.post("/predict", json={"inputs": {"images": np.zeros((1, 1, 8, 8)).tolist()}})
    assert len(answers(fine)) == 1


def test_a_deadline_that_passed_before_the_first_exit_is_503(client):
    response = client.post("/predict?deadline_ms=0.0001", content=pngs(1)[0], headers=RAW)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_decoding_ends_at_the_deadline(client, service, monkeypatch):
    read, begun = service.live.runner.read, []

    def slowly(file):
        begun.append(file)
        time.sleep(0.1)
        return read(file)

    monkeypatch.setattr(service.live.runner, "read", slowly)
    response = client.post("/predict?deadline_ms=150", files=[("files", file) for file in pngs(20)])
    assert (response.status_code, response.json()["error"]) == (503, "its deadline passed before it was read")
    time.sleep(0.3)  # what is being decoded comes to its end
    assert len(begun) < 10


def test_bodies_that_are_coming_hold_but_so_many_bytes(service):
    limits = Limits(1000, 1.0)
    client = TestClient(create_app(service, limits=limits), **LOCAL)
    limits.coming = BODIES * 1000 - 10
    response = client.post("/predict", content=b"x" * 11, headers=RAW)
    assert (response.status_code, limits.coming) == (429, BODIES * 1000 - 10)
    assert client.post("/predict", content=b"x" * 9, headers=RAW).status_code == 400  # no image


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("POST", "/predict/", 404),
        ("GET", "/openapi.json", 404),
        ("HEAD", "/health", 200),
        ("HEAD", "/", 200),
    ],
)
def test_paths_and_methods_that_there_are_not_are_answered_as_other_errors(client, method, path, status):
    response = client.request(method, path, follow_redirects=False)
    assert response.status_code == status
    if status >= 400:
        assert list(response.json()) == ["error"]


def test_no_place_is_429(client, service):
    scheduler = service.live.scheduler
    scheduler.inside += 64
    try:
        response = client.post("/predict", content=pngs(1)[0], headers=RAW)
    finally:
        scheduler.inside -= 64
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert "inside" in response.json()["error"]


def test_compute_is_shed_as_places_run_out(flowers_bundle):
    service = Service(flowers_bundle, threads=1, provider="cpu", max_inside=100, shed_compute=True)
    live, (inside, *_) = service.live, [service.live.read_images(pngs(1))]
    spent = []
    for taken in (0, 50, 60, 75, 99):
        live.scheduler.inside = taken
        dial, futures = service.submit(live, inside)
        futures[0].result(5)
        spent.append(dial.budget)
    live.scheduler.inside = 0
    service.close(1)
    assert spent[:2] == [None, None]
    assert spent[2] > spent[3] > spent[4]
    assert spent[4] == pytest.approx(live.runner.calibration.table[0].budget, abs=0.02)


def test_tokens(service):
    def ask(client, host="127.0.0.1:8000", **headers):
        given = {"host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        codes = [client.get("/budget", headers=given), client.put("/budget", headers=given, json={"budget": None})]
        return [each.status_code for each in codes]

    def make(access, client=("127.0.0.1", 1)):
        return TestClient(create_app(service, access), base_url="http://127.0.0.1:8000", client=client)

    away = ("10.0.0.9", 1)
    user, changer = {"authorization": "Bearer u"}, {"authorization": "bearer c"}
    assert ask(make(Access())) == [200, 200]
    assert ask(make(Access()), "[::1]:8000") == [200, 200]
    assert ask(make(Access()), "localhost") == [200, 200]
    assert ask(make(Access()), "evil.example") == [200, 403]  # a name that was bent to this machine
    assert ask(make(Access()), origin="http://evil.example") == [200, 403]
    assert ask(make(Access()), origin="http://127.0.0.1:8000") == [200, 200]
    assert ask(make(Access()), x_forwarded_for="127.0.0.1") == [200, 403]
    assert ask(make(Access(), away)) == [200, 403]
    assert ask(make(Access("u"))) == [401, 401]
    assert ask(make(Access("u")), **user) == [200, 200]
    assert ask(make(Access("u")), authorization="Bearer v") == [401, 401]
    assert ask(make(Access("u")), authorization="Bearer \xfc".encode("latin-1")) == [401, 401]
    assert ask(make(Access("u", "c"), away), **user) == [200, 401]
    assert ask(make(Access("u", "c"), away), **changer) == [200, 200]
    assert ask(make(Access(None, "c"), away)) == [200, 401]
    closed = make(Access("u"), away)
    assert [closed.get(path).status_code for path in ("/health", "/ready", "/", "/metrics")] == [200, 200, 200, 401]
    assert closed.post("/predict", content=b"x", headers=RAW).headers["www-authenticate"] == "Bearer"


def test_metrics_say_what_happened(client):
    def values():
        lines = [line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#"]
        return {name: float(value) for name, value in lines}

    before = values()
    client.post("/predict", json={"images": as_json(pngs(5))})
    after = values()
    left = [f'exitwise_stage_left_total{{stage="{k}"}}' for k in (1, 2, 3)]
    assert sum(after[name] - before[name] for name in left) == 5
    entered = 'exitwise_stage_samples_total{stage="1"}'
    assert after[entered] - before[entered] == 5
    assert after['exitwise_responses_total{status="200"}'] == 2  # and the one before
    assert after["exitwise_request_seconds_count"] == 1
    assert 0 < after['exitwise_batch_fill{stage="1"}'] <= 1
    assert after["exitwise_inside_samples"] == 0
    assert "exitwise_drift_warnings_total" in after


def test_another_bundle_takes_its_place_and_a_broken_one_does_not(flowers_bundle, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(flowers_bundle, folder)
    service = Service(folder, threads=1, provider="cpu")
    client = TestClient(create_app(service), **LOCAL)
    client.put("/budget", json={"budget": 0.5})
    file = pngs(1)[0]
    before = answers(client.post("/predict", content=file, headers=RAW))
    stage = folder / "stage_1.onnx"
    whole = stage.read_bytes()
    stage.write_bytes(whole[:-10])
    refused = client.post("/reload")
    assert (refused.status_code, "SHA-256" in refused.json()["error"]) == (400, True)
    assert answers(client.post("/predict", content=file, headers=RAW)) == before
    stage.write_bytes(whole)
    old = service.live
    assert client.post("/reload").json() == {"reloads": {"done": 1, "refused": 1}}
    assert service.live is not old
    assert service.budget == 0.5
    assert answers(client.post("/predict", content=file, headers=RAW)) == before
    service.close(1)
    stage.write_bytes(b"")
    with pytest.raises(UserError, match="SHA-256"):
        Service(folder, threads=1, provider="cpu")


def test_the_page_asks_for_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "http" not in page.text
    assert [client.get(path).headers["content-type"] for path in ("/page.js", "/page.css")] == [
        "text/javascript; charset=utf-8",
        "text/css; charset=utf-8",
    ]
    assert client.get("/../../etc/passwd").status_code == 404
