"""Predictions of the trained ensemble: tools/predict.py and tools/submission.py, in the finished repository."""

import csv
import io
import json
import os
import re
from pathlib import Path

from pipeline.core.all_params import Params
from pipeline.core.errors import UserError
from pipeline.core.read_params import read_params
from pipeline.inference.ensemble import Ensemble, Prediction
from pipeline.inference.grid import draw_predictions, shortened
from pipeline.inference.submission import dog_of
from pipeline.networks.models import load_model, save_model
from tests.support.photos import FLOWERS, draw_photo, encode, kaggle_files, photo_bytes, write_folder, write_zip
from tests.support.predictions import CLOSE, predicted_by
from tests.support.projects import Project, Repository, copy_of, error_line

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFont

NETWORKS = ("resnet18", "resnet34")

pytestmark = pytest.mark.slow  # all need trained models


def test_predict_gives_a_file_a_folder_and_a_zip_the_answers_that_were_scored(
    finished: Repository, tmp_path: Path
) -> None:
    predicted = predicted_by(finished)
    files = {Path(name).name: content for name, content in kaggle_files(cats=24, dogs=24).items()}
    chosen = {name: files[name] for name in predicted["ensemble"].index}
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
        found = {**answer["members"], "ensemble": answer["probabilities"]}
        assert list(found) == list(predicted)
        for name, probabilities in found.items():
            expected = predicted[name].loc[Path(answer["photo"]).name].to_dict()
            assert probabilities == pytest.approx(expected, abs=CLOSE)
            assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
        assert answer["label"] == ("dog" if answer["probabilities"]["dog"] > 0.5 else "cat")


def test_predict_gives_the_probability_of_each_of_three_classes(flowers: Project) -> None:
    source = "data/raw/train.zip"
    table = pd.read_csv(io.StringIO(flowers.succeed("predict.py", source, "--csv"))).set_index("photo")
    members = [f"{network}_probability_{name}" for network in NETWORKS for name in FLOWERS]
    columns = [f"probability_{name}" for name in FLOWERS]
    assert list(table) == ["label", *columns, *members, "unreadable"]
    assert table["label"].tolist() == table[columns].idxmax(axis=1).str.removeprefix("probability_").tolist()
    for network, expected in predicted_by(flowers).items():
        start = "probability_" if network == "ensemble" else f"{network}_probability_"
        found = table.loc[
            [f"{source}/flowers/{photo}" for photo in expected.index], [start + name for name in expected]
        ]
        assert found.to_numpy() == pytest.approx(expected.to_numpy(), abs=CLOSE)

    answers = json.loads(flowers.succeed("predict.py", source, "--json"))
    assert [answer["label"] for answer in answers] == table["label"].tolist()
    for answer, (_, row) in zip(answers, table.iterrows(), strict=True):
        assert answer["probabilities"] == {name: row[f"probability_{name}"] for name in FLOWERS}
        assert answer["members"] == {
            network: {name: row[f"{network}_probability_{name}"] for name in FLOWERS} for network in NETWORKS
        }

    header, *lines = flowers.succeed("predict.py", source).splitlines()
    assert header.split() == ["photo", "label", "probability", *NETWORKS]
    for line, (photo, row) in zip(lines, table.iterrows(), strict=True):
        name, label, *probabilities = re.split(" {2,}", line)
        assert (name, label) == (photo, row["label"])
        of_label = [row[f"{start}probability_{label}"] for start in ("", "resnet18_", "resnet34_")]
        assert [float(probability) for probability in probabilities] == pytest.approx(of_label, abs=1e-4)


