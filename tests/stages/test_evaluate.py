"""The evaluate stage, and what the train stage leaves for it, on synthetic photos."""

import json
import re
from pathlib import Path

from pipeline.core.class_sizes import are_unequal, describe_few, describe_unequal
from pipeline.scores.curves import reliability_table, roc_table
from pipeline.scores.scoring import balanced_accuracy_interval, score, score_classes
from tests.support.photos import encode
from tests.support.projects import Project, copy_of, error_line

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn import metrics

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
    losses = ["train_loss", "validation_loss", "validation_calibrated_loss"]
    assert list(curves) == ["epoch", "lr", *losses, "validation_accuracy", "temperature", "kept"]
    assert list(curves["epoch"]) == [1, 2, 3]
    best = evaluated.read_json("metrics/train/resnet18.json")
    kept = curves.sort_values(["validation_calibrated_loss", "validation_loss"]).iloc[0]
    assert best.pop("threads") == 1  # as OMP_NUM_THREADS in conftest.py says
    assert best == kept.drop(["lr", "kept"]).rename({"epoch": "kept_epoch"}).to_dict()
    assert load_file(evaluated.root / "models/networks/resnet18.safetensors")["fc.0.weight"].shape == (512, 512)


def test_evaluate_scores_and_prints_the_models_that_were_kept(evaluated: Project) -> None:
    scores = scores_by_split(evaluated)
    assert scores.index.tolist() == [(n, s) for n in ("resnet18", "mobilenet_v2") for s in ("validation", "test")]
    for name in ("resnet18", "mobilenet_v2"):
        kept = evaluated.read_json(f"metrics/train/{name}.json")
        assert scores.loc[(name, "validation"), "accuracy"] == kept["validation_accuracy"]
    assert scores.loc[("resnet18", "test"), "accuracy"] >= 0.9

    photos, *rates, header, first, second = evaluated.last_run.stdout.splitlines()
    assert re.fullmatch(r"\d+ validation and 24 test photos, b?float\d+ on cpu", photos)
    assert [re.fullmatch(r"(\w+): \d+\.\d images/s", rate)[1] for rate in rates] == ["resnet18", "mobilenet_v2"]
    assert " ".join(header.split()) == "accuracy correct 95 % interval log loss ROC AUC"
    correct = [f"{count}/24" for count in scores.xs("test", level="split")["correct"]]
    assert [row.split()[:3:2] for row in (first, second)] == [["resnet18", correct[0]], ["mobilenet_v2", correct[1]]]


def test_evaluate_leaves_the_main_scores_to_dvc(evaluated: Project) -> None:
    scores = scores_by_split(evaluated)
    assert sorted(path.name for path in (evaluated.root / "metrics/networks").iterdir()) == [
        "mobilenet_v2.json",
        "resnet18.json",
    ]
    for name in ("resnet18", "mobilenet_v2"):
        written = evaluated.read_json(f"metrics/networks/{name}.json")
        kept_epoch = evaluated.read_json(f"metrics/train/{name}.json")["kept_epoch"]
        assert written == scores.loc[(name, "test"), ["accuracy", "log_loss"]].to_dict() | {"kept_epoch": kept_epoch}


def scores_by_split(project: Project) -> pd.DataFrame:
    """metrics/scores/networks.csv, by network and split."""
    return pd.read_csv(project.root / "metrics/scores/networks.csv").set_index(["network", "split"])


