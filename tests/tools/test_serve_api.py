"""The API of `make serve`, called as a program calls it."""

import asyncio
import base64
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.inference import gate, uploads
from pipeline.inference.batching import Batcher
from pipeline.inference.decoders import Decoders
from pipeline.inference.ensemble import InputPhoto, Prediction
from pipeline.inference.gate import Gate
from pipeline.inference.server import Protocol
from pipeline.inference.uploads import Uploads
from tests.support import forked
from tests.support.photos import draw_photo, encode, photo_bytes
from tests.support.projects import REPOSITORY, Repository, error_line
from tests.support.waiting import wait_for
from tests.tools.test_serve import serving, started

import jsonschema
import numpy as np
import pytest
import requests
import torch
import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

TOKEN = "k3y-of/the=house"
RAW = {"Content-Type": "application/octet-stream"}
CAT = photo_bytes("cat", 30)
FILES = [
    ("photos", ("tom é.jpg", CAT)),
    ("photos", ("max.png", encode(draw_photo("dog", 31), "PNG"))),
    ("photos", ("letter.jpg", b"Dear all")),
]


@dataclass
class Api:
    """A running server, and a session that has its token."""

    url: str
    session: requests.Session
    schema: dict

    def call(self, method: str, path: str, **options: object) -> requests.Response:
        """The response, which must be one that openapi.json describes."""
        response = self.session.request(method, self.url + path, timeout=60, **options)
        described = self.schema["paths"][path.partition("?")[0]][method.lower()]["responses"]
        schema = described[str(response.status_code)]["content"][response.headers["Content-Type"]]["schema"]
        jsonschema.validate(response.json(), schema | {"components": self.schema["components"]})
        return response


@pytest.fixture(scope="module")
def api(finished: Repository) -> Iterator[Api]:
    with serving(finished, "--host", "127.0.0.1", "--token", TOKEN) as url, requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {TOKEN}"
        yield Api(url, session, session.get(url + "/openapi.json").json())


@pytest.mark.slow
def test_api_answers_as_predict_does(api: Api, finished: Repository, tmp_path: Path) -> None:
    for _, (name, content) in FILES:
        (tmp_path / name).write_bytes(content)
    done = finished.run("predict.py", "--json", *(tmp_path / name for _, (name, _) in FILES))
    expected = json.loads(done.stdout)

    answers = api.call("POST", "/predict", files=FILES).json()
    assert answers[2] == {"photo": "letter.jpg", "unreadable": "not a photo, or damaged at its start"}
    for answer, other in zip(answers, expected, strict=True):
        assert answer.keys() == other.keys()
        assert f"{tmp_path}/{answer['photo']}" == other["photo"]
        assert answer.get("label") == other.get("label")
        for numbers, others in [
            (answer.get("probabilities"), other.get("probabilities")),
            *zip(answer.get("members", {}).values(), other.get("members", {}).values(), strict=True),
        ]:
            assert numbers == (others and pytest.approx(others, abs=1e-5))

    [raw] = api.call("POST", "/predict", data=CAT, headers=RAW).json()
    assert (raw["photo"], raw["label"]) == ("body", answers[0]["label"])
    assert raw["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_api_draws_only_if_asked(api: Api) -> None:
    drawn = api.call("POST", "/predict?explain=true&images=1", files=FILES).json()
    for answer in drawn[:2]:
        assert list(answer["heat_maps"]) == ["resnet18", "resnet34"]
        for uri in (answer["image"], *answer["heat_maps"].values()):
            assert base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")).startswith(b"\xff\xd8\xff")
    assert drawn[2].keys() == {"photo", "unreadable"}


@pytest.mark.slow
def test_api_says_which_model_answers(api: Api, finished: Repository) -> None:
    health = api.call("GET", "/health").json()
    assert health["classes"] == ["cat", "dog"]
    assert health["model"]["networks"] == ["resnet18", "resnet34"]
    assert health["split"] == finished.packed("test")[2]["split_id"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04", "not a photo, or damaged at its start"),
        (CAT[:-200], "file is cut off"),
        (b"P6 30000 30000 255\n", "more than 220 megapixels"),  # a decompression bomb
    ],
)
def test_api_says_why_a_photo_is_unreadable(api: Api, content: bytes, reason: str) -> None:
    [answer] = api.call("POST", "/predict", data=content, headers={"Content-Type": "image/jpeg"}).json()
    assert answer["unreadable"].startswith(reason)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "text", "options"),
    [
        (400, "no photos; send at least one", {}),
        (400, "no photos; send at least one", {"data": b"", "headers": RAW}),
        (400, "no photos; send at least one", {"files": [("photos", ("", b""))]}),
        (
            400,
            "the form is malformed: ",
            {"data": b"?", "headers": {"Content-Type": "multipart/form-data; boundary=a"}},
        ),
        (400, "the form is malformed: ", {"data": b"?", "headers": {"Content-Type": "multipart/form-data"}}),
        (400, "the request is for host 'evil.example'", {"data": CAT, "headers": RAW | {"Host": "evil.example"}}),
        (401, "the token is missing", {"data": CAT, "headers": RAW | {"Authorization": "Bearer guess"}}),
        (403, "the request comes from another site", {"data": CAT, "headers": RAW | {"Sec-Fetch-Site": "cross-site"}}),
        (403, "the request comes from another site", {"data": CAT, "headers": RAW | {"Origin": "http://evil.example"}}),
        (403, "the request comes from another site", {"data": CAT, "headers": RAW | {"Origin": "null"}}),
        (403, "the request comes from another site", {"data": CAT, "headers": RAW | {"Origin": "http://["}}),
        (
            413,
            "the photos are too large",
            {"data": b"", "headers": RAW | {"Content-Length": str(2**40), "Connection": "close"}},
        ),
        (415, "Content-Type is text/html; expected", {"data": CAT, "headers": {"Content-Type": "text/html"}}),
        (422, "too many photos; send at most 100", {"files": [("photos", ("a", b"a"))] * 101}),
        (422, "the form has a file in its field 'x'", {"files": [("x", ("a", b"a"))]}),
        (422, "the form has text in its field 'photos'", {"files": [("photos", (None, b"a"))]}),
        (
            422,
            "explain is 'maybe'; expected true or false",
            {"params": {"explain": "maybe"}, "data": CAT, "headers": RAW},
        ),
        (
            422,
            "unknown query parameter 'explian'; expected explain or images",
            {"params": {"images": "true", "explian": "true"}, "data": CAT, "headers": RAW},
        ),
    ],
)
def test_api_refuses_in_one_line(api: Api, status: int, text: str, options: dict) -> None:
    response = api.call("POST", "/predict", **options)
    assert (response.status_code, response.json().keys()) == (status, {"error"})
    assert response.json()["error"].startswith(text)
    assert "\n" not in response.json()["error"]


