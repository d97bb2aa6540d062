"""None of these: stages/reject.py, and what predict and the report make of it."""

import csv
import io
import json
import math
import re
from pathlib import Path

from tests.support.photos import encode, kaggle_files
from tests.support.projects import SPLITS, Project, copy_of, error_line
from tests.support.weight_files import write_weights

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from torch.nn.functional import normalize

pytestmark = pytest.mark.slow

RATE, NEIGHBOUR = 0.3, 5
SCRIPTS = ("train.py resnet18", "evaluate.py", "ensemble.py", "reject.py", "report.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose results are complete, and whose ensemble rejects photos. Read only."""
    folder = tmp_path_factory.mktemp("rejecting")
    project = Project(folder / "project")
    project.photos(kaggle_files(cats=48, dogs=48))
    project.split(train=48, validation=24, test=24)
    project.params["precision"] = "float32"
    project.params["networks"] = {"resnet18": {"weights": str(write_weights(folder, "resnet18"))}}
    project.params["reject"] = {"false_rejection_rate": RATE}
    project.prepare()
    (project.root / "dvc.yaml").write_text("stages: {}\n")
    for script in SCRIPTS:
        project.succeed(*script.split())
    return project


@pytest.fixture
def rejecting(trained: Project, tmp_path: Path) -> Project:
    """A copy of the project, free to be changed."""
    return copy_of(trained, tmp_path)


def table_of(project: Project) -> pd.DataFrame:
    return pd.read_csv(project.root / "metrics/rejection.csv")


def features_of(project: Project, pixels: np.ndarray) -> torch.Tensor:
    """The pretrained network's features, of length 1, computed with nothing but torchvision."""
    network = torchvision.models.resnet18()
    network.load_state_dict(torch.load(project.params["networks"]["resnet18"]["weights"]))
    network.fc = torch.nn.Identity()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        return normalize(network.eval()((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)))


def test_reject_measures_the_cosine_to_the_fifth_most_similar_train_photo(trained: Project) -> None:
    features = {split: features_of(trained, trained.packed(split)[0]) for split in SPLITS}
    table = table_of(trained)
    for split in ("validation", "test"):
        rows = table[table["split"] == split]
        assert rows["photo"].tolist() == [row["photo"] for row in trained.split_table() if row["split"] == split]
        cosines = (features[split] @ features["train"].T).sort(dim=1, descending=True).values
        assert rows["similarity"].to_numpy() == pytest.approx(cosines[:, NEIGHBOUR - 1].numpy(), abs=1e-4)


def test_reject_sets_the_threshold_on_validation_alone(trained: Project) -> None:
    table = table_of(trained)
    validation, test = (table[table["split"] == split] for split in ("validation", "test"))
    assert validation["rejected"].sum() == math.floor(RATE * len(validation))
    least_kept = validation.loc[~validation["rejected"], "similarity"].min()
    assert (table["rejected"] == (table["similarity"] < least_kept)).all()
    assert 0 < test["rejected"].sum() < len(test)


def test_predict_answers_none_of_these_and_what_it_would_have_answered(trained: Project) -> None:
    table = table_of(trained).set_index("photo")
    expected = table["rejected"].to_dict()
    source = trained.params["prepare"]["source"]
    combined = pd.read_csv(trained.root / "metrics/predictions/ensemble.csv").set_index("photo")
    labels = np.where(combined["probability_dog"] > 0.5, "dog", "cat")
    would = dict(zip(combined.index, labels, strict=True))

    answers = json.loads(trained.run("predict.py", source, "--json").stdout)
    by_photo = {Path(answer["photo"]).name: answer for answer in answers}
    assert {name: by_photo[name]["none_of_these"] for name in expected} == expected
    assert {name: by_photo[name]["label"] for name in expected} == would
    assert all(sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-5) for answer in answers)

    rows = list(csv.DictReader(io.StringIO(trained.run("predict.py", source, "--csv").stdout)))
    assert {Path(row["photo"]).name: row["none_of_these"] == "True" for row in rows if row["none_of_these"]} == {
        name: answer["none_of_these"] for name, answer in by_photo.items()
    }
    lines = trained.run("predict.py", source).stdout.splitlines()[1:]
    shown = {Path(re.split(" {2,}", line)[0]).name: re.split(" {2,}", line)[1] for line in lines}
    assert {name: shown[name] for name in expected} == {
        name: f"none of these ({would[name]})" if rejected else would[name] for name, rejected in expected.items()
    }