def test_evaluate_scores_are_those_of_its_predictions(evaluated: Project) -> None:
    predictions = pd.read_csv(evaluated.root / "metrics/predictions/networks.csv")
    assert list(predictions) == ["split", "photo", "label", "network", "logit_cat", "logit_dog"]
    assert len(predictions) == 2 * (24 + 24)
    in_splits = {
        (r["split"], r["photo"], r["label"]) for r in evaluated.split_table() if r["split"] in ("validation", "test")
    }
    assert set(predictions[["split", "photo", "label"]].itertuples(index=False, name=None)) == in_splits

    class_scores = pd.read_csv(evaluated.root / "metrics/class_scores/networks.csv").set_index(["network", "class"])
    assert class_scores.index.tolist() == [(n, c) for n in ("resnet18", "mobilenet_v2") for c in ("cat", "dog")]
    assert (class_scores["photos"] == 12).all()
    for (name, split), values in scores_by_split(evaluated).iterrows():
        rows = predictions[(predictions["network"] == name) & (predictions["split"] == split)]
        says_dog = rows["logit_dog"] > rows["logit_cat"]
        is_dog = rows["label"] == "dog"
        assert values["correct"] == (says_dog == is_dog).sum()
        assert values["total"] == 24
        assert values["accuracy"] == round(values["correct"] / 24, 6)
        assert values["accuracy_low"] < values["accuracy"] <= values["accuracy_high"] <= 1
        margin_of_label = (rows["logit_dog"] - rows["logit_cat"]).where(is_dog, rows["logit_cat"] - rows["logit_dog"])
        assert values["log_loss"] == pytest.approx(np.log1p(np.exp(-margin_of_label)).mean(), abs=1e-6)
        if split == "validation":
            continue
        dog, cat = class_scores.loc[(name, "dog")], class_scores.loc[(name, "cat")]
        assert dog["recall"] == pytest.approx((says_dog & is_dog).sum() / is_dog.sum(), abs=1e-6)
        says_cat = ~says_dog
        correct_cats = (says_cat & ~is_dog).sum()
        assert cat["precision"] == pytest.approx(correct_cats / max(1, says_cat.sum()), abs=1e-6)
        assert values["balanced_accuracy"] == pytest.approx((dog["recall"] + cat["recall"]) / 2, abs=1e-6)
        assert values["macro_f1"] == pytest.approx((dog["f1"] + cat["f1"]) / 2, abs=1e-6)


def test_evaluate_refuses_models_that_do_not_fit(evaluated: Project, tmp_path: Path) -> None:
    project = copy_of(evaluated, tmp_path)
    scores, model = project.root / "metrics/scores/networks.csv", project.root / "models/networks/resnet18.safetensors"
    earlier_scores = scores.read_bytes()

    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    line = error_line(project.run("evaluate.py"))
    assert line.startswith("models/networks/resnet18.safetensors is not a model written by this pipeline (")

    model.rename(project.root / "models/networks/resnet34.safetensors")
    assert error_line(project.run("evaluate.py")) == (
        "models/networks/resnet18.safetensors does not exist; run `dvc repro` (if dvc.yaml has no stage "
        "train_resnet18, first run `python tools/networks.py mobilenet_v2 resnet18`)"
    )
    model.write_bytes(whole)
    assert error_line(project.run("evaluate.py")) == (
        "models/networks/resnet34.safetensors is not for a network in params.yaml; add resnet34 to networks or delete "
        "the file"
    )
    (project.root / "models/networks/resnet34.safetensors").unlink()

    project.params["classes"] = ["dog", "cat"]  # a different order is different labels
    project.prepare()
    assert error_line(project.run("evaluate.py")) == (
        "models/networks/resnet18.safetensors was trained for the classes cat, dog, but "
        "data/prepared/validation.safetensors has dog, cat; run `dvc repro`"
    )
    project.params["classes"] = ["cat", "dog"]
    project.params["prepare"]["seed"] = 2  # photos of this test split were in the other train split
    project.prepare()
    assert "was trained with a different split than " in error_line(project.run("evaluate.py"))
    project.params["prepare"] |= {"seed": 1, "image_size": 40}
    project.prepare()
    assert "was trained with a different image_size than " in error_line(project.run("evaluate.py"))
    assert scores.read_bytes() == earlier_scores


def test_evaluate_deletes_the_scores_of_removed_networks(evaluated: Project, tmp_path: Path) -> None:
    project = copy_of(evaluated, tmp_path)
    del project.params["networks"]["mobilenet_v2"]
    (project.root / "models/networks/mobilenet_v2.safetensors").unlink()
    project.succeed("evaluate.py")
    assert [path.name for path in (project.root / "metrics/networks").iterdir()] == ["resnet18.json"]


