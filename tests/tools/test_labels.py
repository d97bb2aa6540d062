"""tools/label_studio.py and tools/labels.py: photos to Label Studio, and its exports back into the table of labels.

The exports in tests/support/label_studio are as Label Studio 1.23.2 wrote them for the tasks of PREDICTIONS: one photo
has two annotations, one was skipped, and one has no annotation.
"""

import json
import re
from xml.etree import ElementTree

from tests.support.photos import photo_bytes
from tests.support.projects import REPOSITORY, Project, error_line

import pytest

EXPORTS = REPOSITORY / "tests/support/label_studio"
PREDICTIONS = """photo,label,probability_cat,probability_dog,unreadable
dog.1.jpg,dog,0.200000,0.800000,
cat (2) é.jpg,dog,0.400000,0.600000,
dog.0.jpg,dog,0.300000,0.700000,
cat.1.jpg,cat,0.900000,0.100000,
cat.0.jpg,dog,0.450000,0.550000,
cut.jpg,,,,file is cut off
"""
NAMES = ("cat.0.jpg", "cat.1.jpg", "cat (2) é.jpg", "cat.5.jpg", "cat.6.jpg", "dog.0.jpg", "dog.1.jpg", "dog.3.jpg")


@pytest.fixture
def photos(project: Project) -> Project:
    """A project with the photos in the exports, and three more."""
    project.photos({f"train/{name}": photo_bytes(name[:3], number) for number, name in enumerate(NAMES)})
    project.split(train=0.4, validation=0.3, test=0.3)
    project.write_params()
    return project


def refusal(project: Project, content: str, name: str = "export.csv") -> list[str]:
    """The lines with which an export is refused; the table stays as it was."""
    before = (project.root / "data/labels.csv").read_bytes()
    (project.root / name).write_text(content, encoding="utf-8")
    done = project.run("labels.py", name)
    assert done.returncode == 1
    assert (project.root / "data/labels.csv").read_bytes() == before
    assert all(line.startswith(f"error: {name}") for line in done.stderr.splitlines())
    return [line.removeprefix("error: ") for line in done.stderr.splitlines()]


def test_tasks_of_predictions_are_what_the_exports_were_made_of(project: Project) -> None:
    (project.root / "new.csv").write_text(PREDICTIONS, encoding="utf-8")
    assert project.succeed("label_studio.py", "new.csv") == (
        "label_studio/tasks.json: 5 photos (5 uncertain), such as /data/local-files/?d=cat.0.jpg\n"
    )
    tasks = project.read_json("label_studio/tasks.json")
    exported = json.loads((EXPORTS / "export.json").read_text(encoding="utf-8"))
    assert [task["data"] for task in tasks] == [task["data"] for task in exported]
    predictions = [task["predictions"][0]["result"] for task in tasks]
    assert predictions[0] == exported[0]["annotations"][0]["result"]  # the annotator agreed with it
    assert [task["predictions"][0]["score"] for task in tasks] == [0.55, 0.6, 0.7, 0.8, 0.9]
    interface = ElementTree.parse(project.root / "label_studio/interface.xml")
    assert [choice.get("value") for choice in interface.iter("Choice")] == ["cat", "dog"]
    controls = {element.get("name") for element in interface.iter()}
    assert controls >= {predictions[0][0]["from_name"], predictions[0][0]["to_name"]}


def test_tasks_name_objects_in_a_bucket_as_they_are(project: Project) -> None:
    (project.root / "new.csv").write_text(PREDICTIONS, encoding="utf-8")
    project.succeed("label_studio.py", "new.csv", "--photos", "s3://bucket/photos/", "--count", "2")
    images = [task["data"]["image"] for task in project.read_json("label_studio/tasks.json")]
    assert images == ["s3://bucket/photos/cat.0.jpg", "s3://bucket/photos/cat (2) é.jpg"]


@pytest.mark.parametrize("export", ["export.json", "export-min.json", "export.csv", "export.tsv"])
def test_labels_of_every_format_are_merged_and_read_by_prepare(export: str, photos: Project) -> None:
    (photos.root / "data/labels.csv").write_text(
        "photo;label;split;note\ncat.0.jpg;cat;train;mine\ndog.3;dog;;\nold/train/dog.0.jpg;Dog;;\n"
    )
    printed = photos.succeed("labels.py", str(EXPORTS / export))
    assert re.fullmatch(
        r"data/labels.csv: 1 photos added, 1 changed, 1 as before; [12] skipped or without a label; run `dvc repro`\n"
        r"  train/cat.0.jpg: dog, was cat\n",
        printed,
    )
    assert (photos.root / "data/labels.csv").read_text(encoding="utf-8") == (
        "photo;label;split;note\ncat.0.jpg;dog;train;mine\ndog.3;dog;;\nold/train/dog.0.jpg;Dog;;\n"
        "train/cat (2) é.jpg;dog;;\n"
    )
    if export == "export.csv":
        photos.prepare()
        assert photos.row_of("cat (2) é.jpg")["label"] == photos.row_of("cat.0.jpg")["label"] == "dog"


