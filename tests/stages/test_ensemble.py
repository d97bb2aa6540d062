"""The ensemble stage, on predictions whose scores can be worked out by hand or by scikit-learn."""

import math
from pathlib import Path

from tests.support.predictions import write_network_scores
from tests.support.projects import Project, error_line

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn import metrics
from sklearn.linear_model import LogisticRegression

# A row for each photo: its label, and the margin (logit of dog minus logit of cat) that each network gives it.
TEST_MARGINS = [
    ("dog", {"first": 3.0, "second": -1.0, "third": -1.0}),  # the mean says dog, the majority cat
    ("dog", {"first": 2.0, "second": 4.0, "third": 1.0}),
    ("cat", {"first": 1.0, "second": -3.0, "third": -2.0}),  # incorrect for the first only
    ("cat", {"first": -2.0, "second": -1.0, "third": 1.0}),
]
# The first network classifies all validation photos correctly, the second and third half of them.
VALIDATION_MARGINS = [
    ("dog", {"first": 1.0, "second": 0.2, "third": -0.2}),
    ("dog", {"first": 2.0, "second": -0.2, "third": 0.2}),
    ("cat", {"first": -1.0, "second": 0.2, "third": -0.2}),
    ("cat", {"first": -2.0, "second": -0.2, "third": 0.2}),
]
SCORES = ["accuracy", "correct", "total", "accuracy_low", "accuracy_high", "accuracy_sd_over_seeds"]
SCORES += ["log_loss", "roc_auc", "balanced_accuracy", "balanced_accuracy_low", "balanced_accuracy_high", "macro_f1"]
CALIBRATION_SCORES = ["calibration_error", "calibration_error_low", "calibration_error_high"]
SCORES += [*CALIBRATION_SCORES, "uncalibrated_log_loss", *(f"uncalibrated_{name}" for name in CALIBRATION_SCORES)]


def write_predictions(root: Path, **splits: list[tuple[str, dict]]) -> None:
    """Write the networks' predictions: for each split, the label of each photo and its logits by network and class.

    A margin instead of logits is one of dog and cat.
    """
    rows = [
        {"split": split, "photo": f"{split}{number}.jpg", "label": label, "network": name}
        | {f"logit_{of}": x for of, x in (logits if isinstance(logits, dict) else {"cat": -logits, "dog": 0}).items()}
        for split, photos in splits.items()
        for number, (label, networks) in enumerate(photos)
        for name, logits in networks.items()
    ]
    (root / "metrics/predictions").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(root / "metrics/predictions/networks.csv", index=False)


def combine(project: Project, method: str, validation: list = VALIDATION_MARGINS, test: list = TEST_MARGINS) -> dict:
    """What the ensemble stage writes: the scores on test, the combination, the comparison with the best member."""
    write_predictions(project.root, validation=validation, test=test)
    write_network_scores(project.root)
    project.params["ensemble"]["method"] = method
    project.succeed("ensemble.py")
    written = ("models/combination.json", "metrics/best_member.json")
    return scores_on(project, "test") | project.read_json(written[0]) | project.read_json(written[1])


def scores_on(project: Project, split: str) -> dict:
    """The ensemble's scores on a split."""
    table = pd.read_csv(project.root / "metrics/scores/ensemble.csv")
    assert list(table) == ["network", "split", *SCORES]
    [row] = table[(table["network"] == "ensemble") & (table["split"] == split)].to_dict("records")
    return row


def class_scores(project: Project) -> pd.DataFrame:
    table = pd.read_csv(project.root / "metrics/class_scores/ensemble.csv")
    assert list(table) == ["network", "class", "photos", "precision", "recall", "recall_low", "recall_high", "f1"]
    return table.set_index("class")


def random_photos(classes: list[str], counts: list[int], networks: list[str], seed: int) -> list[tuple[str, dict]]:
    """Photos with logits that are right more often than not, and better for the later networks."""
    random = np.random.default_rng(seed)
    photos = []
    for label, count in zip(classes, counts, strict=True):
        for _ in range(count):
            logits = {}
            for quality, network in enumerate(networks, start=1):
                noise = random.normal(size=len(classes)).round(6)
                logits[network] = {name: x + quality * (name == label) for name, x in zip(classes, noise, strict=True)}
            photos.append((label, logits))
    return photos


def logits_of(photos: list[tuple[str, dict]]) -> np.ndarray:
    """[networks, N, classes]"""
    return np.array([[list(logits.values()) for logits in networks.values()] for _, networks in photos]).swapaxes(0, 1)