def test_evaluate_scores_three_unequal_classes_whose_names_look_like_numbers(project: Project) -> None:
    classes = ["10", "9", "nan"]
    random = np.random.default_rng(1)
    photos = {}
    for shade, (name, count) in enumerate(zip(classes, (24, 16, 8), strict=True)):
        for number in range(count):
            pixels = random.integers(90 * shade, 90 * shade + 60, (40, 40, 3), dtype="uint8")
            photos[f"{name}/{number}.png"] = encode(Image.fromarray(pixels), "PNG")
    project.photos(photos, "photos")
    project.split(train=0.5, validation=0.25, test=0.25)
    project.params |= {"classes": classes, "networks": {"resnet18": {"weights": "none"}}}
    project.params["train"] |= {"layers": "all", "epochs": 2}
    for script in (("prepare.py",), ("train.py", "resnet18"), ("evaluate.py",), ("ensemble.py",)):
        project.succeed(*script)

    model = load_file(project.root / "models/networks/resnet18.safetensors")
    assert model["fc.3.weight"].shape == (3, 512)
    table = pd.read_csv(project.root / "metrics/predictions/networks.csv", dtype={"label": str}, keep_default_na=False)
    assert list(table) == ["split", "photo", "label", "network", *(f"logit_{name}" for name in classes)]
    test = table[table["split"] == "test"]
    labels = test["label"].map(classes.index).to_numpy()
    assert np.bincount(labels).tolist() == [6, 4, 2]
    p = softmax(test.filter(like="logit_").to_numpy(), axis=1)
    scores = scores_by_split(project).loc[("resnet18", "test")]
    expected = {
        "correct": (p.argmax(axis=1) == labels).sum(),
        "log_loss": metrics.log_loss(labels, p),
        "roc_auc": metrics.roc_auc_score(labels, p, multi_class="ovr"),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, p.argmax(axis=1)),
        "macro_f1": metrics.f1_score(labels, p.argmax(axis=1), average="macro"),
    }
    assert scores[list(expected)].to_dict() == pytest.approx(expected, abs=1e-6)
    class_scores = pd.read_csv(
        project.root / "metrics/class_scores/networks.csv", dtype={"class": str}, keep_default_na=False
    )
    assert class_scores[["class", "photos"]].to_numpy().tolist() == [["10", 6], ["9", 4], ["nan", 2]]
    ensemble = project.read_json("metrics/ensemble.json")  # of the one network
    of_network = {"kept_epoch": 2} | {name: ensemble[name] for name in ("accuracy", "log_loss")}
    assert project.read_json("metrics/networks/resnet18.json") == of_network


def test_evaluate_names_classes_with_few_test_photos_and_shows_their_recall(project: Project) -> None:
    """Also prepare does. The third class has a tenth of the photos of the others."""
    counts = {"bright": 40, "dark": 40, "rare": 4}
    shades = dict(zip(counts, (180, 20, 100), strict=True))
    random = np.random.default_rng(1)
    photos = {
        f"{name}/{n}.png": encode(
            Image.fromarray(random.integers(shades[name], shades[name] + 60, (40, 40, 3), dtype="uint8")), "PNG"
        )
        for name, count in counts.items()
        for n in range(count)
    }
    project.photos(photos, "photos")
    project.split(train=0.5, validation=0.25, test=0.25)
    project.params |= {"classes": "auto", "networks": {"resnet18": {"weights": "none"}}}
    note, _ = project.succeed("prepare.py").splitlines()
    assert note == (
        "note: fewer than 10 test photos of rare (1); their recall will say little: add photos of them, or put more "
        "into test"
    )
    project.succeed("train.py", "resnet18")
    *_, header, scored, note, columns, row = project.succeed("evaluate.py").splitlines()
    assert "balanced accuracy" in header
    assert f"{scores_by_split(project).loc[('resnet18', 'test'), 'balanced_accuracy']:.6f}" in scored
    assert note == (
        "note: fewer than 10 test photos of rare (1); the 95 % intervals show how little their recall says:"
    )
    assert " ".join(columns.split()) == "class photos recall of resnet18"
    of_rare = pd.read_csv(project.root / "metrics/class_scores/networks.csv").set_index("class").loc["rare"]
    interval = "0.21 to 1.00" if of_rare["recall"] else "0.00 to 0.79"  # Wilson's for 1 of 1 and 0 of 1
    assert " ".join(row.split()) == f"rare 1 {of_rare['recall']:.2f} ({interval})"


@pytest.mark.parametrize(
    ("photos", "unequal"),
    [
        ([2250, 2250], False),
        ([83, 70], False),  # ants and bees: 6.5 of 153 photos out of balance, 4 %
        ([21, 29, 21, 23, 27], True),  # flowers: 7.6 of 121, 6 %
        ([4, 4, 1], True),
        ([3, 2], False),  # a split of equal classes may be so
        ([5, 4] * 50, False),
        ([50] * 99 + [2], False),  # a rare one of a hundred hardly changes the accuracy
    ],
)
def test_classes_are_unequal_if_that_can_show_in_the_accuracy(photos: list[int], unequal: bool) -> None:
    assert are_unequal(photos) == unequal