def test_predict_writes_a_line_for_each_unreadable_photo_and_answers_the_others(
    finished: Repository, tmp_path: Path
) -> None:
    write_folder(tmp_path / "empty folder", {})
    (tmp_path / "broken.jpg").write_bytes(photo_bytes("cat", 1)[:99])
    (tmp_path / "text.zip").write_text("no zip")
    long_name = "a cat with a name that is wider than the photo.png"
    (tmp_path / long_name).write_bytes(encode(draw_photo("cat", 1), "PNG"))
    os.mkfifo(tmp_path / "pipe")
    names = ["broken.jpg", "nosuch.jpg", "text.zip", "empty folder", "pipe", long_name]
    paths = [str(tmp_path / name) for name in names]
    done = finished.run("predict.py", "-", "--csv", "--grid", str(tmp_path / "out.png"), stdin="\r\n".join(paths))

    assert error_line(done) == "5 of 6 photos could not be read"
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    classes = ("probability_cat", "probability_dog")
    members = [f"{network}_{column}" for network in NETWORKS for column in classes]
    assert list(rows[0]) == ["photo", "label", *classes, *members, "unreadable"]
    assert [rows[0][column] for column in (*classes, *members)] == [""] * 6
    assert [row["photo"] for row in rows] == paths
    assert [row["unreadable"] for row in rows] == [
        "file is cut off",
        "no such file or folder",
        "not a photo, or damaged at its start",
        "contains no photos; it is empty; expected a folder or archive with photos",
        "is a pipe, socket or device; expected a file or folder",
        "",
    ]
    assert [bool(row["label"]) for row in rows] == [False] * 5 + [True]
    with Image.open(tmp_path / "out.png") as image:
        assert image.format == "PNG"
        colours = np.asarray(image).reshape(-1, 3)
    assert (colours[:, 0].astype(int) - colours[:, 2] > 60).sum() > 10_000  # the reddish cat


