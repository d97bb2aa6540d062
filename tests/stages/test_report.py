"""The report: its numbers match the metrics, it needs no other file, and a browser opens it."""

import csv
import re
import shutil
import sys
from collections import Counter
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import report
from pipeline.core.errors import UserError
from pipeline.core.params import flatten
from pipeline.pages import plots
from pipeline.pages.rendering import most_probable, percent, says
from pipeline.scores.predictions import logit_columns
from pipeline.scores.scoring import score, score_classes, write_class_scores, write_scores
from tests.support.photos import encode
from tests.support.projects import REPOSITORY, STAGE_NAMES, Project, Repository, copy_of, error_line

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file
from scipy.special import softmax

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGE = "metrics/report.html"
UGLY = "<img src=http://x.test/y onerror=alert(1)>&\"'.jpg"
FIVE = {"daisy": 10, "a": 30, "Nova_Scotia_duck_tolling_retriever": 20, "soft-coated wheaten terrier, wet": 12, "7": 15}
HUNDRED = {f"kind {number:02} of bird": 4 + number % 5 for number in range(100)}
CLASSES = {"5 unequal classes": FIVE, "100 classes": HUNDRED}


def read_page(project: Project) -> str:
    return (project.root / PAGE).read_text(encoding="utf-8")


def scores_of(project: Project) -> dict[str, float]:
    """Every score that the report shows, by keys such as ensemble.accuracy and ensemble.cat.recall."""
    shown = {}
    for row in rows_of(project, "scores/networks") + rows_of(project, "scores/ensemble"):
        of_validation = row["split"] == "validation"
        columns = ("accuracy", "log_loss") if of_validation else row.keys() - {"network", "split", "total"}
        prefix = f"{row['network']}.{'validation.' if of_validation else ''}"
        shown |= {f"{prefix}{column}": float(row[column]) for column in columns}
    for row in rows_of(project, "class_scores/networks") + rows_of(project, "class_scores/ensemble"):
        prefix = f"{row['network']}.{row['class']}"
        shown |= {f"{prefix}.{column}": float(row[column]) for column in row.keys() - {"network", "class", "photos"}}
    return shown


def rows_of(project: Project, table: str) -> list[dict[str, str]]:
    """The rows of metrics/<table>.csv."""
    with (project.root / f"metrics/{table}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def with_made_up_predictions(folder: Path, photos: dict[str, int], networks: int = 2) -> Project:
    """A project with `photos` photos of each class, and made-up predictions of one or two networks.

    Everything is there that `report` reads.
    """
    project = Project(folder)
    random = np.random.default_rng(0)
    files = {
        f"{name}/{number}.png": encode(Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)), "PNG")
        for name, count in photos.items()
        for number in range(count)
    }
    files[f"{next(iter(photos))}/{'x' * 60}.png"] = b"no photo"  # the report names it
    project.photos(files, source="photos")
    project.params["classes"] = "auto"
    project.params["networks"] = dict(list(project.params["networks"].items())[:networks])
    project.split(train=0.3, validation=0.2, test=0.5)
    project.prepare()
    predict(project, sorted(photos), random)
    project.succeed("ensemble.py")
    look(project, random)
    return project


def look(project: Project, random: np.random.Generator) -> None:
    """Make up the heat maps that evaluate writes, for every photo, and what reject writes by default."""
    photos = sum(row["split"] == "test" for row in project.split_table())
    maps = {name: random.integers(0, 256, (photos, 7, 7), dtype=np.uint8) for name in project.params["networks"]}
    save_file({"rows": np.arange(photos), **maps}, project.root / "metrics/heat_maps.safetensors")
    (project.root / "metrics/rejection.csv").write_text("split,photo,label,similarity,rejected\n")


