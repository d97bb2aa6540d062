"""What is asked of the trained ensemble: predict.py, submission.py and export.py, over the finished repository."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import openvino
import pandas as pd
import pytest
from conftest import (
    Project,
    Repository,
    draw_photo,
    encode,
    error_line,
    kaggle_files,
    photo_bytes,
    write_folder,
    write_zip,
)
from PIL import Image
from scipy.special import expit

NETWORKS = ("resnet18", "resnet34")
CLOSE = 0.02  # between probabilities of a photo in one batch and in another, where networks compute in bfloat16


@pytest.fixture(scope="module")
def scored(finished: Repository) -> pd.DataFrame:
    return scored_by(finished)


def scored_by(repository: Repository) -> pd.DataFrame:
    """What the pipeline has said of each photo of test: a column of probabilities for each network and `ensemble`."""
    predictions = pd.read_csv(repository.root / "metrics/predictions.csv")
    test = predictions[predictions["split"] == "test"]
    members = test.assign(p=expit(test["logit_dog"] - test["logit_cat"])).pivot(
        index="photo", columns="network", values="p"
    )
    ensemble = pd.read_csv(repository.root / "metrics/ensemble_predictions.csv").set_index("photo")
    return members.assign(ensemble=ensemble["probability_of_dog"])


def test_a_file_a_folder_and_a_zip_get_the_answers_that_were_scored(
    finished: Repository, scored: pd.DataFrame, tmp_path: Path
) -> None:
    files = {Path(name).name: content for name, content in kaggle_files(cats=24, dogs=24).items()}
    chosen = {name: files[name] for name in scored.index}
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
        expected = scored.loc[Path(answer["photo"]).name]
        assert answer["ensemble"] == pytest.approx(expected["ensemble"], abs=CLOSE)
        assert answer["members"] == pytest.approx({name: expected[name] for name in NETWORKS}, abs=CLOSE)
        assert answer["label"] == ("dog" if answer["ensemble"] > 0.5 else "cat")


def test_a_bad_photo_gets_its_line_and_the_others_are_answered(finished: Repository, tmp_path: Path) -> None:
    write_folder(tmp_path / "empty folder", {})
    (tmp_path / "broken.jpg").write_bytes(photo_bytes("cat", 1)[:99])
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "a cat.png").write_bytes(encode(draw_photo("cat", 1), "PNG"))
    names = ["broken.jpg", "nosuch.jpg", "text.zip", "empty folder", "a cat.png"]
    paths = [str(tmp_path / name) for name in names]
    done = finished.run("predict.py", "-", "--csv", "--picture", str(tmp_path / "out.png"), stdin="\n".join(paths))

    assert error_line(done) == "4 of 5 could not be read; the others are answered"
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(rows[0]) == ["photo", "label", "ensemble", *NETWORKS, "unreadable"]
    assert [row["photo"] for row in rows] == paths
    assert [row["unreadable"] for row in rows] == [
        "unreadable (OSError)",
        "no such file or folder",
        "cannot be read as a zip archive (File is not a zip file); get it anew, or name another file",
        "holds no pictures; expected a zip or folder with photos in it",
        "",
    ]
    assert [bool(row["label"]) for row in rows] == [False] * 4 + [True]
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.format == "PNG"
        colours = np.asarray(picture).reshape(-1, 3)
    assert (colours[:, 0].astype(int) - colours[:, 2] > 60).sum() > 10_000  # the reddish cat


def test_the_table_is_for_people(finished: Repository, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(photo_bytes("cat", 3))
    done = finished.run("predict.py", str(tmp_path / "cat.jpg"))
    header, line = done.stdout.splitlines()
    assert header.split() == ["P(dog)", *NETWORKS]
    name, label, *probabilities = line.split()
    assert (name, label in ("cat", "dog"), len(probabilities)) == (str(tmp_path / "cat.jpg"), True, 3)
    assert all(0 <= float(probability) <= 1 for probability in probabilities)


def test_what_cannot_be_done_is_said_before_any_work(finished: Repository, project: Project, tmp_path: Path) -> None:
    assert "--picture out.bmp: expected a name that ends in .png or .jpg" in error_line(
        finished.run("predict.py", "a.jpg", "--picture", "out.bmp")
    )
    (tmp_path / "cat.jpg").write_bytes(b"mine")
    picture = ["--picture", str(tmp_path / "cat.jpg")]
    assert "cat.jpg: is there already" in error_line(finished.run("predict.py", "a.jpg", *picture))
    assert error_line(finished.run("predict.py", "-")) == "stdin names no photos; expected a path a line"
    project.write_params()
    assert error_line(project.run("predict.py", "a.jpg")) == "there is no metrics/ensemble.json; `dvc repro` writes it"


def test_another_set_of_networks_than_was_scored_is_refused(repository: Repository) -> None:
    repository.params["networks"] = {"resnet18": {"weights": "none"}}
    repository.write_params()
    assert error_line(repository.run("predict.py", "a.jpg")) == (
        "metrics/ensemble.json is of resnet18, resnet34, and params.yaml names resnet18; run `dvc repro` to fix this"
    )


def test_a_submission_is_in_kaggles_order_and_clipped_where_validation_asks_for_it(repository: Repository) -> None:
    files = {f"test1/{number}.jpg": photo_bytes("cat" if number % 2 else "dog", number) for number in range(1, 12)}
    write_zip(repository.root / "data/raw/test1.zip", files | {"test1/7.jpg": b"no photo"})
    # A sure mistake on validation: without a clip its log loss would be far worse.
    table = pd.read_csv(repository.root / "metrics/ensemble_predictions.csv")
    table["probability_of_dog"] = (table["label"] == "dog").astype(float)
    table.loc[0, "probability_of_dog"] = 1 - table.loc[0, "probability_of_dog"]
    table.to_csv(repository.root / "metrics/ensemble_predictions.csv", index=False)

    done = repository.run("submission.py")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "warning: 7.jpg: unreadable (UnidentifiedImageError); submitted as 0.5\n"
    assert done.stdout.startswith("submission.csv: 11 photos, ")
    submission = pd.read_csv(repository.root / "submission.csv")
    assert submission["id"].tolist() == list(range(1, 12))
    assert submission["label"][6] == 0.5
    best = 1 / 12  # of twelve sure answers on validation one is wrong
    assert submission["label"].between(best * 0.9, 1 - best * 0.9).all()

    write_zip(repository.root / "data/raw/test1.zip", {name: files[name] for name in files if "/3." not in name})
    expected = "data/raw/test1.zip: 3.jpg is missing; expected all of 1.jpg to 11.jpg"
    assert error_line(repository.run("submission.py")) == expected
    write_zip(repository.root / "data/raw/test1.zip", {"test1/first.jpg": files["test1/1.jpg"]})
    assert "holds test1/first.jpg; expected Kaggle's names" in error_line(repository.run("submission.py"))
    assert len(pd.read_csv(repository.root / "submission.csv")) == 11  # as it was


def run_onnxruntime(file: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(file)
    return [session.run(["probabilities"], {"image": image})[0] for image in images]


def run_openvino(file: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [model([image])["probabilities"].copy() for image in images]


def run_opencv(file: Path, images: list[np.ndarray]) -> list[np.ndarray]:
    network, answers = cv2.dnn.readNetFromONNX(str(file)), []
    for image in images:
        network.setInput(image)
        answers.append(network.forward().copy())
    return answers


@pytest.mark.parametrize(
    ("method", "params", "scripts"),
    [
        ("fitted_weights", {}, ()),
        (
            "majority_vote",
            {"prepare": {"resize": "center_crop"}, "test_time_flip": True},
            ("prepare.py", "train.py resnet18", "train.py resnet34", "evaluate.py"),
        ),
    ],
)
def test_every_runtime_and_the_model_card_give_the_answers_of_the_pipeline(
    repository: Repository, method: str, params: dict, scripts: tuple[str, ...]
) -> None:
    for key, value in {"ensemble": {"method": method}, **params}.items():
        repository.params[key] = repository.params[key] | value if isinstance(value, dict) else value
    repository.write_params()
    for script in (*scripts, "ensemble.py", "export.py"):
        done = repository.run(*script.split())
        assert done.returncode == 0, done.stderr
    exported = repository.root / "export"
    graphs = {f"{name}.onnx" for name in (*NETWORKS, "ensemble")}
    assert {path.name for path in exported.iterdir()} == graphs | {"example.png", "MODEL_CARD.md"}

    expected = scored_by(repository)
    photos = [row["photo"] for row in repository.split_table() if row["split"] == "test"]
    images = [image[np.newaxis] for image in repository.packed("test")[0].transpose(0, 3, 1, 2).astype("float32")]
    for name in expected:
        for run in (run_onnxruntime, run_openvino, run_opencv):
            answers = np.concatenate(run(exported / f"{name}.onnx", images))
            assert answers[:, 1] == pytest.approx(expected.loc[photos, name].to_numpy(), abs=CLOSE), (name, run)
            assert answers.sum(axis=1) == pytest.approx(1)

    card = (exported / "MODEL_CARD.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(dog)"], cwd=exported, capture_output=True, text=True, check=True
    )
    [answer] = re.findall(r"\| ensemble \| ([\d.]+) \|", card)
    assert float(done.stdout) == pytest.approx(float(answer), abs=1e-4)
    scores = repository.read_json("metrics/ensemble.json")
    assert f"| ensemble | {scores['correct']} of {scores['total']} ({scores['accuracy']:.4f}) |" in card
    for runtime in (onnxruntime, openvino):
        assert f" {runtime.__version__.partition('-')[0]} |" in card


def test_a_package_that_is_not_installed_is_named(project: Project, tmp_path: Path) -> None:
    (tmp_path / "flask.py").write_text("raise ModuleNotFoundError(name='flask')")  # in the place of the installed one
    result = project.run("serve.py", env={"PYTHONPATH": str(tmp_path)})
    assert error_line(result) == (
        "flask is not installed; `pip install -r requirements-serve.txt` or `make serve` brings it"
    )
