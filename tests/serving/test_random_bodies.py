"""Bodies, types, queries and names made by chance: each is answered, and none brings the server down."""

import random
from urllib.parse import quote

import pytest

from flowers import pngs

pytest.importorskip("fastapi")

from starlette.testclient import TestClient

from exitwise.serving.app import Limits, create_app
from exitwise.serving.service import Service

TYPES = (
    "image/png",
    "application/octet-stream",
    "multipart/form-data; boundary=x",
    "multipart/form-data",
    "multipart/form-data; boundary=" + 100 * "y",
    "application/json",
    "text/plain",
    "",
    "\x00\xff",
    "application/json; charset=utf-16",
)
NAMES = ("../../../etc/passwd", "a\\r\\nx: y", "\x1b[31m.png", "", 300 * "n", "C:\\\\x.png", "a%0d%0aset-cookie: b")
PIECES = (
    b'{"image": "',
    b'{"images": [',
    b"--x\r\ncontent-disposition: form-data; name=f; filename=",
    b"--x--",
    b"\r\n\r\n",
    b"null",
    b"[" * 500,
    b'"',
    b"}",
    b"\xff\xfe",
    b"\x89PNG\r\n\x1a\n",
    b"II*\x00\x08\x00\x00\x00",
    b"GIF89a\xff\xff\xff\xff",
)


def body(chance, file):
    kind = chance.randrange(4)
    if kind == 0:
        return chance.randbytes(chance.randrange(300))
    if kind == 1:  # an image with bytes changed
        changed = bytearray(file)
        for _ in range(chance.randint(0, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed if chance.random() < 0.7 else changed[: chance.randint(1, len(changed))])
    if kind == 2:
        return b"".join(chance.choice(PIECES) for _ in range(chance.randint(1, 8)))
    name = chance.choice(NAMES).encode()
    return (
        b'--x\r\ncontent-disposition: form-data; name="f"; filename="' + name + b'"\r\n\r\n' + file + b"\r\n--x--\r\n"
    )


@pytest.mark.parametrize("count", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_requests_are_answered(count, flowers_bundle):
    service = Service(flowers_bundle, threads=1, provider="cpu")
    client = TestClient(create_app(service, limits=Limits(20_000, 1.0)), base_url="http://127.0.0.1")
    chance, files = random.Random(count), pngs(10)
    statuses = set()
    for _ in range(count):
        query = chance.choice(
            ("", "?budget=" + quote(chance.choice(NAMES)), "?top=2&top=x", "?deadline_ms=1e999", "?%ff=%00")
        )
        response = client.post(
            "/predict" + query,
            content=body(chance, chance.choice(files)),
            headers={"content-type": chance.choice((*TYPES, *8 * TYPES[:1])).encode("latin-1")},
        )
        statuses.add(response.status_code)
        assert "traceback" not in response.text.lower()
        assert response.json()
        assert {"set-cookie", "x"}.isdisjoint(response.headers)
    assert statuses <= {200, 400, 413, 415, 422}
    assert {400, 415} <= statuses
    assert service.live.scheduler.inside == 0
    assert client.post("/predict", content=files[0], headers={"content-type": "image/png"}).status_code == 200
    service.close(1)
