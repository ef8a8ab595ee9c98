"""A bundle on Ray: the same answers as the runner's, by deadlines and from devices too, and with a replica killed."""

import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import yaml

import exitwise as ew
from exitwise import OnnxRunner
from exitwise.errors import UserError
from flowers import pngs

ROOT = Path(__file__).parent.parent.parent
CLIENTS = 12


def test_ray_is_asked_for_where_it_is_missing():
    code = "import sys; sys.modules['ray'] = None; from exitwise.cli import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "serve", "nowhere", "--engine", "ray"]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "exitwise: serving on Ray needs ray: pip install 'exitwise[ray]'\n"


def test_replicas_are_of_stages_in_turn():
    on_ray = pytest.importorskip("exitwise.serving.on_ray")
    assert on_ray.parse_replicas("4,2,1", 4) == [(4, 4), (2, 2), (1, 1)]
    assert on_ray.parse_replicas("1-4,1", 2) == [(1, 4), (1, 1)]
    assert on_ray.parse_replicas([(1, 3), 2], 3) == [(1, 3), (2, 2)]
    assert on_ray.parse_replicas((), 3) == [(1, 1)] * 3
    for wrong in ("0,1", "2-1", "many", "1,,1", [1.5], [(2,), None]):
        with pytest.raises(UserError, match="expected replicas as 4,2,1 or 1-4,1-2,1; got"):
            on_ray.parse_replicas(wrong, 3)
    with pytest.raises(UserError, match="expected replicas of at most 2 stages; got 1,1,1"):
        on_ray.parse_replicas("1,1,1", 2)


def test_what_cannot_be_deployed_is_refused(flowers_bundle, tmp_path):
    pytest.importorskip("ray")
    for wrong, said in (
        ({"budget": 0.01}, "expected a budget"),
        ({"max_batch": 0}, "expected max_batch above 0; got 0"),
        ({"token_file": tmp_path / "none"}, "expected a file with a token"),
    ):
        with pytest.raises(UserError, match=said):
            ew.serve_app(flowers_bundle, **wrong)
    with pytest.raises(UserError, match="replicas are for engine ray; got 2,1 with engine local"):
        ew.serve(flowers_bundle, replicas="2,1")
    with pytest.raises(UserError, match="expected engine as local or ray; got spark"):
        ew.serve(flowers_bundle, engine="spark")


def test_the_example_for_kubernetes_deploys_what_there_is():
    on_ray = pytest.importorskip("exitwise.serving.on_ray")
    (service,) = yaml.safe_load_all((ROOT / "docker" / "rayservice.yaml").read_text())
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    module, name = application["import_path"].split(":")
    assert getattr(sys.modules[module], name) is on_ray.build
    signature(on_ray.serve_app).bind(**application["args"])
    cluster = service["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in (group["template"]["spec"] for group in groups):
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        assert application["args"]["bundle"].startswith(mount["mountPath"])
        assert mount["name"] in {volume["name"] for volume in pod["volumes"]}


@pytest.fixture(scope="module")
def server(flowers_bundle):
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from exitwise.cli import main; main(sys.argv[1:])"
    options = ["--engine", "ray", "--replicas", "2,1", "--port", str(port)]
    words = [sys.executable, "-c", code, "serve", str(flowers_bundle), *options]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert "serving" in process.stdout.readline()
    yield f"http://127.0.0.1:{port}", process.pid
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out.splitlines()[-1]) == (0, "ended")


