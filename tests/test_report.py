"""The report: its numbers match the metrics, it needs no other file, and a browser opens it."""

import csv
import re
import shutil
from itertools import pairwise
from pathlib import Path

import report
from pipeline.core.errors import UserError
from pipeline.pages import plots
from pipeline.pages.rendering import percent

import numpy as np
import pytest
import yaml
from PIL import Image
from playwright.sync_api import Browser
from projects import REPOSITORY, STAGE_NAMES, Project, Repository, error_line

PAGE = "metrics/report.html"
UGLY = "<img src=http://x.test/y onerror=alert(1)>&\"'.jpg"


def read_page(project: Project) -> str:
    return (project.root / PAGE).read_text(encoding="utf-8")


def scores_of(project: Project) -> dict[str, float]:
    """Every score in the metrics, by keys such as ensemble.recall.cat."""
    scores = {"ensemble": project.read_json("metrics/ensemble.json"), **project.read_json("metrics/evaluate.json")}
    not_shown = ("total", "best_member", "put_right", "put_wrong", "mcnemar_p")
    flat = {
        key: value for name in scores for key, value in report.flatten(scores[name], f"{name}.") if "members" not in key
    }
    return {
        key: value
        for key, value in flat.items()
        if isinstance(value, int | float) and key.rpartition(".")[2] not in not_shown
    }


@pytest.mark.slow
def test_report_shows_the_scores_of_the_metrics_in_a_browser_and_contacts_no_host(
    finished: Repository, browser: Browser
) -> None:
    with browser.new_context(viewport={"width": 375, "height": 800}) as context:
        page = context.new_page()
        problems: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((finished.root / PAGE).as_uri())

        assert problems == []
        hosts = [url for url in requests if not url.startswith(("file:", "data:"))]
        assert hosts == []
        read = "cells => cells.map(cell => [cell.dataset.score, cell.querySelector('data')?.value])"
        shown = dict(page.eval_on_selector_all("[data-score]", read))
        assert {key: float(value) for key, value in shown.items()} == scores_of(finished)
        accuracy = finished.read_json("metrics/ensemble.json")["accuracy"]
        assert page.inner_text("header strong") == percent(accuracy)

        assert page.evaluate("document.documentElement.scrollWidth") <= 375  # no sideways scrolling on a phone
        page.keyboard.press("Tab")
        assert page.inner_text(":focus") == "Skip to the results"
        assert page.locator("img:not([alt]), [role=img]:not([aria-label]), table:not(:has(caption))").count() == 0
        assert page.locator("h1").count() == page.locator("main").count() == 1
        sizes = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
        assert len(sizes) > 1
        assert min(sizes) > 0  # every image has loaded
        ids = page.eval_on_selector_all("[id]", "elements => elements.map(element => element.id)")
        assert len(ids) == len(set(ids))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_has_enough_contrast_in_light_and_dark(finished: Repository, browser: Browser, scheme: str) -> None:
    with browser.new_context(color_scheme=scheme) as context:
        page = context.new_page()
        page.goto((finished.root / PAGE).as_uri())
        names = [*("ink", "quiet", "accent", "good", "bad"), *(f"series-{number}" for number in range(1, 7))]
        value = "name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim()"
        for surface in ("page", "card"):
            for name in names:
                assert contrast(page.evaluate(value, name), page.evaluate(value, surface)) >= 4.5, (name, surface)