@pytest.mark.slow
def test_api_refuses_a_query_where_there_is_none_but_the_page_does_not(api: Api) -> None:
    response = api.call("GET", "/health?split=test")
    assert response.status_code == 422
    assert response.json() == {"error": "unknown query parameter 'split'; /health has none"}
    assert api.session.get(api.url + "/?from=mail").status_code == 200


@pytest.mark.slow
def test_api_says_what_there_is(api: Api) -> None:
    missing = api.session.get(api.url + "/models")
    assert (missing.status_code, missing.json()["error"].partition(";")[0]) == (404, "there is no /models")
    wrong = api.session.put(api.url + "/predict")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.json() == {"error": "/predict does not answer PUT; expected POST"}


@pytest.mark.slow
def test_serve_finishes_what_it_has_begun(finished: Repository) -> None:
    """After SIGTERM, a request whose body has not even arrived is answered, and new ones are refused."""
    with started(finished) as (url, server):
        port = int(url.rpartition(":")[2])
        begun = socket.create_connection(("127.0.0.1", port))
        head = (
            f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: {len(CAT)}\r\n"
        )
        begun.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert begun.recv(1000).startswith(b"HTTP/1.1 100")  # the request is being read
        server.send_signal(signal.SIGTERM)

        def is_refused() -> bool:
            with suppress(ConnectionResetError):  # still accepted, but nobody answers
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                except ConnectionRefusedError:
                    return True
            return False

        wait_for(is_refused)
        begun.sendall(CAT)
        answer = b"".join(iter(lambda: begun.recv(2**16), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])[0]["label"] in ("cat", "dog")
        assert server.wait(timeout=60) == 0


@pytest.mark.slow
def test_bench_compares_serve_with_predict(finished: Repository) -> None:
    arguments = ["data/raw/train.zip", "--clients", "4", "--photos", "20", "--sample", "16", "--rounds", "1"]
    done = forked.run([str(REPOSITORY / "bench/serve.py"), *arguments], finished.root, os.environ)
    assert done.returncode == 0
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if line.startswith("| ")]
    (_, predict, rate, *_), *served = rows[2:]
    assert (predict, float(rate) > 0, len(served)) == ("predict", True, 2)
    for _, _, rate, ratio, p50, p99, _ in served:
        assert min(float(rate), float(ratio)) > 0
        assert 0 < float(p50) <= float(p99)
    assert "memory over 20 photos, MB: " in done.stdout
    assert " 0 lost; then 4 of 4 clients refused; exit status 0" in done.stdout


