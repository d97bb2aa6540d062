"""Downloads of photos and of pretrained weights, from a local server that can be made to fail."""

import hashlib
import io
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import download
from pipeline.core.errors import UserError
from pipeline.networks import weights
from pipeline.networks.building import build_network
from tests.support.projects import NEEDS_TIMM, REPOSITORY, Project, error_line
from tests.support.waiting import wait_for

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torchvision import models

CONTENT = np.random.default_rng(1).bytes(300_001)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ARCHIVE, PARTIAL = "data/raw/train.zip", "data/raw/train.zip.partial"
WAYS = ("`make photos`", "train.zip from https://www.kaggle.com/c/dogs-vs-cats/data into data/raw/", "`make demo`")


class Server(ThreadingHTTPServer):
    """Serves `content` under every path, and records the Range header of each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.status = 200  # of every response; with 200, a request for a range gets 206 or 416
        self.knows_ranges = True
        self.cuts: list[int] = []  # how many bytes the first response sends before it ends, the second, ...
        self.stalls = False  # a cut response stays open and silent instead
        self.ranges: list[str | None] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/photos.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.knows_ranges else 0
        rest, status = self.server.content[start:], self.server.status
        if status == 200 and asked and self.server.knows_ranges:
            status = 206 if rest else 416
        self.send_response(status)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        cut = self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(rest[:cut])
        if cut is not None and self.server.stalls:
            self.server.released.wait(5)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def raw_files(project: Project) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (project.root / "data/raw").iterdir()}


def download_here(project: Project, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the script in this process, without pauses between its tries."""
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(sys, "argv", ["download.py", "--archive", url, SHA256])
    monkeypatch.setattr(download, "PAUSE_S", 0)
    download.main()


def write_partial(project: Project, content: bytes) -> None:
    (project.root / "data/raw").mkdir(parents=True)
    (project.root / PARTIAL).write_bytes(content)


def test_download_fetches_and_checks_the_archive(project: Project, server: Server) -> None:
    result = project.run("download.py", "--archive", server.url, SHA256.upper())
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert result.stdout == f"{ARCHIVE}: downloaded, SHA-256 verified\n"
    assert raw_files(project) == {"train.zip": CONTENT}
    assert server.ranges == [None]


def test_download_names_a_full_disk(project: Project, server: Server) -> None:
    result = project.run("download.py", "--archive", server.url, SHA256, largest_file=100_000)
    assert error_line(result) == f"{PARTIAL}: File too large; free some disk space and run this again"


def test_download_resumes_a_cut_connection_where_it_stopped(project: Project, server: Server) -> None:
    server.cuts = [100_003, 150_001]
    result = project.run("download.py", "--archive", server.url, SHA256)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert raw_files(project) == {"train.zip": CONTENT}
    assert server.ranges == [None, "bytes=100003-", "bytes=250004-"]  # no byte twice