@pytest.mark.parametrize(
    ("photos", "recall", "is_balanced", "expected"),
    [
        ([40, 10], [1.0, 0.5], False, ""),
        ([41, 10], [1.0, 0.5], False, "balanced accuracy 0.7500, recall of the rarest class, b, 0.5000 (4 of 8); try "),
        ([41, 10], [1.0, 0.5], True, "balanced accuracy 0.7500, recall of the rarest class, b, 0.5000 (4 of 8)"),
        ([41, 10], [0.8, 1.0], False, "balanced accuracy 0.9000, recall of the rarest class, b, 1.0000 (8 of 8)"),
    ],
)
def test_class_weights_are_advised_only_where_they_may_help(
    photos: list[int], recall: list[float], is_balanced: bool, expected: str
) -> None:
    in_train, of_class = dict(zip("ab", photos, strict=True)), dict(zip("ab", recall, strict=True))
    text = describe_unequal(in_train, {"a": 20, "b": 8}, of_class, "" if is_balanced else "train.class_weights")
    assert text == (f"{expected}train.class_weights=balanced" if expected.endswith("try ") else expected)


def test_classes_with_few_test_photos_are_named_the_fewest_first() -> None:
    assert describe_few({"cat": 10, "dog": 9, "owl": 2}) == "fewer than 10 test photos of owl (2), dog (9)"
    assert describe_few({"cat": 10, "dog": 10}) == ""
    many = {f"kind {number}": 9 - number % 5 for number in range(100)}
    assert describe_few(many) == "fewer than 10 test photos of kind 4 (5), kind 9 (5), kind 14 (5), ... (100 in all)"


@pytest.mark.parametrize(("correct", "total"), [(0, 1), (1, 1), (2, 2), (7, 9), (4453, 4500), (4500, 4500)])
def test_scores_have_wilsons_intervals(correct: int, total: int) -> None:
    labels = np.repeat([0, 1], total)
    predicted = np.concatenate([labels[:total], np.arange(total) < correct])  # in class 1, the first `correct` are
    probabilities = np.eye(2)[predicted.astype(int)] * 0.8 + 0.1
    for found, expected in (
        (score_classes(probabilities, labels, ["cat", "dog"]).loc[1, ["recall_low", "recall_high"]], (correct, total)),
        (pd.Series(score(probabilities, labels))[["accuracy_low", "accuracy_high"]], (total + correct, 2 * total)),
    ):
        interval = binomtest(*expected).proportion_ci(method="wilson")
        assert found.tolist() == pytest.approx([interval.low, interval.high], abs=1e-6)


@pytest.mark.parametrize(
    ("photos", "recalls"),
    [
        ([4000, 200], [0.99, 0.8]),
        ([20, 21, 23, 26, 31], [0.98] * 5),
        ([500, 30], [0.99, 0.7]),
        ([2] * 50, [0.97] * 50),
    ],
)
def test_interval_of_balanced_accuracy_contains_the_true_one_as_often_as_it_says(
    photos: list[int], recalls: list[float]
) -> None:
    random, photos = np.random.default_rng(1), np.array(photos)
    contained = []
    for correct in random.binomial(photos, recalls, (2000, len(photos))):
        interval = balanced_accuracy_interval(correct / photos, photos)
        contained.append(interval["balanced_accuracy_low"] <= np.mean(recalls) <= interval["balanced_accuracy_high"])
    assert 0.93 <= np.mean(contained) <= 0.98


def test_curves_of_three_classes_agree_with_the_scores() -> None:
    random = np.random.default_rng(1)
    labels = random.choice(3, 2000, p=[0.6, 0.3, 0.1])
    probabilities = softmax(random.normal(size=(2000, 3)) + 2 * np.eye(3)[labels], axis=1)
    scores = score(probabilities, labels)
    roc = roc_table(probabilities, labels)
    assert (roc.iloc[0] == 0).all()
    assert (roc.iloc[-1] == 1).all()
    assert np.trapezoid(roc["true_positive_rate"], roc["false_positive_rate"]) == pytest.approx(
        scores["roc_auc"], abs=1e-3
    )
    reliability = reliability_table(probabilities, labels)
    assert reliability["confidence_from"].min() == 0.25  # nothing is less likely than one in three
    assert (reliability["photos"].sum(), reliability["correct"].sum()) == (2000, scores["correct"])
    assert (reliability["confidence_from"] <= reliability["confidence"]).all()
    assert (reliability["confidence"] <= reliability["confidence_to"]).all()


def test_evaluate_with_test_time_flip_averages_the_logits_of_both_views(evaluated: Project, tmp_path: Path) -> None:
    project = copy_of(evaluated, tmp_path)

    def evaluated_logits(test_time_flip: bool) -> np.ndarray:
        project.params = evaluated.params | {"evaluate": {"test_time_flip": test_time_flip}, "precision": "float32"}
        project.succeed("evaluate.py")
        predictions = pd.read_csv(project.root / "metrics/predictions/networks.csv")
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