def contrast(one: str, other: str) -> float:
    """The contrast of two colours (#rrggbb), as WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def test_report_names_no_other_host_and_lists_every_stage_and_param(finished: Repository) -> None:
    page = read_page(finished)
    assert "://" not in page
    assert "<code>train.zip</code>" in page  # without its folder, which is different on another computer
    for name in STAGE_NAMES:
        assert f"<h3>{name}</h3>" in page
    for key, _ in report.flatten(yaml.safe_load((finished.root / "params.yaml").read_text())):
        assert f"<code>{key}</code>" in page
    assert len(page) < 500_000  # of photos that are 32 pixels wide


def test_report_shows_every_mistake_with_each_networks_prediction(finished: Repository) -> None:
    with (finished.root / "metrics/ensemble_predictions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    incorrect = {row["photo"] for row in rows if (float(row["probability_of_dog"]) > 0.5) != (row["label"] == "dog")}
    ensemble = finished.read_json("metrics/ensemble.json")
    assert len(incorrect) == ensemble["total"] - ensemble["correct"]
    gallery = re.search(r'<section id="mistakes".*?</section>', read_page(finished), re.DOTALL)[0]
    assert set(re.findall(r'alt="Photo ([^,]+),', gallery)) == incorrect
    assert gallery.count("<dt>resnet18</dt>") == gallery.count("<dt>ensemble</dt>") == len(incorrect)


def test_report_writes_reliability_and_roc_tables_that_match_the_scores(finished: Repository) -> None:
    for name in ("ensemble", "resnet18", "resnet34"):
        with (finished.root / f"metrics/reliability/{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        scores = scores_of(finished)
        assert sum(int(row["right"]) for row in rows) == scores[f"{name}.correct"]
        assert sum(int(row["photos"]) for row in rows) == 12
        with (finished.root / f"metrics/roc/{name}.csv").open() as file:
            points = [tuple(map(float, row.values())) for row in csv.DictReader(file)]
        area = sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in pairwise(points))
        assert area == pytest.approx(scores[f"{name}.roc_auc"], abs=1e-5)


@pytest.mark.slow
def test_report_needs_only_its_deps_and_escapes_the_names_of_photos(finished: Repository, tmp_path: Path) -> None:
    """The stage's deps, in another folder and with other settings, give the same bytes."""
    stage = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["report"]
    for path in ("params.yaml", "dvc.yaml", *stage["deps"]):
        source = finished.root / path
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / path)
    (tmp_path / "matplotlibrc").write_text("font.size: 30\n")
    project = Project(tmp_path)
    result = project.run("report.py", env={"PYTHONHASHSEED": "4711", "TZ": "Asia/Kathmandu", "LC_ALL": "C"})
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"metrics/report\.html: \d\.\d MB; open it in a browser\n", result.stdout)
    for out in stage["outs"]:
        files = sorted((finished.root / out).rglob("*")) or [finished.root / out]
        for file in files:
            path = file.relative_to(finished.root)
            assert (tmp_path / path).read_bytes() == file.read_bytes(), path

    with (tmp_path / "data/prepared/split.csv").open() as file:
        photo = next(row["photo"] for row in csv.DictReader(file) if row["split"] == "test")
    for path in ("data/prepared/split.csv", "metrics/predictions.csv", "metrics/ensemble_predictions.csv"):
        with (tmp_path / path).open() as file:
            rows = list(csv.DictReader(file))
        with (tmp_path / path).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({**row, "photo": UGLY} if row["photo"] == photo else row for row in rows)
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["train"]["image_size"] = 28
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert project.run("report.py").returncode == 0
    page = read_page(project)
    assert "32 pixels a side (28 in training)." in page
    assert UGLY not in page
    assert "&lt;img src=http://x.test/y onerror=alert(1)&gt;&amp;&#34;&#39;.jpg" in page


def test_report_names_the_missing_file(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository.root)
    stage = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["report"]
    for dep in stage["deps"]:
        if dep.startswith(("data/", "metrics/")):
            path = Path(dep) / "resnet34.csv" if Path(dep).is_dir() else Path(dep)
            path.rename("away")
            with pytest.raises(UserError, match=f"{path} does not exist; run `dvc repro` to create it"):
                report.main()
            Path("away").rename(path)


def test_report_refuses_predictions_of_other_photos(repository: Repository) -> None:
    table = repository.root / "metrics/ensemble_predictions.csv"
    content = table.read_text()
    table.unlink()
    table.write_text(re.sub(r"^(cat|dog)", r"other.\1", content, flags=re.MULTILINE))
    assert error_line(repository.run("report.py")) == (
        "the predictions in metrics are not for the test photos in data/prepared; run `dvc repro` to fix this"
    )


def test_plots_leave_the_rest_of_a_row_white(tmp_path: Path) -> None:
    plots.write_png(tmp_path / "plots.png", [lambda panel: panel.plot([0, 1])] * 4)
    pixels = np.asarray(Image.open(tmp_path / "plots.png").convert("L"))
    height, width = pixels.shape
    assert pixels[height // 2 :, : width // 3].min() < 128
    assert pixels[height // 2 + 9 :, width // 3 + 9 :].min() == 255


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.990889, "99.09 %"), (1, "100.00 %"), (0, "0.00 %"), (0.99999, "> 99.99 %"), (0.00001, "< 0.01 %")],
)
def test_percent_shows_100_only_for_all_and_0_only_for_none(share: float, text: str) -> None:
    assert percent(share).replace("\N{NO-BREAK SPACE}", " ") == text