@pytest.mark.slow
def test_serve_listens_to_other_computers_only_with_a_token(finished: Repository) -> None:
    for arguments, text in (
        (["--host", "0.0.0.0"], "--host needs --token or SERVE_TOKEN, because other computers can then send photos"),
        (["--host", "0.0.0.0", "--token", ""], "--token: expected ASCII characters without spaces"),
        (["--host", "192.0.2.1", "--token", TOKEN], "--host 192.0.2.1: Cannot assign requested address; expected an"),
        (["--host", "a..b", "--token", TOKEN], "--host a..b is not a host's name; expected an address or name"),
    ):
        assert error_line(finished.run("serve.py", "0", *arguments)).startswith(text)


@pytest.mark.parametrize(
    ("host", "token", "headers", "status"),
    [
        ("127.0.0.1", None, {"host": "localhost:8000"}, 200),
        ("127.0.0.1", None, {"host": "127.0.0.1"}, 200),
        ("127.0.0.1", None, {"host": "192.0.2.1"}, 400),
        ("127.0.0.1", None, {"host": "[::1"}, 400),
        ("127.0.0.1", None, {}, 400),
        ("0.0.0.0", TOKEN, {"host": "192.0.2.1:8000", "authorization": f"Bearer {TOKEN}"}, 200),
        ("0.0.0.0", TOKEN, {"host": socket.gethostname(), "authorization": f"bearer {TOKEN}"}, 200),
        ("0.0.0.0", TOKEN, {"host": "evil.example", "authorization": f"Bearer {TOKEN}"}, 400),
        ("::1", TOKEN, {"host": "[::1]:8000", "authorization": f"Bearer {TOKEN}"}, 200),
        ("127.0.0.1", TOKEN, {"host": "localhost"}, 401),
        ("127.0.0.1", TOKEN, {"host": "localhost", "authorization": f"Bearer {TOKEN}x"}, 401),
        ("127.0.0.1", TOKEN, {"host": "localhost", "authorization": TOKEN}, 401),
        ("127.0.0.1", TOKEN, {"host": "localhost", "authorization": "Basic ?"}, 401),
        ("127.0.0.1", TOKEN, {"host": "localhost", "authorization": "Basic é"}, 401),
        ("127.0.0.1", TOKEN, {"host": "localhost", "authorization": "Bearer é"}, 401),
        (
            *("127.0.0.1", TOKEN),
            {"host": "localhost", "authorization": f"Basic {base64.b64encode(f'me:{TOKEN}'.encode()).decode()}"},
            200,
        ),
    ],
)
def test_gate_checks_host_and_token(host: str, token: str | None, headers: dict[str, str], status: int) -> None:
    assert status_at(Gate(PlainTextResponse("in"), host, token, lambda: False), headers) == status


def test_gate_refuses_what_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MOST_REQUESTS", 0)
    assert status_at(Gate(PlainTextResponse("in"), "127.0.0.1", None, lambda: False), {"host": "localhost"}) == 503


def status_at(app: Gate, headers: dict[str, str]) -> int:
    """The status of the answer to GET /."""
    sent: list[dict] = []

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(app(scope_of("GET", headers), None, send))
    return sent[0]["status"]


def scope_of(method: str, headers: dict[str, str]) -> dict:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": "/", "headers": raw}


@pytest.mark.parametrize(
    ("limit", "value", "status"), [("LARGEST_UPLOAD", 10, 413), ("LARGEST_TOTAL", 10, 503), ("UPLOAD_S", 0, 408)]
)
def test_uploads_have_limits(monkeypatch: pytest.MonkeyPatch, limit: str, value: int, status: int) -> None:
    """For a body whose length is not known beforehand, and that does not end."""
    monkeypatch.setattr(uploads, limit, value)
    reader, parts = Uploads(), [b"12345678"] * 3

    async def receive() -> dict:
        if not parts:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": parts.pop(), "more_body": True}

    async def read() -> None:
        async with reader.photos_of(Request(scope_of("POST", {}), receive)):
            pass

    with pytest.raises(HTTPException) as caught:
        asyncio.run(read())
    assert caught.value.status_code == status
    assert reader._total == 0  # none of it is kept


def test_uploads_are_kept_in_memory_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda _: pytest.fail("written to the disk"))
    photo = bytes(3_000_000)
    body = b'--a\r\nContent-Disposition: form-data; name="photos"; filename="b\x07"\r\n\r\n' + photo + b"\r\n--a--\r\n"

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    async def read() -> list[tuple[str, bytes]]:
        request = Request(scope_of("POST", {"content-type": "multipart/form-data; boundary=a"}), receive)
        async with Uploads().photos_of(request) as photos:
            return [(photo.photo, photo.read()) for photo in photos]

    assert asyncio.run(read()) == [("b\\x07", photo)]