def labels_of(photos: list[tuple[str, dict]], classes: list[str]) -> np.ndarray:
    return np.array([classes.index(label) for label, _ in photos])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_ensemble_of_mean_logits_averages_margins_and_is_compared_with_the_best_member(project: Project) -> None:
    scores = combine(project, "mean_logits")

    means = [1 / 3, 7 / 3, -4 / 3, -2 / 3]  # all on the correct side
    assert (scores["accuracy"], scores["correct"], scores["total"]) == (1.0, 4, 4)
    for column, temperature in ("uncalibrated_log_loss", 1), ("log_loss", scores["temperature"]):
        losses = [-math.log(sigmoid(abs(mean) / temperature)) for mean in means]
        assert scores[column] == pytest.approx(sum(losses) / 4, abs=1e-6)
    assert (scores["roc_auc"], scores["balanced_accuracy"], scores["macro_f1"]) == (1.0, 1.0, 1.0)
    assert (class_scores(project)[["photos", "precision", "recall", "f1"]] == [2, 1.0, 1.0, 1.0]).all(axis=None)
    # Wilson's interval for 4 of 4: from n / (n + z²) to 1.
    assert (scores["accuracy_low"], scores["accuracy_high"]) == (pytest.approx(4 / (4 + 1.959964**2), abs=1e-5), 1.0)
    assert scores["best_member"] == "first"  # on validation; on test it is no better than the second
    assert (scores["corrected"], scores["broken"], scores["mcnemar_p"]) == (1, 0, 1.0)
    assert list(project.read_json("models/combination.json")) == ["method", "members", "classes", "temperature"]
    assert list(project.read_json("metrics/best_member.json")) == ["best_member", "corrected", "broken", "mcnemar_p"]
    assert (scores["method"], scores["members"]) == ("mean_logits", ["first", "second", "third"])


def test_the_best_member_has_the_lowest_log_loss_on_validation(project: Project) -> None:
    sign = {"dog": 1, "cat": -1}
    hesitant = dict.fromkeys(range(4), 0.1)  # all correct, log loss 0.64
    confident = hesitant | {0: -0.1, 1: 9.0, 2: 9.0}  # one is incorrect, log loss 0.35
    labels = ["dog", "cat", "dog", "cat"]
    validation = [
        (label, {"first": hesitant[n] * sign[label], "second": confident[n] * sign[label]})
        for n, label in enumerate(labels)
    ]
    assert combine(project, "majority_vote", validation, validation)["best_member"] == "second"


def test_ensemble_of_mean_probabilities_averages_each_networks_probabilities(project: Project) -> None:
    scores = combine(project, "mean_probabilities")

    means = [sum(map(sigmoid, margins.values())) / 3 for _, margins in TEST_MARGINS]
    correct = [(mean > 0.5) == (label == "dog") for mean, (label, _) in zip(means, TEST_MARGINS, strict=True)]
    assert scores["correct"] == sum(correct) == 3  # all but the first photo
    for column, temperature in ("uncalibrated_log_loss", 1), ("log_loss", scores["temperature"]):
        scaled = [sigmoid(math.log(mean / (1 - mean)) / temperature) for mean in means]
        losses = [-math.log(p if label == "dog" else 1 - p) for p, (label, _) in zip(scaled, TEST_MARGINS, strict=True)]
        assert scores[column] == pytest.approx(sum(losses) / 4, abs=1e-6)


@pytest.mark.parametrize("method", ["mean_logits", "mean_probabilities"])
def test_the_temperature_of_a_mean_lowers_its_log_loss_on_validation_and_changes_no_answer(
    method: str, project: Project
) -> None:
    classes, networks = ["ant", "bee", "cow"], ["first", "second"]
    photos = random_photos(classes, [30, 20, 10], networks, seed=1)
    temperature = combine(project, method, photos, random_photos(classes, [30, 12, 5], networks, seed=2))["temperature"]
    assert temperature < 0.8  # a mean is less confident than its members
    scores = scores_on(project, "validation")
    assert scores["log_loss"] < scores["uncalibrated_log_loss"]
    assert scores["calibration_error"] < scores["uncalibrated_calibration_error"]
    logits = logits_of(photos)
    mean = logits.mean(axis=0) if method == "mean_logits" else softmax(logits, axis=2).mean(axis=0)
    assert scores["correct"] == (mean.argmax(axis=1) == labels_of(photos, classes)).sum()


def test_ensemble_by_majority_vote_counts_votes(project: Project) -> None:
    scores = combine(project, "majority_vote")

    assert scores["correct"] == 3
    assert class_scores(project)["recall"].to_dict() == {
        "cat": 1.0,
        "dog": 0.5,
    }  # two of three call the first dog a cat
    assert (scores["corrected"], scores["broken"]) == (1, 1)


