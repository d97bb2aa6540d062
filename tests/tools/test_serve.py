"""The page that `make serve` opens, in a real browser."""

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.inference.web import one_of, page_title
from tests.support import forked
from tests.support.photos import FLOWERS, draw_photo, encode, photo_bytes
from tests.support.projects import REPOSITORY, Project, Repository, error_line

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@contextmanager
def started(project: Project, *arguments: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """Serve the project's ensemble; gives the URL and the process, which must have ended well by the end."""
    command = [forked.python(), REPOSITORY / "tools/serve.py", "0", *arguments]
    with subprocess.Popen(
        command, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            yield server.stdout.readline().split()[0], server
        finally:
            server.terminate()
            status = server.wait(timeout=20)
        assert status == 0


@contextmanager
def serving(project: Project, *arguments: str) -> Iterator[str]:
    """As `started`, but gives only the URL."""
    with started(project, *arguments) as (url, _):
        yield url


@pytest.fixture
def address(finished: Repository) -> Iterator[str]:
    """The URL of the page that answers with the finished repository's ensemble."""
    with serving(finished) as url:
        yield url


@pytest.mark.slow
def test_serve_answers_uploaded_photos(browser: "Browser", address: str, tmp_path: Path) -> None:
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
    page.get_by_role("heading", name="Cat or dog?").wait_for()
    page.get_by_label("Photos to classify").set_input_files(sorted(tmp_path.iterdir()))
    page.get_by_label("Show where each network looked").check()
    page.get_by_role("button", name="Classify", exact=True).click()
    page.get_by_role("heading", name="Answers").wait_for()

    letter, max_, tom = page.locator(".gallery li").all()
    assert "not a photo, or damaged at its start" in letter.inner_text()
    for photo, name in ((max_, "max.png"), (tom, "tom <b>&.jpg")):
        assert name in photo.inner_text()
        assert photo.locator("p").count() == 1  # the second class says nothing new
        assert photo.locator("strong").inner_text().startswith(("cat ", "dog "))
        assert photo.locator("dt").all_inner_texts() == ["resnet18", "resnet34"]
        names = [image.get_attribute("alt") for image in photo.locator("img").all()]
        looked = [f"Where {network} looked on {name}" for network in ("resnet18", "resnet34")]
        assert names == [f"{name}, as the networks saw it", *looked]
        for image in photo.locator("img").all():
            assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert problems == []
    assert all(url.startswith((address, "data:")) for url in requests)

    page.route("**/predict?*", lambda route: route.fulfill(status=503, json={"error": "too <b>busy</b>"}))
    page.get_by_role("button", name="Classify", exact=True).click()
    page.get_by_text("too <b>busy</b>").wait_for()
    assert page.get_by_role("heading", name="Answers").count() == 0  # those of the last photos are gone

    assert page.request.get(address, headers={"Host": "elsewhere.example"}).status == 400
    page.close()


@pytest.mark.slow
def test_serve_shows_the_two_most_probable_of_three_classes(
    browser: "Browser", flowers: Project, tmp_path: Path
) -> None:
    (tmp_path / "rose.jpg").write_bytes(photo_bytes("rose", 1))
    (tmp_path / "tulip.jpg").write_bytes(photo_bytes("tulip", 1))
    for number in range(20):  # more than the page sends at once
        (tmp_path / f"unreadable {number:02}.jpg").write_text("Dear all")
    with serving(flowers) as url:
        page = browser.new_page(viewport={"width": 375, "height": 700})
        page.goto(url)
        assert page.title() == "Ox-eye daisy, rose or tulip?"
        page.get_by_label("Photos to classify").set_input_files(sorted(tmp_path.iterdir()))
        page.get_by_role("button", name="Classify", exact=True).click()
        page.get_by_text("Every photo is classified as ox-eye daisy, rose or tulip, whatever it shows.").wait_for()
        page.get_by_text("unreadable 19.jpg").wait_for()
        rose, tulip, *unreadable = page.locator(".gallery li").all()
        assert len(unreadable) == 20
        for photo in (rose, tulip):
            answers = [
                re.fullmatch(r"(.*?)\s[<>]?\s?([\d.]+)\s%", text) for text in photo.locator("p").all_inner_texts()
            ]
            (first, probability), (second, other) = (answer.groups() for answer in answers)
            assert {first, second} < {*FLOWERS}
            assert float(probability) >= float(other)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        page.close()


def test_serve_names_at_most_six_classes() -> None:
    assert one_of(["cat", "dog"]) == "cat or dog"
    assert one_of([*"abcdef"]) == "a, b, c, d, e or f"
    assert page_title([*"abcdef"]) == "A, b, c, d, e or f?"
    assert one_of([*"abcdefg"]) == "one of 7 classes"
    assert page_title([*"abcdefg"]) == "Which of 7 classes?"


def test_serve_names_a_port_that_it_cannot_use(finished: Repository) -> None:
    for port in ("http", "70000"):
        assert error_line(finished.run("serve.py", port)) == (
            f"argument PORT: '{port}' is not a port; expected a number from 0 to 65535; see serve.py --help"
        )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}: Address already in use; try another" in error_line(finished.run("serve.py", port))