def test_predict_finds_photos_by_their_content_and_says_what_it_skipped(finished: Repository, tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", {"cat": photo_bytes("cat", 3), "notes.txt": b"notes", "clip.mp4": b"clip"})
    done = finished.run("predict.py", str(tmp_path / "folder"), "--json")
    assert [answer["photo"] for answer in json.loads(done.stdout)] == [str(tmp_path / "folder/cat")]
    assert done.stderr == f"note: skipped in {tmp_path / 'folder'}: 1 .mp4, 1 .txt\n"


def test_predict_prints_a_table_for_people(finished: Repository, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(photo_bytes("cat", 3))
    grid = tmp_path / "grid.png"
    done = finished.run("predict.py", str(tmp_path / "cat.jpg"), "--grid", str(grid))
    header, line, _, written = done.stdout.splitlines()
    assert (written, grid.exists()) == (f"wrote {grid}", True)
    assert header.split() == ["photo", "label", "probability", *NETWORKS]
    name, label, *probabilities = line.split()
    assert (name, label in ("cat", "dog"), len(probabilities)) == (str(tmp_path / "cat.jpg"), True, 3)
    assert all(0 <= float(probability) <= 1 for probability in probabilities)
    assert float(probabilities[0]) >= 0.5  # the most probable one of two


@pytest.mark.parametrize("method", ["mean_logits", "fitted_weights"])
def test_predict_with_one_network_repeats_no_column(flowers: Project, tmp_path: Path, method: str) -> None:
    project = copy_of(flowers, tmp_path)
    del project.params["networks"]["resnet34"]
    for path in (project.root / f"metrics/{kind}/networks.csv" for kind in ("predictions", "scores")):
        pd.read_csv(path).query("network == 'resnet18'").to_csv(path, index=False)
    project.params["ensemble"]["method"] = method
    project.succeed("ensemble.py")
    columns = project.succeed("predict.py", "data/raw/train.zip").splitlines()[0].split()
    assert columns == ["photo", "label", "probability", *(["resnet18"] if method == "fitted_weights" else [])]


def test_predict_names_mistakes_before_any_work(finished: Repository, project: Project, tmp_path: Path) -> None:
    assert error_line(finished.run("predict.py", "a.jpg", "--grid", "out.bmp")) == (
        "--grid out.bmp: expected a name ending in .png or .jpg"
    )
    (tmp_path / "cat.jpg").write_bytes(b"mine")
    image = ["--grid", str(tmp_path / "cat.jpg")]
    assert "cat.jpg: already exists; " in error_line(finished.run("predict.py", "a.jpg", *image))
    assert error_line(finished.run("predict.py", "-")) == "no photos on stdin; expected one path per line"
    assert "not allowed with argument" in error_line(finished.run("predict.py", "a.jpg", "--csv", "--json"))
    project.write_params()
    assert error_line(project.run("predict.py", "a.jpg")) == (
        "models/networks/resnet18.safetensors does not exist; run `dvc repro` to create it"
    )


def test_predict_refuses_other_networks_than_were_scored(repository: Repository) -> None:
    repository.params["networks"] = {"resnet18": {"weights": "none"}}
    repository.write_params()
    assert error_line(repository.run("predict.py", "a.jpg")) == (
        "models/combination.json is for resnet18, resnet34, but params.yaml lists resnet18; run `dvc repro` to fix this"
    )


def test_predict_answers_the_same_if_only_the_order_of_the_networks_changes(repository: Repository) -> None:
    """DVC then reruns nothing."""
    arguments = ("predict.py", repository.params["prepare"]["source"], "--json")
    before = repository.succeed(*arguments)
    repository.params["networks"] = dict(reversed(repository.params["networks"].items()))
    assert repository.succeed(*arguments) == before


def test_heat_maps_are_not_those_of_a_model_that_was_trained_meanwhile(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.root)
    ensemble = Ensemble(read_params(Params), torch.device("cpu"), torch.float32)
    pixels = repository.packed("test")[0][:1]
    _, members = ensemble.probabilities(pixels)
    path = repository.root / "models/networks/resnet34.safetensors"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"resnet34\.safetensors has changed since it was loaded; start this program"):
        ensemble.heat_maps(pixels, members)


def test_a_name_is_shortened_to_any_width() -> None:
    font = ImageFont.load_default(9)
    assert shortened("mobilenet_v2", font, 30) == "mo…v2"
    assert shortened("mobilenet_v2", font, 1) == "…"


def test_predict_refuses_models_of_different_classes(repository: Repository) -> None:
    path = repository.root / "models/networks/resnet34.safetensors"
    network, description = load_model(path)
    path.unlink()  # DVC protects it from being written to
    save_model(path, network.state_dict(), description | {"classes": ["dog", "cat"]})
    assert error_line(repository.run("predict.py", "a.jpg")) == (
        "resnet18 and resnet34 were not all trained with the same classes; run `dvc repro` to fix this"
    )


def test_submission_is_in_kaggles_order_and_clipped_as_validation_suggests(repository: Repository) -> None:
    files = {f"test1/{number}.jpg": photo_bytes("cat" if number % 2 else "dog", number) for number in range(1, 12)}
    write_zip(repository.root / "data/raw/test1.zip", files | {"test1/7.jpg": b"no photo"})
    # A confident mistake on validation: without a clip the log loss would be far worse.
    table = pd.read_csv(repository.root / "metrics/predictions/ensemble.csv")
    table["probability_dog"] = (table["label"] == "dog").astype(float)
    table.loc[0, "probability_dog"] = 1 - table.loc[0, "probability_dog"]
    (repository.root / "metrics/predictions/ensemble.csv").unlink()  # DVC protects it from being written to
    table.to_csv(repository.root / "metrics/predictions/ensemble.csv", index=False)

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


@pytest.mark.parametrize("classes", [["Cat", "Dog"], ["dogs", "cats"]])
def test_submission_takes_any_spelling_of_cat_and_dog(classes: list[str]) -> None:
    assert dog_of(classes).lower().startswith("dog")


def test_submission_is_for_cats_and_dogs_only(flowers: Project, tmp_path: Path) -> None:
    write_zip(tmp_path / "test1.zip", {"test1/1.jpg": photo_bytes("rose", 1)})
    flowers.write_params()
    assert error_line(flowers.run("submission.py", str(tmp_path / "test1.zip"))) == (
        "the classes are ox-eye daisy, rose, tulip; a submission needs cat and dog; set classes in params.yaml and run "
        "`dvc repro`"
    )


def test_the_grid_shows_letters_of_other_alphabets() -> None:
    """A letter that the font lacks would be a box, the same for each."""
    grey = np.full((8, 8, 3), 200, np.uint8)
    labels = ("żż", "жж", "дд", "ωω")
    grids = {draw_predictions([Prediction("1", {label: 1.0}, pixels=grey)]).tobytes() for label in labels}
    assert len(grids) == len(labels)