def predict(project: Project, classes: list[str], random: np.random.Generator, sharpness: float = 1) -> None:
    """Make up what train and evaluate write: the correct class usually gets the highest logit, else the next one.

    The logits are multiplied by `sharpness`.
    """
    usual = 3 * np.eye(len(classes)) + 2 * np.roll(np.eye(len(classes)), 1, axis=1)
    photos = pd.DataFrame(project.split_table())
    predictions, scores, class_scores = [], {}, {}
    for folder in ("curves", "networks", "predictions", "scores", "class_scores"):
        (project.root / "metrics" / folder).mkdir(exist_ok=True)
    for network in project.params["networks"]:
        scores[network] = {}
        for split in ("validation", "test"):
            rows = photos.loc[photos["split"] == split, ["split", "photo", "label"]].reset_index(drop=True)
            labels = rows["label"].map(classes.index).to_numpy()
            logits = usual[labels] + random.normal(scale=1.5, size=(len(rows), len(classes)))
            logits = (sharpness * logits).round(6)
            scores[network][split] = score(softmax(logits, axis=1), labels)
            predictions.append(rows.assign(network=network).join(pd.DataFrame(logits, columns=logit_columns(classes))))
        class_scores[network] = score_classes(softmax(logits, axis=1), labels, classes)
        curve = {
            "epoch": 1,
            "lr": 0.1,
            "train_loss": 2.0,
            "validation_loss": 1.0,
            "validation_calibrated_loss": 0.9,
            "validation_accuracy": 0.5,
            "kept": True,
        }
        pd.DataFrame([curve]).to_csv(project.root / f"metrics/curves/{network}.csv", index=False)
        (project.root / f"metrics/networks/{network}.json").write_text('{"kept_epoch": 1}')
    pd.concat(predictions).to_csv(project.root / "metrics/predictions/networks.csv", index=False)
    write_scores(project.root / "metrics/scores/networks.csv", scores)
    write_class_scores(project.root / "metrics/class_scores/networks.csv", class_scores)


