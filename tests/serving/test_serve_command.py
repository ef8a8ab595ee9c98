"""The command as a process: its page in a real browser, devices that go on there, and its end."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest

import exitwise as ew
from exitwise import OnnxRunner
from exitwise.errors import UserError
from flowers import CLASSES, pngs
from slow_stages import slowed_by

pytest.importorskip("fastapi")

DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], "<img src=x onerror=alert(1)>.png", { type: "image/png" }));
document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
"""


@pytest.fixture(scope="module")
def server(flowers_bundle):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from exitwise.cli import main; main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "serve", str(flowers_bundle), "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out.splitlines()[-1], err) == (0, "ended", "")


def test_an_image_is_dropped_and_the_dial_is_moved(browser, server, flowers_bundle, tmp_path):
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    runner = OnnxRunner(flowers_bundle, 1)
    files = pngs(60, seed=11)
    runner.thresholds = runner.calibration.policy.thresholds
    exits = [int(runner.by_stages(runner.read_image(file)[None]).exit[0]) for file in files]
    late = files[exits.index(max(exits))]
    for kind in ("performance", "browser"):
        browser.get_log(kind)
    browser.get(server)

    def text(name):
        return browser.find_element("id", name).text

    def shown():
        WebDriverWait(browser, 10).until(lambda _: text("class") and text("exits"))
        return text("class"), browser.execute_script("return document.querySelector('#exits .here')?.textContent")

    browser.execute_script(DROP, base64.b64encode(late).decode())
    wanted = CLASSES[int(runner.by_stages(runner.read_image(late)[None]).prediction[0])]
    assert shown() == (wanted, f"left at {max(exits) + 1}")
    assert len(browser.find_elements("css selector", "#top tr")) == 4
    if folder := os.environ.get("EXITWISE_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/serving.png")

    dial = browser.find_element("id", "dial")
    dial.send_keys(Keys.HOME, Keys.RIGHT)  # the least of the table
    WebDriverWait(browser, 10).until(lambda _: text("budget") == "25.0 %")
    WebDriverWait(browser, 10).until(lambda _: shown()[1] == "left at 1")
    with urllib.request.urlopen(f"{server}/budget") as answer:
        assert json.load(answer)["budget"] == 0.25

    path = tmp_path / "broken.png"
    path.write_bytes(b"no image")
    browser.find_element("id", "file").send_keys(str(path))
    WebDriverWait(browser, 10).until(lambda _: "not an image" in text("error"))
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert all("/predict" in message and "400" in message for message in complaints), complaints
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in sent if not url.startswith(("blob:", "data:"))} == {
        f"{server}{path}" for path in ("/", "/page.js", "/page.css", "/budget", "/predict?top=5")
    }


def test_it_ends_gracefully(flowers_bundle):
    """A request that is inside when SIGTERM comes is answered; new ones find nobody."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", slowed_by(0.3), "serve", str(flowers_bundle), "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    body = pngs(1)[0]
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        time.sleep(0.15)
        process.send_signal(signal.SIGTERM)
        answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200")
    assert process.wait(20) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)


def test_a_device_answers_what_leaves_and_the_server_the_rest(server, flowers_bundle):
    files = pngs(30, seed=31)
    runner = OnnxRunner(flowers_bundle, 1)
    as_calibrated = urllib.request.Request(f"{server}/budget", b'{"budget": null}', method="PUT")
    urllib.request.urlopen(as_calibrated).close()
    with urllib.request.urlopen(f"{server}/budget") as answer:
        runner.thresholds = json.load(answer)["thresholds"]
    for precision, kinds in (("float32", {"files"}), ("int8", {"states", "files"})):
        client = ew.SplitClient(flowers_bundle, 1, server, precision)
        client.device.runner.thresholds = runner.thresholds
        wanted = runner.by_stages(np.stack([runner.read_image(file) for file in files]))
        answers = client(files)
        assert [each["where"] for each in answers] == ["server" if exit else "device" for exit in wanted.exit]
        if precision == "float32":
            assert [each["exit"] - 1 for each in answers] == wanted.exit.tolist()
        assert {kind for kind, size in client.sent.items() if size} <= kinds
    whole = ew.SplitClient(flowers_bundle, 1, server)
    answers = whole(files)
    least = urllib.request.Request(f"{server}/budget", b'{"budget": 0.25}', method="PUT")
    urllib.request.urlopen(least).close()
    assert whole(files) == answers  # whatever the server's own dial says
    urllib.request.urlopen(as_calibrated).close()
    assert whole([]) == []
    whole.device.digest = "0" * 64
    with pytest.raises(UserError, match=r"answers 400: expected (images|states) "):
        whole(files)
    elsewhere = ew.SplitClient(flowers_bundle, 1, "http://127.0.0.1:9", seconds=1)
    elsewhere.device.runner.thresholds = (None, None)
    with pytest.raises(UserError, match="expected an answer of the server at"):
        elsewhere(files[:1])