def test_labels_keep_the_delimiter_that_the_table_names_and_read_long_cells(photos: Project) -> None:
    table = photos.root / "data/labels.csv"
    table.write_text("sep=|\nphoto|label\ncat.0.jpg|cat\n")
    lines = (EXPORTS / "export.csv").read_text(encoding="utf-8").splitlines()
    picture = ["picture", *(["x" * 140_000] * (len(lines) - 1))]  # as a task may contain it
    lines = [f"{cell},{line}" for cell, line in zip(picture, lines, strict=True)]
    (photos.root / "export.csv").write_text("\n".join(lines), encoding="utf-8")
    photos.succeed("labels.py", "export.csv")
    assert table.read_text().startswith("sep=|\nphoto|label\ncat.0.jpg|dog\n")
    photos.prepare()
    assert photos.row_of("cat.0.jpg")["label"] == "dog"


def test_tasks_of_the_audit_name_classes_that_are_numbers_as_text(tiny: Project) -> None:
    (tiny.root / "metrics/audit.csv").write_text(
        "photo,label,predicted,probability\na.jpg,1,1,0.6\nb.jpg,2,1,0.9\nc.jpg,2,2,0.8\n"
    )
    assert tiny.succeed("label_studio.py").startswith(
        "label_studio/tasks.json: 3 photos (1 doubtful label, 2 uncertain), such as "
    )
    tasks = tiny.read_json("label_studio/tasks.json")
    assert [task["predictions"][0]["result"][0]["value"]["choices"] for task in tasks] == [["1"], ["1"], ["2"]]


def test_labels_refuse_what_is_wrong_with_a_line_for_each_and_write_nothing(photos: Project) -> None:
    export = (EXPORTS / "export.csv").read_text(encoding="utf-8")
    lines = export.splitlines(keepends=True)
    wrong = export.replace('10,"1","dog"', '10,"1","bird"').replace("(2)", "(3)")
    wrong = wrong.replace('12,"1","dog"', '12,"2","cat"').replace(
        '"","","","",21', '14,"1","{""choices"": [""cat"", ""dog""]}","",21'
    )
    assert refusal(photos, wrong) == [
        "export.csv, task 17: cat.0.jpg is 'bird'; expected one of cat, dog, or set classes in params.yaml",
        "export.csv, task 19: dog.0.jpg is 'dog' by 1, but 'cat' by 2; delete one of the two annotations, and export "
        "again",
        "export.csv, task 21: cat.1.jpg is cat and dog; expected one label",
        "export.csv: 1 of 5 photos are not in the source, such as cat (3) é.jpg; expected names such as "
        "train/cat (2) é.jpg",
    ]
    assert refusal(photos, lines[0] + lines[-1]) == [
        "export.csv: none of 1 tasks has a label; submit annotations, and export again"
    ]
    [line] = refusal(photos, export.replace('"choice"', '"animal"'))
    assert line.startswith("export.csv: no annotation is called choice; names found: annotation_id, annotator, animal")
    [line] = refusal(photos, "[{", "export.json")
    assert line.startswith("export.json is not valid JSON (")
    (photos.root / "data/labels.csv").write_text("photo,cat,dog\ncat.0.jpg,1,0\n")
    assert error_line(photos.run("labels.py", str(EXPORTS / "export.csv"))) == (
        "data/labels.csv has a column for each class; set prepare.labels to a table of photo and label"
    )


def test_tools_name_a_missing_or_foreign_file(photos: Project) -> None:
    assert error_line(photos.run("label_studio.py")) == (
        "metrics/audit.csv does not exist; run `python tools/audit.py` to create it"
    )
    assert error_line(photos.run("labels.py", "none.json")) == (
        "none.json does not exist; expected an export of Label Studio"
    )
    (photos.root / "other.csv").write_text("photo,label\na.jpg,cat\n")
    assert error_line(photos.run("label_studio.py", "other.csv")) == (
        "other.csv is neither tools/audit.py's table nor tools/predict.py's CSV; run one of them again"
    )
