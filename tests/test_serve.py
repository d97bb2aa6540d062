"""The page that `make serve` opens, in a real browser."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import STAGES, Repository, draw_photo, encode, error_line, photo_bytes
from playwright.sync_api import Browser


@pytest.fixture
def address(finished: Repository) -> Iterator[str]:
    """Where the page of the finished repository's ensemble is."""
    command = [sys.executable, STAGES / "serve.py", "0"]
    with subprocess.Popen(
        command, cwd=finished.root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        line = server.stdout.readline()
        yield line.split()[0]
        server.terminate()
        assert server.wait(timeout=20) == 143


def test_photos_are_uploaded_and_answered(browser: Browser, address: str, tmp_path: Path) -> None:
    (tmp_path / "tom <b>&.jpg").write_bytes(photo_bytes("cat", 30))
    (tmp_path / "max.png").write_bytes(encode(draw_photo("dog", 31), "PNG"))
    (tmp_path / "letter.jpg").write_text("Dear all")
    assert address.startswith("http://127.0.0.1:")

    page = browser.new_page(viewport={"width": 375, "height": 700})
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.get_by_label("Photos of a cat or a dog").set_input_files(sorted(tmp_path.iterdir()))
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("heading", name="Answers").wait_for()

    letter, max_, tom = page.locator(".gallery li").all()
    assert "This is no photo that can be read" in letter.inner_text()
    for photo, name in ((max_, "max.png"), (tom, "tom <b>&.jpg")):
        assert name in photo.inner_text()
        assert photo.locator("strong").inner_text().startswith(("cat ", "dog "))
        assert photo.locator("dt").all_inner_texts() == ["resnet18", "resnet34"]
        assert photo.locator("img").evaluate("image => image.complete && image.naturalWidth > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert problems == []
    assert all(url.startswith((address, "data:")) for url in requests)

    assert page.request.post(address).status == 200  # a form without a photo
    assert page.request.get(address, headers={"Host": "elsewhere.example"}).status == 400
    page.close()


def test_a_port_that_cannot_be_had_is_said(finished: Repository) -> None:
    for port in ("http", "70000"):
        assert error_line(finished.run("serve.py", port)).startswith("expected at most one argument, a port from 0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}: Address already in use; name another" in error_line(finished.run("serve.py", port))