def test_ensemble_gives_a_tied_vote_to_the_more_confident_side(project: Project) -> None:
    tied = [("dog", {"first": 3.0, "second": -1.0}), ("cat", {"first": 1.0, "second": -3.0})]
    scores = combine(project, "majority_vote", validation=tied, test=tied)
    assert scores["correct"] == 2


def test_ensemble_by_majority_vote_of_three_classes_breaks_ties_by_the_mean_probability(project: Project) -> None:
    def photo(label: str, *networks: tuple[float, float, float]) -> tuple[str, dict]:
        logits = [dict(zip(("ant", "bee", "cow"), values, strict=True)) for values in networks]
        return label, dict(zip(("first", "second", "third"), logits, strict=True))

    photos = [
        photo("ant", (1, 0, 0), (1, 0, 0), (0, 9, 0)),  # two of three, however confident the third
        photo("bee", (1, 0, 0), (0, 3, 0), (0, 0, 1)),  # a vote each
        photo("cow", (1, 1, 0), (0, 0, 2), (0, 1, 0)),  # of two equal logits, the vote is for the first class
    ]
    scores = combine(project, "majority_vote", validation=photos, test=photos)
    assert scores["correct"] == 3
    table = pd.read_csv(project.root / "metrics/predictions/ensemble.csv")
    shares = table[["probability_ant", "probability_bee", "probability_cow"]][table["split"] == "test"].to_numpy()
    votes = np.array([[2, 1, 0], [1, 1, 1], [1, 1, 1]])
    assert shares == pytest.approx((votes + softmax(logits_of(photos), axis=2).mean(axis=0)) / 4, abs=1e-8)


def test_ensemble_fits_weights_on_validation_only(project: Project) -> None:
    scores = combine(project, "fitted_weights")
    assert list(scores["weights"]) == ["first", "second", "third"]
    assert scores["weights"]["first"] > 10 * abs(scores["weights"]["second"])  # the only one that can tell them apart
    assert scores["correct"] == 3  # the same as the first network
    logits = [sum(scores["weights"][n] * m for n, m in margins.items()) for _, margins in TEST_MARGINS]
    intercept = scores["intercepts"]["dog"] - scores["intercepts"]["cat"]
    losses = [
        math.log1p(math.exp(-(intercept + x) * (1 if label == "dog" else -1)))
        for x, (label, _) in zip(logits, TEST_MARGINS, strict=True)
    ]
    assert scores["log_loss"] == pytest.approx(sum(losses) / 4, abs=1e-5)
    assert pd.read_csv(project.root / "metrics/scores/ensemble.csv")["split"].tolist() == ["test"]

    swapped = [({"cat": "dog", "dog": "cat"}[label], margins) for label, margins in TEST_MARGINS]
    assert combine(project, "fitted_weights", test=swapped)["weights"] == scores["weights"]
    turned = [({"cat": "dog", "dog": "cat"}[label], margins) for label, margins in VALIDATION_MARGINS]
    assert combine(project, "fitted_weights", validation=turned)["weights"] != scores["weights"]


def test_ensemble_fits_the_weights_of_scikit_learns_logistic_regression_if_there_are_two_classes(
    project: Project,
) -> None:
    classes, networks = ["cat", "dog"], ["first", "second", "third"]
    validation = random_photos(classes, [150, 50], networks, seed=1)
    scores = combine(project, "fitted_weights", validation, random_photos(classes, [5, 5], networks, seed=2))

    margins = logits_of(validation)[:, :, 1] - logits_of(validation)[:, :, 0]
    fitted = LogisticRegression(tol=1e-10, max_iter=1000).fit(margins.T, labels_of(validation, classes))
    assert list(scores["weights"].values()) == pytest.approx(fitted.coef_[0], abs=1e-5)
    assert scores["intercepts"]["dog"] == -scores["intercepts"]["cat"]
    assert 2 * scores["intercepts"]["dog"] == pytest.approx(fitted.intercept_[0], abs=1e-5)


