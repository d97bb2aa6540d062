"""The evaluate stage, and what the train stage leaves for it, on synthetic photos."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from projects import Project, copy_of, error_line
from safetensors.numpy import save_file
from safetensors.torch import load_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evaluated(prepared_small: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with resnet18 and mobilenet_v2 trained and evaluated. Read only."""
    project = copy_of(prepared_small, tmp_path_factory.mktemp("evaluated"))
    project.params["networks"] = {name: {"weights": "none"} for name in ("resnet18", "mobilenet_v2")}
    for script in (("train.py", "resnet18"), ("train.py", "mobilenet_v2"), ("evaluate.py",)):
        project.succeed(*script)
        assert project.last_run.stderr == ""  # progress bars are for terminals
    return project


def test_train_writes_the_model_its_curve_and_its_best_epoch(evaluated: Project) -> None:
    curves = pd.read_csv(evaluated.root / "metrics/curves/resnet18.csv")
    assert list(curves) == ["epoch", "lr", "train_loss", "validation_loss", "validation_accuracy"]
    assert list(curves["epoch"]) == [1, 2, 3]
    best = evaluated.read_json("metrics/train_resnet18.json")
    assert best == curves.loc[curves["validation_accuracy"].idxmax()].drop("lr").to_dict()
    assert load_file(evaluated.root / "models/resnet18.safetensors")["fc.0.weight"].shape == (512, 512)


def test_evaluate_scores_and_prints_the_models_that_were_kept(evaluated: Project) -> None:
    scores = evaluated.read_json("metrics/evaluate.json")
    assert list(scores) == ["resnet18", "mobilenet_v2"]
    for name, values in scores.items():
        assert values["validation_accuracy"] == evaluated.read_json(f"metrics/train_{name}.json")["validation_accuracy"]
    assert scores["resnet18"]["accuracy"] >= 0.9

    *rates, header, first, second = evaluated.last_run.stdout.splitlines()
    assert [re.fullmatch(r"(\w+): \d+\.\d images/s", rate)[1] for rate in rates] == ["resnet18", "mobilenet_v2"]
    assert " ".join(header.split()) == "accuracy correct 95 % interval log loss ROC AUC"
    correct = [f"{values['correct']}/24" for values in scores.values()]
    assert [row.split()[:3:2] for row in (first, second)] == [["resnet18", correct[0]], ["mobilenet_v2", correct[1]]]


def test_evaluate_scores_are_those_of_its_predictions(evaluated: Project) -> None:
    predictions = pd.read_csv(evaluated.root / "metrics/predictions.csv")
    assert list(predictions) == ["split", "photo", "label", "network", "logit_cat", "logit_dog"]
    assert len(predictions) == 2 * (24 + 24)
    in_splits = {
        (r["split"], r["photo"], r["label"]) for r in evaluated.split_table() if r["split"] in ("validation", "test")
    }
    assert set(predictions[["split", "photo", "label"]].itertuples(index=False, name=None)) == in_splits

    for name, values in evaluated.read_json("metrics/evaluate.json").items():
        rows = predictions[(predictions["network"] == name) & (predictions["split"] == "test")]
        says_dog = rows["logit_dog"] > rows["logit_cat"]
        is_dog = rows["label"] == "dog"
        assert values["correct"] == (says_dog == is_dog).sum()
        assert values["total"] == 24
        assert values["accuracy"] == round(values["correct"] / 24, 6)
        assert values["accuracy_low"] < values["accuracy"] <= values["accuracy_high"] <= 1
        margin_of_label = (rows["logit_dog"] - rows["logit_cat"]).where(is_dog, rows["logit_cat"] - rows["logit_dog"])
        assert values["log_loss"] == pytest.approx(np.log1p(np.exp(-margin_of_label)).mean(), abs=1e-6)
        assert values["recall"]["dog"] == pytest.approx((says_dog & is_dog).sum() / is_dog.sum(), abs=1e-6)
        says_cat = ~says_dog
        correct_cats = (says_cat & ~is_dog).sum()
        assert values["precision"]["cat"] == pytest.approx(correct_cats / max(1, says_cat.sum()), abs=1e-6)
        confusion = pd.read_csv(evaluated.root / f"metrics/confusion/{name}.csv")
        assert (confusion["actual"] == confusion["predicted"]).sum() == values["correct"]


def test_evaluate_refuses_models_that_do_not_fit(evaluated: Project, tmp_path: Path) -> None:
    project = copy_of(evaluated, tmp_path)
    scores, model = project.root / "metrics/evaluate.json", project.root / "models/resnet18.safetensors"
    earlier_scores = scores.read_bytes()

    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    line = error_line(project.run("evaluate.py"))
    assert line.startswith("models/resnet18.safetensors is not a model written by this pipeline (")

    model.rename(project.root / "models/resnet34.safetensors")
    assert error_line(project.run("evaluate.py")) == (
        "models/resnet18.safetensors does not exist; run `dvc repro` (if dvc.yaml has no stage train_resnet18, first "
        "run `python tools/networks.py mobilenet_v2 resnet18`)"
    )
    model.write_bytes(whole)
    assert error_line(project.run("evaluate.py")) == (
        "models/resnet34.safetensors is not for a network in params.yaml; add resnet34 to networks or delete the file"
    )
    (project.root / "models/resnet34.safetensors").unlink()

    project.params["prepare"]["seed"] = 2  # photos of this test split were in the other train split
    project.prepare()
    assert "was trained with a different split than " in error_line(project.run("evaluate.py"))
    project.params["prepare"] |= {"seed": 1, "image_size": 40}
    project.prepare()
    assert "was trained with a different image_size than " in error_line(project.run("evaluate.py"))
    assert scores.read_bytes() == earlier_scores


def test_evaluate_with_test_time_flip_averages_the_logits_of_both_views(evaluated: Project, tmp_path: Path) -> None:
    project = copy_of(evaluated, tmp_path)

    def evaluated_logits(test_time_flip: bool) -> np.ndarray:
        project.params = evaluated.params | {"evaluate": {"test_time_flip": test_time_flip}, "precision": "float32"}
        project.succeed("evaluate.py")
        predictions = pd.read_csv(project.root / "metrics/predictions.csv")
        return predictions[["logit_cat", "logit_dog"]].to_numpy()

    unflipped, both_views = evaluated_logits(test_time_flip=False), evaluated_logits(test_time_flip=True)
    for split in ("validation", "test"):
        pixels, labels, description = project.packed(split)
        file = project.root / f"data/prepared/{split}.safetensors"
        tensors = {"pixels": pixels[:, :, ::-1].copy(), "labels": labels}
        save_file(tensors, file, {"description": json.dumps(description)})
    mirrored = evaluated_logits(test_time_flip=False)
    assert np.abs(unflipped - mirrored).max() > 0.001
    assert both_views == pytest.approx((unflipped + mirrored) / 2, abs=1e-4)
