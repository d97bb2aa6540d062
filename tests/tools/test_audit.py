"""tools/audit.py: which labels it doubts, and what its page shows."""

import csv
import html
import re

from pipeline.audit import judge
from tests.support.photos import Files, draw_photo, encode, flower_files, kaggle_files, photo_bytes
from tests.support.projects import SPLITS, Project, Repository

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

pytestmark = pytest.mark.slow

PAGE, TABLE = "metrics/audit.html", "metrics/audit.csv"
UGLY = "<img src=http:x onerror=alert(1)>&\"'.jpg"
POOR = {
    "cat.1.jpg": ("dark", lambda photo: Image.eval(photo, lambda value: value // 3)),
    "dog.1.jpg": ("bright", lambda photo: Image.eval(photo, lambda value: 243 + value // 16)),
    "cat.2.jpg": ("blurred", lambda photo: photo.filter(ImageFilter.GaussianBlur(4))),
    "dog.2.jpg": ("tiny", lambda photo: photo.resize((20, 15))),
    "cat.3.jpg": ("odd shape", lambda photo: photo.resize((600, 200))),
}
SWAPPED = {"cat.900.jpg": "dog", "cat.901.jpg": "dog", "dog.900.jpg": "cat", f"cats/{UGLY}": "dog"}


def ranking(project: Project) -> list[dict[str, str]]:
    with (project.root / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def photos_with_swapped_labels() -> Files:
    """60 photos, four of them with the wrong label, and two that are equal byte for byte."""
    files = kaggle_files(cats=27, dogs=28)
    files |= {f"train/{name}": photo_bytes(label, 900 + number) for number, (name, label) in enumerate(SWAPPED.items())}
    return files | {"train/dog.902.jpg": files["train/dog.0.jpg"]}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that is prepared and audited, with POOR photos. Read only."""
    project = Project(tmp_path_factory.mktemp("audited"))
    poor = {
        f"train/{name}": encode(spoil(draw_photo(name[:3], int(name[4]))), "PNG") for name, (_, spoil) in POOR.items()
    }
    project.photos(photos_with_swapped_labels() | poor)
    project.split(train=36, validation=12, test=12)
    project.params["networks"] = {"resnet18": {"weights": "none"}}
    project.prepare()
    printed = project.succeed("audit.py")
    assert re.fullmatch(
        r"60 photos, \d+ labels estimated to be wrong, 5 poor photos; \d+ s; see metrics/audit.html\n", printed
    )
    assert "warning: networks.resnet18.weights is none; features from random weights say little about labels\n" in (
        project.last_run.stderr
    )
    return project


def test_audit_ranks_swapped_labels_first(audited: Project) -> None:
    rows = ranking(audited)
    assert {row["photo"] for row in rows[: len(SWAPPED)]} == set(SWAPPED)
    assert float(rows[len(SWAPPED) - 1]["probability_of_label"]) < 0.5 < float(rows[-1]["probability_of_label"])


def test_audit_writes_a_row_for_each_photo_of_a_split(audited: Project) -> None:
    rows = ranking(audited)
    columns = ["rank", "photo", "label", "probability_of_label", "split", "predicted", "probability", "quality"]
    assert list(rows[0]) == [*columns, "brightness", "sharpness", "width", "height"]
    assert [int(row["rank"]) for row in rows] == list(range(1, 61))
    probabilities = [float(row["probability_of_label"]) for row in rows]
    assert probabilities == sorted(probabilities)
    assert 0 <= probabilities[0] < probabilities[-1] <= 1
    columns = ("photo", "label", "split")
    expected = {tuple(row[name] for name in columns) for row in audited.split_table() if row["split"] in SPLITS}
    assert {tuple(row[name] for name in columns) for row in rows} == expected
    of_twins = [row["probability_of_label"] for row in rows if row["photo"] in ("dog.0.jpg", "dog.902.jpg")]
    assert of_twins[0] == of_twins[1]  # judged by the same classifier, which has seen neither


def test_audit_writes_a_page_that_needs_nothing_else_and_has_lines_to_copy(audited: Project) -> None:
    page = (audited.root / PAGE).read_text(encoding="utf-8")
    assert "://" not in page
    assert set(re.findall(r'(?:src|href)="([^":]*)', page)) == {"#main", "#doubtful", "#poor", "data"}
    assert UGLY not in page
    page = page.partition('<section id="poor"')[0]
    assert page.count('<img src="data:') == 60
    lines = [html.unescape(line) for line in re.findall(r'<code class="line">(.*?)</code>', page)]
    ranked = [row["photo"] for row in ranking(audited)]
    assert lines[::2] == [f"{name}: leave out" for name in ranked]
    assert set(lines[1::2]) >= {f"{name}: {label}" for name, label in SWAPPED.items()}


def test_audit_names_and_shows_poor_photos(audited: Project) -> None:
    rows = {row["photo"]: row for row in ranking(audited)}
    assert {name: row["quality"] for name, row in rows.items() if row["quality"]} == {
        name: kind for name, (kind, _) in POOR.items()
    }
    assert (rows["cat.3.jpg"]["width"], rows["cat.3.jpg"]["height"]) == ("600", "200")  # not as a decoder scales it
    assert float(rows["cat.1.jpg"]["brightness"]) < 0.3 < 0.9 < float(rows["dog.1.jpg"]["brightness"])
    page = (audited.root / PAGE).read_text(encoding="utf-8")
    shown = re.findall(r"<h3>(.*?): 1</h3>.*?alt=\"Photo (.*?), (.*?)\"", page, flags=re.DOTALL)
    assert shown == [(kind.capitalize(), name, kind) for name, (kind, _) in POOR.items()]


def test_label_studio_gets_the_doubtful_labels_and_then_the_least_certain_photos(audited: Project) -> None:
    ranked = ranking(audited)
    printed = audited.succeed("label_studio.py", "--photos", "https://host/", "--count", "3")
    assert printed.startswith(
        "label_studio/tasks.json: 6 photos (3 doubtful label, 3 uncertain), such as https://host/"
    )
    tasks = audited.read_json("label_studio/tasks.json")
    assert [task["data"]["photo"] for task in tasks[:3]] == [row["photo"] for row in ranked[:3]]
    others = sorted(ranked[3:], key=lambda row: float(row["probability"]))
    assert [task["data"]["photo"] for task in tasks[3:]] == [row["photo"] for row in others[:3]]
    for task, row in zip(tasks, [*ranked[:3], *others], strict=False):
        [prediction] = task["predictions"]
        assert prediction["result"][0]["value"] == {"choices": [row["predicted"]]}
        assert prediction["score"] == float(row["probability"])
        assert task["data"]["label_before"] == row["label"]


def test_audit_doubts_no_photo_once_all_are_relabelled_as_its_page_says(project: Project) -> None:
    project.photos(photos_with_swapped_labels())
    project.split(train=32, validation=12, test=12)
    project.params["networks"] = {"resnet18": {"weights": "none"}}
    project.correct(*(f"{name}: {label}" for name, label in SWAPPED.items()))
    project.prepare()
    assert project.read_json("metrics/prepare.json")["relabelled"] == len(SWAPPED)
    project.succeed("audit.py")
    assert float(ranking(project)[0]["probability_of_label"]) > 0.5


def test_audit_judges_any_classes_even_one_with_fewer_photos_than_folds(project: Project) -> None:
    files = {name: content for name, content in flower_files(20).items() if not re.search(r"rose/\d\d?.jpg", name)}
    files |= {f"flowers/rose/{number}.jpg": photo_bytes("rose", number) for number in range(3)}
    files |= {"flowers/tulip/900.jpg": photo_bytes("ox-eye daisy", 900)}
    project.photos(files)
    project.params["classes"] = "auto"
    project.split(train=0.6, validation=0.2, test=0.2)
    project.params["networks"] = {"resnet18": {"weights": "none"}}
    project.prepare()
    project.succeed("audit.py")
    assert project.last_run.stderr.count("\n") == 1  # the warning about weights
    rows = ranking(project)
    assert len(rows) == 44
    assert {row["photo"] for row in rows[:4]} == {"tulip/900.jpg", *(f"rose/{number}.jpg" for number in range(3))}
    page = (project.root / PAGE).read_text(encoding="utf-8")
    assert '<code class="line">tulip/900.jpg: ox-eye daisy</code>' in page


def test_audit_judges_classes_of_three_photos() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    probabilities = judge(100.0 * np.eye(3)[labels], labels, pd.Series([*"abcdefghi"]))
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(9))
    assert (probabilities.argmax(axis=1) == labels).all()  # each one is judged by photos of all three classes


def test_audit_leaves_git_and_dvc_status_clean(repository: Repository) -> None:
    repository.succeed("audit.py")
    assert len(ranking(repository)) == 48
    assert repository.git("status", "--porcelain") == ""  # git ignores the page and its photos
    assert repository.has_clean_status()