def test_ensemble_fits_weights_of_four_classes_that_have_less_loss_than_the_mean(project: Project) -> None:
    classes, networks = ["ant", "bee", "cow", "doe"], ["first", "second"]
    validation = random_photos(classes, [80, 40, 20, 10], networks, seed=1)
    scores = combine(project, "fitted_weights", validation, random_photos(classes, [5] * 4, networks, seed=2))
    weights, intercepts = list(scores["weights"].values()), list(scores["intercepts"].values())
    assert list(scores["intercepts"]) == classes
    assert sum(intercepts) == pytest.approx(0, abs=1e-5)

    logits, labels = logits_of(validation), labels_of(validation, classes)

    def loss(weights: list[float], intercepts: list[float]) -> float:
        return metrics.log_loss(labels, softmax(np.tensordot(weights, logits, axes=1) + intercepts, axis=1))

    def penalised(weights: list[float], intercepts: list[float]) -> float:
        return len(labels) * loss(weights, intercepts) + sum(np.square(weights)) / 2

    assert loss(weights, intercepts) < loss([0.5, 0.5], [0] * 4)
    least = penalised(weights, intercepts)
    for step in (-0.01, 0.01):  # it is the least: any other values have more
        for index in range(len(networks)):
            assert penalised(np.array(weights) + step * np.eye(2)[index], intercepts) > least
        for index in range(len(classes)):
            assert penalised(weights, np.array(intercepts) + step * np.eye(4)[index]) > least
    test = pd.read_csv(project.root / "metrics/predictions/ensemble.csv").query("split == 'validation'")
    written = test[[f"probability_{name}" for name in classes]].to_numpy()
    assert written == pytest.approx(softmax(np.tensordot(weights, logits, axes=1) + intercepts, axis=1), abs=1e-8)


def test_ensemble_scores_three_unequal_classes_as_scikit_learn_does(project: Project) -> None:
    classes, networks = ["ant", "bee", "cow"], ["first", "second"]
    validation = random_photos(classes, [9, 5, 3], networks, seed=1)
    test = random_photos(classes, [30, 12, 5], networks, seed=2)
    temperature = combine(project, "mean_logits", validation, test)["temperature"]

    for split, photos in {"validation": validation, "test": test}.items():
        scores, labels = scores_on(project, split), labels_of(photos, classes)
        p = softmax(logits_of(photos).mean(axis=0) / temperature, axis=1)
        predicted = p.argmax(axis=1)
        assert 0.5 < scores["accuracy"] < 0.95  # there is something to get wrong
        assert (scores["correct"], scores["total"]) == ((predicted == labels).sum(), len(photos))
        assert scores["accuracy_low"] < scores["accuracy"] < scores["accuracy_high"]
        expected = {
            "accuracy": metrics.accuracy_score(labels, predicted),
            "log_loss": metrics.log_loss(labels, p),
            "roc_auc": metrics.roc_auc_score(labels, p, multi_class="ovr", average="macro"),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels, predicted),
            "macro_f1": metrics.f1_score(labels, predicted, average="macro"),
        }
        assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-6)

    table = class_scores(project)
    assert table.index.tolist() == classes
    assert table["photos"].tolist() == [30, 12, 5]
    for column, function in {
        "precision": metrics.precision_score,
        "recall": metrics.recall_score,
        "f1": metrics.f1_score,
    }.items():
        assert table[column].tolist() == pytest.approx(function(labels, predicted, average=None), abs=1e-6)


def test_ensemble_leaves_the_main_scores_to_dvc(project: Project) -> None:
    combine(project, "mean_logits")
    test, validation = scores_on(project, "test"), scores_on(project, "validation")
    main = {name: test[name] for name in ("accuracy", "log_loss")}
    on_validation = {f"validation_{name}": validation[name] for name in ("accuracy", "log_loss")}
    written = project.read_json("metrics/ensemble.json")
    assert written == main | on_validation
    assert list(written) == [*main, "validation_accuracy", "validation_log_loss"]
    combine(project, "fitted_weights")  # the weights have seen the photos of validation
    assert list(project.read_json("metrics/ensemble.json")) == [*main]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mean_logits", "mean_probabilities", "majority_vote", "fitted_weights"])
def test_ensemble_combines_a_hundred_classes(project: Project, method: str) -> None:
    classes = [f"{number:03}" for number in range(98)] + ["nan", "probability_logit_x"]
    networks = ["first", "second"]
    validation = random_photos(classes, [3] * 100, networks, seed=1)
    scores = combine(project, method, validation, random_photos(classes, [2] * 100, networks, seed=2))
    assert scores["total"] == 200
    assert scores["accuracy"] > 0.1  # chance: 0.01
    text = pd.read_csv(project.root / "metrics/class_scores/ensemble.csv", dtype=str, keep_default_na=False)
    assert text["class"].tolist() == classes
    predictions = pd.read_csv(project.root / "metrics/predictions/ensemble.csv", dtype=str, keep_default_na=False)
    assert list(predictions) == ["photo", "label", "split", *(f"probability_{name}" for name in classes)]
    assert predictions["label"].tolist() == [*np.repeat(classes, 3), *np.repeat(classes, 2)]