def ask(address, path, body=None, method=None, kind="application/octet-stream"):
    request = urllib.request.Request(address + path, body, {"content-type": kind}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


class Right:
    """Says whether an answer is the runner's at the thresholds that it states."""

    def __init__(self, bundle, files):
        self.runner = OnnxRunner(bundle, 1)
        self.inputs = {file: self.runner.read_image(file)[None] for file in files}
        self.lock = threading.Lock()

    def __call__(self, file, said):
        with self.lock:
            self.runner.thresholds = said["thresholds"]
            found = self.runner.by_stages(self.inputs[file])
        same = (found.exit[0] + 1, found.prediction[0]) == (said["exit"], said["index"])
        return same and np.isclose(found.confidence[0], said["confidence"], atol=1e-5)


@pytest.mark.slow
def test_answers_are_the_runner_s(server, flowers_bundle):
    address, _ = server
    files = pngs(30, seed=5)
    right = Right(flowers_bundle, files)
    exits = set()
    for number, file in enumerate(files):
        path = f"/predict?budget={0.25 + 0.05 * (number % 10):.2f}" if number % 2 else "/predict"
        status, said = ask(address, path, file)
        assert (status, right(file, said["answers"][0])) == (200, True)
        exits.add(said["answers"][0]["exit"])
    assert exits == {1, 2, 3}
    assert ask(address, "/predict", b"no image")[0] == 400
    assert ask(address, "/predict?deadline_ms=0.001", files[0])[0] == 503
    assert ask(address, "/reload", b"")[0] == 400
    assert ask(address, "/budget", b'{"budget": 0.25}', "PUT")[0] == 200
    assert ask(address, "/predict", files[0])[1]["answers"][0]["budget"] == 0.25
    assert ask(address, "/budget", b'{"budget": null}', "PUT")[0] == 200
    device = ew.split(flowers_bundle, 1).device
    device.runner.thresholds = (None, None)
    _, rest = device(device.runner.read_image(files[0])[None])
    status, said = ask(address, "/continue", rest.message, kind="application/x-exitwise-state")
    assert (status, said["answers"][0]["exit"], right(files[0], said["answers"][0])) == (200, 3, True)


def replicas(server, name):
    """Return the processes of a deployment's replicas that a server has started."""
    found = []
    for place in Path("/proc").iterdir():
        try:
            words = (place / "cmdline").read_bytes()
            parent = int(place.name)
            if f"ServeReplica:exitwise:{name}".encode() not in words:
                continue
            while parent not in (server, 1):
                parent = int((Path("/proc") / str(parent) / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (ValueError, OSError):
            continue
        if parent == server:
            found.append(int(place.name))
    return found


@pytest.mark.slow
def test_a_replica_is_killed_under_load(server, flowers_bundle):
    """What is in flight at a replica that stops is what its end can cost; no answer is wrong."""
    address, pid = server
    files = pngs(40, seed=6)
    right = Right(flowers_bundle, files)
    statuses, wrong, began, done = Counter(), [], {}, threading.Event()

    def load(client):
        for file in itertools.islice(itertools.cycle(files), client, None):
            if done.is_set():
                return
            began[client] = time.monotonic()
            status, said = ask(address, "/predict", file)
            began.pop(client)
            statuses[status] += 1
            if status == 200 and not right(file, said["answers"][0]):
                wrong.append(said)

    clients = [threading.Thread(target=load, args=(number,)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    time.sleep(3)
    first, _ = replicas(pid, "stage-1")
    os.kill(first, signal.SIGSTOP)
    time.sleep(3)
    there = sum(time.monotonic() - since > 2 for since in list(began.values()))
    os.kill(first, signal.SIGKILL)
    time.sleep(3)
    before = statuses[200]
    time.sleep(3)
    done.set()
    for client in clients:
        client.join(60)
    with urllib.request.urlopen(f"{address}/metrics") as answer:
        counted = {words[0]: float(words[1]) for line in io.TextIOWrapper(answer) if len(words := line.split()) == 2}
    assert not wrong
    assert there > 0
    assert set(statuses) <= {200, 503}
    assert statuses[503] == counted["exitwise_lost_samples_total"]
    assert statuses[503] <= there
    assert statuses[200] > before
    end = time.monotonic() + 60
    while len(replicas(pid, "stage-1")) < 2 and time.monotonic() < end:
        time.sleep(0.5)
    assert len(replicas(pid, "stage-1")) == 2
    print(f"{sum(statuses.values())} requests, {there} in flight at the replica, {statuses[503]} lost")