def test_a_malformed_form_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def receive() -> dict:
        return {"type": "http.request", "body": b"--a\r\nbroken\rheader", "more_body": False}

    async def read() -> None:
        request = Request(scope_of("POST", {"content-type": "multipart/form-data; boundary=a"}), receive)
        async with Uploads().photos_of(request):
            pass

    with pytest.raises(HTTPException, match="the form is malformed: "):
        asyncio.run(read())
    assert caplog.text == ""


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a server that waits 0 s for a request's header."""
    config = uvicorn.Config(PlainTextResponse("in"), timeout_keep_alive=0, log_level="critical", lifespan="off")
    config.load()
    server = await asyncio.get_running_loop().create_server(lambda: Protocol(config, ServerState(), {}), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        yield reader, writer
        writer.close()


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHo"])
def test_server_closes_a_connection_on_which_no_request_arrives(begun: bytes) -> None:
    async def read() -> bytes:
        async with connected() as (reader, writer):
            writer.write(begun)
            with suppress(ConnectionResetError):
                return await reader.read()
            return b""

    assert asyncio.run(read()) == b""


def test_server_answers_what_is_not_http_with_json(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read() -> bytes:
        async with connected() as (reader, writer):
            writer.write(b"nonsense\r\n\r\n")
            return await reader.read()

    monkeypatch.setattr(Protocol, "timeout_keep_alive_handler", lambda _: None)
    head, _, body = asyncio.run(read()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body) == {"error": "Invalid HTTP request received."}


class StandIn:
    """Stands in for an Ensemble: its first batch takes until `go_on`, except that of the Batcher's start."""

    device, image_size, resize = torch.device("cpu"), 8, "stretch"

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go_on = threading.Event()

    def predict_images(self, photos: list[tuple[str, np.ndarray]], explain: bool = False, **_: bool) -> list:
        self.batches.append([name for name, _ in photos])
        if len(self.batches) > 1:
            assert self.go_on.wait(60)
        if photos[0][0] == "broken":
            raise RuntimeError("out of luck")
        return [Prediction(name, {"cat": 1.0}, heat_maps={"a": pixels} if explain else {}) for name, pixels in photos]


def test_photos_of_many_requests_are_predicted_together() -> None:
    ensemble, reads = StandIn(), []

    def read() -> bytes:
        reads.append(1)
        return CAT

    async def ask() -> list[list[tuple[str, bool]]]:
        with closing(Batcher(ensemble)) as batcher:
            asked = [
                batcher.predict([InputPhoto(f"{number}{part}", read) for part in "ab"], show, number == 7)
                for number in range(16)
            ]
            answers = asyncio.gather(*asked)
            while len(reads) < 32 or batcher._decoding:
                await asyncio.sleep(0.001)
            ensemble.go_on.set()
            return await answers

    def show(prediction: Prediction) -> tuple[str, bool]:
        return prediction.photo, bool(prediction.heat_maps)

    answers = asyncio.run(ask())
    assert answers == [[(f"{number}a", number == 7), (f"{number}b", number == 7)] for number in range(16)]
    sizes = [len(batch) for batch in ensemble.batches[1:]]
    assert sum(sizes) == 32
    assert len(sizes) <= 4  # the first, and all others; and those of the request for heat maps


def test_an_error_reaches_only_its_requests() -> None:
    ensemble = StandIn()
    ensemble.go_on.set()

    def too_large() -> bytes:
        raise MemoryError

    async def ask() -> None:
        with closing(Batcher(ensemble)) as batcher:
            with pytest.raises(RuntimeError, match="out of luck"):
                await batcher.predict([InputPhoto("broken", lambda: CAT)], lambda prediction: prediction)
            with pytest.raises(MemoryError):
                await batcher.predict([InputPhoto("large", too_large)], lambda prediction: prediction)
            labels = await batcher.predict([InputPhoto("whole", lambda: CAT)], lambda prediction: prediction.label)
            assert labels == ["cat"]
            assert batcher._slots._value == 2 * batcher._batch_size  # none is lost
            assert batcher._decoding == 0

    asyncio.run(ask())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads decode")
def test_decoders_survive_that_one_is_killed() -> None:
    earlier = multiprocessing.active_children()
    with closing(Decoders()) as decoders:
        first = next(process for process in multiprocessing.active_children() if process not in earlier)
        os.kill(first.pid, signal.SIGKILL)
        with suppress(BrokenProcessPool):
            decoders.decode(CAT, 8, "stretch").result(60)
        assert decoders.decode(CAT, 8, "stretch").result(60).shape == (8, 8, 3)
    wait_for(lambda: multiprocessing.active_children() == earlier)