def test_ensemble_compares_changed_photos_with_mcnemars_exact_test(project: Project) -> None:
    labels = ["dog", "cat"] * 10
    sign = {"dog": 1.0, "cat": -1.0}
    validation = [(label, {"first": sign[label], "second": -sign[label]}) for label in labels]
    # The first network is incorrect on 6 photos that the more confident second corrects, and correct on one that the
    # second breaks.
    test = [
        (label, {"first": (-1 if n < 6 else 1) * sign[label], "second": (-3 if n == 6 else 3) * sign[label]})
        for n, label in enumerate(labels)
    ]
    scores = combine(project, "mean_logits", validation, test)
    assert scores["best_member"] == "first"
    assert (scores["corrected"], scores["broken"]) == (6, 1)
    assert scores["mcnemar_p"] == 2 * (1 + 7) / 2**7
    *table, comparison = project.last_run.stdout.splitlines()
    assert [line.split()[:2] for line in table[1:]] == [
        ["first", "0.700000"],
        ["second", "0.950000"],
        ["ensemble", "(mean_logits)"],
    ]
    assert comparison == (
        "compared with first, its best member on validation: 6 mistakes corrected, 1 added (McNemar's exact test: "
        "p = 0.125)"
    )


def single(photos: list[tuple[str, dict]]) -> list[tuple[str, dict]]:
    """The same photos, as the first network alone answers them."""
    return [(label, {"first": networks["first"]}) for label, networks in photos]


@pytest.mark.parametrize("method", ["mean_logits", "mean_probabilities", "fitted_weights"])
def test_ensemble_of_one_network_is_shown_only_if_it_gives_other_probabilities(project: Project, method: str) -> None:
    scores = combine(project, method, single(VALIDATION_MARGINS), single(TEST_MARGINS))
    assert (scores["correct"], scores["total"]) == (3, 4)  # in any case, the files are there
    _, first, *others = project.last_run.stdout.splitlines()
    assert first.split()[:3] == ["first", "0.750000", "3/4"]
    if method == "fitted_weights":
        assert scores["log_loss"] != float(first.split()[-2])
        assert others[0].split()[:2] == ["ensemble", "(fitted_weights)"]
        assert others[1].startswith("compared with first alone: 0 mistakes corrected, 0 added (McNemar's exact test:")
    else:
        assert others == ["first is the only network, so the ensemble gives the same answers"]


def test_ensemble_shows_balanced_accuracy_if_classes_are_unequal(project: Project) -> None:
    networks = ["first", "second"]
    for counts, is_shown in (([20, 20], False), ([21, 20], False), ([40, 20], True)):
        photos = random_photos(["cat", "dog"], counts, networks, seed=1)
        scores = combine(project, "mean_logits", photos, photos)
        header, *rows, _ = project.last_run.stdout.splitlines()
        assert ("balanced accuracy" in header) == is_shown
        shown = f"{scores['balanced_accuracy']:.6f} {scores['balanced_accuracy_low']:.4f} to "
        assert (shown in rows[-1]) == is_shown
        assert scores["balanced_accuracy_low"] < scores["balanced_accuracy"] < scores["balanced_accuracy_high"]


def test_ensemble_without_predictions_says_what_writes_them(project: Project) -> None:
    project.write_params()
    assert error_line(project.run("ensemble.py")) == (
        "metrics/predictions/networks.csv does not exist; run `dvc repro` to create it"
    )


def test_ensemble_writes_the_probabilities_that_it_scores(project: Project) -> None:
    scores = combine(project, "mean_logits")
    table = pd.read_csv(project.root / "metrics/predictions/ensemble.csv")
    assert list(table) == ["photo", "label", "split", "probability_cat", "probability_dog"]
    assert table["split"].tolist() == ["validation"] * 4 + ["test"] * 4
    test = table[table["split"] == "test"]
    assert test["label"].tolist() == [label for label, _ in TEST_MARGINS]
    means = [sum(margins.values()) / 3 / scores["temperature"] for _, margins in TEST_MARGINS]
    assert test["probability_dog"].tolist() == pytest.approx([sigmoid(m) for m in means], abs=1e-8)
    assert test["probability_cat"].tolist() == pytest.approx([sigmoid(-m) for m in means], abs=1e-8)
    assert sum((test["probability_dog"] > 0.5) == (test["label"] == "dog")) == scores["correct"]
