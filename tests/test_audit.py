"""The audit: which labels it doubts, and what its page shows."""

import csv
import html
import re

import pytest
from conftest import SPLITS, Files, Project, Repository, kaggle_files, photo_bytes

PAGE, TABLE = "metrics/audit.html", "metrics/audit.csv"
UGLY = "<img src=http:x onerror=alert(1)>&\"'.jpg"
SWAPPED = {"cat.900.jpg": "dog", "cat.901.jpg": "dog", "dog.900.jpg": "cat", f"cats/{UGLY}": "dog"}


def ranking(project: Project) -> list[dict[str, str]]:
    with (project.root / TABLE).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def photos_some_of_them_swapped() -> Files:
    """60 photos, four of them under the wrong label, and two that are byte for byte equal."""
    files = kaggle_files(cats=27, dogs=28)
    files |= {f"train/{name}": photo_bytes(label, 900 + number) for number, (name, label) in enumerate(SWAPPED.items())}
    return files | {"train/dog.902.jpg": files["train/dog.0.jpg"]}


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Prepared and audited."""
    project = Project(tmp_path_factory.mktemp("audited"))
    project.photos(photos_some_of_them_swapped())
    project.split(train=36, validation=12, test=12)
    project.params["networks"] = {"resnet18": {"weights": "none"}}
    project.prepare()
    result = project.run("audit.py")
    assert result.returncode == 0, result.stderr
    assert "warning: networks.resnet18.weights is none: random features, which say little of labels\n" in result.stderr
    assert re.fullmatch(r"60 photos, \d+ labels held to be wrong; \d+ s; look at metrics/audit.html\n", result.stdout)
    return project


def test_swapped_labels_rank_first(audited: Project) -> None:
    rows = ranking(audited)
    assert {row["photo"] for row in rows[: len(SWAPPED)]} == set(SWAPPED)
    assert float(rows[len(SWAPPED) - 1]["probability_of_label"]) < 0.5 < float(rows[-1]["probability_of_label"])


def test_the_table_has_a_row_for_each_photo_of_a_split(audited: Project) -> None:
    rows = ranking(audited)
    assert list(rows[0]) == ["rank", "photo", "label", "probability_of_label", "split"]
    assert [int(row["rank"]) for row in rows] == list(range(1, 61))
    probabilities = [float(row["probability_of_label"]) for row in rows]
    assert probabilities == sorted(probabilities)
    assert 0 <= probabilities[0] < probabilities[-1] <= 1
    columns = ("photo", "label", "split")
    expected = {tuple(row[name] for name in columns) for row in audited.split_table() if row["split"] in SPLITS}
    assert {tuple(row[name] for name in columns) for row in rows} == expected
    of_twins = [row["probability_of_label"] for row in rows if row["photo"] in ("dog.0.jpg", "dog.902.jpg")]
    assert of_twins[0] == of_twins[1]  # judged by the same classifier, which saw neither


def test_the_page_needs_nothing_else_and_gives_lines_to_copy(audited: Project) -> None:
    page = (audited.root / PAGE).read_text(encoding="utf-8")
    assert "://" not in page
    assert set(re.findall(r'(?:src|href)="([^":]*)', page)) == {"#main", "#doubtful", "data"}
    assert UGLY not in page
    assert page.count('<img src="data:') == 60
    lines = [html.unescape(line) for line in re.findall(r'<code class="line">(.*?)</code>', page)]
    ranked = [row["photo"] for row in ranking(audited)]
    assert lines[::2] == [f"{name}: leave out" for name in ranked]
    assert set(lines[1::2]) >= {f"{name}: {label}" for name, label in SWAPPED.items()}


def test_relabelled_as_the_page_says_no_photo_is_doubted_any_more(project: Project) -> None:
    project.photos(photos_some_of_them_swapped())
    project.split(train=32, validation=12, test=12)
    project.params["networks"] = {"resnet18": {"weights": "none"}}
    project.correct(*(f"{name}: {label}" for name, label in SWAPPED.items()))
    project.prepare()
    assert project.read_json("metrics/prepare.json")["relabelled"] == len(SWAPPED)
    assert project.run("audit.py").returncode == 0
    assert float(ranking(project)[0]["probability_of_label"]) > 0.5


def test_git_and_dvc_see_nothing_of_an_audit(repository: Repository) -> None:
    done = repository.run("audit.py")
    assert done.returncode == 0, done.stderr
    assert len(ranking(repository)) == 48
    assert repository.git("status", "--porcelain") == ""  # the photos on the page stay out of git
    assert repository.try_dvc("status", "--quiet").returncode == 0
