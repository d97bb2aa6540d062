"""Predictions of the trained ensemble: tools/predict.py and tools/submission.py, in the finished repository."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from photos import draw_photo, encode, kaggle_files, photo_bytes, write_folder, write_zip
from PIL import Image
from predictions import CLOSE, predicted_by
from projects import Project, Repository, error_line

NETWORKS = ("resnet18", "resnet34")


def test_predict_gives_a_file_a_folder_and_a_zip_the_answers_that_were_scored(
    finished: Repository, tmp_path: Path
) -> None:
    predicted = predicted_by(finished)
    files = {Path(name).name: content for name, content in kaggle_files(cats=24, dogs=24).items()}
    chosen = {name: files[name] for name in predicted.index}
    one, *others = chosen
    write_folder(tmp_path / "folder", {f"deep/{name}": chosen[name] for name in others[:5]})
    write_zip(tmp_path / "archive.zip", {f"test/{name}": chosen[name] for name in others[5:]})
    (tmp_path / one).write_bytes(chosen[one])

    done = finished.run(
        "predict.py", *map(str, (tmp_path / "folder", tmp_path / one, tmp_path / "archive.zip")), "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    answers = json.loads(done.stdout)
    assert [answer["photo"] for answer in answers] == [
        *(str(tmp_path / "folder/deep" / name) for name in sorted(others[:5])),
        str(tmp_path / one),
        *(str(tmp_path / "archive.zip/test" / name) for name in sorted(others[5:])),
    ]
    for answer in answers:
        expected = predicted.loc[Path(answer["photo"]).name]
        assert answer["ensemble"] == pytest.approx(expected["ensemble"], abs=CLOSE)
        assert answer["members"] == pytest.approx({name: expected[name] for name in NETWORKS}, abs=CLOSE)
        assert answer["label"] == ("dog" if answer["ensemble"] > 0.5 else "cat")


def test_predict_writes_a_line_for_each_unreadable_photo_and_answers_the_others(
    finished: Repository, tmp_path: Path
) -> None:
    write_folder(tmp_path / "empty folder", {})
    (tmp_path / "broken.jpg").write_bytes(photo_bytes("cat", 1)[:99])
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "a cat.png").write_bytes(encode(draw_photo("cat", 1), "PNG"))
    names = ["broken.jpg", "nosuch.jpg", "text.zip", "empty folder", "a cat.png"]
    paths = [str(tmp_path / name) for name in names]
    done = finished.run("predict.py", "-", "--csv", "--image", str(tmp_path / "out.png"), stdin="\r\n".join(paths))

    assert error_line(done) == "4 of 5 photos could not be read"
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(rows[0]) == ["photo", "label", "ensemble", *NETWORKS, "unreadable"]
    assert [row["photo"] for row in rows] == paths
    assert [row["unreadable"] for row in rows] == [
        "file is cut off",
        "no such file or folder",
        "not a photo, or damaged at its start",
        "contains no photos; it is empty; expected a folder or archive with photos",
        "",
    ]
    assert [bool(row["label"]) for row in rows] == [False] * 4 + [True]
    with Image.open(tmp_path / "out.png") as image:
        assert image.format == "PNG"
        colours = np.asarray(image).reshape(-1, 3)
    assert (colours[:, 0].astype(int) - colours[:, 2] > 60).sum() > 10_000  # the reddish cat


def test_predict_prints_a_table_for_people(finished: Repository, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(photo_bytes("cat", 3))
    grid = tmp_path / "grid.png"
    done = finished.run("predict.py", str(tmp_path / "cat.jpg"), "--image", str(grid))
    header, line, _, written = done.stdout.splitlines()
    assert (written, grid.exists()) == (f"wrote {grid}", True)
    assert header.split() == ["P(dog)", *NETWORKS]
    name, label, *probabilities = line.split()
    assert (name, label in ("cat", "dog"), len(probabilities)) == (str(tmp_path / "cat.jpg"), True, 3)
    assert all(0 <= float(probability) <= 1 for probability in probabilities)


def test_predict_names_mistakes_before_any_work(finished: Repository, project: Project, tmp_path: Path) -> None:
    assert error_line(finished.run("predict.py", "a.jpg", "--image", "out.bmp")) == (
        "--image out.bmp: expected a name ending in .png or .jpg"
    )
    (tmp_path / "cat.jpg").write_bytes(b"mine")
    image = ["--image", str(tmp_path / "cat.jpg")]
    assert "cat.jpg: already exists; " in error_line(finished.run("predict.py", "a.jpg", *image))
    assert error_line(finished.run("predict.py", "-")) == "no photos on stdin; expected one path per line"
    assert "not allowed with argument" in error_line(finished.run("predict.py", "a.jpg", "--csv", "--json"))
    project.write_params()
    assert error_line(project.run("predict.py", "a.jpg")) == (
        "metrics/ensemble.json does not exist; run `dvc repro` to create it"
    )


def test_predict_refuses_other_networks_than_were_scored(repository: Repository) -> None:
    repository.params["networks"] = {"resnet18": {"weights": "none"}}
    repository.write_params()
    assert error_line(repository.run("predict.py", "a.jpg")) == (
        "metrics/ensemble.json is for resnet18, resnet34, but params.yaml lists resnet18; run `dvc repro` to fix this"
    )


def test_submission_is_in_kaggles_order_and_clipped_as_validation_suggests(repository: Repository) -> None:
    files = {f"test1/{number}.jpg": photo_bytes("cat" if number % 2 else "dog", number) for number in range(1, 12)}
    write_zip(repository.root / "data/raw/test1.zip", files | {"test1/7.jpg": b"no photo"})
    # A confident mistake on validation: without a clip the log loss would be far worse.
    table = pd.read_csv(repository.root / "metrics/ensemble_predictions.csv")
    table["probability_of_dog"] = (table["label"] == "dog").astype(float)
    table.loc[0, "probability_of_dog"] = 1 - table.loc[0, "probability_of_dog"]
    (repository.root / "metrics/ensemble_predictions.csv").unlink()  # DVC protects it from being written to
    table.to_csv(repository.root / "metrics/ensemble_predictions.csv", index=False)

    done = repository.run("submission.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "warning: 7.jpg: not a photo, or damaged at its start; submitted as 0.5\n"
    assert done.stdout.startswith("submission.csv: 11 photos, ")
    submission = pd.read_csv(repository.root / "submission.csv")
    assert submission["id"].tolist() == list(range(1, 12))
    assert submission["label"][6] == 0.5
    best = 1 / 12  # one of twelve confident answers on validation is incorrect
    assert submission["label"].between(best * 0.9, 1 - best * 0.9).all()

    write_zip(repository.root / "data/raw/test1.zip", {name: files[name] for name in files if "/3." not in name})
    expected = "data/raw/test1.zip: 3.jpg is missing; expected all of 1.jpg to 11.jpg"
    assert error_line(repository.run("submission.py")) == expected
    write_zip(repository.root / "data/raw/test1.zip", {"test1/first.jpg": files["test1/1.jpg"]})
    assert "contains test1/first.jpg; expected Kaggle's names" in error_line(repository.run("submission.py"))
    assert len(pd.read_csv(repository.root / "submission.csv")) == 11  # unchanged