def test_predict_rejects_a_photo_that_is_unlike_all_others(trained: Project, tmp_path: Path) -> None:
    stripes = np.zeros((30, 40, 3), np.uint8)
    stripes[::4] = (20, 255, 20)
    (tmp_path / "stripes.png").write_bytes(encode(Image.fromarray(stripes), "PNG"))
    [answer] = json.loads(trained.run("predict.py", str(tmp_path / "stripes.png"), "--json").stdout)
    assert answer["none_of_these"] is True
    assert answer["label"] in ("cat", "dog")


def test_report_shows_the_rejected_test_photos_and_their_share(trained: Project) -> None:
    page = (trained.root / "metrics/report.html").read_text(encoding="utf-8")
    section = page[page.index('<section id="none-of-these"') :].partition("</section>")[0]
    test = table_of(trained).query("split == 'test'")
    rejected = test[test["rejected"]].sort_values("similarity")["photo"].tolist()
    assert f"{len(rejected)} of {len(test)} photos are rejected" in section
    assert re.findall(r'alt="Photo ([^,]+),', section) == rejected


def test_nothing_is_rejected_by_default(rejecting: Project, trained: Project) -> None:
    rejecting.params["reject"] = {"false_rejection_rate": None}
    for script in ("reject.py", "report.py"):
        rejecting.succeed(script)
    assert table_of(rejecting).empty
    assert 'id="none-of-these"' not in (rejecting.root / "metrics/report.html").read_text(encoding="utf-8")
    source = trained.params["prepare"]["source"]
    with_it, without = (
        json.loads(project.run("predict.py", source, "--json").stdout) for project in (trained, rejecting)
    )
    for answer in with_it:
        del answer["none_of_these"]
    assert without == with_it
    assert "none_of_these" not in rejecting.run("predict.py", source, "--csv").stdout


def test_rejecting_writes_the_same_bytes_again(rejecting: Project) -> None:
    paths = [rejecting.root / name for name in ("models/rejection.safetensors", "metrics/rejection.csv")]
    before = [path.read_bytes() for path in paths]
    rejecting.params["networks"] = {
        "vgg11": {"weights": "none"},
        **rejecting.params["networks"],
    }  # the order is no part
    rejecting.succeed("reject.py")
    assert [path.read_bytes() for path in paths] == before


def test_reject_needs_pretrained_weights(rejecting: Project) -> None:
    rejecting.params["networks"]["resnet18"]["weights"] = "none"
    rejecting.write_params()
    assert error_line(rejecting.run("reject.py")) == (
        "params.yaml: networks.resnet18.weights is none, but reject.false_rejection_rate needs pretrained weights; set "
        "other weights for this network, or reject.false_rejection_rate to null"
    )


def test_predict_refuses_what_was_learned_from_another_split_or_is_damaged(rejecting: Project) -> None:
    path = rejecting.root / "models/rejection.safetensors"
    models = (rejecting.root / "models/networks/resnet18.safetensors").read_bytes()
    rejecting.params["prepare"]["seed"] = 2
    rejecting.prepare()
    rejecting.succeed("reject.py")
    assert (rejecting.root / "models/networks/resnet18.safetensors").read_bytes() == models
    photo = rejecting.params["prepare"]["source"]
    assert error_line(rejecting.run("predict.py", photo)) == (
        "models/rejection.safetensors and the models were not made with the same split; run `dvc repro` to fix this"
    )
    rejecting.params["reject"] = {"false_rejection_rate": 0.25}
    rejecting.write_params()
    assert error_line(rejecting.run("predict.py", photo)) == (
        "models/rejection.safetensors is for reject.false_rejection_rate 0.3, but params.yaml says 0.25; run "
        "`dvc repro`"
    )
    path.write_bytes(b"")
    assert re.fullmatch(
        r"models/rejection.safetensors was not written by this pipeline \(.+\); run `dvc repro`",
        error_line(rejecting.run("predict.py", photo)),
    )
    path.unlink()
    assert error_line(rejecting.run("predict.py", photo)) == (
        "models/rejection.safetensors does not exist; run `dvc repro` to create it"
    )
