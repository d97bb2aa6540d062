"""The page on which to watch training, with curves that no network has."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tests.support import forked
from tests.support.projects import REPOSITORY, Project, error_line

import pandas as pd
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def write_curves(folder: Path, network: str, losses: list[float], *, is_finished: bool = False, kept: str = "") -> None:
    """Write the curves of a training with four steps an epoch, whose validation losses after each epoch are given."""
    (folder / "metrics/curves").mkdir(parents=True, exist_ok=True)
    (folder / "metrics/steps").mkdir(exist_ok=True)
    epochs = range(1, len(losses) + 1)
    scores = {"validation_loss": losses, "validation_calibrated_loss": losses, "validation_accuracy": 0.75}
    curve = pd.DataFrame({"epoch": epochs, "lr": 1e-4, "train_loss": 0.5, **scores})
    if is_finished:
        curve["kept"] = curve["epoch"] == len(losses)
        (folder / "metrics/train").mkdir(exist_ok=True)
        (folder / f"metrics/train/{network}.json").write_text(json.dumps({"kept_epoch": kept or len(losses)}))
    if losses:
        curve.to_csv(folder / f"metrics/curves/{network}.csv", index=False)
    steps = pd.Series(range(1, 4 * len(losses) + 3))
    table = {"step": steps, "epoch": steps / 4, "lr": 1e-4, "train_loss": 0.5, "train_accuracy": 0.875}
    pd.DataFrame(table).to_csv(folder / f"metrics/steps/{network}.csv", index=False)


@pytest.fixture
def watched(tiny: Project) -> Project:
    """A project in which resnet18 was trained and resnet34 is being trained, and vgg11 in an experiment in a copy.

    Version 1.1 of the pipeline trained vgg19.
    """
    tiny.params["train"]["epochs"] = 3
    tiny.write_params()
    write_curves(tiny.root, "resnet18", [0.6, 0.5], is_finished=True, kept="0+2 (1:3)")
    write_curves(tiny.root, "resnet34", [0.4, 0.6])
    of_1_1 = "epoch,train_loss,validation_loss,validation_accuracy,kept\n1,0.5,0.4,0.75,True\n"
    (tiny.root / "metrics/curves/vgg19.csv").write_text(of_1_1)
    for kind in ("curves", "steps"):
        (tiny.root / f"metrics/{kind}/alexnet.csv").touch()  # it has just begun
    copy = tiny.root / ".dvc/tmp/exps/tmp<b>"
    write_curves(copy, "vgg11", [])
    write_curves(copy, "vgg13", [0.5], is_finished=True)
    described = tiny.root / ".dvc/tmp/exps/run"
    for name, folder in ("smooth", copy), ("here", tiny.root), ("gone", tiny.root / "gone"):
        (described / name).mkdir(parents=True)
        run = {"root_dir": str(folder), "dvc_dir": ".dvc", "name": name}
        (described / name / f"{name}.run").write_text(json.dumps(run))
    (described / "smooth/half.run").write_text("{")
    return tiny


@pytest.fixture
def address(watched: Project) -> Iterator[str]:
    command = [forked.python(), REPOSITORY / "tools/watch.py", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=watched.root, text=True, **pipes) as server:
        line = server.stdout.readline()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+ \(press Ctrl-C to stop\)\n", line)
        try:
            yield line.split()[0]
        finally:
            server.terminate()
            _, errors = server.communicate(timeout=20)
        assert (server.returncode, errors) == (143, "")


def test_watch_shows_what_is_training_here_and_in_experiments(watched: Project, address: str) -> None:
    with urlopen(address) as answer:
        page = answer.read().decode()
    assert "<title>3 training runs in progress</title>" in page
    alexnet, resnet34, smooth, resnet18 = re.findall(r"<section.*?</section>", page, flags=re.DOTALL)
    assert '">alexnet</h2>' in alexnet
    assert "Before the first step; began " in alexnet
    assert '">resnet34</h2>' in resnet34
    assert "Epoch 2.50 of 3, step 10; last change " in resnet34
    assert "epoch 2: the calibrated validation loss has risen from 0.4000 in epoch 1 to 0.6000" in resnet34
    assert '">vgg11 in smooth</h2>' in smooth
    assert "Epoch 0.50, step 2; last change " in smooth  # nothing else is known of it
    mean = "the mean of epochs 0 (the fitted head) and 2, weighted 1:3"
    assert f"Finished after 2 epochs; kept: {mean}." in resnet18
    assert [section.count("<svg") for section in (alexnet, resnet34, smooth, resnet18)] == [0, 3, 3, 3]

    with (watched.root / "metrics/steps/resnet34.csv").open("a") as file:
        file.write("11,2.75,0.0001,0.5,0.875\n12,3.")  # the second row is only half written
    watched.params["train"] |= {"head_init": "fitted", "head_width": None}
    watched.params["networks"]["resnet34"]["train"] = {"epochs": 5}
    watched.write_params()
    with urlopen(address) as answer:
        page = answer.read().decode()
    assert "Epoch 2.75 of 5, step 11; last change " in page
    assert "Fitting the head to the network&#39;s features, before the first step; began " in page


def test_watch_answers_only_this_computer_and_has_only_one_page(address: str) -> None:
    here = address.removeprefix("http://")
    hosts = ["elsewhere.example", "", "["]
    for path, host, status in (*(("/", host, 400) for host in hosts), ("/params.yaml", here, 404)):
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(f"{address}{path}", headers={"Host": host}))
        assert refused.value.code == status


@pytest.mark.slow
def test_watch_refreshes_itself_and_says_if_it_cannot(browser: "Browser", watched: Project, address: str) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 700})
    problems, requests = [], []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.clock.install()
    page.goto(address)
    page.get_by_text("Epoch 2.50 of 3").wait_for()
    page.get_by_text("The epochs as a table").first.click()
    assert page.get_by_role("row").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 375

    write_curves(watched.root, "resnet34", [0.4, 0.6, 0.7], is_finished=True)
    page.clock.run_for(3000)
    page.get_by_text("Finished after 3 epochs; kept: epoch 3.").wait_for()
    assert page.title() == "2 training runs in progress"
    assert page.get_by_role("row").count() == 4  # the table is still open
    assert problems == []
    assert all(url.startswith((address, "data:")) for url in requests)

    page.route("**", lambda route: route.abort())
    page.clock.run_for(3000)
    page.get_by_text("No answer from tools/watch.py; below is what it showed last.").wait_for()
    page.get_by_text("Finished after 3 epochs; kept: epoch 3.").wait_for()
    page.close()


def test_watch_names_a_folder_that_is_no_project(project: Project) -> None:
    assert error_line(project.run("watch.py")) == (
        f"params.yaml does not exist in {project.root}; run this from the project's root"
    )