@pytest.fixture(scope="module", params=CLASSES)
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of more than two classes with its report. Read only."""
    project = with_made_up_predictions(tmp_path_factory.mktemp("many"), CLASSES[request.param])
    shutil.copy(REPOSITORY / "dvc.yaml", project.root)
    project.succeed("report.py")
    return project


def confusions_of(project: Project) -> tuple[Counter, Counter]:
    """How often the ensemble classified each class as another one, and the number of photos of each class."""
    answers = Counter((row["actual"], row["predicted"]) for row in rows_of(project, "confusion/ensemble"))
    totals = Counter(row["actual"] for row in rows_of(project, "confusion/ensemble"))
    return Counter({answer: count for answer, count in answers.items() if len(set(answer)) == 2}), totals


def open_page(page: "Page", project: Project) -> list[str]:
    """Open a project's report with all its details; returns what the browser complains about."""
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((project.root / PAGE).as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    return problems


@pytest.mark.slow
def test_report_shows_the_scores_of_the_metrics_in_a_browser_and_contacts_no_host(
    finished: Repository, browser: "Browser"
) -> None:
    with browser.new_context(viewport={"width": 375, "height": 800}) as context:
        page = context.new_page()
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        assert open_page(page, finished) == []
        hosts = [url for url in requests if not url.startswith(("file:", "data:"))]
        assert hosts == []
        read = "cells => cells.map(cell => [cell.dataset.score, cell.querySelector('data')?.value])"
        shown = dict(page.eval_on_selector_all("[data-score]", read))
        assert {key: float(value) for key, value in shown.items()} == scores_of(finished)
        accuracy = scores_of(finished)["ensemble.accuracy"]
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
def test_report_has_enough_contrast_in_light_and_dark(finished: Repository, browser: "Browser", scheme: str) -> None:
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
    for key, _ in flatten(yaml.safe_load((finished.root / "params.yaml").read_text())):
        assert f"<code>{key}</code>" in page
    assert len(page) < 500_000  # of photos that are 32 pixels wide


def test_report_shows_every_mistake_with_each_networks_prediction(finished: Repository) -> None:
    rows = [row for row in rows_of(finished, "predictions/ensemble") if row["split"] == "test"]
    incorrect = {row["photo"] for row in rows if (float(row["probability_dog"]) > 0.5) != (row["label"] == "dog")}
    [scores] = [row for row in rows_of(finished, "scores/ensemble") if row["split"] == "test"]
    assert len(incorrect) == int(scores["total"]) - int(scores["correct"])
    gallery = section(finished, "mistakes")
    assert set(re.findall(r'alt="Photo ([^,]+),', gallery)) == incorrect
    assert gallery.count("<dt>resnet18</dt>") == gallery.count("<dt>ensemble</dt>") == len(incorrect)
    assert gallery.count("<dd") == 3 * len(incorrect)


def test_report_writes_the_answers_of_the_networks_and_the_ensemble_for_dvcs_plots(finished: Repository) -> None:
    photos = [row["label"] for row in finished.split_table() if row["split"] == "test"]
    correct = {row["network"]: row["correct"] for row in rows_of(finished, "scores/networks") if row["split"] == "test"}
    [ensemble] = [row for row in rows_of(finished, "scores/ensemble") if row["split"] == "test"]
    for name, count in {**correct, "ensemble": ensemble["correct"]}.items():
        answers = rows_of(finished, f"confusion/{name}")
        assert [row["actual"] for row in answers] == photos
        assert sum(row["actual"] == row["predicted"] for row in answers) == int(count)


def section(project: Project, name: str) -> str:
    """A section of the report, as HTML."""
    return re.search(rf'<section id="{name}".*?</section>', read_page(project), re.DOTALL)[0]


def test_report_of_two_classes_names_them_and_their_confusions(finished: Repository) -> None:
    header = re.search(r"<header>.*?</header>", read_page(finished), re.DOTALL)[0].replace("&nbsp;", " ")
    assert "<h1>Cat or dog? " in header
    counts, totals = confusions_of(finished)
    for (actual, predicted), count in counts.items():
        assert f"{actual} classified as {predicted} ({count} of {totals[actual]})" in header


@pytest.mark.slow
def test_report_of_many_classes_is_one_small_page_with_the_true_confusions(many: Project) -> None:
    page = read_page(many)
    classes = list(many.read_json("metrics/prepare.json")["classes"])
    [scores] = [row for row in rows_of(many, "scores/ensemble") if row["split"] == "test"]
    assert f"<h1>{len(classes)} classes: {scores['correct']} of {scores['total']} test photos" in page
    assert "://" not in page
    assert len(page) < 3_000_000
    assert many.last_run.stderr == ""  # no warning of a plotting library

    counts, totals = confusions_of(many)
    frequent = re.search(r" mistakes:(.*?)</p>", page, re.DOTALL)[1].replace("&nbsp;", " ")
    found = re.findall(r"(\S.*?) classified as (.*?) \((\d+) of (\d+)\)[,.]", frequent)
    assert [int(count) for *_, count, _ in found] == sorted(counts.values(), reverse=True)[:3]
    assert all(counts[actual, other] == int(count) for actual, other, count, _ in found)
    assert all(totals[actual] == int(total) for actual, *_, total in found)

    confusion = section(many, "confusion").replace("&nbsp;", " ")
    if len(classes) > 10:
        listed = re.findall(r"<li>(.*?) classified as (.*?): (\d+) of (\d+)</li>", confusion)
        assert [int(count) for *_, count, _ in listed] == sorted(counts.values(), reverse=True)[:30]
        assert all(counts[actual, other] == int(count) for actual, other, count, _ in listed)
    else:
        ensemble = re.findall(r'<data value="(\d+)">', confusion)[: len(classes) ** 2]
        matrix = np.array(ensemble, dtype=int).reshape(len(classes), -1)
        assert matrix.sum(axis=1).tolist() == [totals[name] for name in classes]
        assert all(matrix[classes.index(one), classes.index(other)] == count for (one, other), count in counts.items())


@pytest.mark.slow
def test_report_of_many_classes_shows_the_worst_classes_first_and_the_two_most_probable(many: Project) -> None:
    recalls = {row["class"]: float(row["recall"]) for row in rows_of(many, "class_scores/ensemble")}
    shown = re.findall(r'data-score="ensemble\.([^"]+)\.recall"', section(many, "scores"))
    worst = sorted(recalls.values())[:10]
    assert [recalls[name] for name in shown[: len(worst)]] == worst
    photos = section(many, "least-confident").split("<li>")[1:]
    least = [row for row in rows_of(many, "predictions/ensemble") if row["split"] == "test"]
    for row in least:
        row["probabilities"] = {name: float(row[f"probability_{name}"]) for name in recalls}
    least.sort(key=lambda row: max(row["probabilities"].values()))
    for row, photo in zip(least[:12], photos, strict=True):
        assert f"Photo {row['photo']}, labelled {row['label']}" in photo
        ensemble = re.findall("<dd.*?>(.*?)</dd>", photo)[:2]
        for answer, (name, probability) in zip(ensemble, most_probable(row["probabilities"], 2).items(), strict=True):
            assert answer.startswith(f"{name} {percent(probability, 1)}")


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project of one network and three classes, one of them rare, without its report."""
    project = with_made_up_predictions(tmp_path_factory.mktemp("rare"), {"ant": 80, "bee": 80, "cow": 8}, networks=1)
    shutil.copy(REPOSITORY / "dvc.yaml", project.root)
    return project


def test_report_of_one_network_shows_it_once_and_names_rare_classes(rare: Project) -> None:
    for folder in ("confusion", "roc"):
        (rare.root / "metrics" / folder).mkdir()
        (rare.root / "metrics" / folder / "ensemble.csv").touch()  # of an earlier run
    rare.params["networks"]["resnet18"] |= {"lr": 0.5, "train": {"epochs": 7}}
    rare.succeed("report.py")
    page = read_page(rare)
    assert not shows_ensemble(page)
    assert "Exceptions for resnet18: lr 0.5, epochs 7." in text_of(page)
    assert {key.partition(".")[0] for key in re.findall(r'data-score="([^"]+)"', page)} == {"resnet18"}
    for folder in ("confusion", "roc", "reliability"):
        assert [path.name for path in (rare.root / "metrics" / folder).iterdir()] == ["resnet18.csv"]

    header = text_of(re.search(r"<header>.*?</header>", page, re.DOTALL)[0])
    scores = {name: percent(value).replace("\N{NO-BREAK SPACE}", " ") for name, value in scores_of(rare).items()}
    assert (
        f"The classes are unequal, so the large ones count for more in the accuracy. The balanced accuracy, the mean "
        f"recall of the classes, is {scores['resnet18.balanced_accuracy']} (95 % interval "
        f"{scores['resnet18.balanced_accuracy_low']} to {scores['resnet18.balanced_accuracy_high']})."
    ) in header
    in_train = sum(row["split"] == "train" and row["label"] == "cow" for row in rare.split_table())
    recall = f"The rarest class in train, cow ({in_train} photos), has a recall of {scores['resnet18.cow.recall']} "
    assert recall in header
    assert "There are fewer than 10 test photos of cow (4); their recall says little" in header


def shows_ensemble(page: str) -> bool:
    """Whether a table, plot or photo of the report names it; the heading of its stage does not count."""
    return bool(re.search("<(th|dt|text)[^>]*>ensemble<", page))


def text_of(page: str) -> str:
    """The text of some HTML."""
    return " ".join(unescape(re.sub("<[^>]+>", "", page)).split())


def test_report_of_two_networks_and_equal_classes_shows_the_ensemble_and_not_that_classes_are_unequal(
    finished: Repository,
) -> None:
    page = read_page(finished)
    assert shows_ensemble(page)
    assert "unequal" not in page


MORE = "fitted on {validation} validation photos; more of them would give a better fit."
PROBABILITIES = (
    "Use probabilities, which are calibrated, instead of votes; nothing is retrained: dvc exp run -S "
    "ensemble.method=mean_logits"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sharpness", "method", "said"),
    [
        (4, "mean_logits", f"resnet18 is overconfident. The temperature that calibrates it was {MORE}"),
        (0.2, "mean_logits", f"resnet18 is underconfident. The temperature that calibrates it was {MORE}"),
        (4, "majority_vote", f"the ensemble is overconfident. {PROBABILITIES}"),
        (4, "fitted_weights", f"the ensemble is overconfident. Its weights were {MORE}"),
    ],
)
def test_report_says_how_to_improve_the_confidence(
    rare: Project, tmp_path: Path, sharpness: float, method: str, said: str
) -> None:
    project = copy_of(rare, tmp_path)
    predict(project, ["ant", "bee", "cow"], np.random.default_rng(1), sharpness)
    project.params["ensemble"]["method"] = method
    project.succeed("ensemble.py")
    project.succeed("report.py")
    validation = project.read_json("metrics/prepare.json")["validation"]
    assert said.replace("{validation}", str(validation)) in text_of(section(project, "reliability"))
    assert shows_ensemble(read_page(project)) == (method != "mean_logits")  # it changes the network's probabilities
    if method == "fitted_weights":
        assert scores_of(project)["ensemble.log_loss"] < scores_of(project)["resnet18.log_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1280])
def test_report_of_many_classes_fits_the_window(many: Project, browser: "Browser", width: int) -> None:
    with browser.new_context(viewport={"width": width, "height": 800}) as context:
        page = context.new_page()
        assert open_page(page, many) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        overflowing = """elements => elements.filter(
            element => element.scrollWidth > element.clientWidth && !element.closest('.scroll')
        ).map(element => element.outerHTML.slice(0, 200))"""
        assert page.eval_on_selector_all("main table, main li, main p, main dd", overflowing) == []


def test_report_writes_reliability_and_roc_tables_that_match_the_scores(finished: Repository) -> None:
    require_matching_tables(finished, of_area=1e-5)


@pytest.mark.slow
def test_report_of_many_classes_writes_matching_reliability_and_roc_tables(many: Project) -> None:
    require_matching_tables(many, of_area=1e-3)  # a mean of curves, at a thousand places


def require_matching_tables(project: Project, of_area: float) -> None:
    scores = scores_of(project)
    for name in ("ensemble", "resnet18", "resnet34"):
        ranges = rows_of(project, f"reliability/{name}")
        assert sum(int(row["correct"]) for row in ranges) == scores[f"{name}.correct"]
        assert sum(int(row["photos"]) for row in ranges) == project.read_json("metrics/prepare.json")["test"]
        points = [tuple(map(float, row.values())) for row in rows_of(project, f"roc/{name}")]
        area = sum((x2 - x1) * (y1 + y2) / 2 for (x1, y1), (x2, y2) in pairwise(points))
        assert area == pytest.approx(scores[f"{name}.roc_auc"], abs=of_area)


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
    for path in ("data/prepared/split.csv", "metrics/predictions/networks.csv", "metrics/predictions/ensemble.csv"):
        with (tmp_path / path).open() as file:
            rows = list(csv.DictReader(file))
        with (tmp_path / path).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({**row, "photo": UGLY} if row["photo"] == photo else row for row in rows)
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["prepare"]["image_size"], params["train"]["image_size"] = 64, 48
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert project.run("report.py").returncode == 0
    page = read_page(project)
    assert "64 pixels a side (48 in training)." in page
    assert UGLY not in page
    assert "&lt;img src=http://x.test/y onerror=alert(1)&gt;&amp;&#34;&#39;.jpg" in page


def test_report_names_the_missing_file(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository.root)
    monkeypatch.setattr(sys, "argv", ["report.py"])
    stage = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["report"]
    for dep in stage["deps"]:
        if dep.startswith(("data/prepared/", "metrics/", "models/")):
            path = next(Path(dep).glob("resnet34.*")) if Path(dep).is_dir() else Path(dep)
            path.rename("away")
            with pytest.raises(UserError, match=f"{path} does not exist; run `dvc repro` to create it"):
                report.main()
            Path("away").rename(path)


def test_report_refuses_the_curve_of_a_training_that_has_not_finished(repository: Repository) -> None:
    path = repository.root / "metrics/curves/resnet18.csv"
    curve = pd.read_csv(path).drop(columns="kept")
    path.unlink()
    for content in (curve.to_csv(index=False), ""):  # nothing is written before the head is fitted
        path.write_text(content)
        assert error_line(repository.run("report.py")) == (
            "metrics/curves/resnet18.csv: the training of resnet18 has not finished; run `dvc repro` to finish it"
        )


def test_report_refuses_predictions_of_other_photos(repository: Repository) -> None:
    table = repository.root / "metrics/predictions/ensemble.csv"
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


def test_says_names_the_first_of_equally_probable_classes() -> None:
    assert says({"cat": 0.5, "dog": 0.5}) == "cat 50.0\N{NO-BREAK SPACE}%"
    assert list(most_probable({"a": 0.2, "b": 0.4, "c": 0.4}, 2)) == ["b", "c"]