def test_download_does_not_limit_tries_that_make_progress(
    project: Project, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cuts = [30_000] * 9
    download_here(project, server.url, monkeypatch)
    assert raw_files(project) == {"train.zip": CONTENT}
    assert len(server.ranges) == 10 > download.TRIES


@pytest.mark.parametrize("size", [1, 123_456, len(CONTENT)])
def test_download_resumes_an_earlier_run(project: Project, server: Server, size: int) -> None:
    write_partial(project, CONTENT[:size])
    result = project.run("download.py", "--archive", server.url, SHA256)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert raw_files(project) == {"train.zip": CONTENT}
    assert server.ranges == [f"bytes={size}-"]


def test_download_starts_over_if_the_server_knows_no_ranges(project: Project, server: Server) -> None:
    server.knows_ranges = False
    server.cuts = [200_000]
    result = project.run("download.py", "--archive", server.url, SHA256)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert raw_files(project) == {"train.zip": CONTENT}
    assert server.ranges == [None, "bytes=200000-"]


def test_download_gives_up_if_a_server_without_ranges_always_breaks(
    project: Project, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.knows_ranges = False
    server.cuts = [200_000] * 20
    with pytest.raises(UserError, match="could not be downloaded"):
        download_here(project, server.url, monkeypatch)
    assert len(server.ranges) == 1 + download.TRIES


def test_download_keeps_nothing_with_a_wrong_hash(project: Project, server: Server) -> None:
    server.content = CONTENT[:-1] + b"?"
    line = error_line(project.run("download.py", "--archive", server.url, SHA256))
    assert f"expected SHA-256 {SHA256}, got {hashlib.sha256(server.content).hexdigest()}" in line
    assert raw_files(project) == {}


def test_download_names_the_other_ways_if_the_server_refuses(project: Project, server: Server) -> None:
    server.status = 404
    write_partial(project, CONTENT[:1000])
    line = error_line(project.run("download.py", "--archive", server.url, SHA256))
    assert line.startswith(f"{server.url}: could not be downloaded (404 Not Found); ")
    assert all(way in line for way in WAYS)
    assert len(server.ranges) == 1
    assert raw_files(project) == {"train.zip.partial": CONTENT[:1000]}


def test_download_tries_again_if_the_server_is_unavailable(
    project: Project, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.status = 503
    with pytest.raises(UserError, match=r"could not be downloaded \(503 Service Unavailable\)"):
        download_here(project, server.url, monkeypatch)
    assert len(server.ranges) == download.TRIES


@pytest.mark.slow
def test_download_ends_a_stalled_connection(project: Project, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.stalls = True
    server.cuts = [70_000] + [0] * 20
    monkeypatch.setattr(download, "READ_TIMEOUT_S", 0.5)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"could not be downloaded \(timed out\)"):
        download_here(project, server.url, monkeypatch)
    assert time.monotonic() - started < 10
    assert server.ranges == [None] + ["bytes=70000-"] * download.TRIES
    assert raw_files(project) == {"train.zip.partial": CONTENT[:70_000]}


def test_download_names_the_other_ways_without_a_network(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused, pytest.raises(UserError) as error:
        unused.bind(("127.0.0.1", 0))  # and is not listening
        download_here(project, f"http://127.0.0.1:{unused.getsockname()[1]}/photos.zip", monkeypatch)
    assert "/photos.zip: could not be downloaded (Connection refused); " in str(error.value)
    assert all(way in str(error.value) for way in WAYS)
    assert raw_files(project) == {}


def test_download_ends_quietly_on_ctrl_c_and_keeps_what_it_has(project: Project, server: Server) -> None:
    server.stalls = True
    server.cuts = [50_000]
    partial = project.root / PARTIAL
    command = [sys.executable, str(REPOSITORY / "tools/download.py"), "--archive", server.url, SHA256]
    with subprocess.Popen(command, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        wait_for(lambda: partial.exists() and partial.stat().st_size, seconds=4)  # the server keeps silent for 5 s
        running.send_signal(signal.SIGINT)
        output, _ = running.communicate(timeout=30)
    assert (running.returncode, output) == (130, b"")
    assert CONTENT.startswith(partial.read_bytes())
    assert partial.stat().st_size


def test_download_leaves_an_existing_archive_alone(project: Project, server: Server) -> None:
    (project.root / "data/raw").mkdir(parents=True)
    (project.root / ARCHIVE).write_bytes(b"Kaggle's")
    result = project.run("download.py", "--archive", server.url, SHA256)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert result.stdout == f"{ARCHIVE} already exists; delete it first to download Microsoft's copy\n"
    assert raw_files(project) == {"train.zip": b"Kaggle's"}
    assert server.ranges == []


# Pretrained weights


@pytest.fixture
def checkpoints(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder, empty; the server has random weights of squeezenet1_1, which are small, under their hash."""
    torch.manual_seed(7)
    content = io.BytesIO()
    torch.save(models.squeezenet1_1(weights=None).state_dict(), content)
    server.content = content.getvalue()
    name = f"squeezenet1_1-{hashlib.sha256(server.content).hexdigest()[:8]}.pth"
    url = f"http://127.0.0.1:{server.server_port}/models/{name}"
    monkeypatch.setattr(models.SqueezeNet1_1_Weights.IMAGENET1K_V1.value, "url", url)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


def build() -> dict[str, torch.Tensor]:
    return build_network("squeezenet1_1", "IMAGENET1K_V1", 2, 512, 0.5, seed=1).state_dict()


def url_of_weights() -> str:
    return models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url


def test_build_network_downloads_weights_once(
    checkpoints: Path, server: Server, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    published = torch.load(io.BytesIO(server.content), weights_only=True)
    for _ in range(2):
        network = build()
        backbone = [key for key in published if not key.startswith("classifier.")]
        assert all(torch.equal(network[key], published[key]) for key in backbone)
    assert [path.read_bytes() for path in checkpoints.iterdir()] == [server.content]
    assert server.ranges == [None]
    assert capfd.readouterr() == (f"downloading {url_of_weights()}\n", "")  # a progress bar only on a terminal


@pytest.fixture
def timm(server: Server, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The first digits of the SHA-256 of timm's resnet18.a1_in1k, which the server has: ResNet-18, as safetensors."""
    torch.manual_seed(7)
    server.content = save(models.resnet18(weights=None, num_classes=3).state_dict())
    monkeypatch.setattr(weights, "TIMM_URL", f"http://127.0.0.1:{server.server_port}/timm/{{}}/model.safetensors")
    return hashlib.sha256(server.content).hexdigest()[:8]


def test_build_network_downloads_timms_weights_once_and_only_with_their_hash(
    timm: str, checkpoints: Path, server: Server
) -> None:
    with pytest.raises(UserError) as error:
        build_network("resnet18", "timm/resnet18.a1_in1k", 2, None, 0.5, seed=1)
    assert str(error.value) == (
        f"params.yaml: networks.resnet18.weights is timm/resnet18.a1_in1k; write timm/resnet18.a1_in1k@{timm}, the "
        "first digits of the published file's SHA-256, so that a file published later cannot change your results"
    )
    published = load(server.content)
    network = build_network("resnet18", f"timm/resnet18.a1_in1k@{timm}", 2, None, 0.5, seed=1).state_dict()
    backbone = [key for key in published if not key.startswith("fc.")]
    assert all(torch.equal(network[key], published[key]) for key in backbone)
    assert [path.name for path in checkpoints.iterdir()] == [f"resnet18.a1_in1k-{timm}.safetensors"]
    assert server.ranges == [None]  # downloaded once


@NEEDS_TIMM
def test_build_network_downloads_weights_for_timms_own_network(timm: str, checkpoints: Path, server: Server) -> None:
    published = load(server.content)
    network = build_network("timm/resnet18", f"timm/resnet18.a1_in1k@{timm}", 2, None, 0.5, seed=1).state_dict()
    assert all(torch.equal(network[key], published[key]) for key in published if not key.startswith("fc."))
    assert [path.name for path in checkpoints.iterdir()] == [f"resnet18.a1_in1k-{timm}.safetensors"]


def test_build_network_refuses_timms_weights_that_have_changed(timm: str, checkpoints: Path, server: Server) -> None:
    with pytest.raises(UserError, match=f'invalid hash value .expected "00000000", got "{timm}'):
        build_network("resnet18", "timm/resnet18.a1_in1k@00000000", 2, None, 0.5, seed=1)
    with pytest.raises(UserError, match="contains weights for a different network"):
        build_network("resnet34", f"timm/resnet18.a1_in1k@{timm}", 2, None, 0.5, seed=1)
    assert len(list(checkpoints.iterdir())) == 1


def break_by_status(server: Server) -> None:
    server.status = 404


def break_by_cut(server: Server) -> None:
    server.cuts = [1_000_000]


def break_by_stall(server: Server) -> None:
    server.cuts, server.stalls = [1_000_000], True


def break_by_silence(server: Server) -> None:
    server.cuts, server.stalls = [0], True


def break_by_content(server: Server) -> None:
    server.content = server.content[:-1] + b"?"


@pytest.mark.parametrize(
    ("break_server", "reason"),
    [
        (break_by_status, "HTTP Error 404: Not Found"),
        (break_by_cut, 'invalid hash value (expected "'),
        (break_by_stall, "timed out"),
        (break_by_silence, "timed out"),
        (break_by_content, 'invalid hash value (expected "'),
    ],
)
def test_build_network_keeps_nothing_of_a_failed_download(
    checkpoints: Path,
    server: Server,
    break_server: Callable[[Server], None],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_server(server)
    if server.stalls:
        monkeypatch.setattr(weights, "DOWNLOAD_TIMEOUT_S", 0.5)
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        build()
    assert time.monotonic() - started < 10
    assert str(error.value).startswith(f"networks.squeezenet1_1: {url_of_weights()} could not be downloaded ({reason}")
    assert str(error.value).endswith(
        "; run this again, or download the file yourself and set networks.squeezenet1_1.weights to its path, or start "
        "from random weights (none, with train.layers: all)"
    )
    assert "\n" not in str(error.value)
    assert list(checkpoints.iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_build_network_names_a_folder_that_weights_cannot_be_stored_in(checkpoints: Path, server: Server) -> None:
    checkpoints.parents[1].write_text("a file where a folder should be")
    with pytest.raises(UserError) as error:
        build()
    path = checkpoints / Path(url_of_weights()).name
    assert str(error.value) == (
        f"networks.squeezenet1_1: {path} cannot be written (Not a directory); set the environment variable TORCH_HOME "
        "to a folder that you can write to, or download the file yourself and set networks.squeezenet1_1.weights to "
        "its path"
    )


@pytest.mark.parametrize("damage", ["cut off", "other weights"])
def test_build_network_names_a_damaged_file_in_torchs_folder(checkpoints: Path, server: Server, damage: str) -> None:
    build()
    [file] = checkpoints.iterdir()
    if damage == "cut off":
        file.write_bytes(server.content[:1_000_000])
    else:
        torch.save(models.squeezenet1_1(weights=None).state_dict(), file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(UserError) as error:
        build()
    digits = file.stem.split("-")[1]
    assert str(error.value) == (
        f"networks.squeezenet1_1.weights: {file} is damaged (its SHA-256 starts with {sha256[:8]}, its name says "
        f"{digits}); delete it and download it again"
    )
    file.unlink()
    build()
