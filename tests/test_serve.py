"""The page that `make serve` opens, in a real browser."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest
from photos import draw_photo, encode, photo_bytes
from playwright.sync_api import Browser
from projects import REPOSITORY, Repository, error_line


@pytest.fixture
def address(finished: Repository) -> Iterator[str]:
    """The URL of the page that answers with the finished repository's ensemble."""
    command = [forked.python(), REPOSITORY / "tools/serve.py", "0"]
    with subprocess.Popen(
        command, cwd=finished.root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        line = server.stdout.readline()
        yield line.split()[0]
        server.terminate()
        assert server.wait(timeout=20) == 143


@pytest.mark.slow
def test_serve_answers_uploaded_photos(browser: Browser, address: str, tmp_path: Path) -> None:
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
    page.get_by_role("button", name="Classify").click()
    page.get_by_role("heading", name="Answers").wait_for()

    letter, max_, tom = page.locator(".gallery li").all()
    assert "This file could not be read as a photo." in letter.inner_text()
    for photo, name in ((max_, "max.png"), (tom, "tom <b>&.jpg")):
        assert name in photo.inner_text()
        assert photo.locator("strong").inner_text().startswith(("cat ", "dog "))
        assert photo.locator("dt").all_inner_texts() == ["resnet18", "resnet34"]
        assert photo.locator("img").evaluate("image => image.complete && image.naturalWidth > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert problems == []
    assert all(url.startswith((address, "data:")) for url in requests)

    empty = page.request.post(address)  # a form without a photo
    assert (empty.status, "Choose at least one photo." in empty.text()) == (400, True)
    assert page.request.get(address, headers={"Host": "elsewhere.example"}).status == 400
    page.close()


def test_serve_names_a_port_that_it_cannot_use(finished: Repository) -> None:
    for port in ("http", "70000"):
        assert error_line(finished.run("serve.py", port)) == (
            f"argument PORT: '{port}' is not a port; expected a number from 0 to 65535; see serve.py --help"
        )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}: Address already in use; try another" in error_line(finished.run("serve.py", port))
